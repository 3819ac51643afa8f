WITH ours AS MATERIALIZED (
    SELECT pid, application_name AS name FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
        AND starts_with(application_name, $1)
), held AS MATERIALIZED (
    SELECT pid, relation, mode, granted, waitstart FROM pg_locks
    WHERE locktype = 'relation'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (NOT granted OR relation = ANY ($2))
), waiting AS MATERIALIZED (
    SELECT pid, relation, waitstart, pg_blocking_pids(pid) AS blockers FROM held WHERE NOT granted
), found AS (
    SELECT 'blocked' AS role, w.pid AS other, w.relation, w.waitstart, o.pid AS own, o.name
    FROM waiting w JOIN ours o ON o.pid = ANY (w.blockers)
    WHERE w.pid NOT IN (SELECT pid FROM ours)
    UNION ALL
    SELECT 'waits', b.pid, w.relation, w.waitstart, o.pid, o.name
    FROM waiting w JOIN ours o ON o.pid = w.pid CROSS JOIN LATERAL (
        SELECT min(p) AS pid FROM unnest(w.blockers) AS p WHERE p NOT IN (SELECT pid FROM ours)) b
    WHERE b.pid IS NOT NULL
    UNION ALL
    SELECT DISTINCT ON (h.relation) 'awaited', coalesce(h.pid, 0), h.relation, NULL, 0, ''
    FROM held h
    WHERE h.relation = ANY ($2) AND h.mode = 'AccessExclusiveLock'
        AND (h.pid IS NULL OR h.pid NOT IN (SELECT pid FROM ours))
)
SELECT f.role, f.other, f.relation, coalesce(f.relation::regclass::text, ''),
    coalesce(extract(epoch FROM clock_timestamp() - f.waitstart), 0)::float8, f.own, f.name,
    coalesce(a.application_name, ''), coalesce(left(a.query, 1000), ''),
    (SELECT count(*) FROM waiting q WHERE q.relation = f.relation AND q.pid <> f.other)
FROM found f LEFT JOIN pg_stat_activity a ON a.pid = f.other
ORDER BY f.waitstart LIMIT 100
