//! What is missing, as findings: one per object, and one per role that owners and privileges lack. Bounded.

use steep_protocol::Fault;
use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::agent::MissingObjects;
use steep_protocol::message::facts::Finding;

use crate::node::connection::Conn;

pub(crate) const OBJECT: &str = "object_missing";
pub(crate) const FOREIGN_KEY: &str = "foreign_key_missing";
pub(crate) const VIOLATED: &str = "foreign_key_violated";
pub(crate) const CHECK: &str = "check_not_valid";
pub(crate) const ROLE: &str = "missing_role";
pub(crate) const PRIVILEGE: &str = "privilege";

/// The longest statement that a finding repeats.
const STATEMENT_MAX: usize = 1000;

/// `feature_not_supported`, with which PostgreSQL refuses to check a domain again.
const NOT_SUPPORTED: &str = "0A000";

/// Kinds whose statements stay on the server: they may hold passwords, code that does, or rows.
const UNTOLD: [&str; 8] = [
    "user mapping",
    "server",
    "foreign data wrapper",
    "foreign table",
    "function",
    "procedure",
    "rows",
    "statement",
];

struct Row<'a> {
    id: i64,
    code: &'a str,
    kind: &'a str,
    object: &'a str,
    statement: &'a str,
    sqlstate: &'a str,
    error: &'a str,
}

pub(crate) async fn report(conn: &Conn) -> Result<MissingObjects, Fault> {
    let total = "SELECT count(*) FROM steep_repl.missing_objects";
    let total = conn.row(total, &[]).await?.get::<_, i64>(0);
    let mut missing = MissingObjects {
        total: u64::try_from(total).unwrap_or(0),
        findings: Vec::new(),
    };
    let limit = i64::try_from(LISTED_MAX).unwrap_or(i64::MAX);
    let sql = "SELECT code, about, count(*) FROM steep_repl.missing_objects
        WHERE about <> '' GROUP BY 1, 2 ORDER BY 1, 2 LIMIT $1";
    let mut told = 0;
    for row in conn.rows(sql, &[&limit]).await? {
        let times: i64 = row.get(2);
        told += times;
        missing
            .findings
            .push(for_role(conn, row.get(0), row.get(1), times));
    }
    let sql =
        "SELECT id, code, kind, object, left(statement, $2), sqlstate, error FROM steep_repl.missing_objects
        WHERE about = '' ORDER BY id LIMIT $1";
    let longest = i32::try_from(STATEMENT_MAX + 1).unwrap_or(i32::MAX);
    for row in conn.rows(sql, &[&limit, &longest]).await? {
        told += 1;
        let row = Row {
            id: row.get(0),
            code: row.get(1),
            kind: row.get(2),
            object: row.get(3),
            statement: row.get(4),
            sqlstate: row.get(5),
            error: row.get(6),
        };
        missing.findings.push(for_object(conn, &row));
    }
    if told < total {
        missing.findings.push(conn.warning(
            OBJECT,
            format!("{} more objects are missing here", total - told),
            "only the first are listed",
            "see SELECT * FROM steep_repl.missing_objects on this node",
        ));
    }
    Ok(missing)
}

fn for_role(conn: &Conn, code: &str, role: &str, times: i64) -> Finding {
    if code == ROLE {
        return conn.warning(
            code,
            format!(
                "role “{role}” does not exist here; {times} owners or privileges were left out"
            ),
            "objects belong to the role in use, views and functions that would have its rights have their caller's, and the grants are missing",
            &format!(
                "create the role, then run steep-repl init rebuild --node {}",
                conn.node()
            ),
        );
    }
    conn.warning(
        code,
        format!("{times} owners or privileges for role “{role}” could not be set"),
        "the role in use may not do that; objects belong to it, and views and functions that would have its rights have their caller's",
        "set owners and privileges as a superuser: steep_repl.missing_objects has the statements",
    )
}

fn for_object(conn: &Conn, row: &Row<'_>) -> Finding {
    let Row {
        kind,
        object,
        error,
        ..
    } = row;
    let (what, why) = match row.code {
        VIOLATED => (
            format!("rows violate foreign key {object}; it stays NOT VALID here"),
            "the source holds the same rows: they came in while the constraint was not enforced there, or their table is not part of this copy",
        ),
        CHECK if row.sqlstate == NOT_SUPPORTED => (
            format!(
                "constraint {object} is NOT VALID here: PostgreSQL does not check a domain again that is inside \
                 an array, range or composite type of a column: {error}"
            ),
            "it was set aside because rows of the source were refused by it, or because PostgreSQL itself loaded them; new rows are checked",
        ),
        CHECK => (
            format!(
                "rows do not pass constraint {object}, or it could not be checked; it is NOT VALID here: {error}"
            ),
            "the source holds the same rows, and the constraint is not true of them there either, or its function needs a search_path; new rows are checked",
        ),
        FOREIGN_KEY => (
            format!("foreign key {object} could not be made: {error}"),
            "this node does not check what the source checks; rows are not affected",
        ),
        _ => (
            format!("{kind} {object} could not be made: {error}"),
            "it is missing on this node; rows are not affected",
        ),
    };
    conn.warning(row.code, what, why, &fix(conn, row))
}

/// What to do: the statement itself, if it may be shown and is short.
fn fix(conn: &Conn, row: &Row<'_>) -> String {
    let node = conn.node();
    if row.code == CHECK && row.sqlstate == NOT_SUPPORTED {
        return format!(
            "nothing that new rows need; once no column has such a type, steep-repl init rebuild --node {node}"
        );
    }
    let untold = UNTOLD.contains(&row.kind) || row.statement.chars().count() > STATEMENT_MAX;
    let by_hand = if untold {
        format!(
            "SELECT statement FROM steep_repl.missing_objects WHERE id = {} gives the statement to run here",
            row.id
        )
    } else {
        format!("run here: {};", row.statement)
    };
    format!("mend the cause, then run steep-repl init rebuild --node {node}; or {by_hand}")
}
