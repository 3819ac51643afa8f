//! Indexes, once all rows are there.

use steep_protocol::Fault;
use steep_protocol::message::facts::Finding;

use crate::deferred::build::{self, Purpose};
use crate::node::connection::Conn;
use crate::node::job_records;
use crate::replication::keep_out;
use crate::task::Task;

/// Builds the job's indexes, once its note says that it has all rows. Fails first where others could write to its
/// tables, since an index may take hours.
pub(crate) async fn build_indexes(
    task: &Task,
    (parallel, note): (u8, Option<&str>),
    purpose: Purpose,
) -> Result<Vec<Finding>, Fault> {
    let conn = Conn::open(task, "build").await?;
    keep_out::held(&conn, task.job).await?;
    if let Some(note) = note {
        job_records::renew(&conn, task.job, note).await?;
    }
    conn.session.close().await;
    build::build_indexes(task, parallel, purpose).await
}
