-- $1: how names of ours begin. A row for each replication: its name and its digest.
WITH carried AS MATERIALIZED (
    SELECT s.subname::text AS name, r.srrelid AS relation
    FROM pg_catalog.pg_subscription s
    JOIN pg_catalog.pg_database d ON d.oid = s.subdbid AND d.datname = pg_catalog.current_database()
    LEFT JOIN pg_catalog.pg_subscription_rel r ON r.srsubid = s.oid
    WHERE pg_catalog.starts_with(s.subname::text, $1)
    UNION
    SELECT p.pubname::text, c.oid
    FROM pg_catalog.pg_publication p
    LEFT JOIN pg_catalog.pg_publication_tables t ON t.pubname = p.pubname
    LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname
    LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
    WHERE pg_catalog.starts_with(p.pubname::text, $1)
), printed AS MATERIALIZED (
    SELECT f.relation, pg_catalog.jsonb_build_array(n.nspname::text, c.relname::text, f.fingerprint)::text AS line,
        n.nspname::text COLLATE "C" AS schema_name, c.relname::text COLLATE "C" AS table_name
    FROM steep_repl.fingerprints(ARRAY(
        SELECT DISTINCT relation FROM carried WHERE relation IS NOT NULL)) AS f
    JOIN pg_catalog.pg_class c ON c.oid = f.relation
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
)
SELECT carried.name, pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(coalesce(
    pg_catalog.string_agg(printed.line, E'\n' ORDER BY printed.schema_name, printed.table_name), ''),
    'UTF8')), 'hex')
FROM carried LEFT JOIN printed USING (relation)
GROUP BY carried.name ORDER BY carried.name
