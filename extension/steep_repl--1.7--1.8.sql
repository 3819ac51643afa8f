-- steep_repl 1.8: jobs that give tables of this node new rows.
CREATE TABLE steep_repl.reinits (
    job text PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('filling', 'parted', 'swapped'))
);
COMMENT ON TABLE steep_repl.reinits IS 'Jobs that copy tables of this node again. The new rows wait in tables named reinit_JOB_OID, where OID is the table''s.';
COMMENT ON COLUMN steep_repl.reinits.state IS 'filling: the tables have their old rows; parted: the same, and no subscription changes them; swapped: they have the new ones.';

INSERT INTO steep_repl.schema_version (version) VALUES (9);
