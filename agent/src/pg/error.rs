//! Errors of PostgreSQL as values; `fault` puts them into words for a person.
//!
//! Of DETAIL, which shows rows, only the columns of a violated key are kept. The value in CONTEXT (a COPY
//! line) and quoted values of data errors are dropped: what is stored here may be logged and sent to the
//! coordinator.

use std::io;

use tokio_postgres::error::{DbError, SqlState};

#[derive(Debug, thiserror::Error)]
pub(crate) enum PgError {
    #[error("the PostgreSQL connection string is not usable: {0}")]
    Conninfo(String),
    #[error("cannot connect to PostgreSQL at {place}: {source}")]
    Connect { place: String, source: io::Error },
    #[error("cannot use TLS with PostgreSQL at {place}: {reason}")]
    Tls { place: String, reason: String },
    /// The server was reached, but the login failed on our side.
    #[error("cannot log in to PostgreSQL at {place}: {reason}")]
    Login { place: String, reason: String },
    /// Not the kind of server that `target_session_attrs` asks for.
    #[error("PostgreSQL at {place} is not used: {reason}")]
    Unsuitable { place: String, reason: String },
    #[error(transparent)]
    Server(Box<ServerError>),
    #[error("the connection to PostgreSQL broke: {0}")]
    Io(#[from] io::Error),
    #[error("the connection to PostgreSQL was closed by the server")]
    Closed,
    /// The server broke the protocol, or sent more than is allowed.
    #[error("PostgreSQL sent something unexpected: {0}")]
    Protocol(String),
    /// Another error of the driver, without values.
    #[error("the PostgreSQL driver failed: {0}")]
    Driver(String),
    /// The schema `steep_repl` belongs to an extension of an older version than this agent needs.
    #[error("the extension steep_repl cannot be updated to version {wanted}: {reason}")]
    Extension {
        wanted: &'static str,
        reason: String,
    },
    /// Somebody else controls part of the schema `steep_repl`, whose code this agent will not run.
    #[error(
        "the schema steep_repl of this database is not used: {what} {role}, neither the agent's role \
         nor a superuser, whose code would run with the agent's rights"
    )]
    Untrusted {
        /// Part of a sentence that ends with the role.
        what: String,
        role: String,
    },
    #[error("cancelled")]
    Cancelled,
}

/// An ErrorResponse, without anything that may hold row values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {})", code.code())]
pub(crate) struct ServerError {
    pub(crate) code: SqlState,
    /// The primary message; quoted values of data errors are replaced.
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// Where in a COPY: table, line, column, and function.
    pub(crate) place: Option<String>,
    pub(crate) constraint: Option<String>,
    /// Schema and table, from the error's own fields.
    pub(crate) table: Option<String>,
}

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

/// Removes what may be row values.
///
/// Class 22 (data exception) quotes the value, which may itself hold quotes: everything from the first
/// double quote to the last goes. The text of a function's own error may be anything: only its SQLSTATE
/// stays. Class 23 (integrity) quotes only names; its values are in DETAIL.
fn without_values(code: &str, message: &str) -> String {
    if !code.starts_with("22") {
        let raised = code == "P0001" || !is_known(code);
        return match raised {
            true => "a function raised an exception; its text may hold values and is not shown"
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

/// The columns in the DETAIL of a violated key, `Key (a, b)=(1, 2) already exists.`, without the values.
pub(crate) fn key_columns(detail: &str) -> Option<&str> {
    let (columns, _) = detail.strip_prefix("Key (")?.split_once(")=(")?;
    Some(columns)
}

/// Whether PostgreSQL itself raises errors of that class (PostgreSQL manual, appendix A). Other classes
/// come from functions.
fn is_known(code: &str) -> bool {
    const CLASSES: [&str; 44] = [
        "00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21",
        "22", "23", "24", "25", "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D",
        "3F", "40", "42", "44", "53", "54", "55", "57", "58", "72", "F0", "HV", "P0", "XX",
    ];
    code.get(..2).is_some_and(|class| CLASSES.contains(&class))
}

/// `COPY t, line 3, column c: "value"` without the value, and the innermost function with its line.
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
    /// A server error of which only SQLSTATE and message are known.
    pub(crate) fn refused(code: &str, message: &str) -> Self {
        let fields = ErrorFields {
            code: code.to_owned(),
            message: message.to_owned(),
            ..ErrorFields::default()
        };
        Self::Server(Box::new(fields.into()))
    }

    /// Where PostgreSQL gave one.
    pub(crate) fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            Self::Server(error) => Some(&error.code),
            _ => None,
        }
    }

    pub(crate) fn is(&self, code: &SqlState) -> bool {
        self.sqlstate() == Some(code)
    }

    /// Whether a statement did not get a lock within `lock_timeout`.
    pub(crate) fn is_locked(&self) -> bool {
        self.is(&SqlState::LOCK_NOT_AVAILABLE)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::pg) fn error(code: &str, message: &str, context: Option<&str>) -> ServerError {
        ServerError::from(ErrorFields {
            code: code.to_owned(),
            message: message.to_owned(),
            context: context.map(str::to_owned),
            ..ErrorFields::default()
        })
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
}
