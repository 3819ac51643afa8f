-- steep_repl 1.5: who can read an encrypted snapshot.
ALTER TABLE steep_repl.snapshots ADD COLUMN recipients text[];
COMMENT ON COLUMN steep_repl.snapshots.recipients IS 'The public keys that its files are encrypted to; null if they are not.';

INSERT INTO steep_repl.schema_version (version) VALUES (6);
