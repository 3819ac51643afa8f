CREATE TABLE parent (id integer PRIMARY KEY, name text);
CREATE TABLE child (extra integer, PRIMARY KEY (id)) INHERITS (parent);
INSERT INTO child SELECT n, 'n' || n, n FROM generate_series(1, 2000) AS n;
ALTER TABLE parent ADD COLUMN added integer DEFAULT 5;
