-- One object of every kind: created on a source, copied, removed by a cancel, copied again.
-- Grants go to a role that every server has.
CREATE SCHEMA kinds;
COMMENT ON SCHEMA kinds IS 'one of each';
GRANT USAGE ON SCHEMA kinds TO pg_monitor;
GRANT CREATE ON SCHEMA public TO pg_monitor;
COMMENT ON SCHEMA public IS 'changed';

-- Types.
CREATE TYPE kinds.shell;
CREATE TYPE public.shell_in_public;
CREATE TYPE kinds.pair AS (a integer, b text);
CREATE TYPE kinds.mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN kinds.positive AS integer CONSTRAINT is_positive CHECK (VALUE > 0);
CREATE DOMAIN kinds.small AS kinds.positive CHECK (VALUE < 100);
CREATE TYPE kinds.base;
CREATE FUNCTION kinds.base_in(cstring) RETURNS kinds.base LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
CREATE FUNCTION kinds.base_out(kinds.base) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out';
CREATE TYPE kinds.base (INPUT = kinds.base_in, OUTPUT = kinds.base_out, LIKE = integer);
CREATE TYPE kinds.span AS RANGE (SUBTYPE = integer, MULTIRANGE_TYPE_NAME = kinds.spans);

-- Routines: overloads that differ only in modes or have no arguments.
CREATE FUNCTION kinds.f() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE FUNCTION kinds.f(a integer, VARIADIC b integer[] DEFAULT '{}') RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 2';
CREATE FUNCTION kinds.f(a text, OUT b integer, INOUT c text) LANGUAGE sql AS 'SELECT 1, c';
CREATE FUNCTION kinds.rows() RETURNS TABLE (a integer, b text) LANGUAGE sql AS $$ SELECT 1, 'x' $$;
CREATE PROCEDURE kinds.p(a integer) LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE kinds.p(OUT a integer) LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE kinds.p(a text, OUT b integer) LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION kinds.body(a integer) RETURNS integer LANGUAGE sql IMMUTABLE
    BEGIN ATOMIC SELECT CASE WHEN a > 1 THEN kinds.f() END; END;
CREATE FUNCTION kinds.ranked() RETURNS bigint LANGUAGE internal WINDOW IMMUTABLE AS 'window_row_number';
CREATE FUNCTION kinds.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
GRANT EXECUTE ON FUNCTION kinds.f() TO pg_monitor WITH GRANT OPTION;
REVOKE ALL ON PROCEDURE kinds.p(text, OUT integer) FROM PUBLIC;
COMMENT ON PROCEDURE kinds.p(OUT integer) IS 'the one with a result';

-- Aggregates of every signature.
CREATE FUNCTION kinds.step(bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1';
CREATE AGGREGATE public.cnt(*) (SFUNC = kinds.step, STYPE = bigint, INITCOND = '0');
CREATE AGGREGATE kinds.total(integer) (SFUNC = int4pl, STYPE = integer, INITCOND = '0');
CREATE AGGREGATE kinds.first_of(VARIADIC integer[]) (SFUNC = array_cat, STYPE = integer[]);
CREATE AGGREGATE kinds.percentile(double precision ORDER BY anyelement)
    (SFUNC = ordered_set_transition, STYPE = internal, FINALFUNC = percentile_disc_final, FINALFUNC_EXTRA);
CREATE AGGREGATE kinds.test_rank(VARIADIC "any" ORDER BY VARIADIC "any")
    (SFUNC = ordered_set_transition_multi, STYPE = internal, FINALFUNC = rank_final, FINALFUNC_EXTRA, HYPOTHETICAL);
COMMENT ON AGGREGATE public.cnt(*) IS 'counts';

-- Operators, their classes and families; casts.
CREATE FUNCTION kinds.base_eq(kinds.base, kinds.base) RETURNS boolean LANGUAGE internal IMMUTABLE STRICT AS 'int4eq';
CREATE FUNCTION kinds.base_lt(kinds.base, kinds.base) RETURNS boolean LANGUAGE internal IMMUTABLE STRICT AS 'int4lt';
CREATE FUNCTION kinds.base_cmp(kinds.base, kinds.base) RETURNS integer LANGUAGE internal IMMUTABLE STRICT AS 'btint4cmp';
CREATE FUNCTION kinds.base_not(kinds.base) RETURNS kinds.base LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE OPERATOR kinds.= (LEFTARG = kinds.base, RIGHTARG = kinds.base, FUNCTION = kinds.base_eq, COMMUTATOR = OPERATOR(kinds.=));
CREATE OPERATOR kinds.< (LEFTARG = kinds.base, RIGHTARG = kinds.base, FUNCTION = kinds.base_lt);
CREATE OPERATOR kinds.~~~ (RIGHTARG = kinds.base, FUNCTION = kinds.base_not);
CREATE OPERATOR FAMILY kinds.base_ops USING btree;
CREATE OPERATOR CLASS kinds.base_ops DEFAULT FOR TYPE kinds.base USING btree FAMILY kinds.base_ops AS
    OPERATOR 1 kinds.<, OPERATOR 3 kinds.=, FUNCTION 1 kinds.base_cmp(kinds.base, kinds.base);
CREATE OPERATOR FAMILY kinds.loose USING hash;
CREATE FUNCTION kinds.to_mood(integer) RETURNS kinds.mood LANGUAGE sql IMMUTABLE AS $$ SELECT 'ok'::kinds.mood $$;
CREATE CAST (integer AS kinds.mood) WITH FUNCTION kinds.to_mood(integer) AS ASSIGNMENT;
CREATE CAST (kinds.base AS integer) WITHOUT FUNCTION;
CREATE CAST (kinds.pair AS text) WITH INOUT;
COMMENT ON CAST (integer AS kinds.mood) IS 'of a number';
COMMENT ON OPERATOR kinds.~~~ (NONE, kinds.base) IS 'prefix';

-- Languages, transforms, access methods, encodings, collations, text search.
CREATE FUNCTION kinds.handler() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE TRUSTED LANGUAGE plkinds HANDLER kinds.handler;
CREATE TRANSFORM FOR integer LANGUAGE sql
    (FROM SQL WITH FUNCTION prsd_lextype(internal), TO SQL WITH FUNCTION int4recv(internal));
CREATE ACCESS METHOD heap_of_kinds TYPE TABLE HANDLER heap_tableam_handler;
CREATE ACCESS METHOD btree_of_kinds TYPE INDEX HANDLER bthandler;
CREATE CONVERSION kinds.latin FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE COLLATION kinds.c FROM "C";
CREATE TEXT SEARCH PARSER kinds.parser
    (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype, HEADLINE = prsd_headline);
CREATE TEXT SEARCH TEMPLATE kinds.template (INIT = dsimple_init, LEXIZE = dsimple_lexize);
CREATE TEXT SEARCH DICTIONARY kinds.dictionary (TEMPLATE = kinds.template);
CREATE TEXT SEARCH CONFIGURATION kinds.configuration (PARSER = kinds.parser);
ALTER TEXT SEARCH CONFIGURATION kinds.configuration ADD MAPPING FOR asciiword WITH kinds.dictionary, simple;

-- Foreign data.
CREATE FOREIGN DATA WRAPPER kinds_wrapper OPTIONS (a 'b');
CREATE SERVER kinds_server TYPE 't' VERSION '1' FOREIGN DATA WRAPPER kinds_wrapper OPTIONS (host 'nowhere');
CREATE USER MAPPING FOR PUBLIC SERVER kinds_server OPTIONS ("user" 'x', password 'a;b''c');
CREATE FOREIGN TABLE kinds.remote (a integer OPTIONS (x 'y'), CHECK (a > 0)) SERVER kinds_server OPTIONS (t 'u');
GRANT USAGE ON FOREIGN SERVER kinds_server TO pg_monitor;

-- Tables and their objects.
CREATE SEQUENCE kinds.free AS smallint INCREMENT 5 CYCLE;
CREATE TABLE kinds.main (
    id integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    n integer DEFAULT nextval('kinds.free'),
    m kinds.mood DEFAULT 'ok', s kinds.small, p kinds.pair, r kinds.span, rs kinds.spans, b kinds.base,
    t text COLLATE kinds.c, g integer GENERATED ALWAYS AS (id * 2) STORED, tv tsvector,
    CONSTRAINT n_is_free EXCLUDE USING btree (n WITH =),
    CONSTRAINT t_later UNIQUE (t) DEFERRABLE INITIALLY DEFERRED
);
ALTER TABLE kinds.main ADD CONSTRAINT unchecked CHECK (n <> 17) NOT VALID;
INSERT INTO kinds.main (s, p, r, b, t)
    SELECT n, ROW(n, 'x')::kinds.pair, kinds.span(n, n + 5), '7', 'row ' || n FROM generate_series(1, 90) AS n;
CREATE TABLE kinds.child (more text) INHERITS (kinds.main);
ALTER TABLE kinds.child ADD PRIMARY KEY (id);
CREATE TABLE kinds.typed OF kinds.pair (PRIMARY KEY (a));
CREATE TABLE public.refers (id integer PRIMARY KEY, main integer REFERENCES kinds.main DEFERRABLE);
INSERT INTO public.refers VALUES (1, 1);
CREATE TABLE kinds.parted (a integer, b integer, PRIMARY KEY (a, b)) PARTITION BY RANGE (a);
CREATE TABLE kinds.parted_1 PARTITION OF kinds.parted FOR VALUES FROM (0) TO (10) PARTITION BY LIST (b);
CREATE TABLE kinds.parted_1_1 PARTITION OF kinds.parted_1 FOR VALUES IN (1, 2);
CREATE TABLE kinds.parted_d PARTITION OF kinds.parted DEFAULT;
INSERT INTO kinds.parted VALUES (1, 1), (50, 1);
CREATE TABLE kinds.elsewhere (a integer PRIMARY KEY USING INDEX TABLESPACE pg_default) USING heap_of_kinds;
CREATE INDEX ON kinds.main (n) INCLUDE (t) WHERE n > 0;
CREATE INDEX main_expression ON kinds.main ((kinds.body(n)));
CREATE STATISTICS kinds.both (dependencies, ndistinct) ON n, t FROM kinds.main;
CREATE TRIGGER touch BEFORE UPDATE OF t ON kinds.main FOR EACH ROW WHEN (NEW.n > 0) EXECUTE FUNCTION kinds.touch();
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON kinds.main DEFERRABLE FOR EACH ROW EXECUTE FUNCTION kinds.touch();
ALTER TABLE kinds.main DISABLE TRIGGER later;
CREATE RULE quiet AS ON DELETE TO kinds.typed DO INSTEAD (SELECT 1; NOTIFY kinds);
ALTER TABLE kinds.main ENABLE ROW LEVEL SECURITY;
CREATE POLICY open ON kinds.main FOR SELECT TO pg_monitor USING (id > 0);
CREATE POLICY narrow ON kinds.main AS RESTRICTIVE USING (id < 1000);
COMMENT ON POLICY open ON kinds.main IS 'a policy';
GRANT SELECT (id, t), UPDATE (t) ON kinds.main TO pg_monitor;
CREATE VIEW kinds.grouped WITH (security_barrier) AS SELECT m.*, count(*) OVER () AS c FROM kinds.main m GROUP BY id;
CREATE VIEW kinds.checked AS SELECT id, n FROM kinds.main WHERE n > 0 WITH CASCADED CHECK OPTION;
CREATE RECURSIVE VIEW kinds.counted (n) AS SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < 5;
CREATE MATERIALIZED VIEW kinds.stored AS SELECT kinds.total(id) AS sum FROM kinds.main;
CREATE UNIQUE INDEX ON kinds.stored (sum);
CREATE MATERIALIZED VIEW kinds.unfilled AS SELECT id FROM kinds.main WITH NO DATA;

-- Outside of schemas: event triggers, privileges on system objects, default privileges.
CREATE FUNCTION kinds.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER kinds_ddl ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'DROP TABLE') EXECUTE FUNCTION kinds.on_ddl();
CREATE EVENT TRIGGER kinds_drop ON sql_drop EXECUTE FUNCTION kinds.on_ddl();
ALTER EVENT TRIGGER kinds_drop DISABLE;
COMMENT ON EVENT TRIGGER kinds_ddl IS 'x';
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_sleep(double precision) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_sleep(double precision) TO pg_monitor;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_file(text) TO pg_monitor;
GRANT SELECT ON pg_catalog.pg_authid TO pg_monitor;
GRANT SELECT (subconninfo) ON pg_catalog.pg_subscription TO pg_monitor;
REVOKE USAGE ON TYPE pg_catalog.int4 FROM PUBLIC;
GRANT USAGE ON TYPE pg_catalog.int4 TO PUBLIC;
REVOKE USAGE ON LANGUAGE sql FROM PUBLIC;
GRANT USAGE ON LANGUAGE sql TO pg_monitor;
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO pg_monitor;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO pg_monitor;
ALTER DEFAULT PRIVILEGES IN SCHEMA kinds GRANT ALL ON TYPES TO pg_monitor WITH GRANT OPTION;
