//! Refuses a schema `steep_repl` that somebody else controls in part.
//!
//! Whoever may create schemas could create `steep_repl` first, with views, functions or triggers that this
//! agent would run with its rights. So everything in it that can carry code must belong to the agent's role
//! or a superuser, and nobody else may add to it. The check reads only PostgreSQL's catalog and calls
//! nothing in the schema. Its result stays true, as only those owners and superusers can change what was
//! checked.

use tokio_postgres::Row;

use super::PgError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnSchema {
    Absent,
    /// Only the agent's role and superusers control it.
    Trusted,
}

/// Whether the schema exists, and the first untrusted thing in it, with the role behind it. Uses
/// `pg_depend`, so that the number of other tables does not matter. CREATE on the schema and TRIGGER on a
/// table allow adding code later.
pub(super) const LOOK: &str = "
WITH place AS (
    SELECT n.oid, n.nspowner, n.nspacl FROM pg_catalog.pg_namespace n WHERE n.nspname = 'steep_repl'
), member AS (
    SELECT d.classid, d.objid FROM pg_catalog.pg_depend d JOIN place ON d.refobjid = place.oid
    WHERE d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass
), relation AS (
    SELECT c.oid, c.relname, c.relowner, c.relacl FROM member m JOIN pg_catalog.pg_class c ON c.oid = m.objid
    WHERE m.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
), suspect (what, role) AS (
    SELECT 'it belongs to', nspowner FROM place
    UNION ALL SELECT 'objects can be made in it by', a.grantee
    FROM place CROSS JOIN LATERAL pg_catalog.aclexplode(place.nspacl) a WHERE a.privilege_type = 'CREATE'
    UNION ALL SELECT 'its relation ' || pg_catalog.quote_ident(relname) || ' belongs to', relowner FROM relation
    UNION ALL SELECT 'triggers can be made on its table ' || pg_catalog.quote_ident(r.relname) || ' by', a.grantee
    FROM relation r CROSS JOIN LATERAL pg_catalog.aclexplode(r.relacl) a WHERE a.privilege_type = 'TRIGGER'
    UNION ALL SELECT 'a trigger on its table ' || pg_catalog.quote_ident(r.relname) || ' calls a function of', f.proowner
    FROM relation r JOIN pg_catalog.pg_trigger t ON t.tgrelid = r.oid AND NOT t.tgisinternal
    JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid
    UNION ALL SELECT 'its function ' || pg_catalog.quote_ident(f.proname) || ' belongs to', f.proowner
    FROM member m JOIN pg_catalog.pg_proc f ON f.oid = m.objid
    WHERE m.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
    UNION ALL SELECT 'its type ' || pg_catalog.quote_ident(t.typname) || ' belongs to', t.typowner
    FROM member m JOIN pg_catalog.pg_type t ON t.oid = m.objid
    WHERE m.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
), bad AS (
    SELECT s.what, CASE s.role WHEN 0 THEN 'PUBLIC' ELSE coalesce(r.rolname::text, s.role::text) END AS role
    FROM suspect s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.role
    WHERE (r.rolsuper OR r.rolname = current_user) IS NOT TRUE
    ORDER BY 1, 2 LIMIT 1
)
SELECT (EXISTS (SELECT FROM place))::text, bad.what, bad.role FROM (SELECT) AS one LEFT JOIN bad ON true";

/// Limit for the server's texts; names have at most 63 bytes.
const TEXT_MAX: usize = 200;

/// As [`judge`], of the rows.
pub(super) fn read(rows: &[Row]) -> Result<OwnSchema, PgError> {
    let row = rows.first().ok_or_else(unexpected)?;
    judge([row.try_get(0)?, row.try_get(1)?, row.try_get(2)?])
}

/// Interprets the answer to [`LOOK`].
pub(super) fn judge(answer: [Option<&str>; 3]) -> Result<OwnSchema, PgError> {
    match answer {
        [_, Some(what), Some(role)] => Err(PgError::Untrusted {
            what: plain(what),
            role: plain(role),
        }),
        [Some("true"), None, None] => Ok(OwnSchema::Trusted),
        [Some("false"), None, None] => Ok(OwnSchema::Absent),
        _ => Err(unexpected()),
    }
}

fn unexpected() -> PgError {
    PgError::Protocol("the catalog of the schema steep_repl is not understood".to_owned())
}

/// Makes names that others chose safe to print: one line, no control characters.
fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(TEXT_MAX).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_catalog_clearly_says_is_trusted() {
        let trusted = judge([Some("true"), None, None]);
        assert_eq!(trusted.unwrap(), OwnSchema::Trusted);
        let absent = judge([Some("false"), None, None]);
        assert_eq!(absent.unwrap(), OwnSchema::Absent);
        for odd in [[None, None, None], [Some("true"), Some("it"), None]] {
            assert!(judge(odd).is_err(), "{odd:?} was trusted");
        }
    }

    #[test]
    fn a_name_that_others_chose_stays_on_its_line() {
        let said = judge([Some("true"), Some("its view\nx"), Some("mal\u{1b}lory")]);
        let said = said.unwrap_err().to_string();
        assert!(!said.contains(['\n', '\u{1b}']), "{said:?}");
        assert!(said.contains("lory"), "{said:?}");
    }
}
