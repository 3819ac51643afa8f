-- steep_repl 1.2: what of a replica could not be made; what a job changed of objects that are not its own.
CREATE TABLE steep_repl.missing_objects (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job text NOT NULL,
    code text NOT NULL,
    about text NOT NULL,
    kind text NOT NULL,
    object text NOT NULL,
    heavy boolean NOT NULL,
    setup text NOT NULL,
    statement text NOT NULL,
    sqlstate text NOT NULL,
    error text NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now(),
    tried_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE steep_repl.missing_objects IS 'What the source has and could not be made here. Mend the cause, then run steep-repl init rebuild, or the statements by hand.';
COMMENT ON COLUMN steep_repl.missing_objects.setup IS 'Settings that the statement needs, for its transaction.';
COMMENT ON COLUMN steep_repl.missing_objects.heavy IS 'Reads a table: tried again only when an operator asks for it.';

CREATE TABLE steep_repl.baseline_privileges (
    job text NOT NULL,
    context text NOT NULL,
    object text NOT NULL,
    columns text NOT NULL,
    acl aclitem[] NOT NULL
);
COMMENT ON TABLE steep_repl.baseline_privileges IS 'Privileges of system objects, and default privileges, before a job made its objects.';

REVOKE ALL ON ALL TABLES IN SCHEMA steep_repl FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA steep_repl FROM PUBLIC;

INSERT INTO steep_repl.schema_version (version) VALUES (3);
