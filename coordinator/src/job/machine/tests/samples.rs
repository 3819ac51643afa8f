//! What jobs that are not plain begin with.

use steep_protocol::message::handover::{Replication, SchemaCheck, SlotName};
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::lineage::ChangeOrigin;
use steep_protocol::message::tables::{Followed, FollowedOutcome};
use steep_protocol::{JobId, Lsn, SnapshotId, Sum, TableName};

use super::super::super::change::Changing;
use super::super::super::handover::{Handover, Reader, StoredRows};

/// What a job changes of a node that follows.
pub(super) fn changing() -> Changing {
    let table = TableName::new("app", "later").unwrap();
    let followed = Followed {
        replication: Replication::of(JobId(3)),
        filter: TableFilter::default(),
        origin: ChangeOrigin::Any,
        complete: Vec::new(),
        outcome: FollowedOutcome::GoesOn,
    };
    Changing::new(JobId(3), followed, vec![table])
}

pub(super) fn stored() -> StoredRows {
    StoredRows {
        snapshot: SnapshotId(9),
        reader: Reader::Source,
        location: "/backup".to_owned(),
        manifest: Sum([1; 32]),
        lsn: Lsn(5),
        verify: true,
        encryption: None,
        made: None,
        instead_of: None,
    }
}

/// The handover of a job that starts from a backup.
pub(super) fn handover() -> Handover {
    Handover {
        replication: Replication {
            id: JobId(9),
            slot: SlotName::parse("backup").unwrap(),
        },
        lsn: Lsn(5),
        schema: SchemaCheck::Compared,
    }
}
