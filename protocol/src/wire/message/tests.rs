//! Codec claims over the real messages: round trips, any bytes, bounds.

use proptest::prelude::*;

use super::agent::{AgentMessage, Command, CoordinatorMessage, PartDone};
use super::api::{ApiReply, ApiRequest};
use super::job::Compression;
use super::peer::{CopyFormat, PeerReply, PeerRequest, Secret};
use crate::wire::codec::{CodecError, decode, encode, frame_length};
use crate::wire::limits::CONTROL_FRAME_MAX;
use crate::wire::{ByteCount, CommandId, Epoch, Fault, FaultKind, JobId, NodeId, PartNo, RowCount};

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
    let mut bytes = encode(&CoordinatorMessage::Abort { id: CommandId(1) }).unwrap();
    bytes.push(0);
    assert!(matches!(
        decode::<CoordinatorMessage>(&bytes),
        Err(CodecError::Trailing(1))
    ));
}

#[test]
fn a_length_over_the_limit_is_refused_before_it_is_read() {
    assert!(frame_length((CONTROL_FRAME_MAX as u32).to_be_bytes()).is_ok());
    assert!(frame_length((CONTROL_FRAME_MAX as u32 + 1).to_be_bytes()).is_err());
}

#[test]
fn a_vector_that_claims_more_than_its_bytes_is_refused() {
    // Variant 4 of AgentMessage is PartsDone: job, then a length of 2^60 and nothing behind it.
    let mut bytes = vec![4, 1];
    bytes.push(253);
    bytes.extend_from_slice(&(1u64 << 60).to_le_bytes());
    assert!(decode::<AgentMessage>(&bytes).is_err());
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
        let command = CoordinatorMessage::Command {
            id: CommandId(1),
            job: JobId(1),
            command: Command::Copy {
                source,
                epoch: Epoch(0),
                parallel: 4,
                compression: Compression::Auto,
                max_rate: rate.map(ByteCount),
                order: order.into_iter().map(PartNo).collect(),
            },
        };
        prop_assert_eq!(decode::<CoordinatorMessage>(&encode(&command).unwrap()).unwrap(), command);
    }
}
