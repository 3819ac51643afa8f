//! Commands as the coordinator sends them, to agents in this process beside databases of one server.

use std::net::SocketAddr;
use std::sync::Arc;

use steep_certs::{Credentials, Role};
use steep_protocol::message::agent::{
    Command, CopyParts, Export, OpenSource, Outcome, PeerAddress, RowsAs, SharedParts,
    SourceCommand, TargetCommand,
};
use steep_protocol::message::handover::Replication;
use steep_protocol::message::job::{CancelledData, Compression, TableFilter, YieldToDdl};
use steep_protocol::quic::{Endpoint, Tuning};
use steep_protocol::{
    ByteCount, Epoch, Fault, FaultKind, JobId, Lsn, NodeId, PartNo, Retry, RowCount, SnapshotId,
};
use steep_tests::compare;
use steep_tests::pg::{Database, Installation, Options, Server};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Agent, Readings};
use crate::budget::{Budget, DEFAULT_MIB};
use crate::kept::Store;
use crate::node::own_schema;
use crate::peer::serve;
use crate::pg::{Conninfo, Session};
use crate::shutdown::Shutdown;
use crate::stored::carried::Carried;
use crate::task::CopyTerms;

const SNAPSHOT: SnapshotId = SnapshotId(0x5eed);

/// Tables of the source, of some hundred rows each, and one that is read in ranges.
const FILL: &str = "CREATE SCHEMA many;
    SELECT format('CREATE TABLE many.t%s AS SELECT i, repeat(md5(i::text), 20) AS body
                   FROM generate_series(1, 300 + %s) i', n, n) FROM generate_series(1, 24) n \\gexec
    CREATE TABLE many.large AS SELECT i, repeat(md5(i::text), 20) AS body
    FROM generate_series(1, 20000) i";

/// The same tables, empty.
const EMPTY: &str = "CREATE SCHEMA many;
    SELECT format('CREATE TABLE many.t%s (i integer, body text)', n) FROM generate_series(1, 24) n \\gexec
    CREATE TABLE many.large (i integer, body text)";

struct Node {
    agent: Agent,
    database: Database,
    _serving: JoinSet<()>,
}

struct Cluster {
    server: Server,
    certs: tempfile::TempDir,
    kept: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Self {
        let installation = Installation::preferred().unwrap();
        let certs = tempfile::tempdir().unwrap();
        steep_certs::init_ca(certs.path()).unwrap();
        Self {
            server: Server::start(&installation, Options::named("shared")).unwrap(),
            certs,
            kept: tempfile::tempdir().unwrap(),
        }
    }

    async fn node(&self, name: &str, tables: &str) -> Node {
        let node = NodeId::parse(name).unwrap();
        let database = self.server.create_database(name).unwrap();
        database.sql(tables).unwrap();
        let password = self.server.password();
        let password = password.replace('\\', r"\\").replace('\'', r"\'");
        let conninfo = format!("{} password='{password}'", self.server.conninfo(name));
        let conninfo = Arc::new(Conninfo::parse(&conninfo).unwrap());
        let session = Session::connect(&conninfo, "test").await.unwrap();
        own_schema::install(&session).await.unwrap();
        session.close().await;
        let files = steep_certs::issue(self.certs.path(), Role::Agent, name, &[], None).unwrap();
        let credentials = Credentials::load(&files.ca, &files.certificate, &files.key).unwrap();
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = Arc::new(Endpoint::listen(local, &credentials, Tuning::BULK).unwrap());
        let (parent, limit) = (self.kept.path().to_owned(), ByteCount(1 << 30));
        let shutdown = Shutdown::default();
        let agent = Agent {
            node: node.clone(),
            conninfo: Arc::clone(&conninfo),
            jobs: Arc::default(),
            carried: Carried::default(),
            keys: steep_archive::Keys::default(),
            reports: Arc::default(),
            endpoint: Arc::clone(&endpoint),
            budget: Budget::half_of(DEFAULT_MIB),
            kept: Arc::new(Store::new(node.clone(), parent, limit)),
            index_memory: None,
            spool: None,
            telemetry: Arc::default(),
            readings: Readings::default(),
            switchover_steps: Arc::default(),
            drain: shutdown.drain.clone(),
        };
        let server = serve::Server {
            node,
            replication_conninfo: Arc::clone(&conninfo),
            conninfo,
            jobs: Arc::clone(&agent.jobs),
            budget: Budget::half_of(DEFAULT_MIB),
            kept: Arc::clone(&agent.kept),
            telemetry: Arc::clone(&agent.telemetry),
            shutdown,
            throttle: Arc::default(),
        };
        let mut serving = JoinSet::new();
        serving.spawn(server.run(endpoint));
        Node {
            agent,
            database,
            _serving: serving,
        }
    }

    /// Each kept part gets the frames of the next one.
    fn rotate_kept_files(&self) {
        let directories = std::fs::read_dir(self.kept.path()).unwrap();
        let files = directories.flat_map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap());
        let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        let frames: Vec<_> = files
            .iter()
            .map(|file| std::fs::read(file).unwrap())
            .collect();
        for (file, frames) in files.iter().zip(frames.iter().cycle().skip(1)) {
            std::fs::write(file, frames).unwrap();
        }
    }

    fn kept_files(&self) -> usize {
        let directories = std::fs::read_dir(self.kept.path()).unwrap();
        let files = directories.map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap().count());
        files.sum()
    }
}

impl Node {
    fn address(&self) -> PeerAddress {
        PeerAddress {
            node: self.agent.node.clone(),
            address: self.agent.endpoint.local_addr().to_string(),
        }
    }

    async fn source(&self, job: JobId, command: SourceCommand) -> Result<Outcome, Fault> {
        let replication = match job.0 == SNAPSHOT.0 {
            true => Replication::template(SNAPSHOT),
            false => Replication::of_snapshot(SNAPSHOT, job),
        };
        let cancel = CancellationToken::new();
        let command = Command::Source(command);
        self.fulfil((job, replication), command, cancel).await
    }

    async fn fulfil(
        &self,
        of: (JobId, Replication),
        command: Command,
        cancel: CancellationToken,
    ) -> Result<Outcome, Fault> {
        let terms = watch::channel(CopyTerms::of(&command)).1;
        self.agent.fulfil(of, command, terms, cancel).await
    }

    /// Opens the snapshot, or lets a target share it. Returns the number of its parts.
    async fn open(&self, job: JobId, target: &Node) -> Result<u32, Fault> {
        let (export, kept_seconds) = match job.0 == SNAPSHOT.0 {
            true => (Export::SlotAndSnapshot, Some(3_600)),
            false => (Export::Shared { snapshot: SNAPSHOT }, None),
        };
        let request = OpenSource {
            kept_seconds,
            ..Self::request(export, target)
        };
        match self.source(job, SourceCommand::Open(request)).await? {
            Outcome::SourceOpened { parts, .. } => Ok(parts),
            other => panic!("{other:?}"),
        }
    }

    fn request(export: Export, target: &Self) -> OpenSource {
        OpenSource {
            target: target.agent.node.clone(),
            filter: TableFilter::default(),
            epoch: Epoch(0),
            restarts: 0,
            unfinished: Vec::new(),
            earlier: Vec::new(),
            export,
            parallel: 4,
            large_table_threshold: ByteCount(1 << 20),
            yield_to_ddl: YieldToDdl::Never,
            rows_as: RowsAs::TypesAllow,
            kept_seconds: None,
            only_at: None,
            followed: None,
        }
    }

    async fn target(&self, job: JobId, command: TargetCommand) -> Outcome {
        let of = (job, Replication::of_snapshot(SNAPSHOT, job));
        let done = self.fulfil(of, Command::Target(command), CancellationToken::new());
        done.await.unwrap()
    }

    /// Copies everything while `peers` do.
    async fn copy(&self, job: JobId, source: &Node, parts: u32, peers: &[&Node]) {
        let copy = Self::parts(source, parts, peers);
        self.target(job, TargetCommand::Copy(copy)).await;
    }

    fn parts(source: &Node, parts: u32, peers: &[&Node]) -> CopyParts {
        CopyParts {
            source: source.address(),
            epoch: Epoch(0),
            parallel: 4,
            compression: Compression::Auto,
            max_rate: None,
            order: (0..parts).map(PartNo).collect(),
            shared: Some(SharedParts {
                snapshot: SNAPSHOT,
                peers: peers.iter().map(|node| node.address()).collect(),
            }),
            carried: None,
        }
    }

    fn sent(&self) -> u64 {
        self.agent.telemetry.sent.sum().parts
    }

    fn fetched(&self) -> u64 {
        self.agent.kept.fetched.sum().parts
    }
}

fn totals(outcome: Outcome) -> (u32, RowCount, ByteCount) {
    match outcome {
        Outcome::Totals { parts, rows, bytes } => (parts, rows, bytes),
        other => panic!("{other:?}"),
    }
}

/// Steps that a job of one target goes through: together they are what several targets share.
#[tokio::test(flavor = "multi_thread")]
async fn targets_that_share_a_snapshot_load_all_of_it_from_one_read() {
    let cluster = Cluster::new();
    let a = cluster.node("a", FILL).await;
    let [b, c, d] = [
        cluster.node("b", EMPTY).await,
        cluster.node("c", EMPTY).await,
        cluster.node("d", EMPTY).await,
    ];
    let (of_all, of_b, of_c, of_d) = (JobId(SNAPSHOT.0), JobId(1), JobId(2), JobId(3));
    let too_early = a.open(of_b, &b).await.unwrap_err();
    assert_eq!(too_early.retry, Retry::Backoff, "{too_early}");
    let parts = a.open(of_all, &a).await.unwrap();
    for (job, target) in [(of_b, &b), (of_c, &c), (of_c, &c)] {
        assert_eq!(a.open(job, target).await.unwrap(), parts);
    }
    assert_eq!(a.agent.jobs.snapshot_ages().len(), 1);

    let (only_b, only_c) = ([&b], [&c]);
    tokio::join!(
        b.copy(of_b, &a, parts, &only_c),
        c.copy(of_c, &a, parts, &only_b),
    );
    let both = u64::from(2 * parts);
    assert_eq!(a.sent() + b.fetched() + c.fetched(), both);
    let again = a.sent() - u64::from(parts);
    assert!(again <= 2, "{again} of {parts} parts were read again");

    // Whoever comes later gets everything from the others, once they know it.
    let before = a.sent();
    a.open(of_d, &d).await.unwrap();
    for (target, other) in [(&b, &c), (&c, &b)] {
        let peers = vec![other.address(), d.address()];
        let snapshot = SNAPSHOT;
        target
            .agent
            .kept
            .name_peers(&SharedParts { snapshot, peers });
    }
    d.copy(of_d, &a, parts, &[&b, &c]).await;
    assert_eq!((a.sent(), d.fetched()), (before, u64::from(parts)));

    for (job, target) in [(of_b, &b), (of_c, &c), (of_d, &d)] {
        let differences = compare::rows(&a.database, &target.database).unwrap();
        differences.none().unwrap();
        let proof = a.source(job, SourceCommand::Prove).await.unwrap();
        let ledger = target.target(job, TargetCommand::Prove).await;
        assert_eq!(totals(proof), totals(ledger));
    }
    a.source(of_b, SourceCommand::CloseSnapshot).await.unwrap();
    a.source(of_b, SourceCommand::Release).await.unwrap();
    assert!(a.agent.jobs.shared(SNAPSHOT).is_some(), "the others use it");
    let data = CancelledData::Keep;
    for (job, target) in [(of_b, &b), (of_c, &c)] {
        target
            .target(
                job,
                TargetCommand::Cleanup {
                    data,
                    earlier: Vec::new(),
                    sequences: None,
                    joined: None,
                },
            )
            .await;
    }
    assert_eq!(cluster.kept_files(), parts as usize, "those of d");

    assert!(a.agent.jobs.lost_snapshots().is_empty());
    let delete = SourceCommand::DeleteSnapshot { location: None };
    a.source(of_all, delete).await.unwrap();
    let mut lost = a.agent.jobs.lost_snapshots();
    lost.sort();
    assert_eq!(lost, [of_c, of_d], "they have not closed it");
    let cleanup = SourceCommand::Cleanup {
        sync_slots: None,
        earlier: Vec::new(),
    };
    for job in [of_c, of_d] {
        a.source(job, cleanup.clone()).await.unwrap();
    }
    let slots = "SELECT count(*) FROM pg_replication_slots";
    let left: u32 = a.database.value(slots).unwrap();
    assert_eq!(left, 1, "that of b, which is released");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_must_be_open_is_found_and_no_other_is_opened_in_its_place() {
    let cluster = Cluster::new();
    let a = cluster.node("a", FILL).await;
    let b = cluster.node("b", EMPTY).await;
    let job = JobId(7);
    let slots = || -> String {
        let all =
            "SELECT string_agg(slot_name || confirmed_flush_lsn, ',') FROM pg_replication_slots";
        a.database.sql(all).unwrap()
    };
    let command = async |command: SourceCommand| {
        let of = (job, Replication::of(job));
        let cancel = CancellationToken::new();
        a.fulfil(of, Command::Source(command), cancel).await
    };
    let request = Node::request(Export::SlotAndSnapshot, &b);
    let at = |lsn: Lsn| OpenSource {
        only_at: Some(lsn),
        ..request.clone()
    };
    let refused = async |request: OpenSource| {
        let before = slots();
        let fault = command(SourceCommand::Open(request)).await.unwrap_err();
        assert_eq!(fault.kind, FaultKind::SourceChanged, "{fault}");
        assert_eq!(slots(), before);
    };
    refused(at(Lsn(9))).await;
    assert!(a.agent.jobs.get(job).is_none(), "its target is admitted");

    let opened = command(SourceCommand::Open(request.clone())).await.unwrap();
    let Outcome::SourceOpened { lsn, .. } = opened else {
        panic!("{opened:?}")
    };
    refused(at(Lsn(lsn.0 + 1))).await;
    refused(OpenSource {
        restarts: 1,
        ..at(lsn)
    })
    .await;
    refused(OpenSource {
        target: a.agent.node.clone(),
        ..at(lsn)
    })
    .await;
    let found = command(SourceCommand::Open(at(lsn))).await.unwrap();
    assert_eq!(found, opened);

    command(SourceCommand::CloseSnapshot).await.unwrap();
    refused(at(lsn)).await;
}

/// One whose host is in other hands: what it keeps is not what it has received.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_serves_rows_of_other_parts_spoils_no_other() {
    let cluster = Cluster::new();
    let a = cluster.node("a", FILL).await;
    let (b, c) = (
        cluster.node("b", EMPTY).await,
        cluster.node("c", EMPTY).await,
    );
    let (of_all, of_b, of_c) = (JobId(SNAPSHOT.0), JobId(1), JobId(2));
    let parts = a.open(of_all, &a).await.unwrap();
    a.open(of_b, &b).await.unwrap();
    b.copy(of_b, &a, parts, &[&c]).await;
    cluster.rotate_kept_files();

    a.open(of_c, &c).await.unwrap();
    c.copy(of_c, &a, parts, &[&b]).await;
    let differences = compare::rows(&a.database, &c.database).unwrap();
    differences.none().unwrap();
    assert!(b.agent.kept.served.sum().parts > 0, "it was asked");
    assert_eq!(c.fetched(), 0, "nothing of it was taken");
}

/// The slow one would take minutes.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_slow_or_gives_up_holds_up_no_other() {
    let cluster = Cluster::new();
    let a = cluster.node("a", FILL).await;
    let (b, c) = (
        cluster.node("b", EMPTY).await,
        cluster.node("c", EMPTY).await,
    );
    let (of_all, of_b, of_c) = (JobId(SNAPSHOT.0), JobId(1), JobId(2));
    let parts = a.open(of_all, &a).await.unwrap();
    a.open(of_b, &b).await.unwrap();
    a.open(of_c, &c).await.unwrap();
    let cancel = CancellationToken::new();
    let slow = CopyParts {
        max_rate: Some(ByteCount(200_000)),
        ..Node::parts(&a, parts, &[&c])
    };
    let slow = b.fulfil(
        (of_b, Replication::of_snapshot(SNAPSHOT, of_b)),
        Command::Target(TargetCommand::Copy(slow)),
        cancel.clone(),
    );
    let others = [&b];
    let (slow, ()) = tokio::join!(slow, async {
        c.copy(of_c, &a, parts, &others).await;
        cancel.cancel();
    });
    assert_eq!(slow.unwrap_err().kind, FaultKind::Cancelled);
    let differences = compare::rows(&a.database, &c.database).unwrap();
    differences.none().unwrap();
    assert!(b.agent.reports.received.sum().parts < u64::from(parts));
    let data = CancelledData::Keep;
    b.target(
        of_b,
        TargetCommand::Cleanup {
            data,
            earlier: Vec::new(),
            sequences: None,
            joined: None,
        },
    )
    .await;
    assert_eq!(cluster.kept_files(), parts as usize, "those of c");
}
