//! CHECK and domain constraints that rows might not pass while they are loaded, although the source has
//! them: dropped before the rows, added again after.
//!
//! A constraint that calls a function may read tables that are still empty, or was true only when the row
//! was written; one that is NOT VALID was never true for all rows. Constraints of built-in immutable
//! functions stay: what passed them once passes again.
//!
//! All are added as `NOT VALID` first, children before parents, which merge with them; then those that were
//! validated are validated. One that rows violate stays `NOT VALID`, with a finding.
//!
//! PostgreSQL checks a domain again only where columns have the domain itself, not an array, range or
//! composite that holds it. Such a domain's constraint would be `NOT VALID` for ever, so it stays where it
//! is until a row is refused by it ([`refused`]).

mod queries;
pub(super) mod refused;

use steep_protocol::{Fault, Identifier, Phase, TableName};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use crate::deferred::build::note_missing;
use crate::deferred::objects::{Deferred, DeferredWriter, Kind, Mark, Waiting, mark, waiting};
use crate::node::connection::Conn;
use crate::node::job_records::{self, Planned};
use crate::pg::PgError;
use crate::schema::batch::{Batches, Item, Strictness};
use crate::schema::missing::Lack;
use crate::schema::statement::Stage;
use crate::task::Task;

/// Whose constraints may be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The job created the schema.
    All,
    /// Only of tables that hold nothing but planned rows.
    Planned,
}

/// Who loads the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoadedBy {
    /// This agent, which can set a constraint aside when it refuses a row.
    Us,
    PostgreSql,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Table,
    Domain,
}

impl On {
    fn keyword(self) -> &'static str {
        match self {
            Self::Table => "TABLE",
            Self::Domain => "DOMAIN",
        }
    }
}

/// Stores and drops them. Idempotent.
pub(crate) async fn defer(
    task: &Task,
    conn: &Conn,
    reach: Reach,
    loaded_by: LoadedBy,
) -> Result<(), Fault> {
    let planned = job_records::planned(conn, task.job).await?;
    let oids: Vec<u32> = planned.iter().map(|p: &Planned| p.oid).collect();
    let mut writer = DeferredWriter::new(conn, task.job).await?;
    let mut batches = Batches::new(conn, task.job, Strictness::Deferred);
    let tables = conn.rows(&queries::of_tables(reach), &[&oids]).await?;
    let domains = conn.rows(&queries::of_domains(), &[&oids]).await?;
    let domains = domains
        .iter()
        .filter(|row| loaded_by == LoadedBy::PostgreSql || !stays(row));
    let not_null = conn.rows(&queries::not_null(), &[&oids]).await?;
    let all = tables
        .iter()
        .filter_map(|row| check(row, On::Table))
        .chain(domains.filter_map(|row| check(row, On::Domain)))
        .chain(not_null.iter().filter_map(domain_not_null));
    for (drop, deferred) in all {
        let sql = format!("{};\n{drop}", writer.insert(&[deferred]));
        batches.add(Item::new(sql)).await?;
    }
    batches.finish().await.map(drop)
}

/// Whether a domain's constraint, once dropped, would not be as valid as it is.
fn stays(row: &Row) -> bool {
    let (validated, boxed): (bool, bool) = (row.get(4), row.get(6));
    validated && boxed
}

/// The DROP statement, and what restores the constraint.
fn check(row: &Row, on: On) -> Option<(String, Deferred)> {
    let name = Identifier::parse(row.get::<_, &str>(2)).ok()?;
    let definition: &str = row.get(3);
    let validated: bool = row.get(4);
    let (kind, tail) = match (validated, on) {
        (true, On::Table) => (Kind::Check, " NOT VALID"),
        (true, On::Domain) => (Kind::DomainCheck, " NOT VALID"),
        (false, On::Table | On::Domain) => (Kind::Other, ""),
    };
    let of = owner(row)?;
    let what = format!("{} {}", on.keyword(), of.quoted());
    let drop = format!("ALTER {what} DROP CONSTRAINT {}", name.quoted());
    let sql = format!(
        "ALTER {what} ADD CONSTRAINT {} {definition}{tail}{}",
        name.quoted(),
        comment(row, 5)
    );
    let made = Deferred {
        stage: Stage::Checks,
        kind,
        table: Some(of),
        name: Some(name.into()),
        sql,
    };
    Some((drop, made))
}

fn domain_not_null(row: &Row) -> Option<(String, Deferred)> {
    let of = owner(row)?;
    let quoted = of.quoted();
    let drop = format!("ALTER DOMAIN {quoted} DROP NOT NULL");
    let name = row.get::<_, Option<String>>(2);
    let mut sql = match &name {
        None => format!("ALTER DOMAIN {quoted} SET NOT NULL"),
        Some(name) => {
            let name = Identifier::parse(name.as_str()).ok()?.quoted();
            format!("ALTER DOMAIN {quoted} ADD CONSTRAINT {name} NOT NULL")
        }
    };
    sql.push_str(&comment(row, 3));
    let made = Deferred {
        stage: Stage::Checks,
        kind: Kind::DomainNotNull,
        table: Some(of),
        name: Some(name.unwrap_or_else(|| "NOT NULL".to_owned())),
        sql,
    };
    Some((drop, made))
}

fn owner(row: &Row) -> Option<TableName> {
    TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)).ok()
}

/// The statement that restores the comment in column `at`, to append to its object's.
fn comment(row: &Row, at: usize) -> String {
    let comment = row.get::<_, Option<String>>(at);
    comment.map_or(String::new(), |comment| format!(";\n{comment}"))
}

/// Adds again what [`defer`] dropped. After an error, what is left stays stored for another try.
pub(crate) async fn bring_back(task: &Task, conn: &Conn, phase: Phase) -> Result<(), Fault> {
    let all = waiting(conn, task.job, Stage::Checks).await?;
    for one in all.iter().rev().filter(|one| !one.added) {
        let state = match one.kind {
            Kind::Check | Kind::DomainCheck => Mark::Added,
            Kind::DomainNotNull => continue,
            _ => Mark::Done,
        };
        let sql = format!("{};\n{}", one.sql, mark(task.job, one.ord, state));
        if let Err(error) = conn.transact(&sql).await {
            given_up(task, conn, one, (Lack::Object, &one.sql), &error).await?;
        }
    }
    let checked = waiting(conn, task.job, Stage::Checks).await?;
    let total = checked.len() as u64;
    for (done, one) in (0..).zip(&checked) {
        task.items(phase, (done, total), one.label());
        let (statement, lack) = validation(one);
        let sql = format!("{statement};\n{}", mark(task.job, one.ord, Mark::Done));
        if let Err(error) = conn.transact(&sql).await {
            given_up(task, conn, one, (lack, &statement), &error).await?;
        }
    }
    Ok(())
}

/// The statement that checks the rows, and what is missing without it.
fn validation(one: &Waiting) -> (String, Lack) {
    let on = match one.kind {
        Kind::Check => On::Table,
        Kind::DomainCheck => On::Domain,
        _ => return (one.sql.clone(), Lack::Object),
    };
    let name = one.name.as_deref().and_then(|n| Identifier::parse(n).ok());
    let (Some(of), Some(name)) = (&one.table, name) else {
        return (one.sql.clone(), Lack::Object);
    };
    let statement = format!(
        "ALTER {} {} VALIDATE CONSTRAINT {}",
        on.keyword(),
        of.quoted(),
        name.quoted()
    );
    (statement, Lack::Check)
}

/// Whether the SQLSTATE concerns the rows or the constraint. Functions may raise any, so all count except
/// those of the server, its connection and its locks.
fn is_of_the_rows(code: &SqlState) -> bool {
    let class = code.code().get(..2).unwrap_or_default();
    !matches!(class, "08" | "25" | "40" | "53" | "57" | "58" | "F0" | "XX")
}

/// Notes a failure as missing, where the constraint itself is the cause.
async fn given_up(
    task: &Task,
    conn: &Conn,
    one: &Waiting,
    missing: (Lack, &str),
    error: &PgError,
) -> Result<(), Fault> {
    if !error.sqlstate().is_some_and(is_of_the_rows) {
        return Err(conn.fault(error));
    }
    note_missing(task, conn, one, missing, error).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(kind: Kind) -> Waiting {
        Waiting {
            ord: 1,
            kind,
            table: TableName::new("s", "T").ok(),
            name: Some("c\"k".to_owned()),
            sql: "ALTER DOMAIN s.\"T\" SET NOT NULL".to_owned(),
            added: false,
            weight: 0,
        }
    }

    #[test]
    fn whatever_a_function_raises_is_of_the_rows() {
        for code in ["23514", "42883", "P0001", "MY001", "55000"] {
            assert!(is_of_the_rows(&SqlState::from_code(code)), "{code}");
        }
        for code in ["57014", "57P01", "53100", "40P01", "XX000"] {
            assert!(!is_of_the_rows(&SqlState::from_code(code)), "{code}");
        }
    }

    #[test]
    fn what_was_validated_is_validated_where_it_belongs() {
        let (table, _) = validation(&waits(Kind::Check));
        assert_eq!(
            table,
            "ALTER TABLE \"s\".\"T\" VALIDATE CONSTRAINT \"c\"\"k\""
        );
        let (domain, _) = validation(&waits(Kind::DomainCheck));
        assert_eq!(
            domain,
            "ALTER DOMAIN \"s\".\"T\" VALIDATE CONSTRAINT \"c\"\"k\""
        );
        let (made, lack) = validation(&waits(Kind::DomainNotNull));
        assert_eq!(
            (made.as_str(), lack),
            ("ALTER DOMAIN s.\"T\" SET NOT NULL", Lack::Object)
        );
    }
}
