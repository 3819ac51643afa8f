-- steep_repl 1.8: sequences that a merge has set apart.
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
