//! Partitioned tables with every kind of index and constraint, rows for them, and their catalog
//! entries.

use anyhow::Result;

use crate::pg::Database;

const OBJECTS: &str = include_str!("sql/partitioned.sql");

/// Creates the empty tables.
///
/// # Errors
/// The server's error.
pub fn create(database: &Database) -> Result<()> {
    database.sql(OBJECTS).map(drop)
}

/// Adds plain tables with everything that can be set on an index or a constraint.
///
/// # Errors
/// The server's error.
pub fn create_plain(database: &Database) -> Result<()> {
    database.sql(include_str!("sql/deferred.sql")).map(drop)
}

/// Rows for them.
///
/// # Errors
/// The server's error.
pub fn fill_plain(database: &Database) -> Result<()> {
    let sql = "SET search_path = \"Parted S\", public;
         INSERT INTO parent SELECT n, 'p' || n FROM generate_series(1, 100) AS n;
         INSERT INTO everything SELECT n, 1 + n % 100, 'n' || n, n, int4range(n, n + 1), ARRAY['t' || n % 7],
             date '2020-01-01' + n, 1 + n % 100 FROM generate_series(1, 1000) AS n";
    database.sql(sql).map(drop)
}

/// Inserts that many rows of a kilobyte into the largest table, and fewer into the others.
///
/// # Errors
/// The server's error.
pub fn fill(database: &Database, rows: u32) -> Result<()> {
    let sql = format!(
        "SET search_path = \"Parted S\", public;
         INSERT INTO country SELECT n, 'c' || n FROM generate_series(1, 100) AS n;
         INSERT INTO \"Root t\" (id, region, amount, code, body)
         SELECT n, (ARRAY['eu', 'us', 'asia', 'mars'])[1 + n % 4], n, n % 1000, repeat(md5(n::text), 30)
         FROM generate_series(1, {rows}) AS n;
         INSERT INTO item SELECT n, 1 + 4 * n, 'us', n FROM generate_series(1, 200) AS n;
         INSERT INTO visit SELECT n, date '2020-01-01' + n, 1 + n % 100, 1 + n % 200
         FROM generate_series(0, 700) AS n;
         INSERT INTO tree SELECT n, nullif(n / 2, 0) FROM generate_series(1, 300) AS n;
         INSERT INTO counted SELECT n, 'b' FROM generate_series(0, 500) AS n;
         INSERT INTO below SELECT n, n FROM generate_series(0, 500) AS n;
         SELECT to_regclass('booking') IS NOT NULL AS booking, to_regclass('mixed') IS NOT NULL AS mixed \\gset
         \\if :booking
         INSERT INTO booking SELECT 1 + n % 2, tsrange(timestamp '2025-01-01' + n * interval '1 hour',
             timestamp '2025-01-01' + (n + 1) * interval '1 hour') FROM generate_series(1, 100) AS n;
         \\endif
         \\if :mixed
         INSERT INTO half VALUES (1), (2);
         INSERT INTO mixed VALUES (1, 1), (2, 2);
         \\endif"
    );
    database.sql(&sql).map(drop)
}

/// Makes a change of each kind, which a subscriber must be able to apply.
///
/// # Errors
/// The server's error.
pub fn change(database: &Database) -> Result<()> {
    let sql = "SET search_path = \"Parted S\", public;
         UPDATE \"Root t\" SET body = 'new', amount = -1 WHERE id % 10 = 0;
         DELETE FROM \"Root t\" WHERE id % 1000 = 3;
         INSERT INTO \"Root t\" VALUES (-1, 'eu', 0, 1, 'b'), (-1, 'venus', 0, 1, 'b');
         UPDATE visit SET at = '2021-06-06' WHERE id = 5;
         DELETE FROM tree WHERE id > 290";
    database.sql(sql).map(drop)
}

/// A line for each index and foreign key of user tables and partitions, with details that a dump
/// lacks: its parent, whether it is valid, clustered on and so on. Without `connoinherit` of
/// attached ones, which means nothing for an index and depends on the order of creation.
///
/// # Errors
/// The server's error.
pub fn catalog(database: &Database) -> Result<Vec<String>> {
    let sql = "
        SELECT concat_ws(' ', 'index', x.oid::regclass, 'of', h.inhparent::regclass, i.indisvalid, i.indisready,
            i.indisreplident, i.indisclustered, i.indisunique, i.indimmediate, x.reloptions, s.spcname,
            pg_get_indexdef(x.oid), obj_description(x.oid, 'pg_class'), x.relowner::regrole, x.relispartition,
            '/', k.conname, k.conislocal, k.coninhcount, k.connoinherit OR x.relispartition, k.condeferrable, k.condeferred,
            pg_get_constraintdef(k.oid), obj_description(k.oid, 'pg_constraint'),
            (SELECT p.conname FROM pg_constraint p WHERE p.oid = k.conparentid),
            (SELECT string_agg(format('%s=%s', a.attnum, a.attstattarget), ',' ORDER BY a.attnum)
                FROM pg_attribute a WHERE a.attrelid = x.oid AND a.attstattarget >= 0))
        FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
        JOIN pg_namespace n ON n.oid = x.relnamespace AND n.nspname = 'Parted S'
        LEFT JOIN pg_inherits h ON h.inhrelid = x.oid LEFT JOIN pg_tablespace s ON s.oid = x.reltablespace
        LEFT JOIN pg_constraint k ON k.conindid = x.oid AND k.contype IN ('p', 'u', 'x')
        UNION ALL
        SELECT concat_ws(' ', 'constraint', k.contype, k.conname, 'on', k.conrelid::regclass, 'to', k.confrelid::regclass,
            k.conindid::regclass, k.conislocal, k.coninhcount, k.connoinherit, k.convalidated,
            pg_get_constraintdef(k.oid), obj_description(k.oid, 'pg_constraint'), p.conname, p.conrelid::regclass,
            (SELECT count(*) FROM pg_trigger t WHERE t.tgconstraint = k.oid))
        FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace AND n.nspname = 'Parted S'
        LEFT JOIN pg_constraint p ON p.oid = k.conparentid
        WHERE k.contype NOT IN ('p', 'u', 'x') AND (p.oid IS NULL OR p.confrelid = k.confrelid)
        UNION ALL
        SELECT concat_ws(' ', 'table', c.oid::regclass, c.relreplident, c.relhasindex,
            (SELECT string_agg(a.attname || a.attnotnull, ',' ORDER BY a.attnum) FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped))
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'Parted S'
        WHERE c.relkind IN ('r', 'p')
        ORDER BY 1";
    Ok(database.rows(sql)?.into_iter().flatten().collect())
}
