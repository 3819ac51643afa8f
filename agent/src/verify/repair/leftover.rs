//! The origin that a repair leaves whose process was killed: the next process removes it.

use std::sync::Arc;
use std::time::Duration;

use steep_protocol::Fault;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::node::connection::Conn;
use crate::pg::{Conninfo, PgError, Session};

/// How often it tries again: the server needs some time to notice that the process is gone.
const AGAIN: Duration = Duration::from_secs(2);

/// A look that takes longer is abandoned.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// Asked first: a refusal would be an error in the server's log.
const FIND: &str = "SELECT o.roname FROM pg_replication_origin o, pg_database d \
     WHERE d.datname = current_database() AND o.roname = 'steep_repl_repair_' || d.oid \
         AND has_function_privilege('pg_replication_origin_drop(text)', 'EXECUTE') AND NOT pg_is_in_recovery()";

/// Removes it once nobody uses it, then waits to be cancelled. What is made later is removed by its repair.
pub(crate) async fn remove_origin(conninfo: Arc<Conninfo>, halt: CancellationToken) {
    loop {
        let dropped = tokio::time::timeout(LOOK_TIMEOUT, drop_origin(&conninfo));
        let dropped = tokio::select! {
            () = halt.cancelled() => return,
            dropped = dropped => dropped,
        };
        match dropped {
            Ok(Ok(())) => break,
            Ok(Err(error)) => debug!(%error, "the origin of an earlier repair is not removed yet"),
            Err(_) => {}
        }
        tokio::select! {
            () = halt.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
    halt.cancelled().await;
}

/// Removes it, for a job's clean-up. One that is in use stays.
pub(crate) async fn forget_origin(conn: &Conn) -> Result<(), Fault> {
    match conn.run(drop_unused(&conn.session)).await {
        Err(error @ PgError::Server(_)) => {
            debug!(%error, "the origin of repairs is left");
            Ok(())
        }
        other => other.map_err(|error| conn.fault(&error)),
    }
}

async fn drop_origin(conninfo: &Conninfo) -> Result<(), PgError> {
    let session = Session::connect(conninfo, "repair").await?;
    drop_unused(&session).await?;
    session.give_back().await;
    Ok(())
}

/// Fails while a session uses it.
async fn drop_unused(session: &Session) -> Result<(), tokio_postgres::Error> {
    if let Some(row) = session.query_opt(FIND, &[]).await? {
        let name: &str = row.try_get(0)?;
        let drop = "SELECT pg_replication_origin_drop($1)";
        session.query(drop, &[&name]).await?;
        info!("the origin of a repair that was killed is removed");
    }
    Ok(())
}
