-- steep_repl 1.8: jobs that give tables of this node new rows, and sequences that a merge has set apart.
CREATE TABLE steep_repl.reinits (
    job text PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('filling', 'parted', 'swapped'))
);
COMMENT ON TABLE steep_repl.reinits IS 'Jobs that copy tables of this node again. The new rows wait in tables named reinit_JOB_OID, where OID is the table''s.';
COMMENT ON COLUMN steep_repl.reinits.state IS 'filling: the tables have their old rows; parted: the same, and no subscription changes them; swapped: they have the new ones.';

CREATE TABLE steep_repl.merge_sequences (
    schema_name text NOT NULL,
    sequence_name text NOT NULL,
    job text NOT NULL,
    increment bigint NOT NULL,
    min_value bigint NOT NULL,
    max_value bigint NOT NULL,
    PRIMARY KEY (schema_name, sequence_name)
);
COMMENT ON TABLE steep_repl.merge_sequences IS 'Sequences that were set apart from those of the node that this one is merged with, as they were before.';
COMMENT ON COLUMN steep_repl.merge_sequences.job IS 'The job of this node: if it is cancelled or fails, the sequences get these values back.';

REVOKE ALL ON ALL TABLES IN SCHEMA steep_repl FROM PUBLIC;

INSERT INTO steep_repl.schema_version (version) VALUES (9);
