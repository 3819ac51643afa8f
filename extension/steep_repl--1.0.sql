-- steep_repl 1.0: what this node knows about itself as a replica, and the books of its jobs.
-- The schema steep_repl is there before this runs: an extension's own, or made by the agent.
COMMENT ON SCHEMA steep_repl IS 'Made and used by steep-repl; see steep_repl.nodes and steep_repl.init_progress.';

CREATE TABLE steep_repl.schema_version (
    version integer PRIMARY KEY,
    installed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE steep_repl.schema_version IS 'Versions of this schema in the order they were installed: 1 is 1.0, 2 is 1.1 and so on.';

CREATE TABLE steep_repl.nodes (
    node_id text PRIMARY KEY,
    state text NOT NULL,
    source_node text,
    job text,
    init_started_at timestamptz,
    init_completed_at timestamptz,
    error_message text,
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE steep_repl.nodes IS 'This node''s state as the coordinator holds it; a mirror, changing it changes nothing.';

CREATE TABLE steep_repl.init_progress (
    node_id text PRIMARY KEY,
    job text NOT NULL,
    phase text,
    overall_percent double precision NOT NULL,
    tables_total integer NOT NULL,
    tables_completed integer NOT NULL,
    rows_copied bigint NOT NULL,
    bytes_copied bigint NOT NULL,
    error_message text,
    started_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE steep_repl.init_progress IS 'How far the last initialisation has come; a mirror.';

CREATE TABLE steep_repl.schema_fingerprints (
    schema_name text NOT NULL,
    table_name text NOT NULL,
    fingerprint text NOT NULL,
    column_definitions jsonb NOT NULL,
    captured_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (schema_name, table_name)
);
COMMENT ON TABLE steep_repl.schema_fingerprints IS 'SHA-256 over the ordered column definitions of a table.';

CREATE TABLE steep_repl.init_slots (
    slot_name text PRIMARY KEY,
    job text,
    source_node text,
    target_node text,
    lsn pg_lsn,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);
COMMENT ON TABLE steep_repl.init_slots IS 'Replication slots prepared for an initialisation.';

CREATE TABLE steep_repl.snapshots (
    snapshot_id text PRIMARY KEY,
    source_node text NOT NULL,
    location text NOT NULL,
    lsn pg_lsn NOT NULL,
    slot_name text,
    rows bigint,
    bytes bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);
COMMENT ON TABLE steep_repl.snapshots IS 'Stored snapshots of this node.';

CREATE TABLE steep_repl.audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    node_id text NOT NULL,
    job text,
    event text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE steep_repl.audit_log IS 'What happened to this node as a replica, oldest first.';

-- The books of jobs. Rows go when their job is released or cleaned up.
CREATE TABLE steep_repl.jobs (
    job text PRIMARY KEY,
    origin text NOT NULL CHECK (origin IN ('bootstrap', 'existing')),
    prepared boolean NOT NULL DEFAULT false,
    owns_rows boolean NOT NULL DEFAULT false,
    owns_listed boolean NOT NULL DEFAULT false,
    started_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN steep_repl.jobs.origin IS 'bootstrap: the job made the schema; existing: it was there.';
COMMENT ON COLUMN steep_repl.jobs.owns_rows IS 'The planned tables were seen or made empty: rows in them are the job''s.';
COMMENT ON COLUMN steep_repl.jobs.owns_listed IS 'steep_repl.created is complete; until then everything not in steep_repl.baseline is the job''s.';

CREATE TABLE steep_repl.job_tables (
    job text NOT NULL,
    ord integer NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    PRIMARY KEY (job, ord)
);

CREATE TABLE steep_repl.copy_ledger (
    job text NOT NULL,
    epoch integer NOT NULL,
    part integer NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    finished_at timestamptz NOT NULL,
    PRIMARY KEY (job, epoch, part)
);
COMMENT ON TABLE steep_repl.copy_ledger IS 'Parts whose rows are committed: written in the rows'' own transaction.';

CREATE TABLE steep_repl.deferred_objects (
    job text NOT NULL,
    ord integer NOT NULL,
    stage smallint NOT NULL,
    kind text NOT NULL,
    schema_name text,
    table_name text,
    name text,
    create_sql text NOT NULL,
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'added', 'done', 'failed')),
    error text,
    PRIMARY KEY (job, ord)
);
COMMENT ON TABLE steep_repl.deferred_objects IS 'Indexes, constraints and what else waits until the rows are there. Stored before anything is dropped.';

CREATE TABLE steep_repl.baseline (
    job text NOT NULL,
    classid oid NOT NULL,
    objid oid NOT NULL,
    PRIMARY KEY (job, classid, objid)
);
COMMENT ON TABLE steep_repl.baseline IS 'Objects that were there before a job made a schema.';

CREATE TABLE steep_repl.baseline_schemas (
    job text NOT NULL,
    schema_name text NOT NULL,
    owner text NOT NULL,
    acl aclitem[] NOT NULL,
    comment text,
    PRIMARY KEY (job, schema_name)
);
COMMENT ON TABLE steep_repl.baseline_schemas IS 'Owner, privileges and comment of schemas before a job made its objects.';

CREATE TABLE steep_repl.created (
    job text NOT NULL,
    classid oid NOT NULL,
    objid oid NOT NULL,
    PRIMARY KEY (job, classid, objid)
);
COMMENT ON TABLE steep_repl.created IS 'Objects that a job made.';

REVOKE ALL ON SCHEMA steep_repl FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA steep_repl FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA steep_repl FROM PUBLIC;

INSERT INTO steep_repl.schema_version (version) VALUES (1);
