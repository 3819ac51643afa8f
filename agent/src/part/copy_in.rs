//! COPY into the target: one transaction per part, rows and ledger row together (G2).
//!
//! A part begins with its ledger row, which claims the part. A retry that comes while the server still ends
//! the first try waits there, then finds the part done or takes it over. No part is loaded twice.
//!
//! A part is reported done only when a crash cannot undo it, whatever the server or the code of a table's owner
//! has set. Its own commit waits for the disk; that of a small part need not, if a later commit on the same
//! connection does ([`Loader::sync`]), since a server writes its commits to the disk in their order.
//!
//! Triggers do not fire and foreign keys are not checked (`session_replication_role = replica`), as the source
//! has done both.
//!
//! Nothing is sent before the second chunk, or piece of one where the rate is slow: an empty part costs two
//! round trips and no COPY, and a part of one chunk is not frozen.

use std::sync::Arc;

use steep_protocol::message::agent::PartDone;
use steep_protocol::message::peer::{CopyFormat, TablePlan};
use steep_protocol::{ByteCount, Epoch, Fault, FaultKind, PartNo, Retry, RowCount, TableName};

use super::load_connection::{LoadConnection, Rolled};
use crate::chunk::{PartWriter, Sent};
use crate::pg::{DURABLE, literal, sync};
use crate::task::Task;

/// Size of a binary COPY without rows: header and trailer (PostgreSQL manual, COPY, "Binary Format").
const BINARY_EMPTY: u64 = 21;

/// How long a part that could be frozen waits for its table. Freezing is not worth a longer wait.
const FREEZE_WAIT: &str = "500ms";

/// A part of at most so many bytes may be committed without waiting for the disk…
const SMALL: u64 = 64 * 1024;

/// …if no more than so many are that the disk may not have.
const UNSYNCED_MAX: u32 = 16;

/// The next commit does not wait for the disk.
const SOON: &str = "SET LOCAL synchronous_commit = off";

/// A claim returns the triggers of the table that fire for replicas, and nothing of a part that is done.
const PREPARE: &str = "
    PREPARE steep_repl_claim (text, int8, int8, text, text, text) AS
        INSERT INTO steep_repl.copy_ledger
            (job, epoch, part, schema_name, table_name, rows, bytes, finished_at)
        VALUES ($1, $2, $3, $4, $5, 0, 0, now())
        ON CONFLICT (job, epoch, part) DO NOTHING
        RETURNING part, (SELECT string_agg(quote_ident(tgname), ', ') FROM pg_catalog.pg_trigger
            WHERE tgrelid = $6::regclass AND tgenabled IN ('A', 'R') AND NOT tgisinternal);
    PREPARE steep_repl_done (text, int8, int8, int8, int8) AS
        UPDATE steep_repl.copy_ledger SET rows = $4, bytes = $5, finished_at = clock_timestamp()
        WHERE job = $1 AND epoch = $2 AND part = $3";

/// Whether small parts wait for the disk one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commits {
    /// Their worker may wait long for its next part.
    Each,
    Together,
}

/// Loads parts, one at a time, on one connection.
#[derive(Debug)]
pub(crate) struct Loader {
    task: Task,
    line: LoadConnection,
    encoding: String,
    /// Statements that make the session compute values as the source does.
    settings: Arc<[String]>,
    /// A part was begun and its end was not seen: its transaction may be open.
    open: bool,
    /// Parts that are committed and that a crash may undo.
    unsynced: u32,
    unsynced_max: u32,
}

#[derive(Debug)]
pub(crate) enum Begin<'a> {
    /// Already in the ledger.
    Done(PartDone),
    Load(PartLoad<'a>),
}

/// A part being loaded. Dropping it undoes everything it has written, at the latest when the [`Loader`]
/// begins another part or is dropped.
pub(crate) struct PartLoad<'a> {
    loader: &'a mut Loader,
    epoch: Epoch,
    part: PartNo,
    table: String,
    columns: String,
    format: CopyFormat,
    freeze: Freeze,
    /// The first chunk, until a second one arrives.
    first: Option<Vec<u8>>,
    stage: Stage,
    bytes: u64,
}

impl std::fmt::Debug for PartLoad<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartLoad")
            .field("part", &self.part)
            .field("table", &self.table)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Claimed,
    Copying,
}

/// Whether rows may be written frozen, which saves rewriting every page when it is first read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Freeze {
    /// The part is the whole table.
    Try,
    /// Other parts load the same table.
    No,
}

impl Loader {
    /// `encoding` is the source database's, in which COPY data arrive; `settings` make this server compute
    /// values as the source does.
    pub(crate) async fn connect(
        task: &Task,
        encoding: &str,
        settings: Arc<[String]>,
        commits: Commits,
    ) -> Result<Self, Fault> {
        let mut loader = Self {
            task: task.clone(),
            line: LoadConnection::open(task, "load").await?,
            encoding: encoding.to_owned(),
            settings,
            open: false,
            unsynced: 0,
            unsynced_max: match commits {
                Commits::Each => 0,
                Commits::Together => UNSYNCED_MAX,
            },
        };
        loader.begin_session().await?;
        Ok(loader)
    }

    /// What each part does to the ledger is planned once.
    async fn begin_session(&mut self) -> Result<(), Fault> {
        self.line.rows(PREPARE).await?;
        self.settle().await
    }

    /// Applies the settings. One that this server does not accept is skipped; preflight has named it.
    async fn settle(&mut self) -> Result<(), Fault> {
        let settings = Arc::clone(&self.settings);
        if settings.is_empty() || self.line.attempt(&settings.join("; ")).await?.is_ok() {
            return Ok(());
        }
        for setting in settings.iter() {
            if self.line.attempt(setting).await?.is_err() {
                tracing::debug!(job_id = %self.task.job, "a setting of the source is not accepted here");
            }
        }
        Ok(())
    }

    /// Claims the part in the ledger, unless it is done. `into` is the table that its rows go to.
    pub(crate) async fn begin(
        &mut self,
        epoch: Epoch,
        (table, into): (&TablePlan, &TableName),
        part: PartNo,
        format: CopyFormat,
    ) -> Result<Begin<'_>, Fault> {
        self.end_open().await?;
        self.open = true;
        if !self.claim(epoch, (table, into), part).await? {
            let done = self.look_up(epoch, part).await?;
            // Whoever committed it may not have waited for the disk.
            self.unsynced += 1;
            return Ok(Begin::Done(done));
        }
        let columns: Vec<String> = table.columns.iter().map(|c| c.name.quoted()).collect();
        let freeze = if table.ranges.len() == 1 {
            Freeze::Try
        } else {
            Freeze::No
        };
        Ok(Begin::Load(PartLoad {
            epoch,
            part,
            table: into.quoted(),
            columns: columns.join(", "),
            format,
            freeze,
            first: None,
            stage: Stage::Claimed,
            bytes: 0,
            loader: self,
        }))
    }

    /// Whether no crash can undo what was committed.
    pub(crate) fn is_synced(&self) -> bool {
        self.unsynced == 0
    }

    /// Waits until no crash can undo what was committed. On error, the ledger has to be asked again.
    pub(crate) async fn sync(&mut self) -> Result<(), Fault> {
        if !self.is_synced() {
            self.end_open().await?;
            self.line.rows(&sync()).await?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// Rolls back what a dropped [`PartLoad`] left open. Fails where the connection was lost and with it the
    /// knowledge that earlier parts are safe.
    async fn end_open(&mut self) -> Result<(), Fault> {
        if self.open {
            if self.line.roll_back(&self.task, "load").await? == Rolled::Anew {
                if !self.is_synced() {
                    let text = "the connection was lost before the disk surely had all parts";
                    let fault = Fault::new(FaultKind::Failed, text).retry(Retry::NewConnection);
                    return Err(self.line.own(fault));
                }
                self.begin_session().await?;
            }
            self.open = false;
        }
        Ok(())
    }

    async fn claim(
        &mut self,
        epoch: Epoch,
        (table, into): (&TablePlan, &TableName),
        part: PartNo,
    ) -> Result<bool, Fault> {
        let name = into.quoted();
        // Under the lock nobody enables a trigger. Preflight refuses those that fire for replicas: they would
        // change rows, and run somebody's code as this role.
        let sql = format!(
            "BEGIN; LOCK TABLE ONLY {name} IN ROW EXCLUSIVE MODE;
             EXECUTE steep_repl_claim ('{}', {}, {}, {}, {}, {})",
            self.task.job,
            epoch.0,
            part.0,
            literal(table.name.schema.as_str()),
            literal(table.name.table.as_str()),
            literal(&name),
        );
        let claimed = self.line.rows(&sql).await?;
        match claimed.first().and_then(|row| row.get(1)) {
            Some(Some(triggers)) => Err(self.line.own(firing(&table.name, triggers))),
            Some(None) => Ok(true),
            None => Ok(false),
        }
    }

    async fn look_up(&mut self, epoch: Epoch, part: PartNo) -> Result<PartDone, Fault> {
        self.end_open().await?;
        let sql = format!(
            "SELECT rows, bytes FROM steep_repl.copy_ledger
             WHERE job = '{}' AND epoch = {} AND part = {}",
            self.task.job, epoch.0, part.0
        );
        let rows = self.line.rows(&sql).await?;
        let count = |at: usize| -> Option<u64> { rows.first()?.get(at)?.as_ref()?.parse().ok() };
        let (Some(rows), Some(bytes)) = (count(0), count(1)) else {
            let gone = format!("part {part} was in the ledger a moment ago and is not now");
            return Err(self.line.own(Fault::new(FaultKind::Failed, gone)));
        };
        Ok(PartDone {
            part,
            rows: RowCount(rows),
            bytes: ByteCount(bytes),
            wire: ByteCount(0),
        })
    }
}

/// Somebody has enabled these triggers since the preflight.
fn firing(table: &TableName, triggers: &str) -> Fault {
    let text = format!(
        "triggers that fire for replicated rows were enabled on it meanwhile: {triggers}; nothing is loaded \
         while they do"
    );
    let next = format!(
        "ask its owner why; then, on the target, ALTER TABLE {} DISABLE TRIGGER each of them, and resume",
        table.quoted()
    );
    Fault::new(FaultKind::Failed, text).hint(next)
}

impl PartLoad<'_> {
    fn is_utf8(&self) -> bool {
        self.loader.encoding.eq_ignore_ascii_case("utf8")
    }

    async fn start(&mut self, freeze: Freeze) -> Result<(), Fault> {
        let frozen = freeze == Freeze::Try && self.empty_table().await?;
        let mut options = match self.format {
            CopyFormat::Binary => "FORMAT binary".to_owned(),
            CopyFormat::Text => "FORMAT text".to_owned(),
        };
        if frozen {
            options.push_str(", FREEZE");
        }
        if self.format == CopyFormat::Text && !self.is_utf8() {
            options.push_str(", ENCODING ");
            options.push_str(&literal(&self.loader.encoding));
        }
        let columns = if self.columns.is_empty() {
            String::new()
        } else {
            format!(" ({})", self.columns)
        };
        let copy = format!("COPY {}{columns} FROM STDIN WITH ({options})", self.table);
        // The server decodes a whole query in the encoding in force when it arrives, so names in it stay
        // UTF-8.
        let sql = if self.format == CopyFormat::Binary && !self.is_utf8() {
            let encoding = literal(&self.loader.encoding);
            format!("SET LOCAL client_encoding = {encoding}; {copy}")
        } else {
            copy
        };
        self.loader.line.copy_start(&sql).await?;
        self.stage = Stage::Copying;
        Ok(())
    }

    /// FREEZE needs a table that is new in this transaction: truncates it, if it is empty and nobody is in
    /// the way. Never removes rows.
    async fn empty_table(&mut self) -> Result<bool, Fault> {
        let line = &mut self.loader.line;
        let table = &self.table;
        let ask = format!(
            "SAVEPOINT unfrozen; SET LOCAL lock_timeout = '{FREEZE_WAIT}';
             LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE;
             SELECT 1 FROM ONLY {table} LIMIT 1"
        );
        let empty = line.attempt(&ask).await?.is_ok_and(|rows| rows.is_empty());
        let fresh = format!(
            "TRUNCATE ONLY {table}; SET LOCAL lock_timeout = 0; RELEASE SAVEPOINT unfrozen"
        );
        if empty && line.attempt(&fresh).await?.is_ok() {
            return Ok(true);
        }
        line.rows("ROLLBACK TO SAVEPOINT unfrozen; RELEASE SAVEPOINT unfrozen")
            .await?;
        Ok(false)
    }

    /// Whether the part has no rows, so that no COPY is needed.
    fn is_empty(&self, sent: Sent) -> bool {
        let nothing = match self.format {
            CopyFormat::Binary => self.bytes <= BINARY_EMPTY,
            CopyFormat::Text => self.bytes == 0,
        };
        self.stage == Stage::Claimed && sent.rows.0 == 0 && nothing
    }
}

impl PartWriter for PartLoad<'_> {
    async fn write(&mut self, data: &[u8]) -> Result<(), Fault> {
        self.bytes += data.len() as u64;
        if self.stage == Stage::Claimed {
            let Some(first) = self.first.take() else {
                self.first = Some(data.to_vec());
                return Ok(());
            };
            self.start(self.freeze).await?;
            self.loader.line.copy_write(&first).await?;
        }
        self.loader.line.copy_write(data).await
    }

    async fn commit(mut self, sent: Sent) -> Result<(), Fault> {
        let rows = if self.is_empty(sent) {
            0
        } else {
            if self.stage == Stage::Claimed {
                self.start(Freeze::No).await?;
                if let Some(first) = self.first.take() {
                    self.loader.line.copy_write(&first).await?;
                }
            }
            self.loader.line.copy_end().await?.0
        };
        if rows != sent.rows.0 || self.bytes != sent.bytes.0 {
            return Err(self.loader.line.own(Fault::new(
                FaultKind::Failed,
                format!(
                    "part {} of {} has {} rows in {} bytes on the source and {rows} in {} here; it was rolled back",
                    self.part, self.table, sent.rows.0, sent.bytes.0, self.bytes
                ),
            )));
        }
        let encoding = if self.is_utf8() {
            ""
        } else {
            "SET LOCAL client_encoding = 'UTF8'; "
        };
        let unsynced = match self.bytes {
            ..=SMALL if self.loader.unsynced < self.loader.unsynced_max => self.loader.unsynced + 1,
            _ => 0,
        };
        let wait = if unsynced > 0 { SOON } else { DURABLE };
        let sql = format!(
            "{encoding}EXECUTE steep_repl_done ('{}', {}, {}, {rows}, {}); {wait}; COMMIT",
            self.loader.task.job, self.epoch.0, self.part.0, self.bytes
        );
        self.loader.line.rows(&sql).await?;
        self.loader.unsynced = unsynced;
        self.loader.open = false;
        Ok(())
    }
}
