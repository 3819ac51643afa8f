//! Runs statements of a schema dump in order, many to a transaction: a transaction each would wait
//! for the disk ten thousand times, one for all would need a lock per object at once.
//!
//! Where a batch fails it is run again statement by statement under savepoints, and only what
//! [`judge`] tolerates is skipped, each with a finding.

use std::collections::BTreeMap;

use steep_protocol::message::facts::Finding;
use steep_protocol::{Fault, FaultKind, Identifier};
use tokio_postgres::error::SqlState;

use super::conn::Conn;
use super::statement::{self, Class, headline};
use crate::pg::PgError;

/// Statements of one transaction. A CREATE TABLE holds about five locks; the default lock table has
/// 6,400 places, shared with everybody.
const BATCH: usize = 200;

/// Bytes of one transaction's statements, so that long function bodies do not add up.
const BATCH_BYTES: usize = 1024 * 1024;

/// A statement to run, and what to run with it in the same transaction.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) sql: String,
    pub(super) class: Class,
    /// Run after the statement, whether it was run or skipped; the book-keeping.
    pub(super) mark: Option<String>,
}

impl Item {
    pub(super) fn new(sql: String) -> Self {
        let class = statement::classify(&sql);
        Self {
            sql,
            class,
            mark: None,
        }
    }
}

/// What to do about a statement that failed.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is as if it had worked.
    Skip,
    /// Skip it and tell: code, and what it is about; one finding per pair.
    Tell(&'static str, String),
    /// Stop.
    Fail,
}

/// How much a failing statement matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strictness {
    /// What the rows need: only what cannot matter to them may fail.
    Structure,
    /// Drops an index or constraint after its definition is stored: what something depends on stays, and
    /// so does what needs more locks than there is room for.
    Aside,
    /// What comes after the rows: whatever one statement gets wrong is told and left.
    Afterwards,
}

fn judge(class: &Class, strictness: Strictness, sql: &str, error: &PgError) -> Verdict {
    let Some(code) = error.sqlstate() else {
        return Verdict::Fail;
    };
    let denied = *code == SqlState::INSUFFICIENT_PRIVILEGE;
    match class {
        Class::Privilege if denied || *code == SqlState::UNDEFINED_OBJECT => {
            let role = statement::role(sql).unwrap_or_else(|| headline(sql));
            let what = if denied { "privilege" } else { "missing_role" };
            Verdict::Tell(what, role)
        }
        Class::Schema if *code == SqlState::DUPLICATE_SCHEMA => Verdict::Skip,
        Class::Comment if denied => Verdict::Tell("comment", headline(sql)),
        Class::Setting { name } => Verdict::Tell("setting", name.clone()),
        // 17 takes an exclusion constraint of a partition for another than its parent's, its own dumps' too.
        Class::IndexDetail if *code == SqlState::INVALID_OBJECT_DEFINITION => {
            Verdict::Tell("index_not_attached", headline(sql))
        }
        _ if strictness == Strictness::Aside
            && [
                SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
                SqlState::OUT_OF_MEMORY,
            ]
            .contains(code) =>
        {
            Verdict::Skip
        }
        _ if strictness == Strictness::Afterwards && is_of_the_statement(code) => {
            Verdict::Tell("statement_failed", format!("{}: {error}", headline(sql)))
        }
        _ => Verdict::Fail,
    }
}

/// Whether the SQLSTATE is about the statement, rather than about the server, its disk or the
/// connection.
pub(super) fn is_of_the_statement(code: &SqlState) -> bool {
    let class = &code.code()[..2];
    matches!(class, "0A" | "22" | "23" | "2B" | "42" | "P0" | "55")
}

/// Collects statements and runs them; the findings come at the end.
#[derive(Debug)]
pub(super) struct Batches<'a> {
    conn: &'a Conn,
    strictness: Strictness,
    items: Vec<Item>,
    bytes: usize,
    told: BTreeMap<(&'static str, String), u64>,
    count: u64,
}

impl<'a> Batches<'a> {
    pub(super) fn new(conn: &'a Conn, strictness: Strictness) -> Self {
        Self {
            conn,
            strictness,
            items: Vec::new(),
            bytes: 0,
            told: BTreeMap::new(),
            count: 0,
        }
    }

    /// Statements taken so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Takes a statement, and runs the batch if it is full.
    pub(super) async fn add(&mut self, item: Item) -> Result<(), Fault> {
        self.count += 1;
        self.bytes += item.sql.len();
        self.items.push(item);
        if self.items.len() >= BATCH || self.bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Runs what is left and tells what was skipped.
    pub(super) async fn finish(mut self) -> Result<Vec<Finding>, Fault> {
        self.flush().await?;
        let told = std::mem::take(&mut self.told);
        let findings = told
            .into_iter()
            .map(|((code, about), times)| self.finding(code, &about, times));
        Ok(findings.collect())
    }

    async fn flush(&mut self) -> Result<(), Fault> {
        let items = std::mem::take(&mut self.items);
        self.bytes = 0;
        if items.is_empty() {
            return Ok(());
        }
        let mut sql = String::new();
        for item in &items {
            for text in [Some(&item.sql), item.mark.as_ref()].into_iter().flatten() {
                sql.push_str(text);
                sql.push_str(";\n");
            }
        }
        match self.conn.transact(&sql).await {
            Ok(()) => Ok(()),
            Err(error @ PgError::Cancelled) => Err(self.conn.fault(&error)),
            Err(_) => self.one_by_one(&items).await,
        }
    }

    async fn one_by_one(&mut self, items: &[Item]) -> Result<(), Fault> {
        let conn = self.conn;
        conn.execute("BEGIN").await?;
        for item in items {
            conn.execute("SAVEPOINT statement").await?;
            if let Err(error) = conn.attempt(&item.sql).await {
                match judge(&item.class, self.strictness, &item.sql, &error) {
                    Verdict::Fail => {
                        let fault = self.refused(&item.sql, &error);
                        conn.roll_back().await.map_err(|e| conn.fault(&e))?;
                        return Err(fault);
                    }
                    Verdict::Skip => {}
                    Verdict::Tell(code, about) => *self.told.entry((code, about)).or_default() += 1,
                }
                conn.execute("ROLLBACK TO SAVEPOINT statement").await?;
                if let Class::Setting { name } = &item.class {
                    self.reset(name).await?;
                }
            }
            conn.execute("RELEASE SAVEPOINT statement").await?;
            if let Some(mark) = &item.mark {
                conn.execute(mark).await?;
            }
        }
        conn.execute("COMMIT").await
    }

    /// Whatever a setting was before is not what the next statements want either.
    async fn reset(&self, name: &str) -> Result<(), Fault> {
        let Ok(name) = Identifier::parse(name) else {
            return Ok(());
        };
        let sql = format!("SET {} TO DEFAULT", name.quoted());
        if self.conn.attempt(&sql).await.is_err() {
            self.conn.execute("ROLLBACK TO SAVEPOINT statement").await?;
        }
        Ok(())
    }

    fn refused(&self, sql: &str, error: &PgError) -> Fault {
        let mut fault = self.conn.fault(error);
        if fault.kind == FaultKind::Cancelled {
            return fault;
        }
        fault.message = format!(
            "the schema cannot be made, at “{}”: {}",
            headline(sql),
            fault.message
        );
        let hint = match error.sqlstate() {
            Some(code)
                if code.code().starts_with("42")
                    && error.to_string().contains("already exists") =>
            {
                "the database holds objects of that name but no tables: drop them, or begin with an empty database"
            }
            Some(code)
                if *code == SqlState::FEATURE_NOT_SUPPORTED
                    || *code == SqlState::UNDEFINED_FILE =>
            {
                "install the missing extension's package on this server, or use a newer PostgreSQL here"
            }
            Some(code) if *code == SqlState::SYNTAX_ERROR => {
                "the source's PostgreSQL is newer and its schema uses what this one does not know: use the same major version"
            }
            _ => "",
        };
        if fault.hint.is_empty() && !hint.is_empty() {
            fault = fault.hint(hint);
        }
        fault
    }

    fn finding(&self, code: &str, about: &str, times: u64) -> Finding {
        let conn = self.conn;
        match code {
            "missing_role" => conn.warning(
                code,
                format!("role “{about}” does not exist here; {times} owners or privileges were left out"),
                "objects belong to the role in use and the grants are missing",
                "create the role and grant what it needs, or take the roles over with pg_dumpall --roles-only first",
            ),
            "privilege" => conn.warning(
                code,
                format!("{times} owners or privileges for role “{about}” could not be set"),
                "the role in use may not do that; objects belong to it",
                "set owners and privileges as a superuser",
            ),
            "comment" => conn.warning(
                code,
                format!("not allowed: {about}"),
                "only the comment is missing",
                "set it as a superuser, if it matters",
            ),
            "setting" => conn.warning(
                code,
                format!("the schema wants setting “{about}” to be something this server does not have ({times} times)"),
                "objects were made with the server's default instead",
                "for default_tablespace: make the tablespace before, or move the objects later",
            ),
            "index_not_attached" => conn.warning(
                code,
                format!("PostgreSQL refuses {about}: it takes the definitions for different"),
                "the partition's own constraint holds, and the partitioned table's is there and not valid",
                "nothing for the rows that are here; where new partitions are to have the constraint, add it to them",
            ),
            _ => conn.warning(
                code,
                about.to_owned(),
                "the object is missing on this node; rows are not affected",
                "make it by hand",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::ServerError;

    fn verdict(sql: &str, code: &str, strictness: Strictness) -> Verdict {
        let error = PgError::Server(Box::new(ServerError {
            code: SqlState::from_code(code),
            message: "role \"x\" does not exist".to_owned(),
            hint: None,
            place: None,
            constraint: None,
            table: None,
        }));
        judge(&statement::classify(sql), strictness, sql, &error)
    }

    #[test]
    fn only_what_cannot_matter_to_the_rows_is_skipped() {
        use Strictness::{Afterwards, Structure};
        let owner = "ALTER TABLE a.b OWNER TO bob";
        assert_eq!(
            verdict(owner, "42704", Structure),
            Verdict::Tell("missing_role", "bob".to_owned())
        );
        assert_eq!(
            verdict("CREATE SCHEMA public", "42P06", Structure),
            Verdict::Skip
        );
        // A type that is missing has the same SQLSTATE as a role that is missing.
        assert_eq!(
            verdict("CREATE TABLE a.b (c d)", "42704", Structure),
            Verdict::Fail
        );
        assert_eq!(
            verdict("CREATE TABLE a.b (c d)", "42P07", Structure),
            Verdict::Fail
        );
        let attach = "ALTER INDEX a.b_excl ATTACH PARTITION a.b_1_excl";
        assert!(matches!(
            verdict(attach, "42P17", Structure),
            Verdict::Tell("index_not_attached", _)
        ));
        assert_eq!(verdict(attach, "42704", Structure), Verdict::Fail);
        // Afterwards one trigger more or less does not stop a job of hours, a full disk does.
        let trigger = "CREATE TRIGGER x BEFORE INSERT ON a.b EXECUTE FUNCTION f()";
        assert!(matches!(
            verdict(trigger, "42883", Afterwards),
            Verdict::Tell(..)
        ));
        assert_eq!(verdict(trigger, "53100", Afterwards), Verdict::Fail);
        assert_eq!(verdict(owner, "57P01", Afterwards), Verdict::Fail);
    }
}
