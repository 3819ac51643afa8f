//! Tables with keys of all kinds, and rows of them that differ on a replica.

/// Keys of all kinds, hostile names, columns that a server computes, and rows that refer to others.
pub const KINDS: &str = "
    CREATE SCHEMA app;
    CREATE TABLE app.by_text (k text COLLATE \"C\" PRIMARY KEY, v text);
    INSERT INTO app.by_text SELECT 'it''s \\ \"' || n, 'v' || n FROM generate_series(1, 300) n;
    CREATE TABLE app.by_uuid (k uuid PRIMARY KEY, v text);
    INSERT INTO app.by_uuid SELECT md5(n::text)::uuid, 'v' || n FROM generate_series(1, 300) n;
    CREATE TABLE app.by_two (k integer, l text, v text, PRIMARY KEY (l, k));
    INSERT INTO app.by_two SELECT n % 20, 'l' || n, 'v' || n FROM generate_series(1, 300) n;
    CREATE TABLE app.by_number (k numeric PRIMARY KEY, v text);
    INSERT INTO app.by_number SELECT n / 8.0, 'v' || n FROM generate_series(1, 300) n;
    CREATE TABLE app.by_bytes (k bytea PRIMARY KEY, v text);
    INSERT INTO app.by_bytes SELECT sha256(n::text::bytea), 'v' || n FROM generate_series(1, 300) n;
    CREATE TABLE app.by_time (k timestamptz PRIMARY KEY, v text);
    INSERT INTO app.by_time SELECT timestamptz '2024-03-01 00:00:00.000001+00' + n * interval '37 min', 'v' || n
        FROM generate_series(1, 300) n;
    CREATE SCHEMA \"Odd S'\";
    CREATE TABLE \"Odd S'\".\"T \"\"x\"\"; --\" (\"k'\"\"; \\\" text PRIMARY KEY, v text, \"select\" text);
    INSERT INTO \"Odd S'\".\"T \"\"x\"\"; --\" SELECT 'k' || n, 'v' || n, NULL FROM generate_series(1, 300) n;
    CREATE TABLE app.wide (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, b bytea, j jsonb, a text[], f float8,
        t timestamptz, m money, d interval, twice text GENERATED ALWAYS AS (v || v) STORED, no integer GENERATED ALWAYS AS IDENTITY);
    INSERT INTO app.wide (v, b, j, a, f, t, m, d) SELECT 'v' || n, decode(repeat('ff00', n), 'hex'), jsonb_build_object('n', n),
        ARRAY['a', NULL, n::text, ''], n / 3.0, timestamptz '2024-01-01 UTC' + n * interval '1 min', n::numeric::money,
        n * interval '1 h 2 s' FROM generate_series(1, 300) n;
    CREATE TABLE app.parted (id integer, v text, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE app.parted_old PARTITION OF app.parted FOR VALUES FROM (MINVALUE) TO ('2024-02-01');
    CREATE TABLE app.parted_new PARTITION OF app.parted FOR VALUES FROM ('2024-02-01') TO (MAXVALUE);
    INSERT INTO app.parted SELECT n, 'v' || n, date '2024-01-01' + n % 60 FROM generate_series(1, 300) n;
    CREATE TABLE app.parent (k integer PRIMARY KEY, v text UNIQUE);
    INSERT INTO app.parent SELECT n, 'v' || n FROM generate_series(1, 300) n;
    CREATE TABLE app.child (k integer PRIMARY KEY, v text, parent integer REFERENCES app.parent);
    INSERT INTO app.child SELECT n, 'v' || n, n FROM generate_series(1, 300) n;
    CREATE TABLE app.log (v text);
    INSERT INTO app.log SELECT 'v' || n FROM generate_series(1, 300) n;
    CREATE FUNCTION app.fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'fired'; END $$;
    CREATE TRIGGER fire BEFORE INSERT OR UPDATE OR DELETE ON app.parent FOR EACH ROW EXECUTE FUNCTION app.fire()";

/// On the replica, without its triggers: in each table a row is another, one is missing and one is extra.
pub const DAMAGE: &str = "
    SET session_replication_role = replica;
    DO $$
    DECLARE t text;
    BEGIN
        FOREACH t IN ARRAY ARRAY['app.by_text', 'app.by_uuid', 'app.by_two', 'app.by_number', 'app.by_bytes', 'app.by_time',
            '\"Odd S''\".\"T \"\"x\"\"; --\"', 'app.wide', 'app.parted', 'app.parent', 'app.child'] LOOP
            EXECUTE format('UPDATE %s SET v = ''other'' WHERE v = ''v17''', t);
            EXECUTE format('DELETE FROM %s WHERE v = ''v200''', t);
        END LOOP;
    END $$;
    INSERT INTO app.by_text VALUES ('', 'new');
    INSERT INTO app.by_uuid VALUES ('00000000-0000-0000-0000-000000000001', 'new');
    INSERT INTO app.by_two VALUES (1, 'new', 'new');
    INSERT INTO app.by_number VALUES (1e30, 'new');
    UPDATE app.by_number SET k = 2.0 WHERE k = 2.000;
    INSERT INTO app.by_bytes VALUES ('\\x00', 'new');
    INSERT INTO app.by_time VALUES ('2023-12-31 23:59:59.5+00', 'new');
    INSERT INTO \"Odd S'\".\"T \"\"x\"\"; --\" VALUES ('new', 'new', 'new');
    INSERT INTO app.wide (id, v) OVERRIDING SYSTEM VALUE VALUES (-1, 'new');
    INSERT INTO app.parted VALUES (-1, 'new', '2024-02-03');
    INSERT INTO app.parent VALUES (-1, 'new');
    INSERT INTO app.child VALUES (-1, 'new', -1);
    UPDATE app.parent SET v = 'swap' WHERE k = 30; UPDATE app.parent SET v = 'v30' WHERE k = 31;
    UPDATE app.parent SET v = 'v31' WHERE k = 30";

/// How many rows of each table differ then.
pub const DAMAGED: [(&str, u64); 11] = [
    ("by_text", 3),
    ("by_uuid", 3),
    ("by_two", 3),
    ("by_number", 4),
    ("by_bytes", 3),
    ("by_time", 3),
    ("T \"x\"; --", 3),
    ("wide", 3),
    ("parted", 3),
    ("parent", 5),
    ("child", 3),
];
