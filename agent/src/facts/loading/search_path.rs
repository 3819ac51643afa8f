//! Which functions, of those that rows run, look up names in `search_path`.
//!
//! Our COPY and PostgreSQL's apply worker have an empty path, and an index is built under an empty one
//! (PostgreSQL 17 and newer) or its builder's. A function that sets the path in its definition is safe with
//! everything it calls; so is a body in standard SQL, whose names were resolved when it was created.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use steep_protocol::Identifier;
use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::facts::{Listed, SearchPathNeed, Stops};

use super::Root;
use super::tokens::{Name, Names, names};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Limit for functions read in all.
const FUNCTIONS_MAX: usize = 2_000;

/// Function bodies in memory at once.
const BATCH: usize = 50;

/// In characters, as `left()` counts.
const BODY_MAX: i32 = 200_000;

const BODIES_SQL: &str = "
SELECT p.oid, format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
    left(p.prosrc, $2)
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE p.oid = ANY ($1) AND l.lanname IN ('sql', 'plpgsql') AND p.prosqlbody IS NULL
    AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS c (entry) WHERE starts_with(c.entry, 'search_path='))";

/// The objects of these names, in any schema. Columns: kind, schema, name, oid.
const NAMES_SQL: &str = "
SELECT 'function', n.nspname::text, p.proname::text, p.oid
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.proname = ANY ($1::text[]::name[])
UNION ALL
SELECT 'relation', n.nspname::text, c.relname::text, c.oid
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = ANY ($2::text[]::name[]) AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
UNION ALL
SELECT 'type', n.nspname::text, t.typname::text, t.oid
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.typname = ANY ($3::text[]::name[])";

/// Schema and oid by kind and name.
#[derive(Debug, Default)]
struct Known {
    functions: HashMap<String, Vec<(String, u32)>>,
    relations: HashMap<String, Vec<(String, u32)>>,
    types: HashMap<String, Vec<(String, u32)>>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    signature: String,
    /// Names that it does not qualify.
    loose: BTreeSet<String>,
    /// The schemas these are in.
    schemas: BTreeSet<String>,
    sets_path: bool,
    /// Functions called by qualified names.
    calls: Vec<u32>,
}

/// The functions reached from those roots that need a path, at most [`LISTED_MAX`].
pub(super) async fn needs(
    task: &Task,
    session: &Session,
    roots: &[Root],
) -> Result<Vec<SearchPathNeed>, PgError> {
    let mut seen: HashSet<u32> = HashSet::new();
    let mut functions: HashMap<u32, Found> = HashMap::new();
    let mut next: Vec<u32> = roots.iter().flat_map(|r| r.functions.clone()).collect();
    while !next.is_empty() && seen.len() < FUNCTIONS_MAX {
        next.retain(|oid| seen.insert(*oid));
        let mut after = Vec::new();
        for batch in next.chunks(BATCH) {
            for (oid, found) in look(task, session, batch).await? {
                if found.loose.is_empty() {
                    after.extend(&found.calls);
                }
                functions.insert(oid, found);
            }
        }
        next = after;
    }
    Ok(collect(roots, &functions))
}

async fn look(task: &Task, session: &Session, oids: &[u32]) -> Result<Vec<(u32, Found)>, PgError> {
    let rows = session
        .run(&task.cancel, session.query(BODIES_SQL, &[&oids, &BODY_MAX]))
        .await?;
    let mut bodies = Vec::new();
    for row in rows {
        let (oid, signature): (u32, String) = (row.try_get(0)?, row.try_get(1)?);
        bodies.push((oid, signature, names(row.try_get(2)?)));
    }
    let of = |pick: fn(&Names) -> &BTreeSet<Name>| -> Vec<&str> {
        let all = bodies.iter().flat_map(|(_, _, names)| pick(names));
        let all: BTreeSet<&str> = all.map(|name| name.name.as_str()).collect();
        // A longer text is not a name, and would be truncated to one.
        all.into_iter().filter(|name| name.len() < 64).collect()
    };
    let (functions, relations, types) =
        (of(|n| &n.functions), of(|n| &n.relations), of(|n| &n.types));
    let mut known = Known::default();
    let rows = session
        .run(
            &task.cancel,
            session.query(NAMES_SQL, &[&functions, &relations, &types]),
        )
        .await?;
    for row in rows {
        let by_kind = match row.try_get(0)? {
            "function" => &mut known.functions,
            "relation" => &mut known.relations,
            _ => &mut known.types,
        };
        let at = (row.try_get(1)?, row.try_get(3)?);
        by_kind.entry(row.try_get(2)?).or_default().push(at);
    }
    let found = bodies.into_iter().map(|(oid, signature, names)| {
        let mut found = resolve(&names, &known);
        found.signature = signature;
        (oid, found)
    });
    Ok(found.collect())
}

fn resolve(names: &Names, known: &Known) -> Found {
    let mut found = Found {
        sets_path: names.sets_path,
        ..Found::default()
    };
    let kinds = [
        (&names.functions, &known.functions),
        (&names.relations, &known.relations),
        (&names.types, &known.types),
    ];
    for (used, known) in kinds {
        for name in used {
            let places = known.get(&name.name).map_or(&[][..], Vec::as_slice);
            // PostgreSQL's own are always found; what exists nowhere is a variable or created at run time.
            let own = |schema: &str| schema.starts_with("pg_");
            if name.schema.is_none() && !places.iter().any(|(schema, _)| own(schema)) {
                for (schema, _) in places {
                    found.loose.insert(name.name.clone());
                    found.schemas.insert(schema.clone());
                }
            }
        }
    }
    for name in &names.functions {
        let places = known
            .functions
            .get(&name.name)
            .map_or(&[][..], Vec::as_slice);
        let here = places
            .iter()
            .filter(|(s, _)| name.schema.as_ref() == Some(s));
        found.calls.extend(here.map(|(_, oid)| oid));
    }
    found
}

/// For each function with unqualified names, what runs it. Nothing below such a function is listed: the
/// path that fixes it applies to everything it calls.
fn collect(roots: &[Root], functions: &HashMap<u32, Found>) -> Vec<SearchPathNeed> {
    let mut used: BTreeMap<&str, (&Found, Stops, BTreeSet<&str>)> = BTreeMap::new();
    for root in roots {
        let mut seen = HashSet::new();
        let mut next = root.functions.clone();
        while let Some(oid) = next.pop() {
            let Some(found) = functions.get(&oid).filter(|_| seen.insert(oid)) else {
                continue;
            };
            if found.loose.is_empty() {
                next.extend(&found.calls);
                continue;
            }
            let stops = match root.stops {
                Stops::Rows if found.sets_path => Stops::PerhapsRows,
                stops => stops,
            };
            let entry = used
                .entry(&found.signature)
                .or_insert((found, stops, BTreeSet::new()));
            entry.1 = entry.1.max(stops);
            entry.2.insert(&root.label);
        }
    }
    let listed = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<Listed>();
    let need = |(function, (found, stops, labels)): (&str, (&Found, Stops, BTreeSet<&str>))| {
        let schemas = found
            .schemas
            .iter()
            .filter_map(|s| Identifier::parse(s.as_str()).ok());
        SearchPathNeed {
            function: function.to_owned(),
            names: listed(found.loose.iter().map(String::as_str).collect()),
            schemas: schemas.map(|s| s.quoted()).collect::<Vec<_>>().join(", "),
            used_by: listed(labels.into_iter().collect()),
            stops,
        }
    };
    used.into_iter().map(need).take(LISTED_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let at = |names: &[(&str, &str, u32)]| {
            let mut by_name = HashMap::<String, Vec<(String, u32)>>::new();
            for (schema, name, oid) in names {
                let place = ((*schema).to_owned(), *oid);
                by_name.entry((*name).to_owned()).or_default().push(place);
            }
            by_name
        };
        Known {
            functions: at(&[
                ("public", "digits_of", 1),
                ("public", "lower", 2),
                ("pg_catalog", "lower", 3),
                ("shop", "price", 4),
            ]),
            relations: at(&[("shop", "item", 5), ("pg_catalog", "pg_class", 6)]),
            types: at(&[("public", "mood", 7), ("pg_catalog", "text", 8)]),
        }
    }

    #[test]
    fn only_names_that_an_empty_path_does_not_find_are_loose() {
        let body = "SELECT lower(digits_of(t))::mood, shop.price(x)::text, unknown(y)
            FROM item JOIN pg_class ON true";
        let found = resolve(&names(body), &known());
        let loose: Vec<&str> = found.loose.iter().map(String::as_str).collect();
        assert_eq!(loose, ["digits_of", "item", "mood"]);
        assert_eq!(
            found.schemas,
            BTreeSet::from(["public".to_owned(), "shop".to_owned()])
        );
        assert_eq!(found.calls, [4]);
    }

    #[test]
    fn what_runs_a_function_is_named_however_deep_it_is() {
        let function = |signature: &str, loose: &[&str], calls: &[u32]| Found {
            signature: signature.to_owned(),
            loose: loose.iter().map(|s| (*s).to_owned()).collect(),
            schemas: BTreeSet::from(["public".to_owned()]),
            sets_path: false,
            calls: calls.to_vec(),
        };
        let functions = HashMap::from([
            (1, function("s.outer(t text)", &[], &[2, 1])),
            (2, function("s.inner(t text)", &["helper"], &[3])),
            (3, function("s.deep()", &["other"], &[])),
        ]);
        let root = |label: &str, stops, functions: &[u32]| Root {
            label: label.to_owned(),
            stops,
            functions: functions.to_vec(),
        };
        let roots = [
            root("index i of s.t", Stops::Index, &[2]),
            root("constraint c of s.t", Stops::Rows, &[1]),
        ];
        let needs = collect(&roots, &functions);
        assert_eq!(needs.len(), 1, "{needs:?}");
        assert_eq!(needs[0].function, "s.inner(t text)");
        assert_eq!(needs[0].names.names, ["helper"]);
        assert_eq!(needs[0].stops, Stops::Rows);
        assert_eq!(needs[0].used_by.count, 2);
        assert_eq!(needs[0].schemas, "\"public\"");
    }
}
