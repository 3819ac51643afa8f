//! Catalog queries for constraints that a load must avoid. `$1` is the planned tables' oids.

use super::Reach;

/// Whether an expression's result may depend on other rows, settings or time: functions that are not
/// immutable or not in C, casts through text, values such as `CURRENT_USER`. Read from the expression
/// itself, since PostgreSQL records no dependencies on its own functions. A domain in it counts with its
/// own constraints.
const RUNS_CODE: &str = "(k.conbin::text ~ '[{](SQLVALUEFUNCTION|COERCEVIAIO|COERCETODOMAIN) '
    OR EXISTS (SELECT FROM regexp_matches(k.conbin::text, ':(op)?funcid ([0-9]+)', 'g') AS m (found)
        JOIN pg_proc p ON p.oid = m.found[2]::oid JOIN pg_language l ON l.oid = p.prolang
        WHERE p.provolatile <> 'i' OR l.lanname NOT IN ('internal', 'c')))";

/// A comment on the constraint; `{0}` is what it is on.
const COMMENT: &str = "(SELECT format('COMMENT ON CONSTRAINT %I ON %s%I.%I IS %L', k.conname, {0},
        n.nspname, {1}, d.description) FROM pg_description d
        WHERE d.classoid = 'pg_constraint'::regclass AND d.objoid = k.oid)";

/// CHECK constraints, and NOT NULL ones that are NOT VALID, of the planned tables and those above them,
/// parents first: dropping one there drops what its children inherit. Unenforced ones refuse no row.
/// Columns: schema, table, name, definition, whether it is validated, comment.
pub(super) fn of_tables(reach: Reach) -> String {
    let whole = match reach {
        Reach::All => "",
        // Tables that are not copied keep their checks.
        Reach::Planned => {
            "AND NOT EXISTS (
        WITH RECURSIVE below AS (
            SELECT h.inhrelid AS oid FROM pg_inherits h WHERE h.inhparent = c.oid
            UNION SELECT h.inhrelid FROM below JOIN pg_inherits h ON h.inhparent = below.oid
        ) SELECT FROM below JOIN pg_class b ON b.oid = below.oid
        WHERE b.relkind <> 'p' AND b.oid <> ALL ($1::oid[]))"
        }
    };
    let comment = COMMENT.replace("{0}", "''").replace("{1}", "c.relname");
    format!(
        "WITH RECURSIVE family AS (
    SELECT t.oid FROM unnest($1::oid[]) AS t (oid)
    UNION SELECT h.inhparent FROM family JOIN pg_inherits h ON h.inhrelid = family.oid
)
SELECT n.nspname::text, c.relname::text, k.conname::text, pg_get_constraintdef(k.oid), k.convalidated,
    {comment}
FROM family JOIN pg_class c ON c.oid = family.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype IN ('c', 'n') AND k.conislocal
WHERE coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true)
    AND pg_has_role(c.relowner, 'USAGE')
    AND (NOT k.convalidated OR {RUNS_CODE}) {whole}
ORDER BY (WITH RECURSIVE above AS (
        SELECT h.inhparent AS oid FROM pg_inherits h WHERE h.inhrelid = c.oid
        UNION SELECT h.inhparent FROM above JOIN pg_inherits h ON h.inhrelid = above.oid
    ) SELECT count(*) FROM above), c.oid, k.conname"
    )
}

/// Types of all tables' columns, and their parts; `boxed` where inside an array, range or composite,
/// `planned` where of a planned table. PostgreSQL looks at all tables when it checks a domain again.
const USED: &str = "WITH RECURSIVE used AS (
    SELECT a.atttypid AS oid, false AS boxed, p.oid IS NOT NULL AS planned
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'f', 'm')
    LEFT JOIN unnest($1::oid[]) AS p (oid) ON p.oid = a.attrelid
    WHERE a.atttypid >= 16384 AND a.attnum > 0 AND NOT a.attisdropped
    UNION
    SELECT x.oid, used.boxed OR x.boxes, used.planned FROM used JOIN pg_type t ON t.oid = used.oid
    CROSS JOIN LATERAL (
        SELECT t.typbasetype, false WHERE t.typtype = 'd'
        UNION ALL SELECT t.typelem, true WHERE t.typcategory = 'A' AND t.typelem <> 0
        UNION ALL SELECT r.rngsubtype, true FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
        UNION ALL SELECT a.atttypid, true FROM pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) AS x (oid, boxes)
), domain AS (
    SELECT used.oid, bool_or(used.boxed) AS boxed FROM used JOIN pg_type t ON t.oid = used.oid
    WHERE t.typtype = 'd' AND pg_has_role(t.typowner, 'USAGE')
        AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_type'::regclass
            AND e.objid = t.oid AND e.deptype = 'e')
    GROUP BY used.oid HAVING bool_or(used.planned)
)";

/// CHECK constraints of domains. Columns as for tables, and whether PostgreSQL could not check it again.
pub(super) fn of_domains() -> String {
    let comment = COMMENT
        .replace("{0}", "'DOMAIN '")
        .replace("{1}", "t.typname");
    format!(
        "{USED}
SELECT n.nspname::text, t.typname::text, k.conname::text, pg_get_constraintdef(k.oid), k.convalidated,
    {comment}, domain.boxed
FROM domain JOIN pg_type t ON t.oid = domain.oid
JOIN pg_namespace n ON n.oid = t.typnamespace
JOIN pg_constraint k ON k.contypid = t.oid AND k.contype = 'c'
WHERE NOT k.convalidated OR {RUNS_CODE}
ORDER BY t.oid, k.conname"
    )
}

/// NOT NULL domains: their columns may still hold NULL (PostgreSQL manual, CREATE DOMAIN, "Notes"), which
/// COPY refuses. PostgreSQL could not check them again inside other types. Columns: schema, domain, the
/// constraint's name where it has one (17 and newer), its comment.
pub(super) fn not_null() -> String {
    let comment = COMMENT
        .replace("{0}", "'DOMAIN '")
        .replace("{1}", "t.typname");
    format!(
        "{USED}
SELECT n.nspname::text, t.typname::text, k.conname::text, {comment}
FROM domain JOIN pg_type t ON t.oid = domain.oid
JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_constraint k ON k.contypid = t.oid AND k.contype = 'n'
WHERE t.typnotnull AND NOT domain.boxed
ORDER BY t.oid"
    )
}
