//! A PostgreSQL error as a [`Fault`]: message, next step, and whether to retry.

use steep_protocol::{Fault, FaultKind, NodeId, Retry};
use tokio_postgres::error::SqlState;

use super::{PgError, ServerError};

impl PgError {
    pub(crate) fn to_fault(&self, node: &NodeId) -> Fault {
        let fault = |kind| Fault::new(kind, self.to_string());
        let fault = match self {
            Self::Conninfo(_) => {
                fault(FaultKind::BadRequest).hint("correct --postgres of the agent on this node")
            }
            Self::Connect { .. } => fault(FaultKind::Unreachable)
                .hint("check that PostgreSQL runs and listens there, and the agent's --postgres")
                .retry(Retry::Backoff),
            Self::Tls { .. } => fault(FaultKind::Unauthorized)
                .hint("check sslmode and sslrootcert in the agent's --postgres, and the server's ssl settings"),
            Self::Login { .. } => fault(FaultKind::Unauthorized)
                .hint("give the password by ~/.pgpass (mode 0600), PGPASSWORD or passfile"),
            Self::Unsuitable { .. } => fault(FaultKind::Unreachable)
                .hint("name the right server in the agent's --postgres, or another target_session_attrs")
                .retry(Retry::Backoff),
            Self::Server(error) => {
                let fault = error.to_fault().on(node);
                return match self.is(&SqlState::OUT_OF_MEMORY) {
                    true => fault.hint(out_of_memory(node)),
                    false => fault,
                };
            }
            Self::Io(_) | Self::Closed => Fault::new(
                FaultKind::Failed,
                self.to_string().replace("PostgreSQL", &format!("PostgreSQL of {node}")),
            )
            .hint(format!(
                "see whether PostgreSQL of {node} runs, and its log for why it ended the connection"
            ))
            .retry(Retry::NewConnection),
            Self::Protocol(_) | Self::Driver(_) => {
                fault(FaultKind::Failed).retry(Retry::NewConnection)
            }
            Self::Extension { wanted, .. } => fault(FaultKind::Failed).hint(format!(
                "install the extension's files of this version on the server, then let the extension's \
                 owner run ALTER EXTENSION steep_repl UPDATE TO '{wanted}'"
            )),
            Self::Untrusted { .. } => fault(FaultKind::Failed).hint(
                "look at what the schema holds; then drop it, and the agent makes it anew (DROP SCHEMA \
                 steep_repl CASCADE, or DROP EXTENSION steep_repl), or revoke what was granted. What \
                 you have checked can be kept by ALTER ... OWNER TO the agent's role or a superuser",
            ),
            Self::Cancelled => fault(FaultKind::Cancelled),
        };
        fault.on(node)
    }
}

impl ServerError {
    fn to_fault(&self) -> Fault {
        let (kind, advice, retry) = judge(self.code.code());
        let mut message = format!("PostgreSQL says: {}", self.message);
        if let Some(place) = &self.place {
            message.push_str(&format!(", at {place}"));
        }
        if let Some(table) = &self.table {
            message.push_str(&format!(", table {table}"));
        }
        if let Some(constraint) = &self.constraint {
            message.push_str(&format!(", constraint {constraint}"));
        }
        message.push_str(&format!(" (SQLSTATE {})", self.code.code()));
        let hint = match (advice, &self.hint) {
            ("", Some(hint)) => hint.clone(),
            (advice, _) => advice.to_owned(),
        };
        Fault::new(kind, message).hint(hint).retry(retry)
    }
}

/// The next step for 53200: either the lock table is full or the host has no memory.
fn out_of_memory(node: &NodeId) -> String {
    format!(
        "if shared memory ran out, the lock table is full: on {node}, ALTER SYSTEM SET \
         max_locks_per_transaction to twice what it is and restart PostgreSQL; else give the server memory"
    )
}

/// Kind, next step and retry for a SQLSTATE (PostgreSQL manual, appendix A).
fn judge(code: &str) -> (FaultKind, &'static str, Retry) {
    use FaultKind::{Failed, Unauthorized, Unreachable};
    use Retry::{Backoff, Never, NewConnection};
    match code {
        "28P01" | "28000" => (
            Unauthorized,
            "check user and password (~/.pgpass, PGPASSWORD, passfile) and the server's pg_hba.conf",
            Never,
        ),
        "3D000" => (
            Unauthorized,
            "create the database, or correct dbname in --postgres",
            Never,
        ),
        "42501" => (
            Unauthorized,
            "grant the agent's role what it lacks, or let the agent connect as another role",
            Never,
        ),
        "53300" => (
            Unreachable,
            "raise max_connections (for replication: max_wal_senders), or run with fewer workers",
            Backoff,
        ),
        "57P03" => (Unreachable, "wait until the server has started", Backoff),
        "57P01" | "57P02" | "57P05" => (
            Failed,
            "the server ended the session: see its log for why",
            NewConnection,
        ),
        "53100" => (
            Failed,
            "free disk space on this server, then run the command again",
            Never,
        ),
        "53200" => (Failed, "", Never),
        "53400" => (
            Failed,
            "raise the limit the message names (max_replication_slots, max_wal_senders)",
            Never,
        ),
        "55P03" => (
            Failed,
            "end the transaction that holds the lock, then run again",
            Backoff,
        ),
        "57014" => (
            Failed,
            "somebody cancelled the statement on the server; run again",
            Backoff,
        ),
        "55000" => (Failed, "", Never),
        "40001" | "40P01" | "55006" => (Failed, "", Backoff),
        _ if code.starts_with("08") => (Failed, "", NewConnection),
        _ => (Failed, "", Never),
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::tests::error;
    use super::*;

    #[test]
    fn no_value_of_a_row_survives_in_an_error() {
        let bad = error(
            "22P02",
            "invalid input syntax for type integer: \"secret\"",
            Some("COPY t, line 3, column x: \"secret\""),
        );
        let fault = PgError::Server(Box::new(bad)).to_fault(&NodeId::parse("a").unwrap());
        assert!(!format!("{fault:?}").contains("secret"), "{fault:?}");
        assert!(
            fault.message.contains("COPY t, line 3, column x"),
            "{fault:?}"
        );
    }

    #[test]
    fn a_wrong_password_is_unauthorized_and_a_full_server_may_be_tried_again() {
        let kind = |code| error(code, "", None).to_fault();
        assert_eq!(kind("28P01").kind, FaultKind::Unauthorized);
        assert_eq!(kind("53300").kind, FaultKind::Unreachable);
        assert_eq!(kind("53300").retry, Retry::Backoff);
        assert_eq!(kind("57P01").retry, Retry::NewConnection);
    }

    #[test]
    fn what_passes_by_itself_is_tried_again_and_what_an_operator_must_mend_is_not() {
        let retry = |code| error(code, "", None).to_fault().retry;
        for passing in [
            "08006", "57P01", "57P02", "57P03", "57P05", "57014", "53300", "40001", "40P01",
            "55P03", "55006",
        ] {
            assert_ne!(retry(passing), Retry::Never, "{passing}");
        }
        for lasting in [
            "53100", "53200", "53400", "42501", "28P01", "3D000", "23505", "22P02", "42601",
            "57P04",
        ] {
            assert_eq!(retry(lasting), Retry::Never, "{lasting}");
        }
    }

    #[test]
    fn a_lost_connection_says_whose_it_was_and_where_to_look() {
        let fault = PgError::Closed.to_fault(&NodeId::parse("node_b").unwrap());
        let said = "the connection to PostgreSQL of node_b was closed by the server";
        assert_eq!(fault.message, said);
        assert!(
            fault.hint.contains("PostgreSQL of node_b runs"),
            "{}",
            fault.hint
        );
        assert_eq!(fault.retry, Retry::NewConnection);
    }
}
