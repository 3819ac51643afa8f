//! Runs statements of a schema dump in order, many per transaction: one each would wait for the disk ten
//! thousand times, one for all would need a lock per object at once. With a second session, statements about
//! different tables run on both.
//!
//! A failed batch is repeated statement by statement under savepoints. What neither rows nor replication
//! need is noted as [`missing`](super::missing) and skipped, as [`judge`] decides.

use std::collections::{BTreeMap, BTreeSet};

use steep_protocol::message::facts::Finding;
use steep_protocol::{Fault, FaultKind, Identifier, JobId, TableName};
use tokio_postgres::error::SqlState;

use super::disarm::disarm;
use super::lanes;
use super::missing::{Lack, Missing, Weight, is_duplicate};
use super::statement::{self, Class, headline};
use crate::node::connection::Conn;
use crate::pg::PgError;

/// A CREATE TABLE holds about five locks; the default lock table has 6,400 places, for everybody.
const BATCH: usize = 200;

/// Earlier failures named with one that stops the job.
const ROOTS: usize = 3;

/// So that long function bodies do not add up.
const BATCH_BYTES: usize = 1024 * 1024;

/// A statement, and what to run with it in its transaction.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) sql: String,
    pub(crate) class: Class,
    /// Records the statement; run whether it was run or skipped.
    pub(crate) mark: Option<String>,
}

impl Item {
    pub(crate) fn new(sql: String) -> Self {
        let class = statement::classify(&sql);
        Self {
            sql,
            class,
            mark: None,
        }
    }
}

/// What to do about a failed statement.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Treat it as done.
    Skip,
    /// Skip and report: code and subject; one finding per pair.
    Tell(&'static str, String),
    /// Skip and note as missing.
    Missing(Lack),
    Fail,
}

/// How much a failing statement matters.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Strictness<'a> {
    /// Before the rows: these tables must exist, and nothing of the same name may be in the way.
    Structure(&'a BTreeSet<TableName>),
    /// Drops an index or constraint whose definition is stored: it stays where something depends on it, or
    /// where that needs too many locks.
    Deferred,
    /// After the rows: only what replication needs, or what keeps rows from being seen, matters more than a
    /// note.
    Afterwards,
    /// Restored by a cleanup, which nothing may stop.
    Cleanup,
}

impl Strictness<'_> {
    /// Whether a job cannot go on without it.
    fn needs(self, class: &Class, code: &SqlState) -> bool {
        match (self, class) {
            (Self::Cleanup, _) => false,
            (Self::Structure(planned), Class::Table { table }) if planned.contains(table) => true,
            (Self::Structure(_), Class::Attach)
            | (_, Class::Identity { .. } | Class::RowSecurity) => true,
            (Self::Structure(_), _) => is_duplicate(code),
            (Self::Deferred, _) => true,
            (Self::Afterwards, _) => false,
        }
    }

    /// A structure is whole or made again: the commit that says so waits for the disk, and for all before it.
    fn wait(self) -> &'static str {
        match self {
            Self::Structure(_) => "SET LOCAL synchronous_commit = off;\n",
            Self::Deferred | Self::Afterwards | Self::Cleanup => "",
        }
    }

    fn weight(self, class: &Class) -> Weight {
        match class {
            // Refreshes read rows too; they are repeated while one of them succeeds.
            Class::Index { .. } | Class::Key { .. } | Class::ForeignKey { .. } => Weight::Heavy,
            _ => Weight::Light,
        }
    }
}

fn judge(class: &Class, strictness: Strictness<'_>, sql: &str, error: &PgError) -> Verdict {
    let Some(code) = error.sqlstate() else {
        return Verdict::Fail;
    };
    match class {
        Class::Schema if *code == SqlState::DUPLICATE_SCHEMA => Verdict::Skip,
        Class::Setting { name } => Verdict::Tell("setting", name.clone()),
        // 17 confuses a partition's exclusion constraint with its parent's, in its own dumps too.
        Class::IndexDetail if *code == SqlState::INVALID_OBJECT_DEFINITION => {
            Verdict::Tell("index_not_attached", headline(sql))
        }
        _ if matches!(strictness, Strictness::Deferred)
            && [
                SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
                SqlState::OUT_OF_MEMORY,
            ]
            .contains(code) =>
        {
            Verdict::Skip
        }
        _ if !is_of_the_statement(code) || strictness.needs(class, code) => Verdict::Fail,
        Class::Privilege => Verdict::Missing(privilege(sql, code, error)),
        _ => Verdict::Missing(Lack::Object),
    }
}

/// Reports owners and privileges by role. What they are of may be missing too: the role is missing where
/// the server names it.
fn privilege(sql: &str, code: &SqlState, error: &PgError) -> Lack {
    let named = |role: &str| error.to_string().contains(&format!("\"{role}\""));
    match statement::role(sql) {
        Some(role) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Lack::Privilege(role),
        Some(role) if *code == SqlState::UNDEFINED_OBJECT && named(&role) => Lack::Role(role),
        Some(_) | None => Lack::Object,
    }
}

/// Whether the SQLSTATE concerns the statement, not the server, disk, locks or connection. Extensions raise
/// codes of any other class, internal errors included.
pub(crate) fn is_of_the_statement(code: &SqlState) -> bool {
    if *code == SqlState::UNDEFINED_FILE {
        return true;
    }
    let of_the_server = [
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::DATA_CORRUPTED,
        SqlState::INDEX_CORRUPTED,
    ];
    let class = &code.code()[..2];
    !of_the_server.contains(code)
        && !matches!(class, "08" | "25" | "28" | "40" | "53" | "57" | "58" | "F0")
}

/// Collects statements and runs them; findings come at the end.
#[derive(Debug)]
pub(crate) struct Batches<'a> {
    conn: &'a Conn,
    /// For statements that need not wait for others; all run on `conn` once it has failed.
    beside: Option<&'a Conn>,
    job: JobId,
    strictness: Strictness<'a>,
    items: Vec<Item>,
    bytes: usize,
    settings: BTreeMap<String, String>,
    told: BTreeMap<(&'static str, String), u64>,
    /// The first failed statements, as causes of later failures.
    missing: Vec<String>,
    count: u64,
}

impl<'a> Batches<'a> {
    pub(crate) fn new(conn: &'a Conn, job: JobId, strictness: Strictness<'a>) -> Self {
        Self {
            conn,
            beside: None,
            job,
            strictness,
            items: Vec::new(),
            bytes: 0,
            settings: BTreeMap::new(),
            told: BTreeMap::new(),
            missing: Vec::new(),
            count: 0,
        }
    }

    /// Runs statements on that session too.
    pub(crate) fn beside(mut self, conn: &'a Conn) -> Self {
        self.beside = Some(conn);
        self
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Adds a statement, and runs the batch if it is full.
    pub(crate) async fn add(&mut self, item: Item) -> Result<(), Fault> {
        self.count += 1;
        self.bytes += item.sql.len();
        self.items.push(item);
        if self.items.len() >= BATCH || self.bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Runs the rest and returns what was skipped.
    pub(crate) async fn finish(mut self) -> Result<Vec<Finding>, Fault> {
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
        let (items, others) = match self.beside {
            // An authorization is no setting that a transaction can have of its own.
            Some(_) if !self.settings.contains_key("SESSION") => lanes::split(items),
            _ => (items, Vec::new()),
        };
        let lazy = self.strictness.wait();
        let sql = in_a_row(lazy, &items);
        let main = self.conn.transact(&sql);
        let (done, beside) = match self.beside {
            Some(conn) if !others.is_empty() => {
                let settings: String = self.settings.values().map(String::as_str).collect();
                let sql = in_a_row(&format!("{lazy}{settings}"), &others);
                let (done, beside) = tokio::join!(main, conn.transact(&sql));
                if matches!(beside, Err(PgError::Closed | PgError::Io(_))) {
                    self.beside = None;
                }
                (done, beside)
            }
            _ => (main.await, Ok(())),
        };
        self.settle(&items, done).await?;
        self.settle(&others, beside).await
    }

    /// Repeats what has failed.
    async fn settle(&mut self, items: &[Item], outcome: Result<(), PgError>) -> Result<(), Fault> {
        match outcome {
            Ok(()) => {
                items.iter().for_each(|item| self.note_setting(item));
                Ok(())
            }
            Err(error @ PgError::Cancelled) => Err(self.conn.fault(&error)),
            Err(_) => self.one_by_one(items).await,
        }
    }

    /// Remembers the settings for later statements.
    fn note_setting(&mut self, item: &Item) {
        if let Class::Setting { name } = &item.class
            && let Some(value) = item.sql.strip_prefix("SET ")
        {
            self.settings
                .insert(name.clone(), format!("SET LOCAL {value};\n"));
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
                    Verdict::Skip => {
                        conn.execute("ROLLBACK TO SAVEPOINT statement").await?;
                    }
                    Verdict::Tell(code, about) => {
                        *self.told.entry((code, about)).or_default() += 1;
                        conn.execute("ROLLBACK TO SAVEPOINT statement").await?;
                    }
                    Verdict::Missing(lack) => {
                        conn.execute("ROLLBACK TO SAVEPOINT statement").await?;
                        let armed = match lack {
                            Lack::Role(_) | Lack::Privilege(_) => disarm(conn, &item.sql).await?,
                            _ => None,
                        };
                        let note = self.note_missing((item, armed), lack, &error);
                        conn.execute(&note).await?;
                    }
                }
                if let Class::Setting { name } = &item.class {
                    self.settings.remove(name);
                    self.reset(name).await?;
                }
            } else {
                self.note_setting(item);
            }
            conn.execute("RELEASE SAVEPOINT statement").await?;
            if let Some(mark) = &item.mark {
                conn.execute(mark).await?;
            }
        }
        conn.execute("COMMIT").await
    }

    /// `armed` belongs to the statement once it succeeds.
    fn note_missing(
        &mut self,
        (item, armed): (&Item, Option<String>),
        lack: Lack,
        error: &PgError,
    ) -> String {
        if self.missing.len() < ROOTS && !matches!(item.class, Class::Privilege | Class::Comment) {
            self.missing
                .push(format!("“{}”: {error}", headline(&item.sql)));
        }
        let setup: String = self.settings.values().map(String::as_str).collect();
        let sql = match armed {
            Some(armed) => format!("{};\n{armed}", item.sql),
            None => item.sql.clone(),
        };
        let missing = Missing {
            lack,
            weight: self.strictness.weight(&item.class),
            setup: &setup,
            sql: &sql,
        };
        missing.note(self.job, error)
    }

    /// The previous value is not what later statements want either.
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
        if !self.missing.is_empty() {
            let before = self.missing.join("; ");
            fault.message = format!("{}; before it failed {before}", fault.message);
        }
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
            "setting" => conn.warning(
                code,
                format!("the schema wants setting “{about}” to be something this server does not have ({times} times)"),
                "objects were made with the server's default instead",
                "for default_tablespace: make the tablespace before, or move the objects later",
            ),
            _ => conn.warning(
                code,
                format!("PostgreSQL refuses {about}: it takes the definitions for different"),
                "the partition's own constraint holds, and the partitioned table's is there and not valid",
                "nothing for the rows that are here; where new partitions are to have the constraint, add it to them",
            ),
        }
    }
}

/// The statements with their marks, after `settings`, as one text.
fn in_a_row(settings: &str, items: &[Item]) -> String {
    let mut sql = settings.to_owned();
    for item in items {
        for text in [Some(&item.sql), item.mark.as_ref()].into_iter().flatten() {
            sql.push_str(text);
            sql.push_str(";\n");
        }
    }
    sql
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::ServerError;

    fn verdict(sql: &str, code: &str, strictness: Strictness<'_>) -> Verdict {
        let error = PgError::Server(Box::new(ServerError {
            code: SqlState::from_code(code),
            message: "role \"bob\" does not exist".to_owned(),
            hint: None,
            place: None,
            constraint: None,
            table: None,
        }));
        judge(&statement::classify(sql), strictness, sql, &error)
    }

    #[test]
    fn before_the_rows_only_what_they_need_stops_a_job() {
        let planned = BTreeSet::from([TableName::new("a", "b").unwrap()]);
        let verdict = |sql, code| verdict(sql, code, Strictness::Structure(&planned));
        let owner = "ALTER TABLE a.b OWNER TO bob";
        let role = Lack::Role("bob".to_owned());
        assert_eq!(verdict(owner, "42704"), Verdict::Missing(role));
        let language = "ALTER LANGUAGE plx OWNER TO ann";
        assert_eq!(verdict(language, "42704"), Verdict::Missing(Lack::Object));
        let denied = Lack::Privilege("bob".to_owned());
        assert_eq!(verdict(owner, "42501"), Verdict::Missing(denied));
        assert_eq!(verdict("CREATE SCHEMA public", "42P06"), Verdict::Skip);
        // A missing type has the same SQLSTATE as a missing role.
        assert_eq!(verdict("CREATE TABLE a.b (c d)", "42704"), Verdict::Fail);
        let attach = "ALTER TABLE ONLY a.p ATTACH PARTITION a.b DEFAULT";
        assert_eq!(verdict(attach, "42P01"), Verdict::Fail);
        for unneeded in [
            "CREATE TABLE a.unlogged (c d)",
            "CREATE VIEW a.v AS SELECT 1",
            "CREATE FUNCTION a.f() RETURNS x",
            "CREATE EXTENSION x",
            "SECURITY LABEL FOR anon ON TABLE a.b IS 'x'",
        ] {
            assert_eq!(verdict(unneeded, "42704"), Verdict::Missing(Lack::Object));
        }
        // A person must remove what is in the way, while that costs nothing.
        for taken in ["CREATE TABLE a.b (c d)", "CREATE VIEW a.v AS SELECT 1"] {
            assert_eq!(verdict(taken, "42P07"), Verdict::Fail);
        }
    }

    #[test]
    fn after_the_rows_only_what_replication_or_secrecy_needs_stops_a_job() {
        let verdict = |sql, code| verdict(sql, code, Strictness::Afterwards);
        let attach = "ALTER INDEX a.b_excl ATTACH PARTITION a.b_1_excl";
        assert!(matches!(
            verdict(attach, "42P17"),
            Verdict::Tell("index_not_attached", _)
        ));
        let trigger = "CREATE TRIGGER x BEFORE INSERT ON a.b EXECUTE FUNCTION f()";
        for sql in [attach, trigger, "REFRESH MATERIALIZED VIEW a.m"] {
            assert_eq!(verdict(sql, "42883"), Verdict::Missing(Lack::Object));
            // Raised by extensions' own code.
            assert_eq!(verdict(sql, "XX000"), Verdict::Missing(Lack::Object));
            for server in ["53100", "57P01", "40P01", "55P03", "58030", "08006"] {
                assert_eq!(verdict(sql, server), Verdict::Fail, "{server}");
            }
        }
        for needed in [
            "ALTER TABLE ONLY a.b REPLICA IDENTITY USING INDEX i",
            "ALTER TABLE a.b ENABLE ROW LEVEL SECURITY",
        ] {
            assert_eq!(verdict(needed, "42704"), Verdict::Fail, "{needed}");
        }
    }
}
