-- steep_repl 1.3: the triggers that keep others from writing to tables while a job loads them.
CREATE TABLE steep_repl.guards (
    job text NOT NULL,
    relation oid NOT NULL,
    trigger_oid oid NOT NULL,
    set_by xid NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    PRIMARY KEY (job, relation)
);
COMMENT ON TABLE steep_repl.guards IS 'Tables to which a job lets nobody else write, until it removes its trigger there.';
COMMENT ON COLUMN steep_repl.guards.set_by IS 'The transaction that set the trigger. Whoever alters it since, and be it to put it back, leaves another one in pg_trigger.';

REVOKE ALL ON ALL TABLES IN SCHEMA steep_repl FROM PUBLIC;

INSERT INTO steep_repl.schema_version (version) VALUES (4);
