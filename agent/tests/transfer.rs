//! Parts over real QUIC between two endpoints, with ends in memory: what the data path's middle
//! promises whatever stands at its ends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steep_agent::chunk::{Packer, PartReader, PartWriter, ReadStep, Sent};
use steep_agent::peer::stream::{Incoming, send};
use steep_agent::rate::Rate;
use steep_agent::telemetry::Flow;
use steep_certs::{Credentials, Role};
use steep_protocol::limits::CHUNK_RAW_MAX;
use steep_protocol::message::job::Compression;
use steep_protocol::message::peer::PeerRequest;
use steep_protocol::quic::{Connection, Endpoint, Expect, Tuning};
use steep_protocol::{ByteCount, Fault, FaultKind, JobId, NodeId, RowCount};

/// Yields its bytes, then its rows, or a fault after `fails_at` bytes.
struct Memory {
    bytes: Vec<u8>,
    at: usize,
    rows: u64,
    fails_at: Option<usize>,
}

impl Memory {
    fn new(bytes: Vec<u8>, rows: u64) -> Self {
        Self {
            bytes,
            at: 0,
            rows,
            fails_at: None,
        }
    }
}

impl PartReader for Memory {
    async fn read(&mut self, into: &mut Vec<u8>, limit: usize) -> Result<ReadStep, Fault> {
        if self.fails_at.is_some_and(|f| self.at >= f) {
            return Err(Fault::new(FaultKind::Failed, "the table caught fire"));
        }
        let room = limit - into.len();
        let end = (self.at + room).min(self.bytes.len());
        into.extend_from_slice(&self.bytes[self.at..end]);
        self.at = end;
        if end == self.bytes.len() && into.len() < limit {
            Ok(ReadStep::End {
                rows: RowCount(self.rows),
            })
        } else {
            Ok(ReadStep::More)
        }
    }
}

/// What a commit made durable: the bytes, and what the source said they were.
type Committed = (Vec<u8>, Sent);

#[derive(Default, Clone)]
struct Table {
    committed: Arc<Mutex<Option<Committed>>>,
}

struct Load {
    table: Table,
    bytes: Vec<u8>,
    largest: usize,
}

impl PartWriter for Load {
    async fn write(&mut self, data: &[u8]) -> Result<(), Fault> {
        self.largest = self.largest.max(data.len());
        assert!(self.largest <= CHUNK_RAW_MAX);
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    async fn commit(self, sent: Sent) -> Result<(), Fault> {
        *self.table.committed.lock().unwrap() = Some((self.bytes, sent));
        Ok(())
    }
}

struct Pair {
    source: Connection,
    target: Connection,
    _endpoints: (Endpoint, Endpoint),
}

async fn pair() -> Pair {
    let dir = tempfile::tempdir().unwrap();
    steep_certs::init_ca(dir.path()).unwrap();
    let credentials = |name: &str| {
        let files = steep_certs::issue(dir.path(), Role::Agent, name, &[], None).unwrap();
        Credentials::load(&files.ca, &files.certificate, &files.key).unwrap()
    };
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = Endpoint::listen(local, &credentials("a"), Tuning::BULK).unwrap();
    let dialer = Endpoint::dialer(&credentials("b"), Tuning::BULK).unwrap();
    let address = listener.local_addr().to_string();
    let expect = Expect::Agent(NodeId::parse("a").unwrap());
    let accept = async { listener.accept().await.unwrap().handshake().await };
    let (dialled, accepted) = tokio::join!(dialer.dial(&address, &expect), accept);
    Pair {
        source: accepted.unwrap(),
        target: dialled.unwrap(),
        _endpoints: (listener, dialer),
    }
}

/// Moves one part and says what the target's end came to.
async fn transfer(
    pair: &Pair,
    mut reader: Memory,
    compression: Compression,
    table: &Table,
) -> Result<Sent, Fault> {
    let sending = async {
        let (mut sender, mut receiver) = pair.source.accept().await.unwrap();
        receiver.recv::<PeerRequest>().await.unwrap();
        let packer = Packer::new(compression, Duration::ZERO);
        let _ = send(&mut reader, packer, &mut sender, &Flow::default()).await;
        let _ = sender.drained().await;
    };
    let receiving = async {
        let (mut sender, receiver) = pair.target.open().await.unwrap();
        sender
            .send(&PeerRequest::Ping { job: JobId(1) })
            .await
            .unwrap();
        sender.finish();
        let load = Load {
            table: table.clone(),
            bytes: Vec::new(),
            largest: 0,
        };
        Incoming::new(receiver)
            .pour(load, &Rate::new(None), |_, _| {})
            .await
    };
    let ((), received) = tokio::join!(sending, receiving);
    received
}

fn rows_like(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| {
            if i % 7 == 0 {
                (i / 97 % 251) as u8
            } else {
                b' '
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_arrives_whole_under_every_compression() {
    let pair = pair().await;
    let lengths = [
        0,
        1,
        CHUNK_RAW_MAX - 1,
        CHUNK_RAW_MAX,
        CHUNK_RAW_MAX + 1,
        3_000_000,
    ];
    for compression in [
        Compression::Auto,
        Compression::None,
        Compression::Lz4,
        Compression::Zstd(3),
    ] {
        for length in lengths {
            let table = Table::default();
            let bytes = rows_like(length);
            let sent = transfer(&pair, Memory::new(bytes.clone(), 42), compression, &table)
                .await
                .unwrap();
            assert_eq!(
                (sent.rows, sent.bytes),
                (RowCount(42), ByteCount(length as u64))
            );
            let (arrived, told) = table.committed.lock().unwrap().take().unwrap();
            assert!(
                arrived == bytes,
                "{compression}: {length} bytes changed on the way"
            );
            assert_eq!(told, sent);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_fails_midway_says_why_and_nothing_is_committed() {
    let pair = pair().await;
    let table = Table::default();
    let mut reader = Memory::new(rows_like(2_000_000), 42);
    reader.fails_at = Some(1_000_000);
    let fault = transfer(&pair, reader, Compression::Lz4, &table)
        .await
        .unwrap_err();
    assert_eq!(fault.message, "the table caught fire");
    assert!(table.committed.lock().unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_midway_commits_nothing_and_is_worth_another_try() {
    let pair = pair().await;
    let table = Table::default();
    let sending = async {
        let (mut sender, mut receiver) = pair.source.accept().await.unwrap();
        receiver.recv::<PeerRequest>().await.unwrap();
        let mut packer = Packer::new(Compression::None, Duration::ZERO);
        let (head, payload) = packer.pack(&mut rows_like(100_000)).unwrap();
        sender.send_head(head).await.unwrap();
        sender.send_bytes(payload).await.unwrap();
        pair.source
            .close(steep_protocol::close::CloseCode::ShuttingDown);
    };
    let receiving = async {
        let (mut sender, receiver) = pair.target.open().await.unwrap();
        sender
            .send(&PeerRequest::Ping { job: JobId(1) })
            .await
            .unwrap();
        let load = Load {
            table: table.clone(),
            bytes: Vec::new(),
            largest: 0,
        };
        Incoming::new(receiver)
            .pour(load, &Rate::new(None), |_, _| {})
            .await
    };
    let ((), received) = tokio::join!(sending, receiving);
    assert_eq!(
        received.unwrap_err().retry,
        steep_protocol::Retry::NewConnection
    );
    assert!(table.committed.lock().unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_stops_reading_stops_its_source() {
    let pair = pair().await;
    let sending = async {
        let (mut sender, mut receiver) = pair.source.accept().await.unwrap();
        receiver.recv::<PeerRequest>().await.unwrap();
        let packer = Packer::new(Compression::None, Duration::ZERO);
        let mut reader = Memory::new(vec![7; 64 * 1024 * 1024], 1);
        let outcome = send(&mut reader, packer, &mut sender, &Flow::default()).await;
        (outcome, reader.at)
    };
    let refusing = async {
        let (mut sender, receiver) = pair.target.open().await.unwrap();
        sender
            .send(&PeerRequest::Ping { job: JobId(1) })
            .await
            .unwrap();
        let mut incoming = Incoming::new(receiver);
        incoming.next().await.unwrap();
        // Dropping the receiver tells the peer to stop.
    };
    let ((outcome, read), ()) = tokio::join!(sending, refusing);
    assert!(outcome.is_err());
    assert!(
        read < 32 * 1024 * 1024,
        "the source read {read} bytes for nobody"
    );
}
