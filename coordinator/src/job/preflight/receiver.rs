//! What is on the target already: rows, a schema that differs; and whether its disk has room.

use steep_protocol::ByteCount;
use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::facts::{Finding, SchemaDifference, Severity};
use steep_protocol::message::job::{Confirmation, ExistingRows, SchemaMode};

use super::text::{bytes, counted, names};
use super::{Pair, Text, error, finding, info, warning};

/// Tables and indexes grow a little apart from the source's, and `ANALYZE` and sorting need room.
const DISK_MARGIN_PERCENT: u64 = 110;

/// With less free than this share of the source's size the disk is sure to fill: a fresh copy is
/// seldom smaller, bloat apart.
const DISK_HOPELESS_PERCENT: u64 = 80;

/// WAL on disk beside the rows where `max_wal_size` cannot be asked for: PostgreSQL's default.
const WAL_DEFAULT: ByteCount = ByteCount(1 << 30);

/// Below this size an unknown disk is not worth a warning.
const DISK_MATTERS: ByteCount = ByteCount(1_000_000_000);

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    findings.extend(existing_rows(pair));
    findings.extend(schema(pair));
    findings.extend(extra_tables(pair));
    findings.extend(disk(pair));
}

fn existing_rows(pair: &Pair<'_>) -> Option<Finding> {
    let tables = &pair.target.not_empty;
    if tables.is_empty() {
        return None;
    }
    let what = format!(
        "{} rows: {}",
        counted(
            tables.count,
            "table to be filled holds",
            "tables to be filled hold"
        ),
        names(tables)
    );
    let node = &pair.spec.target;
    Some(match pair.spec.existing {
        ExistingRows::Refuse => error(
            "target_not_empty",
            node,
            Text::new(
                what,
                "copied rows would be added to those that are there: conflicts, or duplicates where no key forbids them",
                "use --force to have these tables emptied first, empty them yourself, or leave them out with --exclude-table",
            ),
        ),
        ExistingRows::Replace => warning(
            "target_not_empty",
            node,
            Text::new(
                what,
                "you asked for them to be replaced (--force): their rows are deleted before the copy",
                "cancel now if any of these rows is still needed",
            ),
        ),
    })
}

fn schema(pair: &Pair<'_>) -> Vec<Finding> {
    let node = &pair.spec.target;
    let (severity, why, fix) = verdict(pair.spec.schema_mode, pair.spec.confirmation);
    let differences = &pair.target.differences;
    let mut found: Vec<Finding> = differences
        .iter()
        .take(LISTED_MAX)
        .map(|d| {
            finding(
                severity,
                "schema_mismatch",
                node,
                Text::new(describe(d), why, fix),
            )
        })
        .collect();
    let unsaid = differences.len().saturating_sub(LISTED_MAX) as u64 + pair.target.more_differences;
    if unsaid > 0 {
        let what = counted(unsaid, "further difference", "further differences");
        found.push(finding(
            severity,
            "schema_mismatch",
            node,
            Text::new(what, why, fix),
        ));
    }
    found
}

/// How grave a difference is, why, and what to do.
fn verdict(mode: SchemaMode, word: Confirmation) -> (Severity, &'static str, &'static str) {
    match (mode, word) {
        (SchemaMode::Strict, _) => (
            Severity::Error,
            "rows and later changes may not fit; with --schema-sync strict any difference stops the job",
            "make the two schemas equal, start with a target database without tables, or use --schema-sync manual",
        ),
        (SchemaMode::Auto, _) => (
            Severity::Error,
            "--schema-sync auto creates the schema of an empty database; changing tables that are there already is not possible yet",
            "make this change on the target yourself, or start with a target database without tables",
        ),
        (SchemaMode::Manual, Confirmation::Needed) => (
            Severity::Error,
            "rows and later changes may not fit; with --schema-sync manual somebody must say that they do",
            "look at the difference, then confirm with --yes",
        ),
        (SchemaMode::Manual, Confirmation::Given) => (
            Severity::Warning,
            "rows and later changes may not fit; it was confirmed that they do",
            "if the copy or the subscription fails at this table, make the two schemas equal",
        ),
    }
}

fn describe(difference: &SchemaDifference) -> String {
    let SchemaDifference {
        table,
        column,
        kind,
        source,
        target,
    } = difference;
    let place = match column {
        Some(column) => format!("column {column} of {table}"),
        None => format!("table {table}"),
    };
    match kind.as_str() {
        "missing" => format!("{place} is missing on the target ({kind}): {source}"),
        "extra" => format!("{place} is on the target only ({kind}): {target}"),
        _ => format!("{place} differs ({kind}): {source} on the source, {target} on the target"),
    }
}

fn extra_tables(pair: &Pair<'_>) -> Option<Finding> {
    let tables = &pair.target.extra_tables;
    (!tables.is_empty()).then(|| {
        info(
            "extra_tables",
            &pair.spec.target,
            Text::new(
                format!(
                    "{} on the target only: {}",
                    counted(tables.count, "table is", "tables are"),
                    names(tables)
                ),
                "they are left as they are and take no part in replication",
                "nothing, unless they should be on the source too",
            ),
        )
    })
}

fn disk(pair: &Pair<'_>) -> Option<Finding> {
    let (node, size) = (&pair.spec.target, pair.source.total_bytes);
    let wal = pair.target.server.number("max_wal_size");
    let wal = wal.and_then(|megabytes| u64::try_from(megabytes).ok());
    let wal = wal.map_or(WAL_DEFAULT, |megabytes| ByteCount(megabytes << 20));
    let need = ByteCount(size.0 / 100 * DISK_MARGIN_PERCENT) + wal;
    let why = "a full disk ends the copy and stops every other writer on this server";
    let fix = "free or add disk space where the data directory is; tablespaces and a WAL directory elsewhere are not counted here";
    let Some(free) = pair.target.disk_free else {
        let text = Text::new(
            "the free disk space is unknown: the agent does not see the data directory",
            why,
            format!("make sure that about {} are free", bytes(need)),
        );
        return Some(if size < DISK_MATTERS {
            info("disk_unknown", node, text)
        } else {
            warning("disk_unknown", node, text)
        });
    };
    if free >= need {
        return None;
    }
    let what = format!(
        "{} are free where the data directory is; the tables take {} on the source, and about {} are needed with WAL and some margin",
        bytes(free),
        bytes(size),
        bytes(need)
    );
    // Rows that are replaced give their room back first; how much is not known here.
    let freed = pair.spec.existing == ExistingRows::Replace && !pair.target.not_empty.is_empty();
    let hopeless = free.0 < size.0 / 100 * DISK_HOPELESS_PERCENT && !freed;
    Some(if hopeless {
        error("disk_space", node, Text::new(what, why, fix))
    } else {
        warning("disk_space", node, Text::new(what, why, fix))
    })
}
