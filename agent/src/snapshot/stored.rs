//! A stored snapshot that this agent reads, to serve it or to load it: the same plan, schema and parts as a
//! live one, from an archive instead of PostgreSQL.

use std::sync::Arc;

use bytes::Bytes;
use steep_archive::{Archive, Manifest, Problem, StoredReader, StoredTable};
use steep_protocol::frame::FrameHead;
use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::agent::OpenSource;
use steep_protocol::message::agent::TableSummary;
use steep_protocol::message::peer::{
    ColumnPlan, CtidRange, SchemaSection, SequenceValue, TablePlan,
};
use steep_protocol::message::snapshot::StoredPlace;
use steep_protocol::{ByteCount, Epoch, Fault, FaultKind, Lsn, NodeId, PartNo, RowCount, TableNo};

use super::OpenSnapshot;
use super::sharing::Sharing;
use crate::chunk::{FrameReader, PartReader, ReadStep};
use crate::stored::fault;

/// What to do about files that are missing or damaged.
const PUT_BACK: &str =
    "put these files back from a copy; steep-repl snapshot verify names everything that is wrong";

/// What to do about another snapshot's files, or those that somebody has edited.
const REPLACED: &str = "put the snapshot's own files there, or name the place where they are: steep-repl snapshot verify \
                        says of any place whether its manifest is the one that the coordinator has recorded";

/// Appends the rows of extensions' tables to the pre-data section, and how many bytes they have: a length
/// at the very end, because any text within could be somebody's.
pub(crate) fn append_rows(pre_data: &mut Vec<u8>, rows: &[u8]) {
    pre_data.push(b'\n');
    pre_data.extend_from_slice(rows);
    pre_data.extend_from_slice(trailer(rows.len()).as_bytes());
}

/// The pre-data section without the rows that [`append_rows`] appended, and these; `None` where it has no
/// such end.
fn split_rows(section: &Bytes) -> Option<(Bytes, Bytes)> {
    let end = section.len().checked_sub(trailer(0).len())?;
    let number = section.get(end..)?.iter().filter(|b| b.is_ascii_digit());
    let number = number.map(|b| char::from(*b)).collect::<String>();
    let length = number.parse().ok()?;
    let from = end.checked_sub(length)?;
    let whole = section.get(end..)? == trailer(length).as_bytes();
    whole.then(|| (section.slice(..from), section.slice(from..end)))
}

/// A comment of fixed length.
fn trailer(rows: usize) -> String {
    format!("\n-- steep-repl: {rows:020} bytes above are rows of extensions' tables.\n")
}

/// Who has the parts that a job's target asks for.
#[derive(Debug, Clone)]
pub(crate) enum Holder {
    /// The source's PostgreSQL, under a snapshot held open.
    Live(Arc<OpenSnapshot>),
    /// The same, under a snapshot that is another id's: its targets share the parts.
    Shared(Arc<OpenSnapshot>),
    /// An archive.
    Stored(Arc<StoredSnapshot>),
}

impl Holder {
    pub(crate) fn lsn(&self) -> Lsn {
        match self {
            Self::Live(open) | Self::Shared(open) => open.lsn(),
            Self::Stored(stored) => stored.lsn(),
        }
    }

    pub(crate) fn encoding(&self) -> &str {
        match self {
            Self::Live(open) | Self::Shared(open) => open.encoding(),
            Self::Stored(stored) => stored.encoding(),
        }
    }

    pub(crate) fn tables(&self) -> &[TablePlan] {
        match self {
            Self::Live(open) | Self::Shared(open) => open.tables(),
            Self::Stored(stored) => stored.tables(),
        }
    }

    pub(crate) fn summaries(&self) -> Vec<TableSummary> {
        match self {
            Self::Live(open) | Self::Shared(open) => open.summaries(),
            Self::Stored(stored) => stored.summaries(),
        }
    }

    pub(crate) fn parts(&self) -> u32 {
        match self {
            Self::Live(open) | Self::Shared(open) => open.parts(),
            Self::Stored(stored) => stored.parts(),
        }
    }

    /// Parts, rows and bytes that were read to their end at least once, as `target` reads them. Those of a
    /// stored one were counted when it was made.
    pub(crate) fn totals(&self, target: &NodeId) -> (u32, RowCount, ByteCount) {
        match self {
            Self::Live(open) | Self::Shared(open) => open.totals(target),
            Self::Stored(stored) => stored.totals(),
        }
    }

    /// Whether the server holds a snapshot for it.
    pub(crate) fn is_live(&self) -> bool {
        match self {
            Self::Live(open) => open.lsn() != Lsn(0),
            Self::Shared(_) => true,
            Self::Stored(_) => false,
        }
    }

    /// Whether this is the snapshot that the request asks for. Only one of the job's own can be followed by another.
    pub(crate) fn is_of(&self, request: &OpenSource) -> bool {
        match self {
            Self::Live(open) => open.is_of(request),
            Self::Shared(_) | Self::Stored(_) => request.epoch == Epoch(0),
        }
    }

    /// Whether nothing can be read from it any more, also because it was closed.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Self::Live(open) => self.is_live() && open.is_lost(),
            Self::Shared(_) | Self::Stored(_) => self.is_broken(),
        }
    }

    /// Whether the snapshot ended although the job has not closed it.
    pub(crate) fn is_broken(&self) -> bool {
        match self {
            Self::Live(open) => open.is_broken(),
            Self::Shared(open) => open.is_lost() && open.spool().sealed().is_none(),
            Self::Stored(_) => false,
        }
    }

    /// Whether its parts outlive this process.
    pub(crate) fn is_stored(&self) -> bool {
        match self {
            Self::Live(_) => false,
            Self::Shared(open) => open.spool().sealed().is_some(),
            Self::Stored(_) => true,
        }
    }

    /// Ends a live snapshot of the job's own. Idempotent.
    pub(crate) async fn close(&self) {
        if let Self::Live(open) = self {
            open.close().await;
        }
    }

    /// The archive that a shared snapshot has become, or itself.
    pub(crate) fn or_sealed(self) -> Self {
        match &self {
            Self::Shared(open) => open.spool().sealed().map_or(self, Self::Stored),
            Self::Live(_) | Self::Stored(_) => self,
        }
    }

    /// The targets that share it, unless it is one job's own.
    pub(crate) fn sharing(&self) -> Option<&Arc<Sharing>> {
        match self {
            Self::Live(_) => None,
            Self::Shared(open) => Some(open.sharing()),
            Self::Stored(stored) => Some(&stored.sharing),
        }
    }

    /// Nobody is sent to that target for parts any more.
    pub(crate) fn left(&self, target: &NodeId) {
        if let Some(sharing) = self.sharing() {
            sharing.left(target);
        }
    }
}

/// An archive, and the targets that load from it.
#[derive(Debug)]
pub(crate) struct StoredSnapshot {
    archive: Archive,
    tables: Vec<TablePlan>,
    sharing: Arc<Sharing>,
    schema: tokio::sync::Mutex<Option<Sections>>,
}

/// The schema's sections, which share one file's bytes.
#[derive(Debug, Clone)]
struct Sections {
    pre_data: Bytes,
    rows: Bytes,
    post_data: Bytes,
}

impl StoredSnapshot {
    /// Checks that it is that snapshot, with the manifest that was written for it: a checksum that fits what
    /// it says can be made by anybody. `parallel` parts are read at once.
    pub(crate) fn open(
        archive: Archive,
        wanted: &StoredPlace,
        parallel: u8,
        node: &NodeId,
    ) -> Result<Self, Fault> {
        let snapshot = wanted.snapshot;
        let failed = |text: String| {
            let fault = Fault::new(FaultKind::StoreDamaged, text).on(node);
            fault.hint(REPLACED)
        };
        let found = archive.manifest().snapshot_id;
        if found != snapshot {
            let place = archive.location();
            return Err(failed(format!(
                "{place} holds snapshot {found}, not {snapshot}"
            )));
        }
        if archive.manifest().checksum != Some(wanted.manifest) {
            let place = archive.location();
            return Err(failed(format!(
                "manifest.json in {place} is not the one that was written with the snapshot"
            )));
        }
        Self::of(archive, &Arc::new(Sharing::new(parallel))).map_err(failed)
    }

    /// The one that was written a moment ago, for the targets that share it already.
    pub(crate) fn of(archive: Archive, sharing: &Arc<Sharing>) -> Result<Self, String> {
        Ok(Self {
            tables: plan(archive.manifest())?,
            archive,
            sharing: Arc::clone(sharing),
            schema: tokio::sync::Mutex::default(),
        })
    }

    /// Whether both read the same snapshot at the same place.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let of = |one: &Self| (one.manifest().snapshot_id, one.manifest().checksum);
        of(self) == of(other) && self.archive.location() == other.archive.location()
    }

    /// Checks that this agent has the key for it, if it is encrypted.
    pub(crate) fn check_keys(&self, node: &NodeId) -> Result<(), Fault> {
        let fits = self.archive.check_keys();
        fits.map_err(|error| fault(&error, node))
    }

    /// Checks that all its files are there and its indexes right.
    pub(crate) async fn check(&self, node: &NodeId) -> Result<(), Fault> {
        let problems = self.archive.check_presence().await;
        let problems = problems.map_err(|error| fault(&error, node))?;
        let Some(first) = problems.first() else {
            return Ok(());
        };
        let named: Vec<String> = problems
            .iter()
            .take(LISTED_MAX)
            .map(Problem::to_string)
            .collect();
        let what = match problems.len() {
            1 => first.to_string(),
            _ => named.join("; "),
        };
        let place = self.archive.location();
        let text = format!("the snapshot in {place} is damaged: {what}");
        let kind = FaultKind::StoreDamaged;
        Err(Fault::new(kind, text).on(node).hint(PUT_BACK))
    }

    fn manifest(&self) -> &Manifest {
        self.archive.manifest()
    }

    pub(crate) fn lsn(&self) -> Lsn {
        self.manifest().lsn
    }

    pub(crate) fn encoding(&self) -> &str {
        &self.manifest().source.encoding
    }

    pub(crate) fn tables(&self) -> &[TablePlan] {
        &self.tables
    }

    fn summaries(&self) -> Vec<TableSummary> {
        let tables = self.tables.iter().zip(&self.manifest().tables);
        let summary = |(plan, stored): (&TablePlan, &StoredTable)| TableSummary {
            no: plan.no,
            name: plan.name.clone(),
            rows_estimate: stored.parts.iter().map(|part| part.rows).sum(),
            bytes_estimate: stored.parts.iter().map(|part| part.bytes).sum(),
            first_part: plan.first_part,
            parts: u32::try_from(plan.ranges.len()).unwrap_or(u32::MAX),
        };
        tables.map(summary).collect()
    }

    fn parts(&self) -> u32 {
        u32::try_from(self.manifest().totals.parts).unwrap_or(u32::MAX)
    }

    fn totals(&self) -> (u32, RowCount, ByteCount) {
        let totals = &self.manifest().totals;
        (self.parts(), totals.rows, totals.bytes)
    }

    /// The frames of a part, each checked when it is read.
    pub(crate) async fn part(&self, part: PartNo, node: &NodeId) -> Result<StoredFrames, Fault> {
        let reader = self.archive.part(part).await;
        let reader = reader.map_err(|error| fault(&error, node))?;
        Ok(StoredFrames::new(reader, node))
    }

    /// A section of the schema as SQL. The file is read and checked for the first one, and kept until the
    /// last one is asked for.
    pub(crate) async fn schema(
        &self,
        section: SchemaSection,
        node: &NodeId,
    ) -> Result<Text, Fault> {
        let mut kept = self.schema.lock().await;
        let sections = match kept.take() {
            Some(sections) => sections,
            None => self.sections(node).await?,
        };
        if section != SchemaSection::PostData {
            *kept = Some(sections.clone());
        }
        Ok(Text(match section {
            SchemaSection::PreData => sections.pre_data,
            SchemaSection::ExtensionRows => sections.rows,
            SchemaSection::PostData => sections.post_data,
        }))
    }

    /// The sequences' positions when it was made.
    pub(crate) async fn sequences(&self, node: &NodeId) -> Result<Vec<SequenceValue>, Fault> {
        let sequences = self.archive.sequences().await;
        sequences.map_err(|error| fault(&error, node))
    }

    async fn sections(&self, node: &NodeId) -> Result<Sections, Fault> {
        let schema = self.archive.schema().await;
        let schema = schema.map_err(|error| fault(&error, node))?;
        let (pre_data, rows) = split_rows(&schema.pre_data).ok_or_else(|| {
            let text = "schema.sql is not one that an agent has written";
            Fault::new(FaultKind::StoreDamaged, text).on(node)
        })?;
        let post_data = schema.post_data;
        Ok(Sections {
            pre_data,
            rows,
            post_data,
        })
    }
}

/// The tables with their parts in order, which must be numbered without gaps.
fn plan(manifest: &Manifest) -> Result<Vec<TablePlan>, String> {
    let mut tables = Vec::with_capacity(manifest.tables.len());
    let mut next = 0u32;
    for (no, table) in (0u32..).zip(&manifest.tables) {
        let first = next;
        for part in &table.parts {
            if part.no != PartNo(next) {
                return Err(format!(
                    "part {} of {} is out of order",
                    part.no,
                    table.name()
                ));
            }
            next += 1;
        }
        let column = |name: &steep_protocol::Identifier| ColumnPlan {
            name: name.clone(),
            // Text is read by any type.
            type_name: String::new(),
            binary: false,
        };
        tables.push(TablePlan {
            no: TableNo(no),
            name: table.name(),
            columns: table.columns.iter().map(column).collect(),
            first_part: PartNo(first),
            ranges: vec![CtidRange::ALL; table.parts.len()],
        });
    }
    Ok(tables)
}

/// The frames of a stored part. Faults name the node.
#[derive(Debug)]
pub(crate) struct StoredFrames {
    reader: StoredReader,
    node: NodeId,
}

impl StoredFrames {
    pub(crate) fn new(reader: StoredReader, node: &NodeId) -> Self {
        let node = node.clone();
        Self { reader, node }
    }
}

impl FrameReader for StoredFrames {
    async fn next(&mut self) -> Result<(FrameHead, Vec<u8>), Fault> {
        match self.reader.next().await {
            Ok(Some((head, payload))) => Ok((head, payload.into())),
            // The end's head came before.
            Ok(None) => Err(Fault::new(FaultKind::Failed, "the part has ended").on(&self.node)),
            Err(error) => Err(fault(&error, &self.node)),
        }
    }
}

/// A text that is sent like a part.
#[derive(Debug)]
pub(crate) struct Text(Bytes);

impl PartReader for Text {
    async fn read(&mut self, into: &mut Vec<u8>, limit: usize) -> Result<ReadStep, Fault> {
        let room = limit.saturating_sub(into.len()).min(self.0.len());
        into.extend_from_slice(&self.0.split_to(room));
        Ok(match self.0.is_empty() {
            true => ReadStep::End { rows: RowCount(0) },
            false => ReadStep::More,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_extensions_are_split_off_by_length_whatever_the_schema_contains() {
        for schema in ["", "SELECT 1;\n", &trailer(3), &format!("{}x", trailer(0))] {
            for rows in ["", "INSERT;\n", &trailer(7)] {
                let mut section = schema.as_bytes().to_vec();
                append_rows(&mut section, rows.as_bytes());
                let (pre, found) = split_rows(&Bytes::from(section)).unwrap();
                assert_eq!(pre, format!("{schema}\n"));
                assert_eq!(found, rows);
            }
        }
        for bad in ["", "CREATE TABLE t ();\n", &trailer(1)] {
            assert_eq!(split_rows(&Bytes::from(bad.to_owned())), None, "{bad:?}");
        }
    }
}
