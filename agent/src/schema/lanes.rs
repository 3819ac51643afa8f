//! Which statements of a batch may run beside others, on two sessions. Pure.
//!
//! Only statements that make or change one table or sequence are told apart, by the names they hold: those
//! that share a table or sequence of the batch stay together, in order. Everything else keeps the whole
//! batch in order. Where a name goes unnoticed, the statement fails and is repeated when the others are
//! done, so that costs time and nothing else.

use std::collections::HashMap;

use steep_protocol::TableName;

use super::batch::Item;
use super::statement::{Class, subject};

/// Two halves of about the same length. The second is empty where the batch has to stay whole.
pub(super) fn split(items: Vec<Item>) -> (Vec<Item>, Vec<Item>) {
    let Some(groups) = groups(&items) else {
        return (items, Vec::new());
    };
    let mut sizes: HashMap<usize, usize> = HashMap::new();
    for group in &groups {
        *sizes.entry(*group).or_default() += 1;
    }
    let mut lengths = [0, 0];
    let mut lanes: HashMap<usize, usize> = HashMap::new();
    for group in &groups {
        lanes.entry(*group).or_insert_with(|| {
            let lane = usize::from(lengths[1] < lengths[0]);
            lengths[lane] += sizes[group];
            lane
        });
    }
    let mut halves = (Vec::new(), Vec::new());
    for (item, group) in items.into_iter().zip(groups) {
        match lanes[&group] {
            0 => halves.0.push(item),
            _ => halves.1.push(item),
        }
    }
    halves
}

/// For each statement the first one that it belongs with; `None` where one of them is of another kind.
fn groups(items: &[Item]) -> Option<Vec<usize>> {
    let subjects: Option<Vec<TableName>> = items.iter().map(independent).collect();
    let subjects = subjects?;
    let mut first: HashMap<&TableName, usize> = HashMap::new();
    for (at, subject) in subjects.iter().enumerate() {
        first.entry(subject).or_insert(at);
    }
    let mut leaders: Vec<usize> = (0..items.len()).collect();
    for (at, item) in items.iter().enumerate() {
        let mentioned = names(&item.sql);
        for name in mentioned.iter().chain([&subjects[at]]) {
            if let Some(other) = first.get(name) {
                let (a, b) = (leader(&mut leaders, at), leader(&mut leaders, *other));
                leaders[a.max(b)] = a.min(b);
            }
        }
    }
    Some(
        (0..items.len())
            .map(|at| leader(&mut leaders, at))
            .collect(),
    )
}

/// The end of the chain from `at`, which is shortened on the way.
fn leader(leaders: &mut [usize], mut at: usize) -> usize {
    while leaders[at] != at {
        leaders[at] = leaders[leaders[at]];
        at = leaders[at];
    }
    at
}

/// The table or sequence that the statement is about, unless it locks others too.
fn independent(item: &Item) -> Option<TableName> {
    let alone = match &item.class {
        // A child locks its parents.
        Class::Table { .. } => !["INHERITS", "PARTITION OF"]
            .iter()
            .any(|word| item.sql.contains(word)),
        Class::Privilege | Class::Comment | Class::Other => !item.sql.contains("INHERIT"),
        _ => false,
    };
    alone.then(|| subject(&item.sql)).flatten()
}

/// Every `schema.name` in the text, also in its literals.
fn names(sql: &str) -> Vec<TableName> {
    let mut found = Vec::new();
    let mut schema: Option<String> = None;
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let taken;
        let mut name = None;
        if first == '"' {
            let end = rest[1..].find('"').map_or(rest.len(), |at| at + 2);
            name = rest.get(1..end - 1).map(str::to_owned);
            taken = end;
        } else if first.is_alphanumeric() || first == '_' {
            taken = rest
                .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))
                .unwrap_or(rest.len());
            name = Some(rest[..taken].to_lowercase());
        } else {
            taken = first.len_utf8();
        }
        rest = &rest[taken..];
        match (schema.take(), name) {
            (Some(schema), Some(name)) => {
                // The third part is a column.
                found.extend(TableName::new(schema, name));
            }
            (None, Some(name)) if rest.starts_with('.') => {
                schema = Some(name);
                rest = &rest[1..];
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_of(statements: &[&str]) -> (Vec<String>, Vec<String>) {
        let items = statements.iter().map(|sql| Item::new((*sql).to_owned()));
        let (a, b) = split(items.collect());
        let sql = |half: Vec<Item>| half.into_iter().map(|item| item.sql).collect();
        (sql(a), sql(b))
    }

    const A: [&str; 4] = [
        "CREATE TABLE s.a (\n    id bigint NOT NULL,\n    kind s.kind\n)",
        "CREATE SEQUENCE s.a_id_seq",
        "ALTER SEQUENCE s.a_id_seq OWNED BY s.a.id",
        "ALTER TABLE ONLY s.a ALTER COLUMN id SET DEFAULT nextval('s.a_id_seq'::regclass)",
    ];

    const B: [&str; 4] = [
        "CREATE TABLE s.\"B\" (\n    id bigint NOT NULL,\n    kind s.kind\n)",
        "GRANT SELECT ON TABLE s.\"B\" TO ann",
        "COMMENT ON COLUMN s.\"B\".id IS 'as s.a.id'",
        "ALTER TABLE s.\"B\" OWNER TO ann",
    ];

    #[test]
    fn what_shares_a_table_or_sequence_stays_together_in_order() {
        let mixed: Vec<&str> = A.into_iter().zip(B).flat_map(|(a, b)| [a, b]).collect();
        let (a, b) = split_of(&mixed);
        // The comment names the other table, which keeps both together.
        assert_eq!((a.len(), b.len()), (8, 0));
        let apart: Vec<&str> = mixed
            .into_iter()
            .filter(|sql| !sql.starts_with("COMMENT"))
            .collect();
        let (a, b) = split_of(&apart);
        assert_eq!(a, A);
        assert_eq!(b, [B[0], B[1], B[3]]);
    }

    #[test]
    fn a_table_of_anothers_row_type_comes_after_it() {
        let (a, b) = split_of(&["CREATE TABLE s.a (x int)", "CREATE TABLE s.b (y s.a[])"]);
        assert_eq!((a.len(), b.len()), (2, 0));
    }

    #[test]
    fn a_batch_with_anything_else_stays_whole() {
        for other in [
            "CREATE VIEW s.v AS SELECT 1",
            "CREATE TABLE s.c (\n)\nINHERITS (s.p)",
            "ALTER TABLE ONLY s.p ATTACH PARTITION s.c DEFAULT",
            "SET default_tablespace = ''",
            "GRANT USAGE ON SCHEMA s TO ann",
            "CREATE TYPE s.kind AS ENUM ('a')",
        ] {
            let (a, b) = split_of(&[
                "CREATE TABLE s.a (x int)",
                other,
                "CREATE TABLE s.b (x int)",
            ]);
            assert_eq!((a.len(), b.len()), (3, 0), "{other}");
        }
    }

    #[test]
    fn the_halves_are_of_one_length_and_keep_their_order() {
        let all: Vec<String> = (0..100)
            .map(|n| format!("CREATE TABLE s.t{n} (x int)"))
            .collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let (a, b) = split_of(&all);
        assert_eq!((a.len(), b.len()), (50, 50));
        assert_eq!(a[49], all[98]);
        assert_eq!(b[49], all[99]);
    }
}
