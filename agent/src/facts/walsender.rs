//! Whether a source lets us in as a replication client. Such a connection can fail alone, by `pg_hba.conf`,
//! the role's attribute, or a pooler, none of which passes replication on. This also detects poolers in
//! session mode, which otherwise look like a server.

use steep_protocol::message::facts::ServerFacts;

use crate::pg::PgError;
use crate::pg::raw::{Mode, RawConnection};
use crate::task::Task;

/// `Ok` where it works, else why not; `None` where other facts already exclude it.
pub(super) async fn probe(
    task: &Task,
    facts: &ServerFacts,
) -> Result<Option<Result<(), String>>, PgError> {
    let full = facts
        .capacity("max_wal_senders")
        .is_none_or(|senders| senders.free() == 0);
    if full || !facts.replication {
        return Ok(None);
    }
    let identify = async {
        let mode = Mode::Replication;
        let mut connection = RawConnection::connect(&task.conninfo, "preflight", mode).await?;
        let answer = connection.query("IDENTIFY_SYSTEM").await?;
        connection.close().await;
        Ok(answer
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten()))
    };
    let identified: Result<Option<String>, PgError> = tokio::select! {
        biased;
        () = task.cancel.cancelled() => return Err(PgError::Cancelled),
        identified = identify => identified,
    };
    let expected = facts.lineage.identity.map(|own| own.system.to_string());
    Ok(Some(match identified {
        Ok(system) if system == expected => Ok(()),
        Ok(_) => Err("it ended at another server".to_owned()),
        Err(error) => Err(error.to_string()),
    }))
}
