//! Code of tables' owners that PostgreSQL would run with our rights while it plans or runs a statement of ours.
//!
//! Planning evaluates what is constant in index expressions, predicates, checks, partition keys and statistics; writing also
//! runs checks, domains and generated columns. What they may call is a list of what is safe, not of what is
//! known to be bad: functions of superusers and PostgreSQL's own, none of them volatile, none that reads a value of a type
//! that its arguments name, and no kind of expression that is not in [`KINDS`].
//!
//! [`of_table`] is asked in the transaction of a statement, once the table is locked. An owner can still commit `CREATE
//! INDEX CONCURRENTLY`, `CREATE STATISTICS` or, for readers, `CREATE INDEX` between this and the statement: the lock that
//! would prevent it would also wait for vacuum. [`of_database`] is asked before a job, to say what there is.

use steep_protocol::{Fault, FaultKind, Identifier, NodeId, TableName};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::catalog::{USER_RELATION, table_name};
use super::{PgError, Session};

/// Rows of an answer about a whole database.
const ROWS_MAX: usize = 20_000;

/// Rows of an answer about one table.
const NAMED: usize = 5;

/// Kinds of expressions that run nothing but the functions and input functions that are looked for. Before PostgreSQL 16
/// some had shorter names.
const KINDS: &str = "VAR CONST FUNCEXPR NAMEDARGEXPR OPEXPR DISTINCTEXPR NULLIFEXPR SCALARARRAYOPEXPR BOOLEXPR \
    FIELDSELECT RELABELTYPE COERCEVIAIO ARRAYCOERCEEXPR CONVERTROWTYPEEXPR COLLATE COLLATEEXPR CASE CASEEXPR WHEN \
    CASEWHEN CASETESTEXPR ARRAY ARRAYEXPR ROW ROWEXPR ROWCOMPARE ROWCOMPAREEXPR COALESCE COALESCEEXPR MINMAX \
    MINMAXEXPR SQLVALUEFUNCTION XMLEXPR NULLTEST BOOLEANTEST COERCETODOMAIN COERCETODOMAINVALUE SUBSCRIPTINGREF";

/// What is about to be done with a table.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Access<'a> {
    Read,
    /// Rows are inserted with these columns.
    Write(&'a [Identifier]),
}

/// Code that loading rows would run.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) table: TableName,
    /// The function, whose it is, and what calls it.
    pub(crate) what: String,
    /// The index that calls it.
    pub(crate) index: Option<OwnIndex>,
}

/// An index that calls it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnIndex {
    pub(crate) oid: u32,
    /// Whether something depends on it.
    pub(crate) is_needed: bool,
}

/// The code of others in a table, its partitions and what it is a partition of.
pub(crate) async fn of_table(
    session: &Session,
    name: &TableName,
    access: Access<'_>,
) -> Result<Vec<String>, tokio_postgres::Error> {
    let name = name.quoted();
    let columns: Vec<&str> = match access {
        Access::Read => Vec::new(),
        Access::Write(columns) => columns.iter().map(Identifier::as_str).collect(),
    };
    let (name, columns) = ((&name as _, Type::TEXT), (&columns as _, Type::TEXT_ARRAY));
    let rows = match access {
        Access::Read => session.query_typed(&of_table_sql(""), &[name]).await?,
        Access::Write(_) => {
            let written = format!("{DEFAULTS}{TYPES}");
            session
                .query_typed(&of_table_sql(&written), &[name, columns])
                .await?
        }
    };
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// The code of others that loading rows of any table calls.
pub(crate) async fn of_database(
    session: &Session,
    cancel: &CancellationToken,
) -> Result<Vec<Found>, PgError> {
    let sql = of_database_sql();
    let rows = session.run(cancel, session.query_typed(&sql, &[]));
    let rows = rows.await?;
    let found = rows.iter().map(|row| {
        let oid: Option<u32> = row.try_get(3)?;
        let is_needed = row.try_get(4)?;
        Ok(Found {
            table: table_name(row, 0)?,
            what: row.try_get(2)?,
            index: oid.map(|oid| OwnIndex { oid, is_needed }),
        })
    });
    found.collect()
}

/// Columns: what calls which function of whom.
fn of_table_sql(written: &str) -> String {
    let rel = "SELECT c.oid, c.relowner FROM pg_class c, to_regclass($1) AS named WHERE c.oid IN (
                SELECT named UNION SELECT p.relid FROM pg_partition_tree(named) p
                UNION SELECT p.relid FROM pg_partition_ancestors(named) p)";
    let code = code_sql(rel, &format!("{STATISTICS}{written}"));
    format!(
        "{code} SELECT DISTINCT format('%s of %s', f.what, f.rel::regclass) FROM found f
        ORDER BY 1 LIMIT {NAMED}"
    )
}

/// Columns: schema, table, what calls which function of whom, the index that does and whether something depends on it.
fn of_database_sql() -> String {
    let rel = format!(
        "SELECT c.oid, c.relowner FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p') AND {USER_RELATION}"
    );
    let code = code_sql(&rel, &format!("{GENERATED}{TYPES}"));
    format!(
        "{code} SELECT DISTINCT n.nspname::text, c.relname::text, f.what, f.index,
            EXISTS (SELECT FROM pg_depend e WHERE e.refclassid = 'pg_class'::regclass
                AND e.refobjid = f.index AND e.deptype = 'n')
            OR EXISTS (SELECT FROM pg_constraint k JOIN pg_depend e ON e.refclassid = 'pg_constraint'::regclass
                AND e.refobjid = k.oid AND e.deptype = 'n' WHERE k.conrelid = f.rel AND k.conindid = f.index)
        FROM found f JOIN pg_class c ON c.oid = f.rel JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE NOT EXISTS (SELECT FROM pg_class x WHERE x.oid = f.index AND x.relkind = 'I') ORDER BY 1, 2, 3 LIMIT {ROWS_MAX}"
    )
}

/// The common table expression `found`: the code of others in the relations `rel`. Types are followed into their elements,
/// domains' checks and so on; of what is written by superusers, only the functions are looked at.
fn code_sql(rel: &str, further: &str) -> String {
    let kinds = KINDS.replace(' ', "', '");
    format!(
        "WITH RECURSIVE rel (oid, relowner) AS (
            {rel}
        ), ordinary AS (
            SELECT r.oid, r.rolname FROM pg_roles r WHERE NOT r.rolsuper AND r.rolname <> current_user
        ), part (rel, how, index, author, classid, objid) AS (
            SELECT r.oid, 'a check', NULL::oid, r.relowner, 'pg_constraint'::regclass::oid, k.oid
            FROM rel r JOIN pg_constraint k ON k.conrelid = r.oid WHERE k.contype = 'c'
            UNION ALL SELECT r.oid, format('the index %I', x.relname), x.oid, r.relowner, 'pg_class'::regclass, x.oid
            FROM rel r JOIN pg_index i ON i.indrelid = r.oid JOIN pg_class x ON x.oid = i.indexrelid
            WHERE i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
            UNION ALL SELECT r.oid, 'the partition key', NULL, r.relowner, 'pg_class'::regclass, r.oid
            FROM rel r JOIN pg_partitioned_table t ON t.partrelid = r.oid WHERE t.partexprs IS NOT NULL{further}
        ), used AS (
            SELECT * FROM part UNION SELECT u.rel, u.how, u.index, next.* FROM used u CROSS JOIN LATERAL (
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
            SELECT u.rel, u.how, u.index, u.author, t.tree
            FROM used u JOIN ordinary o ON o.oid = u.author CROSS JOIN LATERAL (
                SELECT k.conbin::text FROM pg_constraint k WHERE u.classid = 'pg_constraint'::regclass AND k.oid = u.objid
                UNION ALL SELECT concat(i.indexprs::text, i.indpred::text) FROM pg_index i
                WHERE u.classid = 'pg_class'::regclass AND i.indexrelid = u.objid
                UNION ALL SELECT t.partexprs::text FROM pg_partitioned_table t
                WHERE u.classid = 'pg_class'::regclass AND t.partrelid = u.objid
                UNION ALL SELECT s.stxexprs::text FROM pg_statistic_ext s
                WHERE u.classid = 'pg_statistic_ext'::regclass AND s.oid = u.objid
                UNION ALL SELECT e.adbin::text FROM pg_attrdef e WHERE u.classid = 'pg_attrdef'::regclass AND e.oid = u.objid
            ) AS t (tree)
        ), called (rel, how, index, author, proc) AS (
            SELECT u.rel, u.how, u.index, u.author, u.objid FROM used u WHERE u.classid = 'pg_proc'::regclass
            UNION SELECT t.rel, t.how, t.index, t.author, m[1]::oid
            FROM tree t, regexp_matches(t.tree, ':(?:op)?funcid ([0-9]+)', 'g') m
            UNION SELECT t.rel, t.how, t.index, t.author, o.oprcode
            FROM tree t, regexp_matches(t.tree, ':opno ([0-9]+)', 'g') m JOIN pg_operator o ON o.oid = m[1]::oid
        ), found (rel, index, what) AS (
            SELECT c.rel, c.index, format('%s of %s by %s', c.proc::regprocedure, pg_get_userbyid(CASE
                WHEN EXISTS (SELECT FROM ordinary o WHERE o.oid = f.proowner) THEN f.proowner ELSE c.author END), c.how)
            FROM called c CROSS JOIN LATERAL (SELECT p.* FROM pg_proc p WHERE p.oid = c.proc OFFSET 0) AS f
            WHERE f.proowner IN (SELECT oid FROM ordinary)
            OR (c.author IN (SELECT oid FROM ordinary) AND ({UNSAFE}))
            UNION SELECT t.rel, t.index, format('an expression that cannot be checked (%s) of %s by %s', m[1], o.rolname, t.how)
            FROM tree t JOIN ordinary o ON o.oid = t.author, regexp_matches(t.tree, '[{{]([A-Z_0-9]+)', 'g') m
            WHERE m[1] NOT IN ('{kinds}')
        )"
    )
}

/// What planning evaluates besides.
const STATISTICS: &str = "
            UNION ALL SELECT r.oid, format('the statistics %I', s.stxname), NULL, r.relowner, 'pg_statistic_ext'::regclass, s.oid
            FROM rel r JOIN pg_statistic_ext s ON s.stxrelid = r.oid WHERE s.stxexprs IS NOT NULL";

/// What only writing runs: defaults of columns that are not written, generated ones among them.
const DEFAULTS: &str = "
            UNION ALL SELECT r.oid, format('the column %I', a.attname), NULL, r.relowner, 'pg_attrdef'::regclass, e.oid
            FROM rel r JOIN pg_attribute a ON a.attrelid = r.oid
            JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum
            WHERE NOT a.attisdropped AND a.attname <> ALL ($2)";

/// The same where all columns are written.
const GENERATED: &str = "
            UNION ALL SELECT r.oid, format('the column %I', a.attname), NULL, r.relowner, 'pg_attrdef'::regclass, e.oid
            FROM rel r JOIN pg_attribute a ON a.attrelid = r.oid
            JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum
            WHERE NOT a.attisdropped AND a.attgenerated <> ''";

/// And the types of columns.
const TYPES: &str = "
            UNION ALL SELECT DISTINCT r.oid, format('the type of the column %I', a.attname), NULL::oid, y.typowner,
                'pg_type'::regclass::oid, y.oid
            FROM rel r JOIN pg_attribute a ON a.attrelid = r.oid JOIN pg_type y ON y.oid = a.atttypid
            WHERE a.attnum > 0 AND NOT a.attisdropped AND y.oid >= 16384";

/// Functions `f` that an expression of others may not call, whoever owns them: volatile ones, which may write, run
/// statements or read files; input functions (`cstring`, `internal`), those that make values of a type that they are told, or
/// call casts (JSON); and those that look at other relations.
const UNSAFE: &str = "f.provolatile = 'v' OR f.proargtypes::oid[] && ARRAY['cstring'::regtype, 'internal'::regtype]::oid[]
        OR ((f.proname ~ 'json' OR f.oid >= 16384) AND f.proargtypes::oid[] && ARRAY['\"any\"'::regtype, 'anyelement'::regtype,
            'anycompatible'::regtype, 'record'::regtype]::oid[])
        OR (f.proname ~ 'json' AND f.proargtypes::oid[] && ARRAY['anyarray'::regtype, 'anynonarray'::regtype]::oid[])
        OR (f.oid < 16384 AND f.proname ~ '_to_xml|^satisfies_hash_partition$|^pg_' AND f.proname !~ '^pg_(lsn|snapshot|typeof|size|column_size)')";

/// The fault for what [`of_table`] found.
pub(crate) fn refused(
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
