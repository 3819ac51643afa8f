//! Code of tables' owners that PostgreSQL would run with our rights while it plans or runs a statement of ours.
//!
//! Planning evaluates what is constant in index expressions, predicates, checks, partition keys and statistics; writing also
//! runs checks, domains and generated columns. What they may call is a list of what is safe, not of what is
//! known to be bad: functions of superusers and PostgreSQL's own, none of them volatile, none that reads a value of a type
//! that its arguments name, and no kind of expression that is not in [`KINDS`].
//!
//! [`find`] is asked in the transaction of the statement, once the table is locked. An owner can still commit `CREATE
//! INDEX CONCURRENTLY`, `CREATE STATISTICS` or, for readers, `CREATE INDEX` between this and the statement: the lock that would prevent it
//! would also wait for vacuum.

use steep_protocol::{Fault, FaultKind, Identifier, NodeId, TableName};

use crate::pg::literal;

/// Kinds of expressions that run nothing but the functions and input functions that are looked for. Before PostgreSQL 16
/// some had shorter names.
const KINDS: &str = "VAR CONST FUNCEXPR NAMEDARGEXPR OPEXPR DISTINCTEXPR NULLIFEXPR SCALARARRAYOPEXPR BOOLEXPR \
    FIELDSELECT RELABELTYPE COERCEVIAIO ARRAYCOERCEEXPR CONVERTROWTYPEEXPR COLLATE COLLATEEXPR CASE CASEEXPR WHEN \
    CASEWHEN CASETESTEXPR ARRAY ARRAYEXPR ROW ROWEXPR ROWCOMPARE ROWCOMPAREEXPR COALESCE COALESCEEXPR MINMAX \
    MINMAXEXPR SQLVALUEFUNCTION XMLEXPR NULLTEST BOOLEANTEST COERCETODOMAIN COERCETODOMAINVALUE SUBSCRIPTINGREF";

/// What is about to be done with a table.
#[derive(Debug, Clone, Copy)]
pub(super) enum Access<'a> {
    Read,
    /// Rows are inserted with these columns.
    Write(&'a [Identifier]),
}

/// A query for the code of others in a table, its partitions and what it is a partition of. Its only column
/// says what it is. Types are followed into their elements, domains' checks and so on.
pub(super) fn find(table: &TableName, access: Access<'_>) -> String {
    let name = literal(&table.quoted());
    let written = match access {
        Access::Read => String::new(),
        Access::Write(columns) => written(columns),
    };
    let kinds = KINDS.replace(' ', "', '");
    format!(
        "WITH RECURSIVE named AS (SELECT to_regclass({name}) AS oid), rel AS (
            SELECT c.oid, c.relowner FROM pg_class c WHERE c.oid IN (SELECT oid FROM named
                UNION SELECT p.relid FROM named, pg_partition_tree(named.oid) p
                UNION SELECT p.relid FROM named, pg_partition_ancestors(named.oid) p)
        ), part (rel, how, author, classid, objid) AS (
            SELECT r.oid, 'a check', r.relowner, 'pg_constraint'::regclass::oid, k.oid
            FROM rel r JOIN pg_constraint k ON k.conrelid = r.oid WHERE k.contype = 'c'
            UNION ALL SELECT r.oid, format('the index %I', x.relname), r.relowner, 'pg_class'::regclass, x.oid
            FROM rel r JOIN pg_index i ON i.indrelid = r.oid JOIN pg_class x ON x.oid = i.indexrelid
            WHERE i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
            UNION ALL SELECT r.oid, 'the partition key', r.relowner, 'pg_class'::regclass, r.oid
            FROM rel r JOIN pg_partitioned_table t ON t.partrelid = r.oid WHERE t.partexprs IS NOT NULL
            UNION ALL SELECT r.oid, format('the statistics %I', s.stxname), r.relowner, 'pg_statistic_ext'::regclass, s.oid
            FROM rel r JOIN pg_statistic_ext s ON s.stxrelid = r.oid WHERE s.stxexprs IS NOT NULL{written}
        ), used AS (
            SELECT * FROM part UNION SELECT u.rel, u.how, next.* FROM used u CROSS JOIN LATERAL (
                SELECT u.author, d.refclassid, d.refobjid FROM pg_depend d
                WHERE d.classid = u.classid AND d.objid = u.objid AND d.objsubid = 0 AND u.classid IN (
                    'pg_constraint'::regclass, 'pg_class'::regclass, 'pg_statistic_ext'::regclass, 'pg_attrdef'::regclass)
                AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass)
                UNION ALL SELECT u.author, 'pg_proc'::regclass, o.oprcode::oid FROM pg_operator o
                WHERE u.classid = 'pg_operator'::regclass AND o.oid = u.objid
                UNION ALL SELECT y.typowner, inner_part.classid, inner_part.objid FROM pg_type y CROSS JOIN LATERAL (
                    SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint k WHERE k.contypid = y.oid AND k.contype = 'c'
                    UNION ALL SELECT 'pg_type'::regclass, unnest(ARRAY[y.typelem, y.typbasetype])
                    UNION ALL SELECT 'pg_type'::regclass, f.atttypid FROM pg_attribute f
                    WHERE f.attrelid = y.typrelid AND f.attnum > 0 AND NOT f.attisdropped
                    UNION ALL SELECT 'pg_type'::regclass, g.rngsubtype FROM pg_range g WHERE y.oid IN (g.rngtypid, g.rngmultitypid)
                    UNION ALL SELECT 'pg_proc'::regclass, unnest(ARRAY[g.rngcanonical::oid, g.rngsubdiff::oid])
                    FROM pg_range g WHERE y.oid IN (g.rngtypid, g.rngmultitypid)
                ) AS inner_part (classid, objid)
                WHERE u.classid = 'pg_type'::regclass AND y.oid = u.objid AND y.oid >= 16384 AND inner_part.objid <> 0
            ) AS next (author, classid, objid)
        ), tree AS (
            SELECT u.rel, u.how, u.author, t.tree FROM used u CROSS JOIN LATERAL (
                SELECT k.conbin::text FROM pg_constraint k WHERE u.classid = 'pg_constraint'::regclass AND k.oid = u.objid
                UNION ALL SELECT concat(i.indexprs::text, i.indpred::text) FROM pg_index i
                WHERE u.classid = 'pg_class'::regclass AND i.indexrelid = u.objid
                UNION ALL SELECT t.partexprs::text FROM pg_partitioned_table t
                WHERE u.classid = 'pg_class'::regclass AND t.partrelid = u.objid
                UNION ALL SELECT s.stxexprs::text FROM pg_statistic_ext s
                WHERE u.classid = 'pg_statistic_ext'::regclass AND s.oid = u.objid
                UNION ALL SELECT e.adbin::text FROM pg_attrdef e WHERE u.classid = 'pg_attrdef'::regclass AND e.oid = u.objid
            ) AS t (tree)
        ), called (rel, how, author, proc) AS (
            SELECT u.rel, u.how, u.author, u.objid FROM used u WHERE u.classid = 'pg_proc'::regclass
            UNION SELECT t.rel, t.how, t.author, m[1]::oid FROM tree t, regexp_matches(t.tree, ':(?:op)?funcid ([0-9]+)', 'g') m
            UNION SELECT t.rel, t.how, t.author, o.oprcode FROM tree t, regexp_matches(t.tree, ':opno ([0-9]+)', 'g') m
            JOIN pg_operator o ON o.oid = m[1]::oid
        ), ordinary AS (SELECT r.oid, r.rolname FROM pg_roles r WHERE NOT r.rolsuper AND r.rolname <> current_user)
        SELECT DISTINCT format('%s of %s by %s of %s', c.proc::regprocedure, pg_get_userbyid(CASE WHEN EXISTS (
            SELECT FROM ordinary o WHERE o.oid = f.proowner) THEN f.proowner ELSE c.author END), c.how, c.rel::regclass)
        FROM called c CROSS JOIN LATERAL (SELECT p.* FROM pg_proc p WHERE p.oid = c.proc OFFSET 0) AS f
        WHERE f.proowner IN (SELECT oid FROM ordinary)
        OR (c.author IN (SELECT oid FROM ordinary) AND ({UNSAFE}))
        UNION SELECT format('an expression that cannot be checked (%s) of %s by %s of %s', m[1], o.rolname, t.how, t.rel::regclass)
        FROM tree t JOIN ordinary o ON o.oid = t.author, regexp_matches(t.tree, '[{{]([A-Z_0-9]+)', 'g') m
        WHERE m[1] NOT IN ('{kinds}') ORDER BY 1 LIMIT 5"
    )
}

/// What only writing runs: defaults of columns that are not written, generated ones among them, and the types.
fn written(columns: &[Identifier]) -> String {
    let columns = columns.iter().map(|name| literal(name.as_str()));
    let columns = columns.collect::<Vec<_>>().join(", ");
    format!(
        "
            UNION ALL SELECT r.oid, format('the column %I', a.attname), r.relowner, 'pg_attrdef'::regclass, e.oid
            FROM rel r JOIN pg_attribute a ON a.attrelid = r.oid
            JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum
            WHERE NOT a.attisdropped AND a.attname <> ALL (ARRAY[{columns}]::text[])
            UNION ALL SELECT DISTINCT r.oid, format('the type of the column %I', a.attname), y.typowner, 'pg_type'::regclass, y.oid
            FROM rel r JOIN pg_attribute a ON a.attrelid = r.oid JOIN pg_type y ON y.oid = a.atttypid
            WHERE a.attnum > 0 AND NOT a.attisdropped"
    )
}

/// Functions `f` that an expression of others may not call, whoever owns them: volatile ones, which may write, run
/// statements or read files; input functions (`cstring`, `internal`), those that make values of a type that they are told, or
/// call casts (JSON); and those that look at other relations.
const UNSAFE: &str = "f.provolatile = 'v' OR f.proargtypes::oid[] && ARRAY['cstring'::regtype, 'internal'::regtype]::oid[]
        OR ((f.proname ~ 'json' OR f.oid >= 16384) AND f.proargtypes::oid[] && ARRAY['\"any\"'::regtype, 'anyelement'::regtype,
            'anycompatible'::regtype, 'record'::regtype]::oid[])
        OR (f.proname ~ 'json' AND f.proargtypes::oid[] && ARRAY['anyarray'::regtype, 'anynonarray'::regtype]::oid[])
        OR (f.oid < 16384 AND f.proname ~ '_to_xml|^satisfies_hash_partition$|^pg_' AND f.proname !~ '^pg_(lsn|snapshot|typeof|size|column_size)')";

/// The fault for what [`find`] found.
pub(super) fn refused(
    node: &NodeId,
    name: &TableName,
    access: Access<'_>,
    code: &[impl AsRef<str>],
) -> Fault {
    let done = match access {
        Access::Read => "read",
        Access::Write(_) => "written",
    };
    let text = format!(
        "rows of {name} are not {done}: code of ordinary roles would run with the rights of the agent's role: {}",
        code.iter()
            .map(AsRef::as_ref)
            .collect::<Vec<_>>()
            .join(", ")
    );
    let fault = Fault::new(FaultKind::Failed, text).on(node).at(name);
    fault.hint("let its owner remove this code, or the agent connect as a role without more rights")
}
