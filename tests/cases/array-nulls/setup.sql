SELECT format('ALTER DATABASE %I SET array_nulls = off', current_database()) \gexec
CREATE DOMAIN short AS text;
CREATE TABLE listed (id integer PRIMARY KEY, a text[], b short[]);
INSERT INTO listed SELECT n, ARRAY['x', NULL], ARRAY[NULL]::short[] FROM generate_series(1, 2000) AS n;
