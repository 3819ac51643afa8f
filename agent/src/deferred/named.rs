//! Indexes that rows name: a value of `regclass` is refused as long as what it names is not there, and
//! indexes wait until the rows are. What a row was refused for is built early.

use steep_protocol::{Fault, TableName};
use tokio_postgres::error::SqlState;

use super::objects::{Mark, Waiting, mark, waiting};
use crate::node::connection::Conn;
use crate::schema::statement::Stage;
use crate::task::Task;

/// How many of one part's rows may ask for an index each; then all are built, since each asks only after
/// the part was begun anew.
const ONE_BY_ONE: u32 = 3;

/// Builds what `fault` says is missing, if that is one that waits. `tries` counts how often a part has asked.
///
/// # Errors
/// Faults of the server or the connection; an index that cannot be built.
pub(crate) async fn build_named(task: &Task, fault: &Fault, tries: u32) -> Result<Named, Fault> {
    // Undefined table: what regclass says of any relation. Spares a look at every other fault.
    if !fault.message.contains("(SQLSTATE 42P01)") {
        return Ok(Named::Nothing);
    }
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

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    /// It is not for want of an index.
    Nothing,
    /// The part may be tried again.
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

/// PostgreSQL says `"schema.name"`, in whatever language, and quotes nothing within.
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
