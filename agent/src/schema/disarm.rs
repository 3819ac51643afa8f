//! What has the rights of its owner, and whose owner could not be set: it belongs to the agent's role, and must not gain
//! that role's rights. Until its owner can be set it runs with the rights of whoever uses it.
//!
//! Before PostgreSQL 15 views cannot (`security_invoker`), and stay as they are.

use steep_protocol::Fault;

use crate::node::connection::Conn;

/// The oldest version whose views can run with their caller's rights.
const INVOKER_VIEWS: u32 = 150_000;

/// An object that a statement was to give to its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Object<'a> {
    /// `FUNCTION` or `PROCEDURE`, and its signature.
    Routine(&'a str, &'a str),
    /// A view, unless it is a table, for which some versions of pg_dump use the same statement.
    Relation(&'a str),
}

impl<'a> Object<'a> {
    fn of(statement: &'a str) -> Option<Self> {
        let subject = &statement[..statement.rfind(" OWNER TO ")?];
        let routine = ["FUNCTION", "PROCEDURE"].into_iter().find_map(|kind| {
            let rest = subject.strip_prefix("ALTER ")?.strip_prefix(kind)?;
            Some(Self::Routine(kind, rest.strip_prefix(' ')?))
        });
        let relation = ["ALTER VIEW ", "ALTER TABLE "]
            .into_iter()
            .find_map(|alter| subject.strip_prefix(alter))
            .map(Self::Relation);
        routine.or(relation)
    }
}

/// Takes its owner's rights from the object that `statement` could not give to its owner, in the caller's transaction,
/// which has the savepoint `statement`. Returns what gives them back, if it had any.
pub(super) async fn disarm(conn: &Conn, statement: &str) -> Result<Option<String>, Fault> {
    match Object::of(statement) {
        Some(Object::Routine(kind, signature)) => {
            let definers = || conn.row("SELECT count(*) FROM pg_proc WHERE prosecdef", &[]);
            let before: i64 = definers().await?.get(0);
            let alter = |security| format!("ALTER {kind} {signature} SECURITY {security}");
            // It may be missing itself.
            if conn.attempt(&alter("INVOKER")).await.is_err() {
                conn.execute("ROLLBACK TO SAVEPOINT statement").await?;
                return Ok(None);
            }
            let after: i64 = definers().await?.get(0);
            Ok((after < before).then(|| alter("DEFINER")))
        }
        Some(Object::Relation(name)) if conn.session.server_version() >= INVOKER_VIEWS => {
            let sql = "SELECT count(*) FROM pg_class c WHERE c.oid = to_regclass($1) AND c.relkind = 'v'
                AND NOT coalesce(array_to_string(c.reloptions, ',') LIKE '%security_invoker=%', false)";
            if conn.row(sql, &[&name]).await?.get::<_, i64>(0) == 0 {
                return Ok(None);
            }
            conn.execute(&format!("ALTER VIEW {name} SET (security_invoker = true)"))
                .await?;
            Ok(Some(format!("ALTER VIEW {name} RESET (security_invoker)")))
        }
        Some(Object::Relation(_)) | None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_named_as_its_statement_names_it() {
        for (statement, object) in [
            (
                "ALTER FUNCTION app.f(a integer, \"b OWNER TO \" text) OWNER TO bob",
                Some(Object::Routine(
                    "FUNCTION",
                    "app.f(a integer, \"b OWNER TO \" text)",
                )),
            ),
            (
                "ALTER PROCEDURE app.p() OWNER TO \"Some One\"",
                Some(Object::Routine("PROCEDURE", "app.p()")),
            ),
            (
                "ALTER VIEW app.v OWNER TO bob",
                Some(Object::Relation("app.v")),
            ),
            (
                "ALTER TABLE app.v OWNER TO bob",
                Some(Object::Relation("app.v")),
            ),
            ("ALTER TYPE app.t OWNER TO bob", None),
            ("GRANT SELECT ON TABLE app.t TO bob", None),
        ] {
            assert_eq!(Object::of(statement), object, "{statement}");
        }
    }
}
