//! Whether a table is still what the plan saw, checked under the lock of the part that reads it.
//!
//! A snapshot does not protect against TRUNCATE and rewriting statements: what it saw is gone or on other
//! pages. And under an old snapshot the catalog tables are old too. So the check uses what PostgreSQL looks
//! up in its caches, which are as new as the lock: names, `pg_relation_filenode`, a row type's columns.

use std::collections::HashMap;

use steep_protocol::{Fault, FaultKind, NodeId, TableName};

use crate::pg::raw::{AnswerColumn, Preamble};
use crate::pg::{PgError, Session, literal};

/// A table as the snapshot sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableState {
    pub(crate) oid: u32,
    /// Changes when the table is rewritten or truncated.
    filenode: u32,
    /// Attributes ever, dropped ones included: more where a column was added.
    attributes: i16,
    columns: Vec<ColumnState>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ColumnState {
    name: String,
    /// Type and modifier; `None` for a domain, which is described by its base type.
    described: Option<(u32, i32)>,
}

/// How a table has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Gone,
    Replaced,
    /// Rewritten or truncated.
    Rewritten,
    Columns(String),
}

pub(crate) async fn load(
    session: &Session,
    oids: &[u32],
) -> Result<HashMap<u32, TableState>, PgError> {
    let sql = "SELECT c.oid, c.relfilenode, c.relnatts, a.attname::text, a.atttypid, a.atttypmod, \
             coalesce(t.typtype = 'd', false) \
         FROM unnest($1::oid[]) AS wanted(oid) JOIN pg_class c ON c.oid = wanted.oid \
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         LEFT JOIN pg_type t ON t.oid = a.atttypid \
         ORDER BY c.oid, a.attnum";
    let mut states: HashMap<u32, TableState> = HashMap::new();
    for row in session.query(sql, &[&oids]).await? {
        let oid: u32 = row.try_get(0)?;
        let state = states.entry(oid).or_insert(TableState {
            oid,
            filenode: row.try_get(1)?,
            attributes: row.try_get(2)?,
            columns: Vec::new(),
        });
        if let Some(name) = row.try_get(3)? {
            let is_domain: bool = row.try_get(6)?;
            let described = (row.try_get(4)?, row.try_get(5)?);
            state.columns.push(ColumnState {
                name,
                described: (!is_domain).then_some(described),
            });
        }
    }
    Ok(states)
}

/// The statements before a part's COPY: lock the table without waiting, and ask for its state.
pub(crate) fn lock_and_ask(name: &TableName, state: &TableState) -> String {
    let quoted = name.quoted();
    let of = format!("{}::regclass", literal(&quoted));
    format!(
        "LOCK TABLE ONLY {quoted} IN ACCESS SHARE MODE NOWAIT; \
         SELECT {of}::oid, pg_relation_filenode({of}), \
             has_column_privilege({of}, {}::int2, 'SELECT'), (NULL::{quoted}).*",
        i32::from(state.attributes) + 1,
    )
}

/// Leading columns of the answer, before those for the table's columns.
const ASKED: usize = 3;

/// `None` where the table has not changed.
pub(crate) fn judge(state: &TableState, answer: &Preamble) -> Option<Change> {
    let row = answer.row.as_deref().unwrap_or_default();
    let number = |at: usize| row.get(at).and_then(Option::as_ref)?.parse::<u32>().ok();
    if number(0) != Some(state.oid) {
        return Some(Change::Replaced);
    }
    if let Some(change) = columns_change(state, row, answer.columns.get(ASKED..).unwrap_or(&[])) {
        return Some(Change::Columns(change));
    }
    (number(1) != Some(state.filenode)).then_some(Change::Rewritten)
}

fn columns_change(
    state: &TableState,
    row: &[Option<String>],
    now: &[AnswerColumn],
) -> Option<String> {
    let known = |column: &AnswerColumn| state.columns.iter().any(|c| c.name == column.name);
    // NULL means that no attribute has that number.
    if row.get(2).is_none_or(Option::is_some) {
        let added = now.iter().find(|column| !known(column));
        return Some(match added {
            Some(column) => format!("column {} was added", column.name),
            None => "a column was added or made anew".to_owned(),
        });
    }
    for (at, was) in state.columns.iter().enumerate() {
        match now.get(at) {
            Some(is) if is.name == was.name => {
                let is = (is.type_oid, is.type_modifier);
                if was.described.is_some_and(|described| described != is) {
                    return Some(format!("the type of column {} was changed", was.name));
                }
            }
            Some(_) | None => return Some(format!("column {} was dropped or renamed", was.name)),
        }
    }
    None
}

impl Change {
    /// The fault of a job that needs the table's rows.
    pub(crate) fn to_fault(&self, node: &NodeId, table: &TableName, who: Option<&str>) -> Fault {
        let what = match self {
            Self::Gone => "was dropped or renamed".to_owned(),
            Self::Replaced => "was dropped and made again".to_owned(),
            Self::Rewritten => {
                "was truncated or rewritten (TRUNCATE, ALTER TABLE, VACUUM FULL or CLUSTER)"
                    .to_owned()
            }
            Self::Columns(how) => format!("was altered: {how}"),
        };
        let who = who.map_or_else(String::new, |who| {
            format!("; the last session that wanted it for itself was {who}")
        });
        let text = format!(
            "table {table} {what} before all its rows were read, so the job's snapshot cannot be \
             completed{who}"
        );
        Fault::new(FaultKind::SourceChanged, text)
            .hint(
                "if the job ends, run init again once such statements are over; with --yield-to-ddl never \
                 they wait until the table has been read",
            )
            .on(node)
            .at(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> TableState {
        let column = |name: &str, described| ColumnState {
            name: name.to_owned(),
            described,
        };
        TableState {
            oid: 100,
            filenode: 200,
            attributes: 3,
            columns: vec![
                column("a", Some((23, -1))),
                column("b", Some((1043, 14))),
                column("d", None),
            ],
        }
    }

    fn answer(
        oid: &str,
        filenode: &str,
        beyond: Option<&str>,
        columns: &[(&str, u32, i32)],
    ) -> Preamble {
        let column = |(name, type_oid, type_modifier): &(&str, u32, i32)| AnswerColumn {
            name: (*name).to_owned(),
            type_oid: *type_oid,
            type_modifier: *type_modifier,
        };
        let asked = [
            ("oid", 26, -1),
            ("pg_relation_filenode", 26, -1),
            ("has", 16, -1),
        ];
        Preamble {
            columns: asked.iter().chain(columns).map(column).collect(),
            row: Some(vec![
                Some(oid.to_owned()),
                Some(filenode.to_owned()),
                beyond.map(str::to_owned),
                None,
                None,
                None,
            ]),
        }
    }

    const COLUMNS: [(&str, u32, i32); 3] = [("a", 23, -1), ("b", 1043, 14), ("d", 25, -1)];

    #[test]
    fn a_table_that_is_what_it_was_is_read() {
        assert_eq!(judge(&state(), &answer("100", "200", None, &COLUMNS)), None);
    }

    #[test]
    fn whatever_moves_rows_or_columns_is_noticed() {
        let judged = |answer: &Preamble| judge(&state(), answer);
        assert_eq!(
            judged(&answer("101", "200", None, &COLUMNS)),
            Some(Change::Replaced)
        );
        assert_eq!(
            judged(&answer("100", "201", None, &COLUMNS)),
            Some(Change::Rewritten)
        );
        let columns = |columns: &[(&str, u32, i32)]| judged(&answer("100", "200", None, columns));
        // Two columns that swapped names.
        assert!(matches!(
            columns(&[("b", 23, -1), ("a", 1043, 14), ("d", 25, -1)]),
            Some(Change::Columns(_))
        ));
        assert!(matches!(columns(&COLUMNS[..2]), Some(Change::Columns(_))));
        assert!(matches!(
            columns(&[("a", 20, -1), ("b", 1043, 14), ("d", 25, -1)]),
            Some(Change::Columns(_))
        ));
        // Dropped and added again under its name, so with another number.
        let again = answer("100", "200", Some("t"), &COLUMNS);
        assert!(matches!(judged(&again), Some(Change::Columns(_))));
        let mut added = answer("100", "200", Some("t"), &COLUMNS);
        added.columns.push(AnswerColumn {
            name: "e".to_owned(),
            type_oid: 23,
            type_modifier: -1,
        });
        assert_eq!(
            judged(&added),
            Some(Change::Columns("column e was added".to_owned()))
        );
        assert_eq!(judged(&Preamble::default()), Some(Change::Replaced));
    }

    #[test]
    fn the_question_names_the_table_once_as_sql_and_as_a_literal() {
        let name = TableName::new("S", "t\"'x").unwrap();
        let sql = lock_and_ask(&name, &state());
        assert!(
            sql.starts_with(r#"LOCK TABLE ONLY "S"."t""'x" IN ACCESS SHARE MODE NOWAIT;"#),
            "{sql}"
        );
        assert!(sql.contains(r#"'"S"."t""''x"'::regclass"#), "{sql}");
        assert!(sql.contains(r#"4::int2"#), "{sql}");
    }

    #[test]
    fn the_fault_names_node_table_change_and_who_did_it() {
        let name = TableName::new("public", "t").unwrap();
        let node = NodeId::parse("node_a").unwrap();
        let fault = Change::Rewritten.to_fault(&node, &name, Some("process 9 (psql): TRUNCATE t"));
        assert_eq!(fault.node, Some(node));
        for word in ["public.t", "truncated", "TRUNCATE t", "process 9"] {
            assert!(fault.message.contains(word), "{fault}");
        }
    }
}
