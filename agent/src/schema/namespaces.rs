//! Owner, privileges and comment of schemas that existed before a job created its objects: a dump changes
//! them (`public` above all), and dropping the objects does not change them back.

use steep_protocol::{Fault, JobId};

use crate::node::connection::Conn;

/// Stores them. Runs in the caller's transaction.
pub(super) fn note(job: JobId) -> String {
    format!(
        "DELETE FROM steep_repl.baseline_schemas WHERE job = '{job}';
         INSERT INTO steep_repl.baseline_schemas (job, schema_name, owner, acl, comment)
         SELECT '{job}', nspname, pg_get_userbyid(nspowner),
            coalesce(nspacl, acldefault('n', nspowner)), obj_description(oid, 'pg_namespace')
         FROM pg_namespace
         WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'steep_repl')"
    )
}

/// One statement per difference: the owner first, who grants the privileges.
const DIFFERENCES: &str = "
WITH changed AS (
    SELECT b.schema_name, b.owner, b.acl AS was, b.comment, n.nspowner, n.oid,
        coalesce(n.nspacl, acldefault('n', n.nspowner)) AS now
    FROM steep_repl.baseline_schemas b JOIN pg_namespace n ON n.nspname = b.schema_name
    WHERE b.job = $1
), role AS (
    SELECT oid, quote_ident(rolname) AS name FROM pg_roles UNION ALL SELECT 0, 'PUBLIC'
)
SELECT 1, format('ALTER SCHEMA %I OWNER TO %I', schema_name, owner) FROM changed
    WHERE owner <> pg_get_userbyid(nspowner)
UNION ALL
SELECT DISTINCT 2, format('REVOKE ALL ON SCHEMA %I FROM %s', schema_name, role.name)
    FROM changed, aclexplode(now) AS given JOIN role ON role.oid = given.grantee
    WHERE now IS DISTINCT FROM was
UNION ALL
SELECT 3, format('GRANT %s ON SCHEMA %I TO %s%s', given.privilege_type, schema_name, role.name,
        CASE WHEN given.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
    FROM changed, aclexplode(was) AS given JOIN role ON role.oid = given.grantee
    WHERE now IS DISTINCT FROM was
UNION ALL
SELECT 4, format('COMMENT ON SCHEMA %I IS %L', schema_name, comment) FROM changed
    WHERE comment IS DISTINCT FROM obj_description(oid, 'pg_namespace')
ORDER BY 1";

/// Restores them. A role that may not leaves them; their content is gone by then.
pub(super) async fn restore(conn: &Conn, job: JobId) -> Result<(), Fault> {
    let rows = conn.rows(DIFFERENCES, &[&job.to_string()]).await?;
    let statements: Vec<&str> = rows.iter().map(|row| row.get(1)).collect();
    if statements.is_empty() {
        return Ok(());
    }
    match conn.transact(&statements.join(";\n")).await {
        Ok(()) => Ok(()),
        Err(error) if error.sqlstate().is_some() => {
            tracing::warn!(job_id = %job, %error, "owner or privileges of a schema stay as the source has them");
            Ok(())
        }
        Err(error) => Err(conn.fault(&error)),
    }
}
