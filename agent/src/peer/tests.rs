//! Targets that share a snapshot, over real QUIC: one keeps a part, another fetches it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use steep_certs::{Credentials, Role};
use steep_protocol::frame::FrameHead;
use steep_protocol::limits::CHUNK_RAW_MAX;
use steep_protocol::message::agent::{CopyParts, PeerAddress, SharedParts};
use steep_protocol::message::job::Compression;
use steep_protocol::message::peer::{
    CopyFormat, FetchKept, PartAs, PartSum, Patience, PeerReply, PeerRequest,
};
use steep_protocol::quic::{Connection, Endpoint, Links, Tuning};
use steep_protocol::{
    ByteCount, Epoch, Fault, FaultKind, JobId, Lsn, NodeId, PartNo, Retry, RowCount, SnapshotId,
};
use tokio::task::JoinSet;

use super::connection::SourceAgent;
use super::exchange::{Announcing, Arriving, Exchange};
use super::queue::PartQueue;
use super::serve::Server;
use super::stream::{self, Incoming};
use crate::budget::{Budget, DEFAULT_MIB};
use crate::chunk::{Heads, Packer, PartReader, PartWriter, ReadStep, Sent};
use crate::kept::Store;
use crate::mutex::lock;
use crate::pg::Conninfo;
use crate::rate::Rate;
use crate::shutdown::Shutdown;
use crate::telemetry::Flow;

const SNAPSHOT: SnapshotId = SnapshotId(7);
const LSN: Lsn = Lsn(99);
const JOB: JobId = JobId(3);
const ROWS: RowCount = RowCount(42);
const PART: PartAs = as_text(5);

const fn as_text(part: u32) -> PartAs {
    PartAs {
        part: PartNo(part),
        format: CopyFormat::Text,
    }
}

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn rows() -> Vec<u8> {
    (0..3 * CHUNK_RAW_MAX + 5)
        .map(|i| (i / 97 % 251) as u8)
        .collect()
}

/// Agents of one cluster.
struct Cluster(tempfile::TempDir);

impl Cluster {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        steep_certs::init_ca(dir.path()).unwrap();
        Self(dir)
    }

    fn endpoint(&self, name: &str) -> Arc<Endpoint> {
        let files = steep_certs::issue(self.0.path(), Role::Agent, name, &[], None).unwrap();
        let credentials = Credentials::load(&files.ca, &files.certificate, &files.key).unwrap();
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        Arc::new(Endpoint::listen(local, &credentials, Tuning::BULK).unwrap())
    }
}

fn address(name: &str, endpoint: &Endpoint) -> PeerAddress {
    PeerAddress {
        node: node(name),
        address: endpoint.local_addr().to_string(),
    }
}

fn store(of: &str, parent: &Path) -> Arc<Store> {
    let limit = ByteCount(64 * 1024 * 1024);
    Arc::new(Store::new(node(of), parent.to_owned(), limit))
}

fn shared(peers: Vec<PeerAddress>) -> SharedParts {
    SharedParts {
        snapshot: SNAPSHOT,
        peers,
    }
}

/// A part's frames, and its end.
fn frames(all: &[u8]) -> (Vec<(FrameHead, Vec<u8>)>, FrameHead) {
    let mut packer = Packer::new(Compression::Lz4, std::time::Duration::ZERO);
    let chunks = all.chunks(CHUNK_RAW_MAX);
    let frames = chunks.map(|chunk| packer.pack(&mut chunk.to_vec()).unwrap());
    let frames: Vec<_> = frames.collect();
    let end = FrameHead::End {
        chunks: frames.len() as u64,
        raw: ByteCount(all.len() as u64),
        rows: ROWS,
    };
    (frames, end)
}

/// What the source says that it has sent of the part.
fn sum() -> PartSum {
    let (frames, end) = frames(&rows());
    let mut heads = Heads::default();
    for head in frames.iter().map(|(head, _)| *head).chain([end]) {
        heads.add(head);
    }
    PartSum {
        heads: heads.sum(),
        rows: ROWS,
        bytes: ByteCount(rows().len() as u64),
    }
}

/// Writes the part as if it arrived.
async fn fill(store: &Arc<Store>) {
    fill_with(store, &rows()).await;
}

async fn fill_with(store: &Arc<Store>, rows: &[u8]) {
    let mut writer = store.keep(SNAPSHOT, PART).unwrap();
    let (frames, end) = frames(rows);
    for (head, payload) in frames {
        writer = writer.chunk(head, &payload).await.unwrap();
    }
    assert!(writer.end(end).await.unwrap().kept().await);
}

/// Serves what the store keeps.
fn serve(of: &str, endpoint: &Arc<Endpoint>, kept: &Arc<Store>) -> JoinSet<()> {
    let conninfo = Arc::new(Conninfo::parse("dbname=nobody_connects").unwrap());
    let server = Server {
        node: node(of),
        conninfo: Arc::clone(&conninfo),
        replication_conninfo: conninfo,
        jobs: Arc::default(),
        budget: Budget::half_of(DEFAULT_MIB),
        kept: Arc::clone(kept),
        telemetry: Arc::default(),
        shutdown: Shutdown::default(),
        throttle: Arc::default(),
    };
    let mut serving = JoinSet::new();
    serving.spawn(server.run(Arc::clone(endpoint)));
    serving
}

fn link(from: &Arc<Endpoint>, to: PeerAddress) -> SourceAgent {
    SourceAgent::new(Arc::clone(from), to, JOB, &Links::default())
}

fn wanted(lsn: Lsn) -> FetchKept {
    FetchKept {
        job: JOB,
        epoch: Epoch(0),
        snapshot: SNAPSHOT,
        lsn,
        part: PART,
    }
}

#[derive(Default, Clone)]
struct Table(Arc<Mutex<Vec<u8>>>);

impl PartWriter for Table {
    async fn write(&mut self, data: &[u8]) -> Result<(), Fault> {
        lock(&self.0).extend_from_slice(data);
        Ok(())
    }

    async fn commit(self, sent: Sent) -> Result<(), Fault> {
        assert_eq!(sent.rows, ROWS);
        Ok(())
    }
}

async fn pour(incoming: Incoming) -> Result<Vec<u8>, Fault> {
    let table = Table::default();
    let rate = Rate::new(None);
    incoming.pour(table.clone(), &rate, |_, _| {}).await?;
    Ok(std::mem::take(&mut *lock(&table.0)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_part_arrives_whole_and_only_at_whom_the_coordinator_named() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let [b, c, d] = ["b", "c", "d"].map(|name| cluster.endpoint(name));
    let kept = store("b", dir.path());
    let _copying = kept.begin(&shared(vec![address("c", &c)]), (JOB, LSN));
    fill(&kept).await;
    let _serving = serve("b", &b, &kept);

    let to_b = link(&c, address("b", &b));
    let arrived = pour(to_b.kept(wanted(LSN)).await.unwrap()).await.unwrap();
    assert!(arrived == rows(), "rows changed on the way");
    assert_eq!(
        (kept.served.sum().parts, kept.served.sum().rows),
        (1, ROWS.0)
    );
    let stranger = link(&d, address("b", &b)).kept(wanted(LSN)).await;
    assert_eq!(stranger.unwrap_err().kind, FaultKind::Unauthorized);
    let reopened = to_b.kept(wanted(Lsn(100))).await;
    assert_eq!(reopened.unwrap_err().kind, FaultKind::Failed);
    kept.name_peers(&shared(vec![address("d", &d)]));
    let no_more = to_b.kept(wanted(LSN)).await;
    assert_eq!(no_more.unwrap_err().kind, FaultKind::Unauthorized);
    link(&d, address("b", &b)).kept(wanted(LSN)).await.unwrap();

    kept.forget(JOB);
    let files = walk(dir.path());
    assert!(files.is_empty(), "{files:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_was_damaged_on_the_disk_is_noticed() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let [b, c] = ["b", "c"].map(|name| cluster.endpoint(name));
    let kept = store("b", dir.path());
    let _copying = kept.begin(&shared(vec![address("c", &c)]), (JOB, LSN));
    fill(&kept).await;
    let _serving = serve("b", &b, &kept);
    let file = walk(dir.path()).pop().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    let to_b = link(&c, address("b", &b));
    let arrived = pour(to_b.kept(wanted(LSN)).await.unwrap()).await;
    assert_eq!(arrived.unwrap_err().retry, Retry::NewConnection);
}

/// All files below.
fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(walk(&path)),
            false => files.push(path),
        }
    }
    files
}

/// A source that names `b` for every part, and sends it itself to whom `b` has failed.
struct Source {
    asked: Mutex<Vec<PeerRequest>>,
}

struct Memory(Vec<u8>);

impl PartReader for Memory {
    async fn read(&mut self, into: &mut Vec<u8>, limit: usize) -> Result<ReadStep, Fault> {
        let most = (limit - into.len()).min(self.0.len());
        into.extend(self.0.drain(..most));
        Ok(match self.0.is_empty() && into.len() < limit {
            true => ReadStep::End { rows: ROWS },
            false => ReadStep::More,
        })
    }
}

impl Source {
    fn start(endpoint: &Arc<Endpoint>) -> (Arc<Self>, JoinSet<()>) {
        let source = Arc::new(Self {
            asked: Mutex::default(),
        });
        let (own, endpoint) = (Arc::clone(&source), Arc::clone(endpoint));
        let mut running = JoinSet::new();
        running.spawn(async move {
            let accepted = endpoint.accept().await.unwrap();
            let connection = accepted.handshake().await.unwrap();
            own.answer(&connection).await;
        });
        (source, running)
    }

    async fn answer(&self, connection: &Connection) {
        while let Ok((mut sender, mut receiver)) = connection.accept().await {
            let request = receiver.recv::<PeerRequest>().await.unwrap().unwrap();
            lock(&self.asked).push(request.clone());
            match request {
                PeerRequest::NextPart(next) if next.failed.is_none() => {
                    let (part, peer) = (next.wanted[0].part, node("b"));
                    let sent = sum();
                    let reply = PeerReply::AskPeer { part, peer, sent };
                    sender.send(&reply).await.unwrap();
                }
                PeerRequest::NextPart(next) => {
                    let reply = PeerReply::Part(next.wanted[0].part);
                    sender.send(&reply).await.unwrap();
                    let packer = Packer::new(Compression::Lz4, connection.rtt());
                    let (mut rows, flow) = (Memory(rows()), Flow::default());
                    let sent = stream::send(&mut rows, packer, &mut sender, &flow).await;
                    sent.unwrap().unwrap();
                }
                _ => sender.send(&PeerReply::Noted).await.unwrap(),
            }
            sender.finish();
        }
    }
}

/// The copy of `c` from `a`, beside `b`.
fn begin(
    of_c: &Arc<Store>,
    (c, a, b): (&Arc<Endpoint>, &Endpoint, &Endpoint),
) -> (Exchange, Announcing) {
    let shared = shared(vec![address("b", b)]);
    let request = CopyParts {
        source: address("a", a),
        epoch: Epoch(0),
        parallel: 1,
        compression: Compression::Lz4,
        max_rate: None,
        order: Vec::new(),
        shared: Some(shared.clone()),
        carried: None,
    };
    let link = link(c, request.source.clone());
    Exchange::begin(&link, of_c, (&request, &shared), LSN)
}

/// One part as a target gets it, and what was received.
async fn get(exchange: &Exchange, part: PartAs) -> (Arriving, PartQueue) {
    let queue = PartQueue::new([part.part, PartNo(6)].into());
    let arriving = {
        let mut slice = queue.slice(1, 1).await.unwrap();
        let got = exchange.get(&mut slice, |part| as_text(part.0), None, Patience::None);
        got.await.unwrap().unwrap()
    };
    (arriving, queue)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_takes_a_part_where_the_source_says_and_elsewhere_if_it_is_not_there() {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let [a, b, c] = ["a", "b", "c"].map(|name| cluster.endpoint(name));
    let of_b = store("b", dir.path());
    let _copying = of_b.begin(&shared(vec![address("c", &c)]), (JobId(1), LSN));
    fill(&of_b).await;
    let _serving = serve("b", &b, &of_b);
    let (source, _running) = Source::start(&a);

    let of_c = store("c", dir.path());
    let (exchange, announcing) = begin(&of_c, (&c, &a, &b));

    let (arriving, queue) = get(&exchange, PART).await;
    assert_eq!((arriving.peer, queue.len()), (Some(node("b")), 1));
    assert!(pour(arriving.incoming).await.unwrap() == rows());
    assert_eq!(of_c.fetched.sum().parts, 1);
    // b has no part 4.
    let (arriving, _) = get(&exchange, as_text(4)).await;
    assert_eq!(arriving.peer, None);
    assert!(pour(arriving.incoming).await.unwrap() == rows());

    drop(exchange);
    announcing.end().await;
    for part in [PART, as_text(4)] {
        let there = of_c.read(SNAPSHOT, LSN, part);
        assert!(there.is_some(), "{part:?} is not kept");
    }
    let asked = std::mem::take(&mut *lock(&source.asked));
    let failed = |request: &PeerRequest| match request {
        PeerRequest::NextPart(next) => next.failed.clone(),
        _ => None,
    };
    let told: Vec<PartAs> = asked
        .iter()
        .flat_map(|request| match request {
            PeerRequest::PartsReceived { kept, .. } => kept.clone(),
            _ => Vec::new(),
        })
        .collect();
    assert_eq!(
        asked.iter().filter_map(failed).collect::<Vec<_>>(),
        [node("b")]
    );
    assert_eq!(told, [PART, as_text(4)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_the_source_has_not_sent_are_neither_committed_nor_kept_and_their_sender_is_asked_no_more()
 {
    let other: Vec<u8> = rows().into_iter().rev().collect();
    let longer = [rows(), rows()].concat();
    for invented in [other, longer, b"1\tx\n".to_vec()] {
        let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
        let [a, b, c] = ["a", "b", "c"].map(|name| cluster.endpoint(name));
        let of_b = store("b", dir.path());
        let _copying = of_b.begin(&shared(vec![address("c", &c)]), (JobId(1), LSN));
        fill_with(&of_b, &invented).await;
        let _serving = serve("b", &b, &of_b);
        let (source, _running) = Source::start(&a);
        let of_c = store("c", dir.path());
        let (exchange, announcing) = begin(&of_c, (&c, &a, &b));

        let (arriving, queue) = get(&exchange, PART).await;
        assert_eq!(arriving.peer, Some(node("b")));
        let refused = pour(arriving.incoming).await.unwrap_err();
        assert!(
            refused.message.contains("the agent of b does not pass on"),
            "{refused}"
        );
        assert!(of_c.read(SNAPSHOT, LSN, PART).is_none(), "it is kept");
        assert_eq!(of_c.fetched.sum().parts, 0);

        let mut slice = queue.chosen(PART.part);
        let format = |part: PartNo| as_text(part.0);
        let again = exchange.get(&mut slice, format, Some(node("b")), Patience::Some);
        let arriving = again.await.unwrap().unwrap();
        assert_eq!(arriving.peer, None);
        assert!(pour(arriving.incoming).await.unwrap() == rows());
        drop(exchange);
        announcing.end().await;
        let asked = std::mem::take(&mut *lock(&source.asked));
        let peers = asked.iter().filter_map(|request| match request {
            PeerRequest::NextPart(next) => Some(next.peers.len()),
            _ => None,
        });
        assert_eq!(peers.collect::<Vec<_>>(), [1, 0]);
    }
}
