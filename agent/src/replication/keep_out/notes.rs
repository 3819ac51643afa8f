//! Notes what a guarded table was like when its guard was set, and compares.

use steep_protocol::{Fault, FaultKind, JobId};

use super::{TRIGGER, few, table};
use crate::node::connection::Conn;
use crate::node::job_records;

/// Notes the triggers that this transaction has set on the tables `$2`, and what these tables are like.
pub(super) fn note() -> String {
    format!(
        "WITH RECURSIVE named AS MATERIALIZED (
            SELECT name::regclass::oid AS relation FROM unnest($2::text[]) AS n (name)
        ), {}
        INSERT INTO steep_repl.guards
            (job, relation, trigger_oid, set_by, schema_name, table_name, columns, below)
        SELECT $1, c.oid, t.oid, t.xmin, n.nspname, c.relname, {},
            coalesce(b.relations, '{{}}')
        FROM named g JOIN pg_class c ON c.oid = g.relation
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = $3
        LEFT JOIN (SELECT top, array_agg(relation) AS relations FROM below GROUP BY top) AS b
            ON b.top = c.oid
        ON CONFLICT (job, relation) DO UPDATE SET trigger_oid = excluded.trigger_oid,
            set_by = excluded.set_by, columns = excluded.columns, below = excluded.below,
            filenode = NULL",
        below("named"),
        columns("c.oid")
    )
}

/// The transactions that last altered the columns of `relation`, also of dropped ones.
fn columns(relation: &str) -> String {
    format!(
        "coalesce((SELECT array_agg(a.xmin ORDER BY a.attnum) FROM pg_attribute a
            WHERE a.attrelid = {relation} AND a.attnum > 0), '{{}}')"
    )
}

/// All tables below those of `tops`, at any depth, in one walk: one for each would read the catalog anew each
/// time.
fn below(tops: &str) -> String {
    format!(
        "below (top, relation) AS (
            SELECT t.relation, i.inhrelid FROM {tops} t JOIN pg_inherits i ON i.inhparent = t.relation
            UNION SELECT b.top, i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.relation
        )"
    )
}

/// Judges the guards that `noted` selects: `judged` has each and its [`Change`], NULL if there is none.
/// A table that came to be below another one counts once it has rows: partition managers make empty ones.
pub(super) fn judged(noted: &str) -> String {
    format!(
        "WITH RECURSIVE noted AS MATERIALIZED ({noted}), {},
        known (top, relation) AS (SELECT relation, unnest(below) FROM noted),
        regrouped (relation) AS (
            SELECT top FROM (SELECT * FROM known EXCEPT SELECT * FROM below) AS gone
            UNION SELECT new.top FROM (SELECT * FROM below EXCEPT SELECT * FROM known) AS new
                JOIN noted n ON n.relation = new.top AND n.below IS NOT NULL
                JOIN pg_class c ON c.oid = new.relation
                WHERE c.relkind <> 'r' AND c.relkind <> 'p' OR pg_relation_size(c.oid) > 0
        ),
        judged AS MATERIALIZED (
            SELECT n.relation, n.schema_name, n.table_name, n.place, CASE
                WHEN n.relation IN (SELECT relation FROM regrouped) THEN 2
                WHEN n.columns <> {} AND n.filenode IS DISTINCT FROM c.relfilenode THEN 1
                WHEN t.oid IS NULL THEN 0
            END AS change
            FROM noted n
            LEFT JOIN pg_class c ON c.oid = n.relation
            LEFT JOIN pg_trigger t ON t.oid = n.trigger_oid AND t.tgrelid = n.relation
                AND t.xmin = n.set_by
                AND n.relation = to_regclass(format('%I.%I', n.schema_name, n.table_name))
        )",
        below("noted"),
        columns("n.relation")
    )
}

/// Fails where a guard or its table has not stayed as it was when the guard was set, until it was lifted.
pub(crate) async fn held(conn: &Conn, job: JobId) -> Result<(), Fault> {
    if !job_records::notes_guards(conn).await? {
        return Ok(());
    }
    // What is sound now has all rows: keys that the job builds on it alter columns, but leave the file.
    let sql = format!(
        "{}, sound AS (
            UPDATE steep_repl.guards g SET filenode = c.relfilenode
            FROM judged j JOIN pg_class c ON c.oid = j.relation
            WHERE g.ctid = j.place AND j.change IS NULL AND g.filenode IS NULL
        )
        SELECT schema_name, table_name, change FROM judged WHERE change IS NOT NULL ORDER BY 1, 2",
        judged("SELECT g.ctid AS place, g.* FROM steep_repl.guards g WHERE g.job = $1")
    );
    unbroken(conn, job, &sql).await
}

/// What others have done to a guarded table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Unguarded,
    Rewritten,
    Regrouped,
}

impl Change {
    const ALL: [Self; 3] = [Self::Unguarded, Self::Rewritten, Self::Regrouped];

    fn says(self, tables: &str) -> String {
        match self {
            Self::Unguarded => format!(
                "somebody has dropped, disabled or altered {TRIGGER}, which keeps others from writing \
                 while rows are loaded, or its table: {tables}"
            ),
            Self::Rewritten => format!(
                "somebody has altered columns while rows are loaded, which can rewrite them: {tables}"
            ),
            Self::Regrouped => format!(
                "somebody has attached or detached a partition or child while rows are loaded, below \
                 {tables}"
            ),
        }
    }
}

async fn unbroken(conn: &Conn, job: JobId, sql: &str) -> Result<(), Fault> {
    let rows = conn.rows(sql, &[&job.to_string()]).await?;
    let change = |row: &tokio_postgres::Row| {
        let change = usize::try_from(row.get::<_, i32>(2)).ok()?;
        Some((*Change::ALL.get(change)?, table(row)?.to_string()))
    };
    let changes: Vec<(Change, String)> = rows.iter().filter_map(change).collect();
    if changes.is_empty() {
        return Ok(());
    }
    let text = format!(
        "{}; which rows there are the source's cannot be proved any more",
        told(&changes)
    );
    let next = "what was copied is removed; see that nobody else changes this node's tables until it is \
                synchronized, then run init again";
    Err(conn.own(Fault::new(FaultKind::TargetChanged, text).hint(next)))
}

fn told(changes: &[(Change, String)]) -> String {
    let of = |wanted: Change| {
        let names = changes.iter().filter(|(change, _)| *change == wanted);
        let names: Vec<String> = names.map(|(_, name)| name.clone()).collect();
        (!names.is_empty()).then(|| wanted.says(&few(&names)))
    };
    let told: Vec<String> = Change::ALL.into_iter().filter_map(of).collect();
    told.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_names_its_tables() {
        let of = |change, name: &str| (change, name.to_owned());
        let changes = [
            of(Change::Regrouped, "s.root"),
            of(Change::Rewritten, "s.a"),
            of(Change::Rewritten, "s.b"),
        ];
        assert_eq!(
            told(&changes),
            "somebody has altered columns while rows are loaded, which can rewrite them: s.a, s.b; \
             somebody has attached or detached a partition or child while rows are loaded, below s.root"
        );
    }
}
