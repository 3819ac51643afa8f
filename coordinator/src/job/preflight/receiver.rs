//! The target's content: existing rows, triggers, extra tables; and its disk space.

use steep_protocol::ByteCount;
use steep_protocol::message::facts::{Finding, Listed, OwnedTables};
use steep_protocol::message::job::{ExistingRows, Method};

use super::text::{bytes, counted, names};
use super::{Pair, Text, error, info, warning};

/// The target's tables and indexes may be a little larger, and `ANALYZE` and sorting need space.
const DISK_MARGIN_PERCENT: u64 = 110;

/// With less free space than this share of the source's size the disk is sure to fill: apart from bloat, a
/// fresh copy is seldom smaller.
const DISK_HOPELESS_PERCENT: u64 = 80;

/// Space for WAL if `max_wal_size` is unknown: PostgreSQL's default.
const WAL_DEFAULT: ByteCount = ByteCount(1 << 30);

/// Below this size, unknown disk space is not worth a warning.
const DISK_MATTERS: ByteCount = ByteCount(1_000_000_000);

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    findings.extend(extra_tables(pair));
    findings.extend(forced_security(pair));
    findings.extend(owner_denied(pair));
    if pair.is_restored() {
        return;
    }
    findings.extend(existing_rows(pair));
    findings.extend(firing_triggers(pair));
    findings.extend(disk(pair));
}

fn existing_rows(pair: &Pair<'_>) -> Option<Finding> {
    let tables = &pair.target.not_empty;
    if tables.is_empty() || pair.spec.method == Method::Reinit {
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
                "copied rows would be added to the existing ones: conflicts, or duplicates if no key forbids them",
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

/// Existing triggers would fire while rows are copied. Triggers of the source's schema are created after the
/// copy, and fire on changes.
fn firing_triggers(pair: &Pair<'_>) -> Option<Finding> {
    let what = |tables: &Listed| {
        format!(
            "{} triggers that are enabled for replicated rows as well (ENABLE ALWAYS or ENABLE REPLICA): {}",
            counted(tables.count, "table has", "tables have"),
            names(tables)
        )
    };
    let (there, coming) = (&pair.target.firing_triggers, &pair.source.firing_triggers);
    if !there.is_empty() {
        return Some(error(
            "firing_triggers",
            &pair.spec.target,
            Text::new(
                what(there),
                "they would fire for every copied row",
                "ALTER TABLE … DISABLE TRIGGER (or ENABLE TRIGGER, for rows of this node alone), and set them back once the node is synchronized",
            ),
        ));
    }
    (pair.target.user_tables == 0 && !coming.is_empty()).then(|| {
        warning(
            "firing_triggers",
            &pair.spec.source,
            Text::new(
                what(coming),
                format!(
                    "they come with the schema and fire on {} too, for each change that is applied: what they write there comes in addition to what is replicated of it, so that rows differ or the subscription stops",
                    pair.spec.target
                ),
                "if that is not wanted, ALTER TABLE … ENABLE TRIGGER on the source, so that they fire only for rows written there",
            ),
        )
    })
}

/// The first version that applies changes with the rights of each table's owner.
const OWNER_APPLIES: u32 = 160_000;

/// From PostgreSQL 16 on, changes are applied with the rights of each table's owner, and an apply worker
/// refuses a table whose policies apply to that role ("cannot replicate into relation with row-level
/// security enabled").
fn forced_security(pair: &Pair<'_>) -> Option<Finding> {
    let forced = match pair.target.user_tables {
        0 => &pair.source.forced_security,
        _ => &pair.target.forced_security,
    };
    // Tables of an owner missing on the target will belong to the agent's role.
    let binds = |owned: &&OwnedTables| {
        pair.target.roles.contains(&owned.owner) && !pair.target.bypassing.contains(&owned.owner)
    };
    let mut tables = Listed::default();
    for bound in forced.iter().filter(binds) {
        tables.count += bound.tables.count;
        tables.names.extend(bound.tables.names.iter().cloned());
    }
    (pair.target.server.version >= OWNER_APPLIES && !tables.is_empty()).then(|| {
        error(
            "row_security_forced",
            &pair.spec.target,
            Text::new(
                format!(
                    "{} FORCE ROW LEVEL SECURITY and an owner who may not bypass it here: {}",
                    counted(tables.count, "table has", "tables have"),
                    names(&tables)
                ),
                "changes are applied with the rights of the owner, and PostgreSQL refuses that where policies bind that role: the first change stops the subscription",
                "ALTER ROLE … BYPASSRLS for these owners on the target, or ALTER TABLE … NO FORCE ROW LEVEL SECURITY on the source, or leave these tables out with --exclude-table",
            ),
        )
    })
}

/// Tables whose owner lacks a right on them, as after `REVOKE … FROM` the owner.
fn owner_denied(pair: &Pair<'_>) -> Option<Finding> {
    let tables = &pair.source.owner_denied;
    (pair.target.server.version >= OWNER_APPLIES && !tables.is_empty()).then(|| {
        warning(
            "owner_privileges",
            &pair.spec.source,
            Text::new(
                format!(
                    "{} an owner who lacks SELECT, INSERT, UPDATE, DELETE or TRUNCATE on it: {}",
                    counted(tables.count, "table has", "tables have"),
                    names(tables)
                ),
                "changes are applied with the rights of the owner: the first that takes such a right stops the subscription",
                "GRANT the owner these rights on the target once the schema is there, or on the source",
            ),
        )
    })
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
                "they are left unchanged and are not replicated",
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
    // Replaced rows free their space first, an unknown amount.
    let freed = pair.spec.existing == ExistingRows::Replace && !pair.target.not_empty.is_empty();
    let hopeless = free.0 < size.0 / 100 * DISK_HOPELESS_PERCENT && !freed;
    Some(if hopeless {
        error("disk_space", node, Text::new(what, why, fix))
    } else {
        warning("disk_space", node, Text::new(what, why, fix))
    })
}
