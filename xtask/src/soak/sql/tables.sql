-- Every transaction of the load adds the same amount to these tables, so that their sums agree in every
-- state that a transaction has left. Each kind of table that is copied or replicated in its own way is here.
CREATE SCHEMA soak;

CREATE TABLE soak.account (
    id integer PRIMARY KEY,
    balance bigint NOT NULL,
    name text NOT NULL
);
INSERT INTO soak.account SELECT n, 0, 'account ' || n FROM generate_series(1, 20000) AS n;

CREATE TABLE soak.entry (
    id bigserial PRIMARY KEY,
    account integer NOT NULL REFERENCES soak.account,
    amount bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX entry_account ON soak.entry (account);

-- No key, and rows that equal others. Without the index, applying a change would read all that vacuum has left.
CREATE TABLE soak.loose (slot integer NOT NULL, amount bigint NOT NULL);
CREATE INDEX loose_slot ON soak.loose (slot);
ALTER TABLE soak.loose REPLICA IDENTITY FULL;
INSERT INTO soak.loose SELECT n, 0 FROM generate_series(1, 200) AS n;

-- Rows move between partitions.
CREATE TABLE soak.parted (
    id integer NOT NULL,
    region integer NOT NULL,
    amount bigint NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (id, region)
) PARTITION BY LIST (region);
CREATE TABLE soak.parted_1 PARTITION OF soak.parted FOR VALUES IN (1);
CREATE TABLE soak.parted_2 PARTITION OF soak.parted FOR VALUES IN (2);
CREATE TABLE soak.parted_3 PARTITION OF soak.parted FOR VALUES IN (3);
CREATE TABLE soak.parted_4 PARTITION OF soak.parted FOR VALUES IN (4);
INSERT INTO soak.parted SELECT n, 1 + n % 4, 0, repeat(md5(n::text), 4) FROM generate_series(1, 8000) AS n;

-- Copied in many parts, one after the other: the first is complete before the copy is.
CREATE TABLE soak.large (
    id integer PRIMARY KEY,
    amount bigint NOT NULL,
    body text NOT NULL
);
INSERT INTO soak.large SELECT n, 0, repeat(md5(n::text), 30) FROM generate_series(1, 12000) AS n;
CREATE INDEX large_amount ON soak.large (amount);
CREATE TABLE soak.wide (id integer PRIMARY KEY, amount bigint NOT NULL, body text NOT NULL);
INSERT INTO soak.wide SELECT n, 0, repeat(md5(n::text), 30) FROM generate_series(1, 11000) AS n;

-- Small tables: rows of each are deleted and come back.
SELECT format('CREATE TABLE soak.small_%1$s (id integer PRIMARY KEY, amount bigint NOT NULL);
    INSERT INTO soak.small_%1$s SELECT n, 0 FROM generate_series(1, 100) AS n', n)
FROM generate_series(1, 4) AS n
\gexec

-- An index that takes seconds on the target.
CREATE TABLE soak.built (id integer PRIMARY KEY);
INSERT INTO soak.built SELECT generate_series(1, 5);
CREATE INDEX built_slowly ON soak.built (public.slowly(id));
