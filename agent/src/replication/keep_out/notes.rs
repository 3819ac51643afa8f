//! Notes what a guarded table was like when its guard was set, and compares.

use steep_protocol::{Fault, FaultKind, JobId};

use super::{TRIGGER, few, table};
use crate::node::connection::Conn;
use crate::node::job_records;

/// Notes the triggers that this transaction has set on the tables `$2`, and what these tables are like.
pub(super) fn note() -> String {
    format!(
        "INSERT INTO steep_repl.guards
            (job, relation, trigger_oid, set_by, schema_name, table_name, columns, below)
        SELECT $1, c.oid, t.oid, t.xmin, n.nspname, c.relname, {}, {}
        FROM unnest($2::text[]) AS g (name) JOIN pg_class c ON c.oid = g.name::regclass
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = $3
        ON CONFLICT (job, relation) DO UPDATE SET trigger_oid = excluded.trigger_oid,
            set_by = excluded.set_by, columns = excluded.columns, below = excluded.below,
            filenode = NULL",
        columns("c.oid"),
        below("c.oid")
    )
}

/// The transactions that last altered the columns of `relation`, also of dropped ones.
fn columns(relation: &str) -> String {
    format!(
        "coalesce((SELECT array_agg(a.xmin ORDER BY a.attnum) FROM pg_attribute a
            WHERE a.attrelid = {relation} AND a.attnum > 0), '{{}}')"
    )
}

/// The tables below `relation`, at any depth. Looked up by index, whatever the planner expects.
fn below(relation: &str) -> String {
    format!(
        "ARRAY(WITH RECURSIVE below AS (
                SELECT i.inhrelid AS oid FROM pg_inherits i WHERE i.inhparent = {relation}
                UNION SELECT d.inhrelid FROM below b CROSS JOIN LATERAL (
                    SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = b.oid OFFSET 0) AS d
            ) SELECT oid FROM below ORDER BY oid)"
    )
}

/// Whether other tables are below that of the guard `g`. Older agents have noted nothing.
fn regrouped() -> String {
    format!("(g.below <> {})", below("g.relation"))
}

/// Whether values in the table of the guard `g` may have been rewritten.
fn rewritten() -> String {
    format!(
        "(g.columns <> {} AND g.filenode IS DISTINCT FROM
            (SELECT f.relfilenode FROM pg_class f WHERE f.oid = g.relation))",
        columns("g.relation")
    )
}

/// Whether the trigger `t` is as noted in `g`, and of the table that rows are loaded into.
const SET: &str = "t.oid = g.trigger_oid AND t.tgrelid = g.relation AND t.xmin = g.set_by
    AND g.relation = to_regclass(format('%I.%I', g.schema_name, g.table_name))";

/// Whether trigger `t` and table are as noted in `g`.
pub(super) fn sound() -> String {
    format!(
        "{SET} AND {} IS NOT TRUE AND {} IS NOT TRUE",
        regrouped(),
        rewritten()
    )
}

/// Fails where a guard or its table has not stayed as it was when the guard was set, until it was lifted.
pub(crate) async fn held(conn: &Conn, job: JobId) -> Result<(), Fault> {
    if !job_records::notes_guards(conn).await? {
        return Ok(());
    }
    let sql = format!("{} WHERE g.job = $1 ORDER BY 1, 2", changed());
    unbroken(conn, job, &sql).await
}

/// As [`held`], while the guards are there and all rows are. Notes the files that these are in.
pub(crate) async fn hold(conn: &Conn, job: JobId) -> Result<(), Fault> {
    if !job_records::notes_guards(conn).await? {
        return Ok(());
    }
    let sql = format!(
        "WITH sound AS MATERIALIZED (
            SELECT g.relation FROM steep_repl.guards g JOIN pg_trigger t ON {}
            WHERE g.job = $1
        ), noted AS (
            UPDATE steep_repl.guards g SET filenode = c.relfilenode
            FROM sound s JOIN pg_class c ON c.oid = s.relation
            WHERE g.job = $1 AND g.relation = s.relation AND g.filenode IS NULL
        )
        {} WHERE g.job = $1 AND g.relation NOT IN (SELECT relation FROM sound) ORDER BY 1, 2",
        sound(),
        changed()
    );
    unbroken(conn, job, &sql).await
}

/// Guards, and what was done to their tables, in the order of [`Change`].
fn changed() -> String {
    format!(
        "SELECT g.schema_name, g.table_name, CASE WHEN {} THEN 2 WHEN {} THEN 1 ELSE 0 END
        FROM steep_repl.guards g",
        regrouped(),
        rewritten()
    )
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
