//! What can go wrong with PostgreSQL, as a value, and as a [`Fault`] for a person.
//!
//! Of DETAIL, which shows rows, only the columns of a violated key are kept. The value part of CONTEXT (a
//! COPY line) and quoted values of data errors are not: what is stored here may be logged and sent to the
//! coordinator.

use std::io;

use steep_protocol::{Fault, FaultKind, NodeId, Retry};
use tokio_postgres::error::{DbError, SqlState};

/// An error of a connection to PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// The connection string or its environment is wrong.
    #[error("the PostgreSQL connection string is not usable: {0}")]
    Conninfo(String),
    /// No server answered at any of the addresses.
    #[error("cannot connect to PostgreSQL at {place}: {source}")]
    Connect {
        /// Where.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// TLS was wanted and did not come about.
    #[error("cannot use TLS with PostgreSQL at {place}: {reason}")]
    Tls {
        /// Where.
        place: String,
        /// Why.
        reason: String,
    },
    /// The server was reached and let us not in, by our own doing.
    #[error("cannot log in to PostgreSQL at {place}: {reason}")]
    Login {
        /// Where.
        place: String,
        /// Why.
        reason: String,
    },
    /// Let in, but it is not the kind of server that `target_session_attrs` asks for.
    #[error("PostgreSQL at {place} is not used: {reason}")]
    Unsuitable {
        /// Where.
        place: String,
        /// Why.
        reason: String,
    },
    /// PostgreSQL answered with an error.
    #[error(transparent)]
    Server(Box<ServerError>),
    /// The connection broke.
    #[error("the connection to PostgreSQL broke: {0}")]
    Io(#[from] io::Error),
    /// The connection is over.
    #[error("the connection to PostgreSQL was closed by the server")]
    Closed,
    /// The server said something that is not the protocol, or more than is allowed.
    #[error("PostgreSQL sent something unexpected: {0}")]
    Protocol(String),
    /// The driver failed in another way; says nothing about values.
    #[error("the PostgreSQL driver failed: {0}")]
    Driver(String),
    /// The schema `steep_repl` is an extension's, of an older version than this agent needs.
    #[error("the extension steep_repl cannot be updated to version {wanted}: {reason}")]
    Extension {
        /// The version this agent needs.
        wanted: &'static str,
        /// What the server said.
        reason: String,
    },
    /// Somebody has a hand in the schema `steep_repl` whose code this agent will not run.
    #[error(
        "the schema steep_repl of this database is not used: {what} {role}, neither the agent's role \
         nor a superuser, whose code would run with the agent's rights"
    )]
    Untrusted {
        /// What in the schema, up to the role.
        what: String,
        /// The role behind it.
        role: String,
    },
    /// Cancelled from our side.
    #[error("cancelled")]
    Cancelled,
}

/// An ErrorResponse, without what may hold values of rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {})", code.code())]
pub struct ServerError {
    /// The SQLSTATE.
    pub code: SqlState,
    /// The primary message; quoted values of data errors are replaced.
    pub message: String,
    /// The server's hint, if it gave one.
    pub hint: Option<String>,
    /// Where in a COPY it happened: table, line and column, and in which function.
    pub place: Option<String>,
    /// The constraint that was violated, if one was.
    pub constraint: Option<String>,
    /// The object the error names by its fields: schema and table.
    pub table: Option<String>,
}

/// The parts of an ErrorResponse as they come.
#[derive(Debug, Default)]
pub(crate) struct ErrorFields {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) detail: Option<String>,
    pub(crate) context: Option<String>,
    pub(crate) schema: Option<String>,
    pub(crate) table: Option<String>,
    pub(crate) constraint: Option<String>,
}

impl From<ErrorFields> for ServerError {
    fn from(fields: ErrorFields) -> Self {
        let table = match (fields.schema, fields.table) {
            (Some(schema), Some(table)) => Some(format!("{schema}.{table}")),
            (None, table) => table,
            (Some(_), None) => None,
        };
        let mut message = without_values(&fields.code, &fields.message);
        if fields.constraint.is_some()
            && let Some(columns) = fields.detail.as_deref().and_then(key_columns)
        {
            message.push_str(&format!(", key ({columns})"));
        }
        Self {
            message,
            code: SqlState::from_code(&fields.code),
            hint: fields.hint,
            place: fields.context.as_deref().and_then(copy_place),
            constraint: fields.constraint,
            table,
        }
    }
}

impl From<&DbError> for ServerError {
    fn from(error: &DbError) -> Self {
        Self::from(ErrorFields {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            hint: error.hint().map(str::to_owned),
            detail: error.detail().map(str::to_owned),
            context: error.where_().map(str::to_owned),
            schema: error.schema().map(str::to_owned),
            table: error.table().map(str::to_owned),
            constraint: error.constraint().map(str::to_owned),
        })
    }
}

/// The message without what may be values of rows.
///
/// Class 22 (data exception) quotes the value: everything from the first double quote to the last
/// goes, since the value may hold quotes itself. What a function raises may be anything: of that only
/// the SQLSTATE is told. Class 23 (integrity) quotes names alone; its values are in DETAIL.
fn without_values(code: &str, message: &str) -> String {
    if !code.starts_with("22") {
        let raised = code == "P0001" || !is_known(code);
        return match raised {
            true => "a function raised an exception; its text may hold values and is not told"
                .to_owned(),
            false => message.to_owned(),
        };
    }
    match (message.find('"'), message.rfind('"')) {
        (Some(first), Some(last)) if first < last => {
            format!("{}…{}", &message[..=first], &message[last..])
        }
        (Some(first), _) => format!("{}…", &message[..=first]),
        (None, _) => message.to_owned(),
    }
}

/// The columns in the DETAIL of a violated key, `Key (a, b)=(1, 2) already exists.`; of the values nothing.
pub(crate) fn key_columns(detail: &str) -> Option<&str> {
    let (columns, _) = detail.strip_prefix("Key (")?.split_once(")=(")?;
    Some(columns)
}

/// Whether PostgreSQL itself raises errors of that class (PostgreSQL manual, appendix A); others are
/// made up by functions.
fn is_known(code: &str) -> bool {
    const CLASSES: [&str; 44] = [
        "00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21",
        "22", "23", "24", "25", "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D",
        "3F", "40", "42", "44", "53", "54", "55", "57", "58", "72", "F0", "HV", "P0", "XX",
    ];
    code.get(..2).is_some_and(|class| CLASSES.contains(&class))
}

/// `COPY t, line 3, column c: "value"` without the value, and the innermost function, of which CONTEXT says
/// name and line.
fn copy_place(context: &str) -> Option<String> {
    let line = context.lines().find(|line| line.starts_with("COPY "))?;
    let mut place = line.split(": ").next().unwrap_or(line).to_owned();
    let is_function =
        |line: &&str| line.starts_with("PL/pgSQL function ") || line.starts_with("SQL function \"");
    if let Some(function) = context.lines().find(is_function) {
        place.push_str(", in ");
        place.push_str(function);
    }
    Some(place)
}

impl From<tokio_postgres::Error> for PgError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            return Self::Server(Box::new(db.into()));
        }
        if error.is_closed() {
            return Self::Closed;
        }
        let text = error.to_string();
        match error.into_source() {
            Some(cause) => match cause.downcast_ref::<io::Error>() {
                Some(io) => Self::Io(io::Error::new(io.kind(), io.to_string())),
                None => Self::Driver(format!("{text}: {cause}")),
            },
            None => Self::Driver(text),
        }
    }
}

impl PgError {
    /// What a server refused, of which only SQLSTATE and message are known.
    pub(crate) fn refused(code: &str, message: &str) -> Self {
        let fields = ErrorFields {
            code: code.to_owned(),
            message: message.to_owned(),
            ..ErrorFields::default()
        };
        Self::Server(Box::new(fields.into()))
    }

    /// The SQLSTATE, where PostgreSQL gave one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            Self::Server(error) => Some(&error.code),
            _ => None,
        }
    }

    /// Whether PostgreSQL answered with that SQLSTATE.
    #[must_use]
    pub fn is(&self, code: &SqlState) -> bool {
        self.sqlstate() == Some(code)
    }

    /// Whether a statement did not get a lock within `lock_timeout`.
    #[must_use]
    pub(crate) fn is_locked(&self) -> bool {
        self.is(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// The error as it crosses the wire, on that node.
    #[must_use]
    pub fn to_fault(&self, node: &NodeId) -> Fault {
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

/// What to do about 53200, which is a full lock table as well as a host without memory.
fn out_of_memory(node: &NodeId) -> String {
    format!(
        "where it is shared memory that ran out, the lock table is full: on {node}, ALTER SYSTEM SET \
         max_locks_per_transaction to twice what it is and restart PostgreSQL; else give the server memory"
    )
}

/// Kind, next step and "again?" of a SQLSTATE (PostgreSQL manual, appendix A).
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
    use super::*;

    fn error(code: &str, message: &str, context: Option<&str>) -> ServerError {
        ServerError::from(ErrorFields {
            code: code.to_owned(),
            message: message.to_owned(),
            context: context.map(str::to_owned),
            ..ErrorFields::default()
        })
    }

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
    fn values_with_quotes_and_texts_of_functions_do_not_survive_either() {
        let message = |code, text| error(code, text, None).message;
        assert_eq!(
            message("22P02", "malformed array literal: \"{\"a\",\"b\"}\""),
            "malformed array literal: \"…\""
        );
        assert_eq!(message("22P02", "odd \"a"), "odd \"…");
        for code in ["P0001", "SHOP1"] {
            let raised = message(code, "no credit for Ada Lovelace");
            assert!(!raised.contains("Ada"), "{raised}");
        }
        assert_eq!(
            message("P0002", "query returned no rows"),
            "query returned no rows"
        );
    }

    #[test]
    fn names_survive_where_they_are_what_helps() {
        let bad = error(
            "23505",
            "duplicate key value violates unique constraint \"t_pkey\"",
            None,
        );
        assert!(bad.message.contains("t_pkey"));
    }

    #[test]
    fn a_violated_key_names_its_columns_and_no_value() {
        let violated = |detail: &str| {
            ServerError::from(ErrorFields {
                code: "23505".to_owned(),
                message: "could not create unique index \"t_pkey\"".to_owned(),
                detail: Some(detail.to_owned()),
                constraint: Some("t_pkey".to_owned()),
                ..ErrorFields::default()
            })
            .message
        };
        assert_eq!(
            violated("Key (id, lower(name))=(4711, Key (x)=(y) is duplicated."),
            "could not create unique index \"t_pkey\", key (id, lower(name))"
        );
        assert_eq!(
            violated("4711 is there twice"),
            "could not create unique index \"t_pkey\""
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
