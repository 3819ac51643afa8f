//! The session that writes, on the replica.
//!
//! It is the only one: an origin can be set up by one session at a time, so two repairs of a node cannot write at
//! once. It refuses tables in which code of others would run: triggers and rules that fire for replicas, and
//! functions of ordinary roles in checks, domains, generated columns and indexes, if our role may do more
//! than their owners.

use std::collections::BTreeSet;

use steep_protocol::message::verify::{RowShape, Seeds, Summed};
use steep_protocol::{Fault, FaultKind, Identifier, TableName};
use tokio_postgres::error::SqlState;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::Candidate;
use super::judge::is_same;
use crate::facts;
use crate::node::connection::Conn;
use crate::pg::owner_code::{self, Access};
use crate::pg::{PgError, literal};
use crate::task::Task;
use crate::verify::catalog::{self, Table};
use crate::verify::parse::seen;
use crate::verify::sql::{Encoding, Reading};

/// As the sessions that read: values are read as they were written; and rows are found by key.
const SETTINGS: &str = "SET timezone = 'UTC'; SET xmlbinary = 'base64'; \
    SET max_parallel_workers_per_gather = 0; \
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off";

/// A single row may be long and have many indexes.
const SINGLE_LIMIT_MS: u32 = 30_000;

/// How often the origin is made again.
const SET_UP_TRIES: u8 = 3;

/// What the server says of a transaction.
#[derive(Debug)]
pub(super) enum Attempt {
    /// All rows are written.
    Written,
    /// Nothing is, because of these rows.
    Changed(Vec<usize>),
    /// Nothing is: somebody else has locked something, or it took too long.
    Busy,
    /// Nothing is: one of the rows is refused.
    Refused(Fault),
}

/// The session.
#[derive(Debug)]
pub(super) struct Writer {
    conn: Conn,
    task: Task,
    origin: String,
    encoding: Encoding,
    deadlock_timeout_ms: u32,
    /// Whether our role may do more than the owners of tables.
    powerful: bool,
}

/// A table that is written.
#[derive(Debug)]
pub(super) struct OpenTable<'a> {
    writer: &'a Writer,
    table: Table,
    reading: Reading,
}

impl Writer {
    /// Connects and sets up the origin.
    pub(super) async fn open(task: &Task) -> Result<Self, Fault> {
        let conn = Conn::to_catalog(task, "repair").await?;
        conn.replica_role().await?;
        conn.execute(SETTINGS).await?;
        let sql = "SELECT d.oid, s.setting::int FROM pg_database d, pg_settings s \
             WHERE d.datname = current_database() AND s.name = 'deadlock_timeout'";
        let row = conn.row(sql, &[]).await?;
        let (database, timeout): (u32, i32) = (row.get(0), row.get(1));
        let powers = facts::powers(task, &conn.session).await;
        let writer = Self {
            powerful: !powers.map_err(|error| conn.fault(&error))?.is_empty(),
            encoding: Encoding::of(conn.session.server_encoding()),
            // Origins are the whole server's.
            origin: literal(&format!("steep_repl_repair_{database}")),
            deadlock_timeout_ms: timeout.unsigned_abs(),
            task: task.clone(),
            conn,
        };
        writer.set_up().await?;
        Ok(writer)
    }

    async fn set_up(&self) -> Result<(), Fault> {
        let origin = &self.origin;
        let create = format!(
            "SELECT pg_replication_origin_create({origin}) \
             WHERE NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = {origin})"
        );
        let set_up = format!("SELECT pg_replication_origin_session_setup({origin})");
        let mut tries = 0..SET_UP_TRIES;
        loop {
            match self.conn.attempt(&create).await {
                // Another repair came first.
                Err(error) if error.is(&SqlState::UNIQUE_VIOLATION) => {}
                other => other.map_err(|error| self.no_origin(&error))?,
            }
            match self.conn.attempt(&set_up).await {
                // One that an earlier process had left was removed meanwhile.
                Err(error) if error.is(&SqlState::UNDEFINED_OBJECT) && tries.next().is_some() => {}
                other => return other.map_err(|error| self.no_origin(&error)),
            }
        }
    }

    fn no_origin(&self, error: &PgError) -> Fault {
        if error.is(&SqlState::OBJECT_IN_USE) {
            let text = "another repair is writing to this database";
            let fault = Fault::new(FaultKind::Failed, text).on(&self.task.node);
            return fault.hint("wait until it is done, then run the command again");
        }
        let fault = self.conn.fault(error);
        if !error.is(&SqlState::INSUFFICIENT_PRIVILEGE) {
            return fault;
        }
        fault.hint(
            "GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), \
             pg_replication_origin_session_setup(text), pg_replication_origin_session_reset(), \
             pg_replication_origin_drop(text) to the agent's role",
        )
    }

    /// Removes the origin and disconnects. One that stays is used by the next repair.
    pub(super) async fn close(self) {
        let drop = format!(
            "SET statement_timeout = '2s'; SELECT pg_replication_origin_session_reset(); \
             SELECT pg_replication_origin_drop({})",
            self.origin
        );
        if let Err(error) = self.conn.session.batch_execute(&drop).await {
            tracing::debug!(error = %PgError::from(error), "the origin of repairs is left");
        }
        self.conn.session.close().await;
    }

    /// Opens a table whose rows have that shape.
    pub(super) async fn table(
        &self,
        name: &TableName,
        shape: &RowShape,
    ) -> Result<OpenTable<'_>, Fault> {
        let node = &self.task.node;
        let table = catalog::open(&self.conn.session, node, (name, "")).await?;
        let table = table.ok_or_else(|| crate::verify::pool::dropped(node, name))?;
        let all = |columns: &[Identifier]| -> Option<Vec<_>> {
            columns.iter().map(|name| table.read(name)).collect()
        };
        let key: Option<Vec<_>> = shape.key.iter().map(|name| table.key(name)).collect();
        let (Some(columns), Some(key)) = (all(&shape.columns), key) else {
            let text = format!("{name} was altered");
            return Err(Fault::new(FaultKind::Failed, text).on(node).at(name));
        };
        let encoding = self.encoding;
        Ok(OpenTable {
            writer: self,
            table,
            reading: Reading {
                columns,
                key,
                encoding,
                summed: Summed::Digest(Seeds::default()),
            },
        })
    }
}

/// What keeps a transaction from its end.
#[derive(Debug)]
enum Stop {
    Changed(Vec<usize>),
    Server(PgError),
    /// Of the source.
    Source(Fault),
}

impl From<PgError> for Stop {
    fn from(error: PgError) -> Self {
        Self::Server(error)
    }
}

impl OpenTable<'_> {
    /// Writes the rows in one transaction, which ends well only if `look_again` finds nothing.
    pub(super) async fn attempt(
        &self,
        rows: &[Candidate<'_>],
        look_again: impl Future<Output = Result<Vec<usize>, Fault>>,
    ) -> Result<Attempt, Fault> {
        let written = async {
            self.write(rows).await?;
            match look_again.await {
                Ok(changed) if changed.is_empty() => Ok(()),
                Ok(changed) => Err(Stop::Changed(changed)),
                Err(fault) => Err(Stop::Source(fault)),
            }
        };
        let conn = &self.writer.conn;
        let stop = match written.await {
            // Not given up halfway: nobody would know what came of it.
            Ok(()) => match conn.session.batch_execute("COMMIT").await {
                Ok(()) => return Ok(Attempt::Written),
                Err(error) => Stop::Server(error.into()),
            },
            Err(stop) => stop,
        };
        let rolled_back = conn.roll_back().await;
        match stop {
            Stop::Source(fault) => Err(fault),
            Stop::Server(error @ PgError::Server(_)) => {
                rolled_back.map_err(|error| conn.fault(&error))?;
                self.refused(&error)
            }
            Stop::Server(error) => Err(conn.fault(&error)),
            Stop::Changed(which) => {
                rolled_back.map_err(|error| conn.fault(&error))?;
                Ok(Attempt::Changed(which))
            }
        }
    }

    /// Everything but the commit.
    async fn write(&self, rows: &[Candidate<'_>]) -> Result<(), Stop> {
        let (conn, table) = (&self.writer.conn, &self.table);
        conn.attempt(&self.begin(rows.len())).await?;
        self.look_for_code().await?;
        let keys: Vec<_> = rows.iter().map(|row| row.row.key.clone()).collect();
        let locked = self.rows(&self.reading.lock(&table.from, &keys)).await?;
        let mut found = vec![None; rows.len()];
        for (place, row) in locked.iter().filter_map(seen) {
            if let Some(entry) = found.get_mut(place) {
                *entry = Some(row);
            }
        }
        let pairs = rows.iter().zip(&found).enumerate();
        let moved = pairs.filter(|(_, (row, now))| !is_same(row.target.as_ref(), now.as_ref()));
        let moved: Vec<usize> = moved.map(|(at, _)| at).collect();
        if !moved.is_empty() {
            return Err(Stop::Changed(moved));
        }
        let gone = rows.iter().filter(|row| row.target.is_some());
        let gone: Vec<_> = gone.map(|row| row.row.key.clone()).collect();
        if !gone.is_empty() {
            let sql = self.reading.delete(&table.from, &gone);
            conn.run(conn.session.simple_query(&sql)).await?;
        }
        let new = rows.iter().filter_map(|row| row.source.as_ref());
        let new: Vec<&[_]> = new.filter_map(|row| row.values.as_deref()).collect();
        if !new.is_empty() {
            let sql = self.reading.insert(&table.name, &new);
            conn.run(conn.session.simple_query(&sql)).await?;
        }
        Ok(())
    }

    /// Our waits, together with those before them in the transaction, end before an apply worker that waits for us looks
    /// for a deadlock.
    fn begin(&self, rows: usize) -> String {
        let timeout = self.writer.deadlock_timeout_ms;
        let lock = (timeout / 4).max(1);
        let statement = match rows {
            1 => SINGLE_LIMIT_MS,
            _ => (timeout / 2).max(1),
        };
        format!(
            "BEGIN; SET LOCAL lock_timeout = {lock}; SET LOCAL statement_timeout = {statement}; \
             LOCK TABLE {} IN ROW EXCLUSIVE MODE",
            self.table.from
        )
    }

    /// Under the lock nobody makes or enables a trigger or rule, nor a check.
    async fn look_for_code(&self) -> Result<(), Stop> {
        self.look_for_code_of_others().await?;
        let root = literal(&self.table.name.quoted());
        let sql = format!(
            "WITH rel AS (SELECT {root}::regclass::oid AS oid UNION SELECT p.relid::oid FROM pg_partition_tree({root}) p) \
             SELECT format('trigger %I of %s', g.tgname, g.tgrelid::regclass) FROM pg_trigger g JOIN rel ON rel.oid = g.tgrelid \
             WHERE g.tgenabled IN ('A', 'R') AND NOT g.tgisinternal \
             UNION ALL SELECT format('rule %I of %s', w.rulename, w.ev_class::regclass) FROM pg_rewrite w \
             JOIN rel ON rel.oid = w.ev_class WHERE w.ev_enabled IN ('A', 'R') LIMIT 5"
        );
        let found = self.rows(&sql).await?;
        let names: BTreeSet<&str> = found.iter().filter_map(|row| row.get(0)).collect();
        if names.is_empty() {
            return Ok(());
        }
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let name = &self.table.name;
        let text = format!(
            "rows of {name} are not written: code of its owner would run with the rights of the agent's role: {names}"
        );
        let fault = Fault::new(FaultKind::Failed, text).on(&self.writer.task.node);
        let hint = "ALTER TABLE … ENABLE TRIGGER (or RULE) without ALWAYS or REPLICA, or repair these rows by hand";
        Err(Stop::Source(fault.at(name).hint(hint)))
    }

    async fn look_for_code_of_others(&self) -> Result<(), Stop> {
        if !self.writer.powerful {
            return Ok(());
        }
        let name = &self.table.name;
        let columns: Vec<_> = self
            .reading
            .columns
            .iter()
            .map(|c| c.name.clone())
            .collect();
        let access = Access::Write(&columns);
        let conn = &self.writer.conn;
        let code = owner_code::of_table(&conn.session, name, access);
        let code = conn.run(code).await?;
        if code.is_empty() {
            return Ok(());
        }
        let node = &self.writer.task.node;
        Err(Stop::Source(owner_code::refused(node, name, access, &code)))
    }

    async fn rows(&self, sql: &str) -> Result<Vec<SimpleQueryRow>, PgError> {
        let conn = &self.writer.conn;
        let messages = conn.run(conn.session.simple_query(sql)).await?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Errors about data cost the rows, others the table.
    fn refused(&self, error: &PgError) -> Result<Attempt, Fault> {
        let busy = [
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::QUERY_CANCELED,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::T_R_SERIALIZATION_FAILURE,
        ];
        if busy.iter().any(|code| error.is(code)) {
            return Ok(Attempt::Busy);
        }
        let fault = self.writer.conn.fault(error);
        let code = error.sqlstate().map_or("", SqlState::code);
        match code.get(..2) {
            Some("22" | "23" | "P0" | "54") => Ok(Attempt::Refused(fault)),
            _ => Err(fault.at(&self.table.name)),
        }
    }
}
