//! Event triggers that fire on what a session of ours makes or drops.

use steep_protocol::message::facts::Listed;

use crate::pg::{PgError, Session};
use crate::task::Task;

/// Sessions are a replica's where the role in use may say so; else ordinary event triggers fire as well.
const FIRING: &str = "
    SELECT format('%I (%s, %s)', evtname, evtevent, CASE evtenabled WHEN 'A' THEN 'ENABLE ALWAYS'
        WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'enabled' END)
    FROM pg_event_trigger
    WHERE evtenabled IN ('A', 'R')
    OR (evtenabled = 'O' AND current_setting('session_replication_role') <> 'replica')
    ORDER BY evtname";

/// Their names, with what they wait for.
pub(super) async fn gather(task: &Task, session: &Session) -> Result<Listed, PgError> {
    let rows = session
        .run(&task.cancel, session.query(FIRING, &[]))
        .await?;
    let names: Result<Vec<String>, _> = rows.iter().map(|row| row.try_get(0)).collect();
    Ok(names?.into_iter().collect())
}
