//! Indexes, once all rows are there.

use steep_protocol::Fault;
use steep_protocol::message::facts::Finding;

use crate::deferred::build::{self, Purpose};
use crate::node::connection::Conn;
use crate::replication::keep_out;
use crate::task::Task;

/// Builds the job's indexes. Fails first where others could write to its tables, since an index may take
/// hours.
pub(crate) async fn build_indexes(
    task: &Task,
    parallel: u8,
    purpose: Purpose,
) -> Result<Vec<Finding>, Fault> {
    let conn = Conn::open(task, "build").await?;
    keep_out::held(&conn, task.job).await?;
    conn.session.close().await;
    build::build_indexes(task, parallel, purpose).await
}
