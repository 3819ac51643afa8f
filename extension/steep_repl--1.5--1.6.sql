-- steep_repl 1.6: what a coordinator that has lost its store needs to know of stored snapshots and running jobs.
ALTER TABLE steep_repl.snapshots
    ADD COLUMN request jsonb,
    ADD COLUMN tables bigint,
    ADD COLUMN parts bigint,
    ADD COLUMN stored_bytes bigint,
    ADD COLUMN manifest text,
    ADD COLUMN removing boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN steep_repl.snapshots.request IS 'What was asked for, by whom and when; null for a snapshot that belongs to jobs.';
COMMENT ON COLUMN steep_repl.snapshots.manifest IS 'The checksum of its manifest.';
COMMENT ON COLUMN steep_repl.snapshots.removing IS 'Whether its removal has begun.';

ALTER TABLE steep_repl.jobs ADD COLUMN note text;
COMMENT ON COLUMN steep_repl.jobs.note IS 'What a coordinator needs to go on with the job without its store; null where it cannot.';

INSERT INTO steep_repl.schema_version (version) VALUES (7);
