//! Event triggers that fire on what our sessions create or drop.

use steep_protocol::message::facts::Listed;

use crate::pg::{PgError, Session};
use crate::task::Task;

/// Our sessions act as replicas where the role may set that; otherwise ordinary event triggers fire too.
const FIRING: &str = "
    SELECT format('%I (%s, %s)', evtname, evtevent, CASE evtenabled WHEN 'A' THEN 'ENABLE ALWAYS'
        WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'enabled' END)
    FROM pg_event_trigger
    WHERE evtenabled IN ('A', 'R')
    OR (evtenabled = 'O' AND current_setting('session_replication_role') <> 'replica')
    ORDER BY evtname";

pub(super) async fn gather(task: &Task, session: &Session) -> Result<Listed, PgError> {
    let rows = session
        .run(&task.cancel, session.query(FIRING, &[]))
        .await?;
    let names: Result<Vec<String>, _> = rows.iter().map(|row| row.try_get(0)).collect();
    Ok(names?.into_iter().collect())
}
