//! Whether the rows go through a spool beside the source: where that is ordered, or a table is so large that the
//! source's snapshot would be held for long while it crosses a network.

use steep_protocol::ByteCount;
use steep_protocol::message::facts::{Finding, SourceFacts};
use steep_protocol::message::job::{Compression, JobSpec, Method};

use super::super::Spooling;
use super::text::bytes;
use super::{Pair, Text, warning};

/// Most rows take a third of their table when they are packed, and some hardly less than all of it. Where the
/// estimate is too low, the spool fills up and the targets read the source.
const PACKED_TO: u64 = 2;

/// The code of the finding that there is no room.
pub const NO_ROOM: &str = "spool_room";

/// Decides, from the sizes of the source's tables and the room beside it.
pub(super) fn choose(spec: &JobSpec, source: &SourceFacts) -> Spooling {
    let large = source.largest_table >= spec.large_table_threshold;
    match (spec.method, source.spool_room) {
        (Method::Snapshot, _) if !large => Spooling::Live,
        // A source without a directory is refused before.
        (Method::TwoPhase, None) => Spooling::Spooled,
        (Method::Snapshot, None) => Spooling::NoRoom,
        (Method::Snapshot | Method::TwoPhase, Some(room)) => match estimate(spec, source) <= room {
            true => Spooling::Spooled,
            false => Spooling::NoRoom,
        },
        (
            Method::Native
            | Method::Backup
            | Method::Merge
            | Method::Stored
            | Method::Load
            | Method::Add
            | Method::Drop
            | Method::Reinit,
            _,
        ) => Spooling::Live,
    }
}

/// What the spool will hold.
fn estimate(spec: &JobSpec, source: &SourceFacts) -> ByteCount {
    let all = source.table_bytes;
    match spec.compression {
        Compression::None => all,
        Compression::Auto | Compression::Lz4 | Compression::Zstd(_) => ByteCount(all.0 / PACKED_TO),
    }
}

pub(super) fn judge(pair: &Pair<'_>) -> Option<Finding> {
    let (spec, source) = (pair.spec, pair.source);
    if choose(spec, source) != Spooling::NoRoom {
        return None;
    }
    let need = bytes(estimate(spec, source));
    let what = match source.spool_room {
        Some(room) => format!(
            "the spool has room for {}, and needs about {need}: the rows are read live",
            bytes(room)
        ),
        None => format!(
            "its agent has no directory for a spool, which would need about {need}: the rows are read live"
        ),
    };
    let fix = match (source.spool_room, spec.method) {
        (Some(_), _) => {
            "make room where the agent's --data-dir is, or start the agent with another one"
        }
        (None, _) => {
            "start the agent with --data-dir on a disk with room, or raise --large-table-threshold"
        }
    };
    let why = "the source holds its snapshot open until the last row has crossed the network, its vacuum waits for \
               that, and a restart of the source or its agent starts the copy over";
    Some(warning(NO_ROOM, &spec.source, Text::new(what, why, fix)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    fn chosen(
        method: Method,
        compression: Compression,
        facts: [u64; 2],
        room: Option<u64>,
    ) -> Spooling {
        let [largest, all] = facts.map(ByteCount);
        let spec = JobSpec {
            method,
            compression,
            large_table_threshold: ByteCount(10),
            ..spec("a", "b")
        };
        let source = SourceFacts {
            largest_table: largest,
            table_bytes: all,
            spool_room: room.map(ByteCount),
            ..SourceFacts::default()
        };
        choose(&spec, &source)
    }

    #[test]
    fn a_database_with_a_large_table_is_spooled_where_there_is_room() {
        let live = |largest, room| chosen(Method::Snapshot, Compression::Auto, [largest, 40], room);
        assert_eq!(live(9, Some(100)), Spooling::Live);
        assert_eq!(live(10, Some(20)), Spooling::Spooled);
        assert_eq!(live(10, Some(19)), Spooling::NoRoom);
        assert_eq!(live(10, None), Spooling::NoRoom);
        assert_eq!(live(9, None), Spooling::Live);
    }

    #[test]
    fn two_phases_take_any_size_but_not_without_room() {
        let two = |codec, room| chosen(Method::TwoPhase, codec, [1, 40], room);
        assert_eq!(two(Compression::Lz4, Some(20)), Spooling::Spooled);
        assert_eq!(two(Compression::None, Some(39)), Spooling::NoRoom);
        assert_eq!(two(Compression::None, None), Spooling::Spooled);
    }

    #[test]
    fn other_methods_need_no_spool() {
        for method in [Method::Native, Method::Backup, Method::Stored, Method::Load] {
            let chosen = chosen(method, Compression::Auto, [99, 99], None);
            assert_eq!(chosen, Spooling::Live, "{method:?}");
        }
    }
}
