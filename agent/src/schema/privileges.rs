//! Privileges that a dump changes on objects that are not the job's: system objects and default privileges.
//! They are stored, and restored when the job is undone.

use steep_protocol::message::facts::Finding;
use steep_protocol::{Fault, JobId};

use super::batch::is_of_the_statement;
use crate::node::connection::Conn;

/// Every such list that is not built-in: what comes before and in a GRANT, and the list that applies where
/// none is stored.
const PRIVILEGES: &str = "
    SELECT '' AS context, 'SCHEMA ' || quote_ident(nspname) AS object, '' AS columns, nspacl AS acl,
        acldefault('n', nspowner) AS initial
    FROM pg_namespace WHERE oid < 16384 AND nspacl IS NOT NULL AND nspname <> 'public'
    UNION ALL SELECT '', format('%s %I.%I', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
        n.nspname, c.relname), '', c.relacl,
        acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", c.relowner)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid < 16384 AND c.relacl IS NOT NULL
    UNION ALL SELECT '', format('TABLE %I.%I', n.nspname, c.relname), format('(%I)', a.attname), a.attacl,
        acldefault('c', c.relowner)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid < 16384 AND a.attacl IS NOT NULL AND NOT a.attisdropped
    UNION ALL SELECT '', format('ROUTINE %I.%I(%s)', n.nspname, p.proname,
        pg_get_function_identity_arguments(p.oid)), '', p.proacl, acldefault('f', p.proowner)
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE p.oid < 16384 AND p.proacl IS NOT NULL AND p.prokind <> 'a'
    UNION ALL SELECT '', format('TYPE %I.%I', n.nspname, t.typname), '', t.typacl, acldefault('T', t.typowner)
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE t.oid < 16384 AND t.typacl IS NOT NULL
    UNION ALL SELECT '', 'LANGUAGE ' || quote_ident(lanname), '', lanacl, acldefault('l', lanowner)
    FROM pg_language WHERE oid < 16384 AND lanacl IS NOT NULL
    UNION ALL SELECT format('ALTER DEFAULT PRIVILEGES FOR ROLE %I%s ', pg_get_userbyid(d.defaclrole),
            coalesce((SELECT format(' IN SCHEMA %I', n.nspname) FROM pg_namespace n
                WHERE n.oid = d.defaclnamespace), '')),
        CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'ROUTINES'
            WHEN 'T' THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END, '', d.defaclacl,
        CASE d.defaclnamespace WHEN 0 THEN acldefault(CASE d.defaclobjtype WHEN 'S' THEN 's'
            ELSE d.defaclobjtype END, d.defaclrole) ELSE '{}' END
    FROM pg_default_acl d";

/// Stores them. Runs in the caller's transaction.
pub(super) fn note(job: JobId) -> String {
    format!(
        "DELETE FROM steep_repl.baseline_privileges WHERE job = '{job}';
         INSERT INTO steep_repl.baseline_privileges (job, context, object, columns, acl)
         SELECT '{job}', context, object, columns, acl FROM ({PRIVILEGES}) AS there"
    )
}

/// The statements that restore each list that differs; they first revoke everything granted now.
///
/// A list that is built-in now is stored nowhere: the former grants are added to it, as a dump can only
/// have revoked some.
fn differences() -> String {
    format!(
        "WITH changed AS (
            SELECT coalesce(n.context, w.context) AS context, coalesce(n.object, w.object) AS object,
                coalesce(n.columns, w.columns) AS columns, coalesce(n.acl, '{{}}') AS now,
                coalesce(w.acl, n.initial) AS was
            FROM ({PRIVILEGES}) AS n
            FULL JOIN (SELECT * FROM steep_repl.baseline_privileges WHERE job = $1) AS w
                ON (w.context, w.object, w.columns) = (n.context, n.object, n.columns)
            WHERE n.acl IS DISTINCT FROM w.acl
        ), role AS (
            SELECT oid, quote_ident(rolname) AS name FROM pg_roles UNION ALL SELECT 0, 'PUBLIC'
        )
        SELECT DISTINCT 1, format('%sREVOKE ALL %s ON %s FROM %s', context, columns, object, role.name)
            FROM changed, aclexplode(CASE WHEN cardinality(now) > 0 THEN now END) AS given JOIN role ON role.oid = given.grantee
        UNION ALL
        SELECT 2, format('%sGRANT %s %s ON %s TO %s%s', context, given.privilege_type, columns, object,
                role.name, CASE WHEN given.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
            FROM changed, aclexplode(CASE WHEN cardinality(was) > 0 THEN was END) AS given JOIN role ON role.oid = given.grantee
        ORDER BY 1"
    )
}

/// Restores them, and reports what it may not.
pub(super) async fn restore(conn: &Conn, job: JobId) -> Result<Vec<Finding>, Fault> {
    let rows = conn.rows(&differences(), &[&job.to_string()]).await?;
    let statements: Vec<&str> = rows.iter().map(|row| row.get(1)).collect();
    if statements.is_empty() {
        return Ok(Vec::new());
    }
    match conn.transact(&statements.join(";\n")).await {
        Ok(()) => Ok(Vec::new()),
        Err(error) if error.sqlstate().is_some_and(is_of_the_statement) => Ok(vec![conn.warning(
            "not_removed",
            format!("privileges of system objects stay as the source has them: {error}"),
            "the schema that was copied changed them",
            &format!("run here as a superuser: {};", statements.join("; ")),
        )]),
        Err(error) => Err(conn.fault(&error)),
    }
}
