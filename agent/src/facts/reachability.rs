//! Whether this PostgreSQL can subscribe to the source's. Only PostgreSQL itself knows its name resolution,
//! routes, certificates and password files, so it is asked to try.
//!
//! A subscription without slot is created in a transaction that is rolled back. Its connection carries an
//! option that no server knows and that the server refuses only after it has let the role in as a
//! replication client of that database. This refusal is the proof; the probe never looks at anything on the
//! source.
//!
//! The refusal does not say which database was reached, so the agent connects too, if it can, and asks.

use std::time::Duration;

use steep_protocol::message::facts::ReachedDatabase;
use steep_protocol::message::job::ReplicationNames;
use steep_protocol::message::peer::Secret;
use tokio_postgres::error::SqlState;

use crate::pg::raw::{Mode, RawConnection, TextRow};
use crate::pg::secret_sql::{self, Refusal};
use crate::pg::{Conninfo, PgError, Session};
use crate::task::Task;

/// Unknown to every server. The name explains itself in the source's log.
const UNKNOWN_OPTION: &str = "steep_repl_reachability_check";

/// The limit for a server that does not answer, as libpq in a server has no `connect_timeout` of its own.
const BEGIN: &str = "BEGIN; SET LOCAL statement_timeout = '10s'";

/// The limit for the agent's own connection. The server's probe has succeeded or failed by then.
const REACH_LIMIT: Duration = Duration::from_secs(10);

/// `Ok` where the source's server lets this one in, else why not; `None` where this server cannot try, for
/// a reason that is a fact of its own.
pub(super) async fn probe(
    task: &Task,
    session: &Session,
    conninfo: &Secret,
) -> Result<Option<Result<(), String>>, PgError> {
    // Later keywords win, so this replaces the string's own options.
    let marked = format!("{} options='-c {UNKNOWN_OPTION}=on'", conninfo.expose());
    let statement = format!(
        "CREATE SUBSCRIPTION {}_probe CONNECTION %L PUBLICATION steep_repl_probe WITH \
         (connect = true, create_slot = false, enabled = false, copy_data = false, \
         slot_name = NONE)",
        ReplicationNames(task.job).name()
    );
    let work = async {
        session.batch_execute(BEGIN).await?;
        secret_sql::execute(session, &statement, &marked).await
    };
    let answer = session.run(&task.cancel, work).await;
    session.batch_execute("ROLLBACK").await?;
    match answer {
        Ok(answer) => Ok(verdict(&answer)),
        // No plpgsql, or a standby.
        Err(error) if error.is(&SqlState::UNDEFINED_OBJECT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The database that the connection string leads to from this agent; `None` where the agent cannot connect,
/// although its server may.
pub(super) async fn reached(
    task: &Task,
    conninfo: &Secret,
) -> Result<Option<ReachedDatabase>, PgError> {
    let identify = async {
        let conninfo = Conninfo::parse_alone(conninfo.expose())?;
        let mode = Mode::Replication;
        let mut connection = RawConnection::connect(&conninfo, "preflight", mode).await?;
        let system = connection.query("IDENTIFY_SYSTEM").await?;
        let sql = "SELECT oid, datname FROM pg_catalog.pg_database
            WHERE datname = pg_catalog.current_database()";
        let database = connection.query(sql).await?;
        connection.close().await;
        Ok::<_, PgError>(read_reached(&system, &database))
    };
    tokio::select! {
        biased;
        () = task.cancel.cancelled() => Err(PgError::Cancelled),
        answer = tokio::time::timeout(REACH_LIMIT, identify) => Ok(match answer {
            Ok(Ok(reached)) => reached,
            Ok(Err(error)) => {
                tracing::debug!(%error, "this agent does not reach the source's server itself");
                None
            }
            Err(_) => None,
        }),
    }
}

fn read_reached(system: &[TextRow], database: &[TextRow]) -> Option<ReachedDatabase> {
    let cell = |rows: &[TextRow], at: usize| rows.first()?.get(at)?.clone();
    Some(ReachedDatabase {
        system: cell(system, 0)?.parse().ok()?,
        oid: cell(database, 0)?.parse().ok()?,
        name: cell(database, 1)?,
    })
}

fn verdict(answer: &Result<(), Refusal>) -> Option<Result<(), String>> {
    let Err(Refusal { code, message }) = answer else {
        return Some(Ok(()));
    };
    if message.contains(UNKNOWN_OPTION) {
        return Some(Ok(()));
    }
    match code.as_str() {
        // May not subscribe, or cannot write: both are facts of the server itself.
        "42501" | "25006" => None,
        "57014" => Some(Err("no answer within 10 s".to_owned())),
        _ => Some(Err(reason(message))),
    }
}

/// libpq's message in one line, without its constant prefix.
fn reason(message: &str) -> String {
    let message = match message.split_once("could not connect to the publisher: ") {
        Some((_, reason)) => reason,
        None => message,
    };
    let mut lines: Vec<&str> = Vec::new();
    for line in message.lines().map(str::trim) {
        if !line.is_empty() && !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(answer: &str) -> Result<(), Refusal> {
        let (code, message) = answer.split_once(' ').unwrap();
        Err(Refusal {
            code: code.to_owned(),
            message: message.to_owned(),
        })
    }

    #[test]
    fn a_server_that_gets_as_far_as_the_options_is_reached() {
        let refused = refusal(&format!(
            "08006 could not connect to the publisher: connection to server at \"h\", port 5432 failed: FATAL:  unrecognized configuration parameter \"{UNKNOWN_OPTION}\""
        ));
        assert_eq!(verdict(&refused), Some(Ok(())));
        assert_eq!(verdict(&Ok(())), Some(Ok(())));
    }

    #[test]
    fn an_answer_that_names_no_database_is_none() {
        let row = |cells: &[&str]| vec![cells.iter().map(|c| Some((*c).to_owned())).collect()];
        let system = row(&["7577000000000000001", "1", "0/1", "shop"]);
        let reached = read_reached(&system, &row(&["16384", "shop"])).unwrap();
        assert_eq!(
            (reached.system, reached.oid),
            (7_577_000_000_000_000_001, 16_384)
        );
        assert_eq!(reached.name, "shop");
        assert_eq!(read_reached(&system, &[]), None);
    }

    #[test]
    fn what_keeps_the_servers_apart_is_said_once() {
        let say = |answer: &str| verdict(&refusal(answer));
        let twice = "08006 subscription \"x\" could not connect to the publisher: connection to server at \"h\", port 1 failed: FATAL:  no pg_hba.conf entry\n\tfor me\nconnection to server at \"h\", port 1 failed: FATAL:  no pg_hba.conf entry";
        assert_eq!(
            say(twice),
            Some(Err("connection to server at \"h\", port 1 failed: FATAL:  no pg_hba.conf entry; for me".to_owned()))
        );
        assert_eq!(
            say("57014 canceling statement"),
            Some(Err("no answer within 10 s".to_owned()))
        );
        assert_eq!(say("42501 must be superuser to create subscriptions"), None);
        assert_eq!(
            say("2F003 password is required"),
            Some(Err("password is required".to_owned()))
        );
    }
}
