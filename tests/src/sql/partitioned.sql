-- Partitioned tables with every kind of index, constraint and foreign key that they can have.

SELECT current_setting('server_version_num')::int >= 180000 AS v18,
    current_setting('server_version_num')::int >= 170000 AS v17 \gset

CREATE EXTENSION btree_gist;
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE elsewhere LOCATION '';
CREATE SCHEMA "Parted S";
SET search_path = "Parted S", public;

-- Two levels, a default partition, and one that was a table of its own --------------------------
CREATE TABLE "Root t" (id integer, region text, amount numeric, code integer NOT NULL, body text,
    CONSTRAINT "Root key" PRIMARY KEY (id, region) INCLUDE (amount) WITH (fillfactor = 70),
    CONSTRAINT later UNIQUE (region, id, code) DEFERRABLE INITIALLY DEFERRED)
    PARTITION BY LIST (region);
CREATE TABLE "Eu" PARTITION OF "Root t" FOR VALUES IN ('eu') PARTITION BY RANGE (id);
CREATE TABLE eu_low PARTITION OF "Eu" FOR VALUES FROM (MINVALUE) TO (500);
CREATE TABLE eu_high PARTITION OF "Eu" FOR VALUES FROM (500) TO (MAXVALUE);
CREATE TABLE us PARTITION OF "Root t" FOR VALUES IN ('us');
CREATE TABLE other PARTITION OF "Root t" DEFAULT;
CREATE TABLE asia (body text, gone integer, code integer NOT NULL, amount numeric,
    region text NOT NULL, id integer NOT NULL,
    CONSTRAINT "asia's own key" PRIMARY KEY (id, region) INCLUDE (amount),
    CONSTRAINT alone UNIQUE (code, id) WITH (fillfactor = 80));
CREATE INDEX asia_amount ON asia (amount) WITH (fillfactor = 50);
ALTER TABLE asia DROP gone;
CREATE INDEX by_amount ON "Root t" (amount DESC NULLS LAST);
ALTER TABLE "Root t" ATTACH PARTITION asia FOR VALUES IN ('asia');
CREATE INDEX by_expression ON "Root t" ((code + id), lower(body)) WITH (fillfactor = 60) WHERE code > 3;
CREATE UNIQUE INDEX unique_without_constraint ON "Root t" (region, code, id);
CREATE INDEX far ON "Root t" (code) TABLESPACE elsewhere;
ALTER INDEX eu_low_code_idx SET TABLESPACE pg_default;
-- Remains invalid: not every partition has one.
CREATE INDEX unfinished ON ONLY "Root t" (code, amount);
CREATE INDEX us_unfinished ON us (code, amount);
ALTER INDEX unfinished ATTACH PARTITION us_unfinished;
CREATE INDEX eu_unfinished ON ONLY "Eu" (code, amount);
CREATE INDEX eu_low_unfinished ON eu_low (code, amount);
ALTER INDEX eu_unfinished ATTACH PARTITION eu_low_unfinished;
ALTER INDEX unfinished ATTACH PARTITION eu_unfinished;
-- Not attached.
CREATE INDEX us_own ON us (body, code) TABLESPACE elsewhere;
CREATE INDEX eu_own ON "Eu" (amount, code);
CREATE STATISTICS us_codes (dependencies) ON code, amount FROM us;

ALTER INDEX by_expression ALTER COLUMN 1 SET STATISTICS 300;
ALTER INDEX us_expr_lower_idx ALTER COLUMN 1 SET STATISTICS 200;
ALTER INDEX eu_high_expr_lower_idx ALTER COLUMN 1 SET STATISTICS -1;
ALTER TABLE us CLUSTER ON us_own;
ALTER TABLE eu_low CLUSTER ON eu_low_pkey;
ALTER TABLE "Root t" REPLICA IDENTITY USING INDEX "Root key";
ALTER TABLE us REPLICA IDENTITY USING INDEX us_region_code_id_idx;
COMMENT ON INDEX by_amount IS 'of the root';
COMMENT ON INDEX us_amount_idx IS 'of a partition''s';
COMMENT ON CONSTRAINT "Root key" ON "Root t" IS 'the key';
COMMENT ON CONSTRAINT alone ON asia IS 'a partition''s own';

-- Foreign keys ---------------------------------------------------------------------------------
CREATE TABLE country (code integer CONSTRAINT "country key" PRIMARY KEY, name text UNIQUE);
CREATE TABLE item (id integer PRIMARY KEY, root_id integer, region text DEFAULT 'us', code integer,
    CONSTRAINT "to root" FOREIGN KEY (root_id, region) REFERENCES "Root t" (id, region) ON DELETE CASCADE);
ALTER TABLE item ADD CONSTRAINT unchecked FOREIGN KEY (root_id, region) REFERENCES "Root t" (id, region)
    DEFERRABLE NOT VALID;
ALTER TABLE item ADD CONSTRAINT to_leaf FOREIGN KEY (root_id, region) REFERENCES us;
COMMENT ON CONSTRAINT "to root" ON item IS 'to a partitioned table';
CREATE TABLE visit (id integer, at date, country integer CONSTRAINT from_parted REFERENCES country,
    item integer, spare integer, lone integer, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE visit_1 PARTITION OF visit FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE visit_2 PARTITION OF visit FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
ALTER TABLE visit_2 ADD CONSTRAINT from_leaf FOREIGN KEY (lone) REFERENCES item NOT VALID;
ALTER TABLE visit_2 ADD CONSTRAINT leaf_checked FOREIGN KEY (country) REFERENCES country ON DELETE SET NULL;
CREATE TABLE tree (id integer PRIMARY KEY, parent integer CONSTRAINT up REFERENCES tree)
    PARTITION BY HASH (id);
CREATE TABLE tree_0 PARTITION OF tree FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE tree_1 PARTITION OF tree FOR VALUES WITH (MODULUS 2, REMAINDER 1);
\if :v18
ALTER TABLE item ADD CONSTRAINT not_enforced FOREIGN KEY (root_id, region) REFERENCES "Root t" (id, region)
    NOT ENFORCED;
ALTER TABLE visit ADD CONSTRAINT parted_unchecked FOREIGN KEY (item) REFERENCES item NOT VALID;
ALTER TABLE visit ADD CONSTRAINT parted_not_enforced FOREIGN KEY (spare) REFERENCES item NOT ENFORCED;
-- A foreign key that only one partition has validated.
CREATE TABLE half (id integer PRIMARY KEY);
CREATE TABLE mixed (id integer PRIMARY KEY, half integer) PARTITION BY LIST (id);
CREATE TABLE mixed_1 PARTITION OF mixed FOR VALUES IN (1);
CREATE TABLE mixed_2 PARTITION OF mixed FOR VALUES IN (2);
ALTER TABLE mixed ADD CONSTRAINT half_checked FOREIGN KEY (half) REFERENCES half NOT VALID;
ALTER TABLE mixed_1 VALIDATE CONSTRAINT half_checked;
\endif
\if :v17
CREATE TABLE booking (room integer, during tsrange,
    CONSTRAINT no_overlap EXCLUDE USING gist (room WITH =, during WITH &&)) PARTITION BY LIST (room);
CREATE TABLE booking_1 PARTITION OF booking FOR VALUES IN (1);
CREATE TABLE booking_2 PARTITION OF booking FOR VALUES IN (2);
ALTER TABLE booking REPLICA IDENTITY FULL;
ALTER TABLE booking_1 REPLICA IDENTITY FULL;
ALTER TABLE booking_2 REPLICA IDENTITY FULL;
\endif

-- Needed by other objects, so it stays.
CREATE TABLE counted (id integer PRIMARY KEY, body text) PARTITION BY RANGE (id);
CREATE TABLE counted_1 PARTITION OF counted FOR VALUES FROM (0) TO (1000);
CREATE INDEX counted_body ON counted (body);
CREATE VIEW needs_the_key AS SELECT id, body, count(*) FROM counted GROUP BY id;
-- And an index with a constraint below it, which the server does not drop.
CREATE TABLE below (id integer NOT NULL, code integer) PARTITION BY RANGE (id);
CREATE TABLE below_1 PARTITION OF below FOR VALUES FROM (0) TO (1000);
CREATE UNIQUE INDEX below_id ON ONLY below (id);
ALTER TABLE below_1 ADD CONSTRAINT below_1_key PRIMARY KEY (id);
ALTER INDEX below_id ATTACH PARTITION below_1_key;
CREATE INDEX below_code ON below (code);
-- Without a partition there is nothing to load.
CREATE TABLE no_partitions (id integer PRIMARY KEY) PARTITION BY RANGE (id);
