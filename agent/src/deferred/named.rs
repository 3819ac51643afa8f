//! What a row was refused for, while it is loaded.
//!
//! Indexes that rows name: a `regclass` value is refused while what it names does not exist, and indexes
//! wait for the rows. An index that a row was refused for is built early. A domain's constraint that stays
//! is set aside ([`refused`]).

use steep_protocol::{Fault, TableName};
use tokio_postgres::error::SqlState;

use super::checks::refused;
use super::objects::{Mark, Waiting, mark, waiting};
use crate::node::connection::Conn;
use crate::schema::statement::Stage;
use crate::task::Task;

/// Indexes built one by one for a part; then all are built, since each costs another start of the part.
const ONE_BY_ONE: u32 = 3;

/// Builds the index that `fault` says is missing, if it waits, or sets aside the constraint that refused a
/// row, if that helps. `tries` counts the part's requests.
pub(crate) async fn build_named(task: &Task, fault: &Fault, tries: u32) -> Result<Named, Fault> {
    // Undefined table, which regclass reports for any relation. Spares other faults a query.
    if fault.message.contains("(SQLSTATE 42P01)")
        && build(task, fault, tries).await? == Named::Built
    {
        return Ok(Named::Built);
    }
    match refused::set_aside(task, fault, tries).await? {
        true => Ok(Named::Built),
        false => Ok(Named::Nothing),
    }
}

async fn build(task: &Task, fault: &Fault, tries: u32) -> Result<Named, Fault> {
    let conn = Conn::open(task, "build").await?;
    let all = waiting(&conn, task.job, Stage::Indexes).await?;
    if !all.iter().any(|one| is_named(one, &fault.message)) {
        return Ok(Named::Nothing);
    }
    for one in &all {
        if tries < ONE_BY_ONE && !is_named(one, &fault.message) {
            continue;
        }
        let sql = format!("{};\n{}", one.sql, mark(task.job, one.ord, Mark::Done));
        match conn.transact(&sql).await {
            Ok(()) => {}
            // Another part has asked for the same.
            Err(error) if is_there(error.sqlstate()) => {}
            Err(error) => return Err(conn.fault(&error)),
        }
    }
    Ok(Named::Built)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    /// The fault has another cause.
    Nothing,
    /// The row may pass now.
    Built,
}

fn is_there(code: Option<&SqlState>) -> bool {
    let there = [
        SqlState::DUPLICATE_TABLE,
        SqlState::DUPLICATE_OBJECT,
        SqlState::INVALID_TABLE_DEFINITION,
    ];
    code.is_some_and(|code| there.contains(code))
}

/// PostgreSQL writes `"schema.name"` in any language, without inner quotes.
fn is_named(one: &Waiting, message: &str) -> bool {
    let (Some(TableName { schema, .. }), Some(name)) = (&one.table, &one.name) else {
        return false;
    };
    message.contains(&format!("\"{schema}.{name}\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deferred::objects::Kind;

    #[test]
    fn only_the_index_that_a_row_names_is_meant() {
        let waits = |name: &str| Waiting {
            ord: 1,
            kind: Kind::Index,
            table: TableName::new("public", "t").ok(),
            name: Some(name.to_owned()),
            sql: String::new(),
            added: false,
            weight: 0,
        };
        let message = "relation \"public.T key\" does not exist";
        assert!(is_named(&waits("T key"), message));
        assert!(!is_named(&waits("key"), message));
    }
}
