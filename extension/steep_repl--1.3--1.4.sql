-- steep_repl 1.4: what a table that is loaded was like when its guard was set.
ALTER TABLE steep_repl.guards
    ADD COLUMN columns xid[],
    ADD COLUMN below oid[],
    ADD COLUMN filenode oid;
COMMENT ON COLUMN steep_repl.guards.columns IS 'The transactions that last altered the table''s columns, in order: a statement that rewrites values leaves another one.';
COMMENT ON COLUMN steep_repl.guards.below IS 'The tables below it: partitions and children, in order.';
COMMENT ON COLUMN steep_repl.guards.filenode IS 'The file of its rows once all were loaded. Keys that the job builds alter columns, but leave it.';

INSERT INTO steep_repl.schema_version (version) VALUES (5);
