//! How far the source's sequences are used, and the target's raised to that.
//!
//! Logical replication does not carry sequences. This is repeated while a node follows, so it costs each side one
//! statement for a thousand sequences, never moves one backwards, and holds their locks, which only DDL on a
//! sequence waits for, until the end of that statement. A sequence that DDL holds is left out and named.

use backon::Retryable as _;
use steep_protocol::limits::SEQUENCES_NAMED;
use steep_protocol::message::agent::SequencesRaised;
use steep_protocol::message::job::{ReplicationNames, TableFilter};
use steep_protocol::message::peer::{SequencesUsed, UsedSequence};
use steep_protocol::{Fault, JobId, TableName};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use crate::node::connection::{Conn, Params};
use crate::pg::catalog::{Partitions, USER_RELATION, table_name};
use crate::pg::{PgError, Session, lock_timeout};
use crate::task::Task;

/// Sequences per statement. Each is locked until its end, and the lock table has room for some thousands.
const BATCH: usize = 1_000;

/// Relations whose locks keep a sequence from being read or set, each with who holds one or is ahead in the queue.
/// Reading and setting take ROW EXCLUSIVE (`lock_and_open_sequence` in PostgreSQL's source).
const HELD: &str = "held AS MATERIALIZED (
            SELECT l.relation, coalesce(min(format('process %s of %s (%s)', s.pid, s.usename, s.application_name)),
                'a prepared transaction') AS by
            FROM pg_locks l LEFT JOIN pg_stat_activity s ON s.pid = l.pid
            WHERE l.locktype = 'relation' AND l.pid IS DISTINCT FROM pg_backend_pid()
                AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
                AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
            GROUP BY l.relation
        )";

/// Sequences per statement that names each, which PostgreSQL plans one by one.
const UNUSED_BATCH: usize = 100;

/// How far the sequences are used that `filter` admits; one that belongs to a table follows the table, and has to be
/// published where a replication is named.
pub(crate) async fn used(
    task: &Task,
    filter: &TableFilter,
    replication: Option<JobId>,
) -> Result<SequencesUsed, Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let connected = Session::connect_impatient(&task.conninfo, "sequences").await;
    let session = connected.map_err(fault)?;
    let read =
        (|| read_all(&session, task, filter, replication)).retry(lock_timeout::a_few_times());
    // A sequence may be dropped after it was listed.
    let read = read.when(|error| error.is_locked() || error.is(&SqlState::UNDEFINED_TABLE));
    let used = read.await.map_err(fault)?;
    session.give_back().await;
    Ok(used)
}

async fn read_all(
    session: &Session,
    task: &Task,
    filter: &TableFilter,
    replication: Option<JobId>,
) -> Result<SequencesUsed, PgError> {
    let everything = filter.is_everything();
    let partitions = match everything {
        true => Partitions::default(),
        false => Partitions::load(session).await?,
    };
    let sql = page_sql();
    let publication = replication.map(|job| ReplicationNames(job).name());
    let mut used = SequencesUsed::default();
    let mut after = 0u32;
    loop {
        let rows = session
            .run(&task.cancel, session.query(&sql, &[&after, &publication]))
            .await?;
        for row in &rows {
            after = row.try_get(0)?;
            let name = table_name(row, 1)?;
            let owned = row.try_get::<_, Option<String>>(3)?.is_some();
            let admitted = match owned {
                _ if everything => true,
                true => partitions.owns(filter, &table_name(row, 3)?, &name),
                false => filter.admits(&name),
            };
            if !admitted || !row.try_get::<_, bool>(5)? {
                continue;
            }
            let by: Option<&str> = row.try_get(8)?;
            match (row.try_get::<_, bool>(6)?, by, row.try_get(7)?) {
                (true, Some(by), _) if used.locked.len() < SEQUENCES_NAMED => {
                    used.locked.push(locked(&name, by));
                }
                (true, None, Some(value)) => used.values.push(UsedSequence {
                    name,
                    value,
                    owner: row.try_get(9)?,
                    column: row.try_get(10)?,
                }),
                (true, ..) => {}
                (false, ..) if used.unreadable.len() < SEQUENCES_NAMED => {
                    used.unreadable.push(name);
                }
                (false, ..) => {}
            }
        }
        if rows.len() < BATCH {
            return Ok(used);
        }
    }
}

/// The column of a sequence, the same on both sides. `a` is null where it belongs to none.
const COLUMN: &str = "CASE WHEN a.attname IS NOT NULL
            THEN jsonb_build_array(tn.nspname, t.relname, a.attname)::text END";

fn locked(name: &TableName, by: &str) -> String {
    format!("{name} by {by}")
}

/// oid, schema, name, schema and name of the owning table, whether that is published, whether the sequence may be
/// read, its last value, who has locked it, its owner, its column. The page is chosen before values are read, which locks.
fn page_sql() -> String {
    format!(
        "WITH published AS (
            SELECT p.relid FROM pg_publication AS own, pg_get_publication_tables(own.pubname::text) AS p
            WHERE own.pubname = $2
        ), page AS MATERIALIZED (
            SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, o.refobjid AS owner,
                o.refobjsubid AS number, pg_get_userbyid(c.relowner)::text AS role
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN LATERAL (
                SELECT d.refobjid, d.refobjsubid FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                    AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') LIMIT 1
            ) AS o ON true
            WHERE c.relkind = 'S' AND {USER_RELATION} AND c.oid > $1 ORDER BY c.oid LIMIT {BATCH}
        ), {HELD}, judged AS MATERIALIZED (
            SELECT page.*, held.by, tn.nspname::text AS owner_schema, t.relname::text AS owner_name, {COLUMN} AS \"column\",
                $2::text IS NULL OR owner IS NULL OR owner IN (SELECT relid FROM published)
                    OR t.relkind = 'p' AND EXISTS (SELECT FROM pg_partition_tree(t.oid) AS below
                        JOIN published ON published.relid = below.relid) AS covered,
                has_sequence_privilege(page.oid, 'USAGE, SELECT') AS readable
            FROM page LEFT JOIN pg_class t ON t.oid = owner LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace
                LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = page.number
                LEFT JOIN held ON held.relation = page.oid
        )
        SELECT oid, schema, name, owner_schema, owner_name, covered, coalesce(readable, false),
            CASE WHEN covered AND readable AND by IS NULL THEN pg_sequence_last_value(oid::regclass) END, by,
            role, \"column\"
        FROM judged ORDER BY oid"
    )
}

/// Raises the node's sequences to the source's, as far as they are there and behind. One that is ahead, since the
/// node's own applications use it, stays.
pub(crate) async fn raise(conn: &Conn, used: &SequencesUsed) -> Result<SequencesRaised, Fault> {
    let mut raising = Raising::default();
    raising
        .unreadable
        .extend(used.unreadable.iter().map(ToString::to_string));
    raising.locked_on_source.clone_from(&used.locked);
    for batch in used.values.chunks(BATCH) {
        let raised = (|| raise_batch(conn, batch)).retry(lock_timeout::a_few_times());
        let raised = raised.when(|error| error.is_locked() || error.is(&SqlState::UNDEFINED_TABLE));
        let rows = raised.await.map_err(|error| conn.fault(&error))?;
        let unused = raising
            .take(&rows, batch)
            .map_err(|error| conn.fault(&error))?;
        for batch in unused.chunks(UNUSED_BATCH) {
            let first = raise_unused(conn, batch, &mut raising.locked).await;
            raising.raised += first.map_err(|error| conn.fault(&error))?;
        }
    }
    Ok(raising.outcome())
}

/// Each row: the sequence's place in the batch, what became of it, who has locked it. Reads and sets in the same row,
/// so that a value that the node itself takes in between is not handed out again.
///
/// A sequence is the source's if it belongs to the same column or, where it belongs to none here, has an owner of the
/// same name. The agent's role stands for one that does not exist here, or whom it may not give it to.
async fn raise_batch(conn: &Conn, batch: &[UsedSequence]) -> Result<Vec<Row>, PgError> {
    let schemas: Vec<&str> = batch.iter().map(|one| one.name.schema.as_str()).collect();
    let names: Vec<&str> = batch.iter().map(|one| one.name.table.as_str()).collect();
    let values: Vec<i64> = batch.iter().map(|one| one.value).collect();
    let owners: Vec<&str> = batch.iter().map(|one| one.owner.as_str()).collect();
    let columns: Vec<Option<&str>> = batch.iter().map(|one| one.column.as_deref()).collect();
    let sql = format!(
        "WITH {HELD} SELECT w.ord, CASE
            WHEN NOT whose.same THEN 'left alone'
            WHEN held.by IS NOT NULL THEN 'locked'
            WHEN NOT has_sequence_privilege(c.oid, 'USAGE, SELECT')
                OR NOT has_sequence_privilege(c.oid, 'UPDATE') THEN 'denied'
            WHEN w.value NOT BETWEEN q.seqmin AND q.seqmax THEN 'out of bounds'
            WHEN l.value IS NULL AND NOT has_sequence_privilege(c.oid, 'SELECT') THEN 'denied'
            WHEN l.value IS NULL THEN 'unused'
            WHEN (w.value - l.value::numeric) * sign(q.seqincrement) <= 0 THEN 'ahead'
            WHEN setval(c.oid::regclass, w.value) IS NOT NULL THEN 'raised' END, held.by
        FROM unnest($1::text[], $2::text[], $3::int8[], $4::text[], $5::text[])
            WITH ORDINALITY AS w (schema, name, value, owner, \"column\", ord)
        JOIN pg_namespace n ON n.nspname = w.schema
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind = 'S'
        JOIN pg_sequence q ON q.seqrelid = c.oid
        JOIN pg_roles me ON me.rolname = current_user
        LEFT JOIN pg_roles r ON r.rolname = w.owner
        LEFT JOIN held ON held.relation = c.oid
        LEFT JOIN LATERAL (
            SELECT {COLUMN} AS \"column\" FROM pg_depend d
            JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace tn ON tn.oid = t.relnamespace
            JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') LIMIT 1
        ) AS o ON true
        CROSS JOIN LATERAL (SELECT CASE WHEN o.\"column\" IS NOT NULL
            THEN o.\"column\" IS NOT DISTINCT FROM w.\"column\"
            ELSE c.relowner = coalesce(r.oid, me.oid) OR c.relowner = me.oid AND NOT me.rolsuper END AS same) AS whose
        CROSS JOIN LATERAL (SELECT CASE WHEN whose.same AND held.by IS NULL
            AND has_sequence_privilege(c.oid, 'USAGE, SELECT')
            THEN pg_sequence_last_value(c.oid::regclass) END AS value) AS l"
    );
    let values: Params<'_> = &[&schemas, &names, &values, &owners, &columns];
    conn.fetch(&sql, values).await
}

/// Raises sequences that never gave out a value; returns how many. One that was dropped or locked since it was looked
/// at fails its batch, so the others are then raised one by one.
async fn raise_unused(
    conn: &Conn,
    batch: &[(&TableName, i64)],
    locked: &mut Vec<String>,
) -> Result<u64, PgError> {
    match raise_unused_batch(conn, batch).await {
        Err(error) if error.is_locked() || error.is(&SqlState::UNDEFINED_TABLE) => {}
        other => return other,
    }
    let mut raised = 0;
    for one in batch.chunks(1) {
        match raise_unused_batch(conn, one).await {
            Err(error) if error.is(&SqlState::UNDEFINED_TABLE) => {}
            Err(error) if error.is_locked() => {
                locked.extend(one.iter().map(|(name, _)| name.to_string()));
            }
            other => raised += other?,
        }
    }
    Ok(raised)
}

/// Only such a sequence itself knows where it begins, so each is read as a table.
async fn raise_unused_batch(conn: &Conn, batch: &[(&TableName, i64)]) -> Result<u64, PgError> {
    let names: Vec<String> = batch.iter().map(|(name, _)| name.quoted()).collect();
    let values: Vec<i64> = batch.iter().map(|(_, value)| *value).collect();
    let one = |(index, name): (usize, &String)| {
        let place = index + 1;
        let (id, value) = (
            format!("(($1::text[])[{place}])::regclass"),
            format!("($2::int8[])[{place}]"),
        );
        format!(
            "SELECT setval({id}, {value}) FROM {name} AS own, pg_sequence q WHERE q.seqrelid = {id}
                AND ({value} - own.last_value::numeric) * sign(q.seqincrement) >= 0 AND NOT own.is_called"
        )
    };
    let each: Vec<String> = names.iter().enumerate().map(one).collect();
    let rows = conn
        .fetch(&each.join(" UNION ALL "), &[&names, &values])
        .await?;
    Ok(rows.len() as u64)
}

/// What has been raised so far.
#[derive(Debug, Default)]
struct Raising {
    followed: u64,
    raised: u64,
    unreadable: Vec<String>,
    locked_on_source: Vec<String>,
    locked: Vec<String>,
    denied: Vec<String>,
    out_of_bounds: Vec<String>,
    left_alone: Vec<String>,
}

impl Raising {
    /// Counts a batch; returns the sequences that never gave out a value.
    fn take<'a>(
        &mut self,
        rows: &[Row],
        batch: &'a [UsedSequence],
    ) -> Result<Vec<(&'a TableName, i64)>, PgError> {
        let mut unused = Vec::new();
        for row in rows {
            let at = usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0);
            let one = at.checked_sub(1).and_then(|at| batch.get(at));
            let Some(UsedSequence { name, value, .. }) = one else {
                let text = "a sequence that was not asked for";
                return Err(PgError::Protocol(text.to_owned()));
            };
            let became = row.try_get::<_, Option<&str>>(1)?;
            if became == Some("left alone") {
                self.left_alone.push(name.to_string());
                continue;
            }
            self.followed += 1;
            match became {
                Some("raised") => self.raised += 1,
                Some("unused") => unused.push((name, *value)),
                Some("locked") => {
                    let by = row.try_get::<_, Option<&str>>(2)?.unwrap_or_default();
                    self.locked.push(locked(name, by));
                }
                Some("denied") => self.denied.push(name.to_string()),
                Some("out of bounds") => self.out_of_bounds.push(name.to_string()),
                _ => {}
            }
        }
        Ok(unused)
    }

    fn outcome(self) -> SequencesRaised {
        let problems = [
            (
                self.unreadable,
                "the source's agent may not read",
                "grant its role SELECT on them",
            ),
            (
                self.locked_on_source,
                "on the source, somebody has locked",
                "end that transaction",
            ),
            (
                self.locked,
                "on this node, somebody has locked",
                "end that transaction",
            ),
            (
                self.denied,
                "this node's agent may not set",
                "grant its role SELECT and UPDATE on them",
            ),
            (
                self.out_of_bounds,
                "the source is past the bounds here of",
                "give them the source's bounds",
            ),
        ];
        let left_alone = problem(
            &self.left_alone,
            "here, others have made",
            "these are left alone; give them the owner or the column that they have on the source, or other names",
        );
        let said = problems.into_iter().filter(|(names, ..)| !names.is_empty());
        SequencesRaised {
            followed: self.followed,
            raised: self.raised,
            problems: said
                .map(|(names, what, fix)| problem(&names, what, fix))
                .collect(),
            left_alone: (!self.left_alone.is_empty()).then_some(left_alone),
        }
    }
}

fn problem(names: &[String], what: &str, fix: &str) -> String {
    let some = names[..names.len().min(SEQUENCES_NAMED)].join(", ");
    let more = match names.len().saturating_sub(SEQUENCES_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{what} {some}{more}: {fix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_set_is_a_sentence_for_each_cause() {
        let raising = Raising {
            followed: 3,
            denied: (0..12).map(|n| format!("public.s{n}")).collect(),
            out_of_bounds: vec!["public.small".to_owned()],
            ..Raising::default()
        };
        let problems = raising.outcome().problems;
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("public.s9 and 2 more"), "{problems:?}");
        assert!(
            problems[1].contains("public.small: give them"),
            "{problems:?}"
        );
        assert!(Raising::default().outcome().problems.is_empty());
    }
}
