-- steep_repl 1.7: whether a switchover has stopped writes to this database.
CREATE TABLE steep_repl.write_stop (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    switchover text NOT NULL,
    state text NOT NULL CHECK (state IN ('closed', 'final', 'open')),
    previous text,
    began_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at timestamptz,
    deadline timestamptz,
    opened_at timestamptz,
    position pg_lsn
);
COMMENT ON TABLE steep_repl.write_stop IS 'The last switchover that has stopped writes to this database; at most one row.';
COMMENT ON COLUMN steep_repl.write_stop.switchover IS 'Its id.';
COMMENT ON COLUMN steep_repl.write_stop.state IS 'closed: new sessions are read-only until the switchover is decided; final: writes have moved to another node; open: new sessions may write again.';
COMMENT ON COLUMN steep_repl.write_stop.previous IS 'What default_transaction_read_only was set to for the database before; null if it was not set.';
COMMENT ON COLUMN steep_repl.write_stop.closed_at IS 'Every session that began later is read-only.';
COMMENT ON COLUMN steep_repl.write_stop.deadline IS 'When the agent here lets sessions write again by itself; null if it never does.';
COMMENT ON COLUMN steep_repl.write_stop.opened_at IS 'Every session that began later may write; null until those that began before have been ended.';
COMMENT ON COLUMN steep_repl.write_stop.position IS 'The end of WAL before new sessions could write.';

INSERT INTO steep_repl.schema_version (version) VALUES (8);
