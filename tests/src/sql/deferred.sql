-- Every kind of index and constraint of plain tables, with all that can be set on one, beside those of
-- partitioned tables in the same schema.
SET allow_in_place_tablespaces = on;
SELECT NOT EXISTS (SELECT FROM pg_tablespace WHERE spcname = 'Fast disk') AS none,
    current_setting('server_version_num')::int >= 150000 AS has_15,
    current_setting('server_version_num')::int >= 180000 AS has_18 \gset
\if :none
CREATE TABLESPACE "Fast disk" LOCATION '';
\endif
SET search_path = "Parted S", public;

CREATE TABLE parent (id int PRIMARY KEY, code text NOT NULL, CONSTRAINT "Parent code" UNIQUE (code) WITH (fillfactor = 70));
COMMENT ON CONSTRAINT "Parent code" ON parent IS 'it''s unique';
COMMENT ON INDEX "Parent code" IS 'of parents';
ALTER TABLE parent REPLICA IDENTITY USING INDEX "Parent code";

CREATE TABLE everything (
    id int, parent int, name text COLLATE "C", price numeric, span int4range, tags text[], at date, other int,
    CONSTRAINT "Every key" PRIMARY KEY (id) INCLUDE (name) WITH (fillfactor = 80) USING INDEX TABLESPACE "Fast disk",
    CONSTRAINT later_plain UNIQUE (name, id) DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT later_with UNIQUE (other, id) WITH (fillfactor = 60, deduplicate_items = off) DEFERRABLE,
    CONSTRAINT apart EXCLUDE USING gist (span WITH &&) WITH (fillfactor = 50) WHERE (price IS NOT NULL),
    CONSTRAINT inherited CHECK (id > -100) NO INHERIT
);
\if :has_15
ALTER TABLE everything ADD CONSTRAINT no_nulls_apart UNIQUE NULLS NOT DISTINCT (id, other);
\endif
COMMENT ON CONSTRAINT apart ON everything IS 'spans';
CREATE INDEX expressions ON everything (lower(name) COLLATE "C" text_pattern_ops DESC NULLS LAST, (price * 2))
    INCLUDE (at) WITH (fillfactor = 33) TABLESPACE "Fast disk" WHERE price > 0;
ALTER INDEX expressions ALTER COLUMN 1 SET STATISTICS 777;
ALTER INDEX expressions ALTER COLUMN 2 SET STATISTICS 0;
COMMENT ON INDEX expressions IS E'with\na line';
CREATE INDEX gin ON everything USING gin (tags) WITH (fastupdate = off);
CREATE INDEX brin ON everything USING brin (at date_minmax_multi_ops (values_per_range = 16)) WITH (pages_per_range = 4, autosummarize = on);
CREATE INDEX hash ON everything USING hash (parent);
CREATE INDEX "by Date" ON everything (at);
ALTER TABLE everything CLUSTER ON "by Date";
ALTER TABLE everything
    ADD CONSTRAINT "to Parent" FOREIGN KEY (parent) REFERENCES parent ON DELETE CASCADE ON UPDATE SET NULL DEFERRABLE INITIALLY DEFERRED,
    ADD CONSTRAINT loose FOREIGN KEY (other) REFERENCES parent NOT VALID;
COMMENT ON CONSTRAINT "to Parent" ON everything IS 'deferred';
CREATE FUNCTION "Parted S".fine(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 IS NOT NULL';
ALTER TABLE everything
    ADD CONSTRAINT "calls Fine" CHECK ("Parted S".fine(id)),
    ADD CONSTRAINT unchecked CHECK (id < 1000000) NOT VALID;
COMMENT ON CONSTRAINT "calls Fine" ON everything IS 'a function''s';
\if :has_18
ALTER TABLE everything
    ADD CONSTRAINT not_enforced FOREIGN KEY (other) REFERENCES parent NOT ENFORCED,
    ADD CONSTRAINT hardly CHECK ("Parted S".fine(other)) NOT ENFORCED;
CREATE TABLE periods (id int4range, during daterange,
    CONSTRAINT period_key PRIMARY KEY (id, during WITHOUT OVERLAPS));
\endif
