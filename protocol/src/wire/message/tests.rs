//! Codec tests over the real messages: round trips, arbitrary bytes, limits.

use jiff::Timestamp;
use proptest::prelude::*;

use super::agent::{
    AgentMessage, Command, CoordinatorMessage, CopyParts, Outcome, PartDone, ProgressReport,
    SharedParts, SourceCommand, TargetCommand,
};
use super::api::{
    ApiReply, ApiRequest, AuditView, EndView, InitRequest, JobView, Order, PhaseSeconds, PhaseTime,
    Query, Report, TableTime,
};
use super::handover::{
    CompleteSpec, PreparedSlot, PreparedState, Replication, SchemaCheck, SlotName,
};
use super::job::{Compression, Confirmation, JobSpec, Method};
use super::peer::{
    CopyFormat, Keeping, NextPart, PartAs, Patience, PeerReply, PeerRequest, Secret,
};
use super::schema::{
    Change, ColumnModel, ColumnValue, Identity, ObjectKind, ObjectModel, SchemaDifference,
    SchemaPage, SchemaReview, Subject, TableModel,
};
use super::snapshot::StoredPlace;
use crate::wire::codec::{CodecError, decode, encode, frame_length};
use crate::wire::limits::{
    ASKED_MAX, CONTROL_FRAME_MAX, PEER_REQUEST_MAX, RECEIVED_MAX, WANTED_MAX,
};
use crate::wire::{
    ByteCount, CommandId, Epoch, Fault, FaultKind, Identifier, JobId, Lsn, NodeId, NodeState,
    PartNo, Phase, RowCount, SnapshotId, Sum, TableName,
};

#[test]
fn messages_round_trip() {
    let done = AgentMessage::PartsDone {
        job: JobId(1),
        parts: vec![PartDone {
            part: PartNo(7),
            rows: RowCount(1_000),
            bytes: ByteCount(123_456),
            wire: ByteCount(9),
        }],
    };
    assert_eq!(
        decode::<AgentMessage>(&encode(&done).unwrap()).unwrap(),
        done
    );
    let ask = PeerRequest::FetchPart {
        job: JobId(2),
        epoch: Epoch(0),
        part: PartNo(3),
        format: CopyFormat::Binary,
        compression: Compression::Zstd(3),
    };
    assert_eq!(decode::<PeerRequest>(&encode(&ask).unwrap()).unwrap(), ask);
    let fault = Fault::new(FaultKind::Timeout, "too late").on(&NodeId::parse("b").unwrap());
    let ended = AgentMessage::Finished {
        command: CommandId(1),
        outcome: Err(fault),
    };
    assert_eq!(
        decode::<AgentMessage>(&encode(&ended).unwrap()).unwrap(),
        ended
    );
}

#[test]
fn a_fault_carries_its_table_and_one_that_was_stored_without_is_read() {
    let table = TableName::new("app", "orders").unwrap();
    let fault = Fault::new(FaultKind::Failed, "no room").at(&table);
    let ended = AgentMessage::Finished {
        command: CommandId(1),
        outcome: Err(fault.clone()),
    };
    let back = decode::<AgentMessage>(&encode(&ended).unwrap()).unwrap();
    assert_eq!(back, ended);
    let mut stored = serde_json::to_value(&fault).unwrap();
    assert!(stored.as_object_mut().unwrap().remove("table").is_some());
    let read: Fault = serde_json::from_value(stored).unwrap();
    assert_eq!((read.table, read.message), (None, fault.message));
}

#[test]
fn the_audit_trail_and_retries_round_trip() {
    let view = AuditView {
        seq: 7,
        timestamp: jiff::Timestamp::UNIX_EPOCH,
        operator: "alice".to_owned(),
        certificate: "0a1b".to_owned(),
        address: "192.0.2.7".to_owned(),
        action: "init".to_owned(),
        node_id: NodeId::parse("node_b").unwrap(),
        source_node: Some(NodeId::parse("node_a").unwrap()),
        job_id: Some(JobId(1)),
        arguments: vec![("parallel".to_owned(), "4".to_owned())],
        refused: None,
    };
    let told = CoordinatorMessage::Audit(Box::new(view.clone()));
    let back = decode::<CoordinatorMessage>(&encode(&told).unwrap()).unwrap();
    assert_eq!(back, told);
    let listed = ApiReply::Audit(vec![view]);
    let back = decode::<ApiReply>(&encode(&listed).unwrap()).unwrap();
    assert_eq!(back, listed);
    let report = AgentMessage::Progress(ProgressReport {
        job: JobId(1),
        phase: Phase::Copy,
        active: Vec::new(),
        work: None,
        retries: 3,
    });
    let back = decode::<AgentMessage>(&encode(&report).unwrap()).unwrap();
    assert_eq!(back, report);
}

#[test]
fn what_watchers_ask_and_hear_round_trips() {
    let node = NodeId::parse("b").unwrap();
    let requests = [
        ApiRequest::Watch,
        ApiRequest::Job {
            node: node.clone(),
            follow: true,
        },
        ApiRequest::Query(Query::Report { node: node.clone() }),
        ApiRequest::Events {
            node: None,
            follow: true,
            after: u64::MAX,
        },
    ];
    for request in requests {
        let bytes = encode(&request).unwrap();
        assert_eq!(decode::<ApiRequest>(&bytes).unwrap(), request);
    }
    let reply = ApiReply::Job(Box::new(job_view(node)));
    let bytes = encode(&reply).unwrap();
    assert_eq!(decode::<ApiReply>(&bytes).unwrap(), reply);
}

#[test]
fn an_end_that_was_stored_before_there_were_reports_is_read() {
    let end = job_view(NodeId::parse("b").unwrap()).end.unwrap();
    let mut stored = serde_json::to_value(&end).unwrap();
    stored.as_object_mut().unwrap().remove("report");
    let read: EndView = serde_json::from_value(stored).unwrap();
    assert_eq!(read.report, Report::default());
    assert_eq!(read.rows_copied, end.rows_copied);
}

fn job_view(target: NodeId) -> JobView {
    let source = NodeId::parse("a").unwrap();
    let phase_times = vec![PhaseTime {
        phase: Phase::Preflight,
        seconds: 0.5,
    }];
    let end = EndView {
        node_id: target.clone(),
        job_id: JobId(7),
        source_node: source.clone(),
        state: NodeState::Synchronized,
        fault: None,
        tables: 1,
        rows_copied: 2,
        bytes_copied: 3,
        wire_bytes: 4,
        duration_seconds: 5.5,
        phases: PhaseSeconds::default(),
        warnings: Vec::new(),
        report: Report {
            ended_at: Some(Timestamp::UNIX_EPOCH),
            method: Some(Method::Snapshot),
            parallel_workers: 4,
            phase_times: phase_times.clone(),
            slowest_tables: vec![TableTime {
                schema: "public".to_owned(),
                table: "t".to_owned(),
                rows: 1,
                bytes: 2,
                seconds: 3.25,
            }],
            not_copied: vec!["2 large objects".to_owned()],
            ..Report::default()
        },
    };
    JobView {
        job_id: JobId(7),
        spec: JobSpec {
            confirmation: Confirmation::Given,
            ..JobSpec::new(source, target)
        },
        operator: "dba".to_owned(),
        accepted_at: Timestamp::UNIX_EPOCH,
        ended_at: None,
        phase_times,
        current_phase: Some((Phase::Copy, Timestamp::UNIX_EPOCH)),
        findings: Vec::new(),
        tables: Vec::new(),
        end: Some(Box::new(end)),
    }
}

#[test]
fn a_name_that_breaks_its_rule_does_not_decode() {
    let bytes = encode(&ApiRequest::Progress {
        node: NodeId::parse("ab").unwrap(),
        follow: false,
    })
    .unwrap();
    let mut hostile = bytes.clone();
    let at = bytes.windows(2).position(|w| w == b"ab").unwrap();
    hostile[at] = b'/';
    assert!(decode::<ApiRequest>(&bytes).is_ok());
    assert!(matches!(
        decode::<ApiRequest>(&hostile),
        Err(CodecError::Malformed(_))
    ));
}

#[test]
fn trailing_bytes_are_refused() {
    let mut bytes = encode(&CoordinatorMessage::Forget { id: CommandId(1) }).unwrap();
    bytes.push(0);
    assert!(matches!(
        decode::<CoordinatorMessage>(&bytes),
        Err(CodecError::Trailing(1))
    ));
}

#[test]
fn a_length_over_the_limit_is_refused_before_it_is_read() {
    assert!(frame_length((CONTROL_FRAME_MAX as u32).to_be_bytes(), usize::MAX).is_ok());
    assert!(frame_length((CONTROL_FRAME_MAX as u32 + 1).to_be_bytes(), usize::MAX).is_err());
    assert!(frame_length(4096u32.to_be_bytes(), 4096).is_ok());
    assert!(frame_length(4097u32.to_be_bytes(), 4096).is_err());
}

#[test]
fn a_vector_that_claims_more_than_its_bytes_is_refused() {
    // Variant 4 of AgentMessage is PartsDone: a job, then a length of 2^60 without elements.
    let mut bytes = vec![4, 1];
    bytes.push(253);
    bytes.extend_from_slice(&(1u64 << 60).to_le_bytes());
    assert!(decode::<AgentMessage>(&bytes).is_err());
}

#[test]
fn schemas_round_trip_and_the_widest_table_fits_a_frame() {
    let column = |at: usize| ColumnModel {
        name: Identifier::parse(format!("{at:0>63}")).unwrap(),
        type_name: "character varying(10)".repeat(6),
        collation: Some("c".repeat(130)),
        not_null: true,
        identity: Identity::ByDefault,
        value: ColumnValue::Stored("x".repeat(8 * 1024 + 128)),
    };
    let page = SchemaPage {
        tables: vec![TableModel {
            name: TableName::new("s", "t").unwrap(),
            fingerprint: "f".repeat(64),
            rank: 1,
            columns: (0..1_600).map(column).collect(),
        }],
        objects: vec![ObjectModel {
            kind: ObjectKind::Enum,
            table: None,
            schema: Some(Identifier::parse("s").unwrap()),
            name: "e".to_owned(),
            definition: "'a'".repeat(100_000),
            rank: 2,
        }],
    };
    let reply = PeerReply::Schema { page, last: true };
    assert_eq!(
        decode::<PeerReply>(&encode(&reply).unwrap()).unwrap(),
        reply
    );
    let difference = SchemaDifference {
        table: None,
        subject: Subject::Object(ObjectKind::Sequence),
        name: Some("s.q".to_owned()),
        change: Change::Definition,
        local: "AS bigint".to_owned(),
        remote: "AS integer".to_owned(),
    };
    let review = SchemaReview {
        differences: vec![difference],
        differences_total: 1,
        ..SchemaReview::default()
    };
    let said = AgentMessage::Finished {
        command: CommandId(1),
        outcome: Ok(Outcome::Reviewed(Box::new(review))),
    };
    assert_eq!(
        decode::<AgentMessage>(&encode(&said).unwrap()).unwrap(),
        said
    );
}

#[test]
fn hand_overs_round_trip_and_a_bad_slot_name_does_not_decode() {
    let slot = SlotName::parse("backup_1").unwrap();
    let replication = Replication {
        id: JobId(9),
        slot: slot.clone(),
    };
    let target = NodeId::parse("b").unwrap();
    let told = CoordinatorMessage::Command {
        id: CommandId(1),
        job: JobId(2),
        replication: replication.clone(),
        command: Command::Source(SourceCommand::TakeSlot { target }),
    };
    let bytes = encode(&told).unwrap();
    assert_eq!(decode::<CoordinatorMessage>(&bytes).unwrap(), told);
    let mut hostile = bytes;
    let at = hostile.windows(6).position(|w| w == b"backup").unwrap();
    hostile[at] = b'B';
    assert!(matches!(
        decode::<CoordinatorMessage>(&hostile),
        Err(CodecError::Malformed(_))
    ));
    let prepared = AgentMessage::Prepared(vec![PreparedSlot {
        replication,
        lsn: Lsn(7),
        created_at: Timestamp::UNIX_EPOCH,
        expires_at: Timestamp::MAX,
        wal_held: ByteCount(3),
        wal_limit: Some(ByteCount(4)),
        state: PreparedState::Lost("dropped".to_owned()),
    }]);
    let bytes = encode(&prepared).unwrap();
    assert_eq!(decode::<AgentMessage>(&bytes).unwrap(), prepared);
    let request = ApiRequest::Order(Order::Init(InitRequest::Complete(Box::new(CompleteSpec {
        job: job_view(NodeId::parse("b").unwrap()).spec,
        slot: Some(slot),
        source_lsn: Lsn(u64::MAX),
        schema: SchemaCheck::Skipped,
    }))));
    let bytes = encode(&request).unwrap();
    assert_eq!(decode::<ApiRequest>(&bytes).unwrap(), request);
}

#[test]
fn the_longest_requests_for_shared_parts_are_short_enough() {
    let part = PartAs {
        part: PartNo(u32::MAX),
        format: CopyFormat::Text,
    };
    let (job, peer) = (JobId(u64::MAX), NodeId::parse(&"n".repeat(63)).unwrap());
    let next = PeerRequest::NextPart(NextPart {
        job,
        epoch: Epoch(u32::MAX),
        wanted: vec![part; WANTED_MAX],
        peers: vec![peer.clone(); ASKED_MAX],
        failed: Some(peer),
        keeping: Keeping::Intended,
        patience: Patience::Some,
        compression: Compression::Auto,
    });
    let received = PeerRequest::PartsReceived {
        job,
        kept: vec![part; RECEIVED_MAX],
        dropped: Vec::new(),
    };
    for request in [next, received] {
        let bytes = encode(&request).unwrap();
        assert!(bytes.len() <= PEER_REQUEST_MAX, "{}", bytes.len());
        assert_eq!(decode::<PeerRequest>(&bytes).unwrap(), request);
    }
}

#[test]
fn a_secret_is_not_in_its_debug_form() {
    let reply = PeerReply::Conninfo(Secret::new("password=hunter2"));
    assert!(!format!("{reply:?}").contains("hunter2"));
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = decode::<AgentMessage>(&bytes);
        let _ = decode::<CoordinatorMessage>(&bytes);
        let _ = decode::<PeerRequest>(&bytes);
        let _ = decode::<PeerReply>(&bytes);
        let _ = decode::<ApiRequest>(&bytes);
        let _ = decode::<ApiReply>(&bytes);
    }

    #[test]
    fn copy_commands_round_trip(order in proptest::collection::vec(any::<u32>(), 0..100), rate: Option<u64>) {
        let source = super::agent::PeerAddress {
            node: NodeId::parse("a").unwrap(),
            address: "h:1".into(),
        };
        let peers = vec![source.clone()];
        let shared = rate.map(|id| SharedParts { snapshot: SnapshotId(id), peers });
        let command = CoordinatorMessage::Command {
            id: CommandId(1),
            job: JobId(1),
            replication: Replication::of(JobId(1)),
            command: Command::Target(TargetCommand::Copy(CopyParts {
                source,
                epoch: Epoch(0),
                parallel: 4,
                compression: Compression::Auto,
                max_rate: rate.map(ByteCount),
                order: order.into_iter().map(PartNo).collect(),
                shared,
                carried: rate.map(|id| StoredPlace {
                    snapshot: SnapshotId(id),
                    location: "/mnt/disk".to_owned(),
                    manifest: Sum([7; 32]),
                    verify: true,
                }),
            })),
        };
        prop_assert_eq!(decode::<CoordinatorMessage>(&encode(&command).unwrap()).unwrap(), command);
    }
}
