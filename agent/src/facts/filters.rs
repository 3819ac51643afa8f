//! Names in a filter that match nothing, with suggestions: a typo would otherwise be ignored.

use std::collections::BTreeSet;

use steep_protocol::TableName;
use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::facts::UnmatchedFilter;
use steep_protocol::message::job::TableFilter;

use crate::pg::{PgError, Session};
use crate::task::Task;

/// Suggestions per unknown name.
const NEAR_MAX: usize = 3;

/// Everything that `--exclude-table` can leave out, by schema and name.
const RELATIONS: &str = "
    SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND c.relpersistence <> 't'
    AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'steep_repl')";

const SCHEMAS: &str = "
    SELECT nspname::text FROM pg_namespace
    WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'steep_repl')";

/// The names of `filter` that match nothing here. Costs no query where the filter is empty.
pub(super) async fn gather(
    task: &Task,
    session: &Session,
    filter: &TableFilter,
) -> Result<Vec<UnmatchedFilter>, PgError> {
    let mut unmatched = Vec::new();
    if !filter.include_schemas.is_empty() {
        let rows = session
            .run(&task.cancel, session.query(SCHEMAS, &[]))
            .await?;
        let known = rows.iter().map(|row| Ok(vec![row.try_get(0)?]));
        let known = known.collect::<Result<BTreeSet<Vec<String>>, PgError>>()?;
        let wanted = filter.include_schemas.iter();
        let wanted = wanted.map(|schema| vec![schema.as_str().to_owned()]);
        unmatched.extend(missing("--include-schema", wanted, &known));
    }
    if !filter.exclude_tables.is_empty() || !filter.include_tables.is_empty() {
        let rows = session
            .run(&task.cancel, session.query(RELATIONS, &[]))
            .await?;
        let known = rows
            .iter()
            .map(|row| Ok(vec![row.try_get(0)?, row.try_get(1)?]));
        let known = known.collect::<Result<BTreeSet<Vec<String>>, PgError>>()?;
        let names = |t: &TableName| vec![t.schema.as_str().to_owned(), t.table.as_str().to_owned()];
        let excluded = filter.exclude_tables.iter().map(names);
        unmatched.extend(missing("--exclude-table", excluded, &known));
        let included = filter.include_tables.iter().map(names);
        unmatched.extend(missing("tables add", included, &known));
    }
    unmatched.truncate(LISTED_MAX);
    Ok(unmatched)
}

/// Those of `wanted` that are not in `known`, each with its nearest matches.
fn missing(
    option: &str,
    wanted: impl Iterator<Item = Vec<String>>,
    known: &BTreeSet<Vec<String>>,
) -> Vec<UnmatchedFilter> {
    wanted
        .filter(|name| !known.contains(name))
        .map(|name| UnmatchedFilter {
            option: option.to_owned(),
            name: name.join("."),
            near: near(&name, known),
        })
        .collect()
}

/// The same name in another schema or case first, then names a few typos away.
fn near(name: &[String], known: &BTreeSet<Vec<String>>) -> Vec<String> {
    let own = |name: &[String]| name.last().map(|n| n.to_lowercase()).unwrap_or_default();
    let text = name.join(".").to_lowercase();
    let allowed = (text.chars().count() / 5).clamp(1, 3);
    let mut found: Vec<(usize, String)> = known
        .iter()
        .filter_map(|other| {
            let joined = other.join(".");
            let distance = match own(other) == own(name) {
                true => 0,
                false => edits(&text, &joined.to_lowercase(), allowed)?,
            };
            Some((distance, joined))
        })
        .collect();
    found.sort();
    found.truncate(NEAR_MAX);
    found.into_iter().map(|(_, name)| name).collect()
}

/// The edit distance, if it is no more than `most`.
fn edits(from: &str, to: &str, most: usize) -> Option<usize> {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    if from.len().abs_diff(to.len()) > most {
        return None;
    }
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().filter(|edits| *edits <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeSet<Vec<String>> {
        [
            ("sales", "orders"),
            ("sales", "order_lines"),
            ("archive", "orders"),
            ("public", "users"),
        ]
        .map(|(schema, table)| vec![schema.to_owned(), table.to_owned()])
        .into()
    }

    fn near_to(schema: &str, table: &str) -> Vec<String> {
        near(&[schema.to_owned(), table.to_owned()], &known())
    }

    #[test]
    fn what_was_meant_is_offered() {
        assert_eq!(near_to("sales", "oders"), ["sales.orders"]);
        assert_eq!(
            near_to("public", "orders"),
            ["archive.orders", "sales.orders"]
        );
        assert_eq!(near_to("public", "Users"), ["public.users"]);
        assert!(near_to("public", "inventory").is_empty());
    }

    #[test]
    fn only_what_is_not_there_is_missing() {
        let name = |schema: &str, table: &str| vec![schema.to_owned(), table.to_owned()];
        let wanted = [name("sales", "orders"), name("sales", "order_line")];
        let missing = missing("--exclude-table", wanted.into_iter(), &known());
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].name, "sales.order_line");
        assert_eq!(missing[0].near, ["sales.order_lines"]);
    }

    #[test]
    fn edits_are_counted_up_to_a_limit() {
        assert_eq!(edits("kitten", "sitting", 3), Some(3));
        assert_eq!(edits("kitten", "sitting", 2), None);
        assert_eq!(edits("", "ab", 2), Some(2));
    }
}
