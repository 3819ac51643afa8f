CREATE TABLE nullable (id integer PRIMARY KEY, a integer);
INSERT INTO nullable SELECT n, nullif(n % 3, 0) FROM generate_series(1, 2000) AS n;
ALTER TABLE nullable ADD CONSTRAINT nullable_a NOT NULL a NOT VALID;
