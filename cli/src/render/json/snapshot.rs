//! Stored snapshots.

use std::path::Path;

use serde_json::{Value, json};
use steep_protocol::SnapshotId;
use steep_protocol::encryption::Recipient;
use steep_protocol::message::snapshot::{Compared, SnapshotView, VerifiedSnapshot};

use super::{Object, joined, object};

/// A snapshot: ids and positions are text.
fn fields(view: &SnapshotView) -> Object {
    let mut fields = object(view);
    let id = json!(view.snapshot_id.to_string());
    let lsn = json!(view.lsn.map(|lsn| lsn.to_string()));
    // In place: the keys keep their order.
    fields.insert("snapshot_id".to_owned(), id);
    fields.insert("lsn".to_owned(), lsn);
    fields
}

/// One snapshot.
pub(crate) fn snapshot(view: &SnapshotView) -> Value {
    Value::Object(fields(view))
}

/// All snapshots: `{"snapshots":[…]}`.
pub(crate) fn snapshots(views: &[SnapshotView]) -> Value {
    let views: Vec<Value> = views.iter().map(snapshot).collect();
    json!({ "snapshots": views })
}

/// The last line of `snapshot generate`.
pub(crate) fn generated(view: &SnapshotView) -> Value {
    joined(json!({ "event": "snapshot.generated" }), fields(view))
}

/// A snapshot that is deleted.
pub(crate) fn snapshot_deleted(id: SnapshotId) -> Value {
    json!({ "event": "snapshot.deleted", "snapshot_id": id.to_string() })
}

/// A new key: its public half, and where the secret one is.
pub(crate) fn key(file: &Path, recipient: &Recipient) -> Value {
    json!({
        "event": "snapshot.key_made",
        "recipient": recipient,
        "file": file.display().to_string(),
    })
}

/// What reading a snapshot again showed.
pub(crate) fn verified(verified: &VerifiedSnapshot) -> Value {
    json!({
        "snapshot_id": verified.snapshot.to_string(),
        "whole": verified.problems_total == 0,
        "parts": verified.parts,
        "rows": verified.rows,
        "bytes": verified.bytes,
        "unread": verified.unread,
        "manifest_compared": verified.compared == Compared::Recorded,
        "not_compared": match &verified.compared {
            Compared::Nothing { why } => Some(why),
            Compared::Recorded => None,
        },
        "problems": verified.problems,
        "problems_total": verified.problems_total,
    })
}
