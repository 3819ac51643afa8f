//! Domain constraints that stay while rows are loaded, until a row is refused by one: it may need rows of
//! other tables, or was true only when the row was written. It is then set aside like others, and the part
//! is loaded again.

use steep_protocol::{Fault, JobId};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::{On, check, is_of_the_rows, queries, stays};
use crate::deferred::objects::DeferredWriter;
use crate::node::connection::Conn;
use crate::node::job_records;
use crate::schema::statement::Stage;
use crate::task::Task;

/// Times that a part is loaded again because another one has set constraints aside.
const AGAIN_MAX: u32 = 3;

/// Sets aside the constraint that refused a row, or all that stay if a function failed without a name.
/// Returns whether the part may pass now. `tries` counts the part's requests.
pub(crate) async fn set_aside(task: &Task, fault: &Fault, tries: u32) -> Result<bool, Fault> {
    if !may_be_refused(&fault.message) {
        return Ok(false);
    }
    let conn = Conn::open(task, "build").await?;
    let outcome = within(task, &conn, &fault.message, tries).await;
    conn.roll_back().await.map_err(|error| conn.fault(&error))?;
    conn.session.close().await;
    outcome
}

/// One part at a time: others that were refused for the same reason find it done.
async fn within(task: &Task, conn: &Conn, message: &str, tries: u32) -> Result<bool, Fault> {
    conn.execute("BEGIN; LOCK TABLE steep_repl.deferred_objects IN SHARE ROW EXCLUSIVE MODE")
        .await?;
    let planned = job_records::planned(conn, task.job).await?;
    let oids: Vec<u32> = planned.iter().map(|planned| planned.oid).collect();
    let rows = conn.rows(&queries::of_domains(), &[&oids]).await?;
    let there: Vec<&Row> = rows.iter().filter(|row| stays(row)).collect();
    let named = |row: &&&Row| is_named(row.get(2), message);
    let chosen: Vec<&Row> = match there.iter().any(|row| named(&row)) {
        true => there.iter().filter(named).copied().collect(),
        // Another constraint has refused it.
        false if message.contains(", constraint ") => Vec::new(),
        false => there,
    };
    if chosen.is_empty() {
        return Ok(tries < AGAIN_MAX && are_aside(conn, task.job, message).await?);
    }
    let mut writer = DeferredWriter::new(conn, task.job).await?;
    for (drop, deferred) in chosen.into_iter().filter_map(|row| check(row, On::Domain)) {
        tracing::info!(
            job_id = %task.job,
            constraint = deferred.label(),
            "a domain's constraint is set aside, since a row is refused by it"
        );
        let sql = format!("{};\n{drop}", writer.insert(&[deferred]));
        conn.execute(&sql).await?;
    }
    conn.execute("COMMIT").await?;
    Ok(true)
}

/// Whether another part has set aside what refused this one's row.
async fn are_aside(conn: &Conn, job: JobId, message: &str) -> Result<bool, Fault> {
    let sql = "SELECT name FROM steep_repl.deferred_objects
        WHERE job = $1 AND stage = $2 AND kind = 'domain_check' AND state = 'pending'";
    let stage = Stage::Checks.code();
    let rows = conn.rows(sql, &[&job.to_string(), &stage]).await?;
    let by_name = message.contains(", constraint ");
    Ok(rows
        .iter()
        .any(|row| !by_name || is_named(row.get(0), message)))
}

/// Whether the fault's text, which ends with what the server's fields name, names that constraint.
fn is_named(name: &str, message: &str) -> bool {
    message.contains(&format!(", constraint {name} (SQLSTATE "))
}

/// Spares faults that no constraint can be the cause of a query.
fn may_be_refused(message: &str) -> bool {
    let code = message.rsplit_once("(SQLSTATE ");
    let code = code.and_then(|(_, rest)| rest.get(..5));
    code.is_some_and(|code| is_of_the_rows(&SqlState::from_code(code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_row_is_told_from_a_server_that_fails() {
        for code in ["23514", "P0001", "42P01", "MY001"] {
            assert!(may_be_refused(&format!(
                "PostgreSQL says: no (SQLSTATE {code})"
            )));
        }
        for text in [
            "it broke (SQLSTATE 57P01)",
            "no space (SQLSTATE 53100)",
            "the peer is gone",
        ] {
            assert!(!may_be_refused(text), "{text}");
        }
    }

    #[test]
    fn only_the_constraint_that_the_server_names_is_meant() {
        let said = "PostgreSQL says: no, at COPY t, line 1, constraint is known (SQLSTATE 23514)";
        assert!(is_named("is known", said));
        assert!(!is_named("known", said));
    }
}
