-- Everything that is hard to copy. Variables: bytes, the size of the largest values; xml, 0 or 1.

SELECT current_setting('server_version_num')::int >= 180000 AS v18,
    -- Scales below zero came with 15.
    CASE WHEN current_setting('server_version_num')::int >= 150000 THEN '7, -2' ELSE '9, 0' END AS scaled \gset

CREATE EXTENSION hstore;
CREATE EXTENSION citext;
CREATE EXTENSION btree_gist;
CREATE SCHEMA hostile;
SET search_path = hostile, public;

-- Types of our own ---------------------------------------------------------------------------
CREATE TYPE mood AS ENUM ('sad', 'it''s "ok"', 'glücklich');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0) DEFAULT 7;
CREATE DOMAIN short_list AS text[] CHECK (cardinality(VALUE) < 4);
CREATE TYPE pair AS (a integer, b text);
CREATE TYPE nested AS (p pair, moods mood[]);
CREATE TYPE float_range AS RANGE (subtype = double precision);

-- Every type of column -----------------------------------------------------------------------
CREATE TABLE types (
    id integer PRIMARY KEY,
    c_mood mood, c_positive positive, c_list short_list, c_pair pair, c_nested nested,
    c_int4range int4range, c_tstzrange tstzrange, c_float_range float_range,
    c_nummultirange nummultirange, c_floats float_multirange,
    c_moods mood[], c_pairs pair[], c_matrix integer[][], c_shifted text[],
    c_numeric numeric, c_scaled numeric(:scaled), c_real real, c_double double precision,
    c_money money, c_bool boolean, c_char "char", c_bpchar character(5), c_name name,
    c_date date, c_time time, c_timetz timetz, c_timestamp timestamp, c_timestamptz timestamptz,
    c_interval interval, c_bytea bytea, c_text text, c_citext citext, c_hstore hstore,
    c_json json, c_jsonb jsonb, c_jsonpath jsonpath, c_uuid uuid, c_inet inet, c_cidr cidr,
    c_macaddr macaddr, c_bit bit(9), c_varbit varbit, c_point point, c_path path, c_box box,
    c_polygon polygon, c_circle circle, c_line line, c_lseg lseg, c_tsvector tsvector,
    c_tsquery tsquery, c_lsn pg_lsn, c_oid oid, c_regclass regclass, c_snapshot pg_snapshot,
    c_oidvector oidvector, c_tid tid
);
INSERT INTO types VALUES (
    1, 'it''s "ok"', 5, '{a,NULL,"c,d"}', '(1,"x""y")', '("(2,)","{sad,glücklich}")',
    '[1,5)', '(,2025-01-01 00:00:00+00]', '[-Infinity,1.5)',
    '{[1,2),[3.5,4)}', '{[1,2],(5,)}',
    '{sad,NULL,glücklich}', '{"(1,a)",NULL,"(,)"}', '{{1,2},{3,NULL}}', '[-1:1]={x,y,z}',
    'NaN', 1234567, 'Infinity', '-0', '-92233720368547758.08', true, E'\x7f', 'ab', 'a name',
    '4713-01-01 BC', '24:00:00', '23:59:59.5-15:59', '294276-12-31 23:59:59.999999', 'infinity',
    '-178000000 years 3 mons -7 days 00:00:00.000001', '\x00ff5c0a', E'tab\t nl\n cr\r bs\\ \\N \\.',
    'CiText', 'a=>1, "b c"=>NULL', '{"b": 1, "a": 2,  "a": 3}', '{"z": [1, null, "\u00fc"], "n": 1e400}',
    '$.a[*] ? (@ > 1)', '00000000-0000-0000-0000-000000000001', '::1/64', '10.0.0.0/8',
    '08:00:2b:01:02:03', '101010101', '1', '(1.5,-2)', '[(0,0),(1,1)]', '(2,2),(0,0)',
    '((0,0),(1,0),(1,1))', '<(0,0),3>', '{1,2,3}', '[(0,0),(1,1)]', '''a b'':1A c:2', 'a & !b <-> c',
    '16/B374D848', 4294967295, 'pg_class', '10:20:10,14,15', '1 2 3', '(4294967295,1)');
INSERT INTO types (id, c_list, c_numeric, c_real, c_double, c_date, c_timestamp, c_timestamptz, c_text, c_positive)
VALUES
    (2, '{}', '-Infinity', 'NaN', 'NaN', '5874897-12-31', '4713-01-01 00:00:00 BC', '-infinity', '', NULL),
    (3, NULL, 'Infinity', '-Infinity', 'Infinity', 'infinity', '-infinity', '294276-12-31 23:59:59.999999Z', '\N', 1),
    (4, NULL, ('1' || repeat('0', 130000) || '.' || repeat('7', 16000))::numeric, 1e-45, 5e-324, '-infinity', 'infinity', '4714-11-24 00:00:00 BC Z', 'NULL', 2),
    (5, NULL, 0.00000000000000000001000, 3.4028235e38, 1.7976931348623157e308, '2000-02-29', '2000-01-01', '1999-12-31 23:59:59.999999Z', E'\\.', 3);

-- The largest values -------------------------------------------------------------------------
CREATE TABLE large (id integer PRIMARY KEY, bytes bytea, body text);
ALTER TABLE large ALTER bytes SET STORAGE EXTERNAL;
INSERT INTO large VALUES
    (1, decode(repeat('00ff5c0a', :bytes / 4), 'hex'), NULL),
    (2, NULL, repeat(E'wörd\t\\', :bytes / 7)),
    (3, '', '');
CREATE TABLE wide_rows AS
    SELECT n AS id, repeat(md5(n::text), 40000) AS body FROM generate_series(1, 10) AS n;
ALTER TABLE wide_rows ADD PRIMARY KEY (id);

-- Columns that are not simply stored ---------------------------------------------------------
CREATE TABLE identity_always (
    id bigint GENERATED ALWAYS AS IDENTITY (START 10 INCREMENT 10) PRIMARY KEY, body text);
INSERT INTO identity_always (body) SELECT 'row ' || n FROM generate_series(1, 100) AS n;
CREATE TABLE generated (
    a integer PRIMARY KEY, doubled integer GENERATED ALWAYS AS (a * 2) STORED, b text,
    upper_b text GENERATED ALWAYS AS (upper(b)) STORED);
INSERT INTO generated (a, b) SELECT n, 'b' || n FROM generate_series(1, 100) AS n;
CREATE INDEX ON generated (doubled);
\if :v18
CREATE TABLE generated_virtual (
    a integer PRIMARY KEY, tripled integer GENERATED ALWAYS AS (a * 3) VIRTUAL, b text);
INSERT INTO generated_virtual (a, b) SELECT n, 'b' || n FROM generate_series(1, 100) AS n;
\endif
CREATE TABLE dropped (gone_first integer, a integer PRIMARY KEY, gone text, b text, gone_last jsonb);
INSERT INTO dropped SELECT n, n, 'gone', 'b' || n FROM generate_series(1, 50) AS n;
ALTER TABLE dropped DROP gone_first, DROP gone, DROP gone_last;
ALTER TABLE dropped ADD added integer NOT NULL DEFAULT 42;
INSERT INTO dropped SELECT n, 'b', n FROM generate_series(51, 100) AS n;
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO no_columns DEFAULT VALUES;
ALTER TABLE no_columns REPLICA IDENTITY FULL;
CREATE TABLE only_generated (g integer GENERATED ALWAYS AS (42) STORED);
INSERT INTO only_generated DEFAULT VALUES;
-- No replica identity: 18 would refuse every UPDATE of such a table with a FULL one.

-- Names --------------------------------------------------------------------------------------
CREATE SCHEMA "Größe; DROP SCHEMA ""x"" -- 'y'";
CREATE TABLE "Größe; DROP SCHEMA ""x"" -- 'y'"."Tä.bel ""1""\n" (
    "select" integer PRIMARY KEY, "a b" text, "Ünï""cödé" text, "'" text, "$1" text, " " text);
INSERT INTO "Größe; DROP SCHEMA ""x"" -- 'y'"."Tä.bel ""1""\n"
SELECT n, 'a', 'ü', '''', '$1', ' ' FROM generate_series(1, 10) AS n;
CREATE TABLE "123456789012345678901234567890123456789012345678901234567890123" (
    "abcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabc" integer PRIMARY KEY);
INSERT INTO "123456789012345678901234567890123456789012345678901234567890123" VALUES (1);
-- 63 bytes of two-byte characters and one more: truncated in the middle, it would not be UTF-8.
CREATE TABLE "äöüäöüäöüäöüäöüäöüäöüäöüäöüäöüx" (id integer PRIMARY KEY);
INSERT INTO "äöüäöüäöüäöüäöüäöüäöüäöüäöüäöüx" VALUES (1);
CREATE TABLE "UPPER" ("ID" integer PRIMARY KEY);
CREATE TABLE upper ("ID" integer PRIMARY KEY);
INSERT INTO "UPPER" VALUES (1);
INSERT INTO upper VALUES (1), (2);

-- Keys and identities ------------------------------------------------------------------------
CREATE TABLE no_primary_key (a integer, b text);
ALTER TABLE no_primary_key REPLICA IDENTITY FULL;
INSERT INTO no_primary_key SELECT n / 2, 'twice' FROM generate_series(1, 100) AS n;
CREATE TABLE identity_index (a integer NOT NULL, b text);
CREATE UNIQUE INDEX identity_index_a ON identity_index (a) INCLUDE (b);
CREATE UNIQUE INDEX identity_index_key ON identity_index (a);
ALTER TABLE identity_index REPLICA IDENTITY USING INDEX identity_index_key;
INSERT INTO identity_index SELECT n, 'b' FROM generate_series(1, 100) AS n;
CREATE TABLE key_deferred (a integer, b integer, PRIMARY KEY (a) INCLUDE (b),
    UNIQUE (b) DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE key_deferred CLUSTER ON key_deferred_pkey;
ALTER TABLE key_deferred ALTER b SET STATISTICS 500;
INSERT INTO key_deferred SELECT n, n FROM generate_series(1, 100) AS n;
CREATE STATISTICS key_deferred_ab (dependencies) ON a, b FROM key_deferred;
CREATE INDEX key_deferred_expression ON key_deferred ((a + b)) WHERE a > 10;

-- Partitions and inheritance -----------------------------------------------------------------
CREATE TABLE parted (id integer, region text, amount numeric, PRIMARY KEY (id, region))
    PARTITION BY LIST (region);
CREATE TABLE parted_eu PARTITION OF parted FOR VALUES IN ('eu') PARTITION BY RANGE (id);
CREATE TABLE parted_eu_low PARTITION OF parted_eu FOR VALUES FROM (MINVALUE) TO (100);
CREATE TABLE parted_eu_high PARTITION OF parted_eu FOR VALUES FROM (100) TO (MAXVALUE);
CREATE TABLE parted_us PARTITION OF parted FOR VALUES IN ('us');
CREATE TABLE parted_default PARTITION OF parted DEFAULT;
-- A partition whose columns are in another order than its root's.
CREATE TABLE parted_asia (amount numeric, region text NOT NULL, extra integer, id integer NOT NULL);
ALTER TABLE parted_asia DROP extra;
ALTER TABLE parted ATTACH PARTITION parted_asia FOR VALUES IN ('asia');
INSERT INTO parted
SELECT n, (ARRAY['eu', 'us', 'asia', 'mars'])[1 + n % 4], n FROM generate_series(1, 400) AS n;
CREATE INDEX parted_amount ON parted (amount);
CREATE TABLE hashed (id integer PRIMARY KEY) PARTITION BY HASH (id);
CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO hashed SELECT generate_series(1, 100);
CREATE TABLE city (name text PRIMARY KEY, people integer);
CREATE TABLE capital (country text) INHERITS (city);
ALTER TABLE capital ADD PRIMARY KEY (name);
INSERT INTO city VALUES ('Basel', 1), ('Genève', 2);
INSERT INTO capital VALUES ('Bern', 3, 'ch');

-- Constraints --------------------------------------------------------------------------------
CREATE TABLE chicken (id integer PRIMARY KEY, egg_id integer);
CREATE TABLE egg (id integer PRIMARY KEY, chicken_id integer REFERENCES chicken);
ALTER TABLE chicken ADD FOREIGN KEY (egg_id) REFERENCES egg DEFERRABLE INITIALLY DEFERRED;
CREATE TABLE tree (id integer PRIMARY KEY, parent integer REFERENCES tree);
BEGIN;
INSERT INTO chicken SELECT n, n FROM generate_series(1, 50) AS n;
INSERT INTO egg SELECT n, n FROM generate_series(1, 50) AS n;
COMMIT;
INSERT INTO tree SELECT n, NULLIF(n / 2, 0) FROM generate_series(1, 100) AS n;
ALTER TABLE egg ADD CONSTRAINT not_checked CHECK (id < 40) NOT VALID;
CREATE TABLE booking (
    room integer, during tsrange, EXCLUDE USING gist (room WITH =, during WITH &&));
ALTER TABLE booking REPLICA IDENTITY FULL;
INSERT INTO booking
SELECT n, tsrange(timestamp '2025-01-01' + n * interval '1 hour', timestamp '2025-01-01' + (n + 1) * interval '1 hour')
FROM generate_series(1, 20) AS n;

-- Triggers that log when they fire: they must not, neither while rows are copied nor when changes are applied.
CREATE FUNCTION must_not_fire() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'trigger % fired on %', TG_NAME, TG_TABLE_NAME;
END $$;
CREATE TABLE triggered (id integer PRIMARY KEY, body text);
INSERT INTO triggered SELECT n, 'b' FROM generate_series(1, 100) AS n;
CREATE TRIGGER row_trigger BEFORE INSERT OR UPDATE OR DELETE ON triggered
    FOR EACH ROW EXECUTE FUNCTION must_not_fire();
CREATE TRIGGER statement_trigger AFTER INSERT OR TRUNCATE ON triggered
    FOR EACH STATEMENT EXECUTE FUNCTION must_not_fire();
CREATE TRIGGER disabled_trigger BEFORE INSERT ON triggered
    FOR EACH ROW EXECUTE FUNCTION must_not_fire();
ALTER TABLE triggered DISABLE TRIGGER disabled_trigger;
CREATE RULE ruled AS ON INSERT TO triggered WHERE NEW.id < 0 DO INSTEAD NOTHING;

-- Security -----------------------------------------------------------------------------------
CREATE TABLE secured (id integer PRIMARY KEY, owner name DEFAULT current_user, body text);
INSERT INTO secured SELECT n, 'somebody', 'b' FROM generate_series(1, 100) AS n;
CREATE POLICY own_rows ON secured FOR SELECT TO steep_reader USING (owner = current_user);
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
ALTER TABLE secured FORCE ROW LEVEL SECURITY;
ALTER TABLE secured OWNER TO steep_owner;
GRANT SELECT ON secured, types TO steep_reader;
GRANT UPDATE (body) ON secured TO "Odd ""Role""" WITH GRANT OPTION;
GRANT USAGE ON SCHEMA hostile TO steep_reader, PUBLIC;
GRANT USAGE ON TYPE mood TO steep_reader;
REVOKE EXECUTE ON FUNCTION must_not_fire() FROM PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA hostile GRANT SELECT ON TABLES TO steep_reader;
ALTER TABLE no_primary_key OWNER TO "Odd ""Role""";

-- Other kinds of relations -------------------------------------------------------------------
CREATE UNLOGGED TABLE unlogged (id integer PRIMARY KEY, body text);
INSERT INTO unlogged SELECT n, 'b' FROM generate_series(1, 100) AS n;
CREATE MATERIALIZED VIEW summary AS SELECT region, sum(amount) FROM parted GROUP BY region;
CREATE UNIQUE INDEX summary_region ON summary (region);
CREATE MATERIALIZED VIEW summary_of_summary AS SELECT count(*) FROM summary;
CREATE MATERIALIZED VIEW never_filled AS SELECT 1 AS one WITH NO DATA;
CREATE VIEW plain_view WITH (security_barrier) AS SELECT id FROM types WHERE id > 1;
CREATE SEQUENCE lonely AS smallint INCREMENT -3 MINVALUE -1000 MAXVALUE 100 START 50 CYCLE;
SELECT nextval('lonely') FROM generate_series(1, 5);
CREATE SEQUENCE never_called START 77;
CREATE AGGREGATE total (integer) (sfunc = int4pl, stype = integer);
CREATE OPERATOR === (leftarg = integer, rightarg = integer, function = int4eq);
CREATE COLLATION german (provider = libc, locale = 'C');
CREATE TABLE collated (id integer PRIMARY KEY, body text COLLATE german);
INSERT INTO collated SELECT n, 'b' || n FROM generate_series(1, 100) AS n;
CREATE INDEX collated_body ON collated (body COLLATE "C" DESC NULLS LAST);
CREATE TABLE empty (id integer PRIMARY KEY, body text);
CREATE TABLE options (id integer PRIMARY KEY, body text)
    WITH (fillfactor = 70, autovacuum_enabled = false);
ALTER TABLE options ALTER body SET STORAGE MAIN;
INSERT INTO options SELECT n, 'b' FROM generate_series(1, 100) AS n;
\if :xml
CREATE TABLE documents (id integer PRIMARY KEY, body xml);
INSERT INTO documents VALUES (1, '<a b="c">ü &amp; <![CDATA[x]]></a>'), (2, 'only content <b/>'), (3, NULL);
\endif

COMMENT ON TABLE types IS 'it''s "everything" \ with ünïcode';
COMMENT ON COLUMN types.c_mood IS 'a comment';
COMMENT ON TYPE mood IS 'how one feels';
COMMENT ON CONSTRAINT types_pkey ON types IS 'the key';
COMMENT ON INDEX parted_amount IS 'by amount';
COMMENT ON TRIGGER row_trigger ON triggered IS 'must not fire';
