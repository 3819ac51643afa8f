//! Catalog queries for a planned target's foreign keys, indexes and materialised views. `$1` is the planned
//! tables' oids.

/// Tables that hold nothing but planned rows, as `whole`: the planned ones, and partitioned ones below
/// which every table with rows is planned. Uses `pg_inherits`, since functions that walk partitions lock
/// all of them at once.
pub(super) const WHOLE: &str = "
WITH RECURSIVE planned AS (
    SELECT c.oid FROM pg_class c WHERE c.oid = ANY ($1::oid[]) AND c.relkind = 'r'
), mixed AS (
    SELECT h.inhparent AS oid FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
    WHERE c.relispartition AND c.relkind IN ('r', 'f') AND c.oid NOT IN (SELECT p.oid FROM planned p)
    UNION SELECT h.inhparent FROM mixed JOIN pg_inherits h ON h.inhrelid = mixed.oid
), whole AS (
    SELECT p.oid FROM planned p
    UNION ALL SELECT c.oid FROM pg_class c
    WHERE c.relkind = 'p' AND c.oid NOT IN (SELECT m.oid FROM mixed m)
)";

/// Of plain planned tables, and to any whole one. Columns: schema, table, name, drop statement, create
/// statement, details.
///
/// Those of partitioned tables cannot be added `NOT VALID` before 18 and would be lost where rows violate
/// them, so they stay. So do those whose parts for partitions have names or states of their own, which
/// would not come back.
pub(super) const FOREIGN_KEYS: &str = "
SELECT n.nspname::text, c.relname::text, k.conname::text,
    format('ALTER TABLE %s%I.%I DROP CONSTRAINT %I', o.scope, n.nspname, c.relname, k.conname),
    format('ALTER TABLE %s%I.%I ADD CONSTRAINT %I %s', o.scope, n.nspname, c.relname, k.conname,
        pg_get_constraintdef(k.oid)),
    ARRAY(SELECT format('COMMENT ON CONSTRAINT %I ON %I.%I IS %L', k.conname, n.nspname, c.relname,
        d.description) FROM pg_description d
        WHERE d.classoid = 'pg_constraint'::regclass AND d.objoid = k.oid)
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (SELECT CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END) AS o (scope)
WHERE k.contype = 'f' AND k.conparentid = 0
    AND (c.relkind = 'r' OR c.relkind = 'p' AND current_setting('server_version_num')::integer >= 180000)
    AND (k.confrelid IN (SELECT w.oid FROM whole w)
        OR c.relkind = 'r' AND NOT c.relispartition AND k.conrelid IN (SELECT p.oid FROM planned p))
    AND NOT EXISTS (
        WITH RECURSIVE below AS (
            SELECT b.oid, b.conname FROM pg_constraint b WHERE b.conparentid = k.oid
                AND b.confrelid = k.confrelid AND b.conrelid <> k.conrelid
            UNION ALL SELECT b.oid, b.conname FROM below u JOIN pg_constraint b
                ON b.conparentid = u.oid AND b.confrelid = k.confrelid
        ) SELECT FROM below b WHERE b.conname <> k.conname
            OR pg_get_constraintdef(b.oid) <> pg_get_constraintdef(k.oid))
ORDER BY k.oid";

/// All of the whole tables. Columns: oid, the index it is attached to, schema, table, name, whether it is a
/// constraint, partitions of a partitioned table, whether it is valid, whether it can be rebuilt, drop
/// statement, create statement, statistics, attach statement, details.
///
/// It can be rebuilt where the role may use its tablespace; but releases of 17 refuse to attach to an
/// exclusion constraint what they created under it themselves.
///
/// `pg_get_indexdef` writes `ON ONLY` for a partitioned table. It and `pg_get_constraintdef` omit the
/// tablespace, which is set for the rebuilding transaction; the latter omits storage parameters too.
pub(super) const INDEXES: &str = "
SELECT x.oid, h.inhparent, n.nspname::text, c.relname::text, coalesce(k.conname, x.relname)::text,
    k.oid IS NOT NULL,
    CASE c.relkind WHEN 'p' THEN (SELECT count(*) FROM pg_inherits p WHERE p.inhparent = c.oid) END,
    i.indisvalid,
    (s.oid IS NULL OR has_tablespace_privilege(s.oid, 'CREATE'))
        AND (k.contype IS DISTINCT FROM 'x' OR c.relkind = 'r'),
    CASE WHEN k.oid IS NULL THEN format('DROP INDEX %I.%I', n.nspname, x.relname)
        ELSE format('ALTER TABLE %s%I.%I DROP CONSTRAINT %I', CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END,
            n.nspname, c.relname, k.conname) END,
    format('SET LOCAL default_tablespace = %L; ', coalesce(s.spcname, '')) ||
    CASE WHEN k.oid IS NULL THEN pg_get_indexdef(x.oid)
        ELSE format('ALTER TABLE ONLY %I.%I ADD CONSTRAINT %I %s', n.nspname, c.relname, k.conname,
            CASE WHEN k.contype = 'x' OR x.reloptions IS NULL THEN pg_get_constraintdef(k.oid)
            ELSE regexp_replace(pg_get_constraintdef(k.oid), '( DEFERRABLE)?( INITIALLY DEFERRED)?$',
                format(' WITH (%s)\\1\\2', (SELECT string_agg(format('%I = %L', o.option_name, o.option_value), ', ')
                    FROM pg_options_to_table(x.reloptions) o))) END) END,
    ARRAY(SELECT format('ALTER INDEX %I.%I ALTER COLUMN %s SET STATISTICS %s', n.nspname, x.relname,
        a.attnum, a.attstattarget) FROM pg_attribute a WHERE a.attrelid = x.oid AND a.attstattarget >= 0),
    CASE WHEN px.oid IS NOT NULL THEN format('ALTER INDEX %I.%I ATTACH PARTITION %I.%I',
        pn.nspname, px.relname, n.nspname, x.relname) END,
    ARRAY(
        SELECT format('ALTER TABLE ONLY %I.%I REPLICA IDENTITY USING INDEX %I',
            n.nspname, c.relname, x.relname) WHERE i.indisreplident
        UNION ALL SELECT format('ALTER TABLE %I.%I CLUSTER ON %I', n.nspname, c.relname, x.relname)
            WHERE i.indisclustered
        UNION ALL SELECT format('COMMENT ON INDEX %I.%I IS %L', n.nspname, x.relname, d.description)
            FROM pg_description d WHERE d.classoid = 'pg_class'::regclass AND d.objoid = x.oid
                AND d.objsubid = 0
        UNION ALL SELECT format('COMMENT ON CONSTRAINT %I ON %I.%I IS %L', k.conname, n.nspname,
            c.relname, d.description) FROM pg_description d
            WHERE d.classoid = 'pg_constraint'::regclass AND d.objoid = k.oid
        UNION ALL SELECT format('ALTER INDEX %I.%I DEPENDS ON EXTENSION %I', n.nspname, x.relname, e.extname)
            FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
            WHERE d.classid = 'pg_class'::regclass AND d.objid = x.oid AND d.deptype = 'x'
    )
FROM whole w
JOIN pg_class c ON c.oid = w.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_index i ON i.indrelid = c.oid
JOIN pg_class x ON x.oid = i.indexrelid
LEFT JOIN pg_inherits h ON h.inhrelid = x.oid
LEFT JOIN pg_class px ON px.oid = h.inhparent
LEFT JOIN pg_namespace pn ON pn.oid = px.relnamespace
LEFT JOIN pg_tablespace s ON s.oid = x.reltablespace
LEFT JOIN pg_constraint k ON k.conindid = x.oid AND k.conrelid = c.oid AND k.contype IN ('p', 'u', 'x')
ORDER BY x.oid";

/// Materialised views that hold rows, in dependency order.
pub(super) const REFRESHES: &str = "WITH RECURSIVE reads AS (
        SELECT DISTINCT r.ev_class AS reader, d.refobjid AS read
        FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid AND d.classid = 'pg_rewrite'::regclass
        WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class
    ), depth AS (
        SELECT oid AS view, 0 AS level FROM pg_class WHERE relkind IN ('m', 'v') AND oid >= 16384
        UNION SELECT reads.reader, depth.level + 1
        FROM depth JOIN reads ON reads.read = depth.view WHERE depth.level < 100
    )
    SELECT format('%I.%I', n.nspname, c.relname), n.nspname::text, c.relname::text FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN depth ON depth.view = c.oid
    WHERE c.relkind = 'm' AND c.relispopulated
    GROUP BY c.oid, n.nspname, c.relname ORDER BY max(depth.level), 1";
