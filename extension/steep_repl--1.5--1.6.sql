-- steep_repl 1.6: a job goes on after its coordinator has lost its store.
ALTER TABLE steep_repl.jobs ADD COLUMN note text;
COMMENT ON COLUMN steep_repl.jobs.note IS 'What a coordinator needs to go on with the job without its store; null where it cannot.';

INSERT INTO steep_repl.schema_version (version) VALUES (7);
