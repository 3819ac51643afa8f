//! The row of `steep_repl.write_stop`, and the setting that changes with it.

use steep_protocol::{Identifier, JobId, Lsn};
use tokio_postgres::Row;

use crate::node::own_schema;
use crate::pg::{PgError, Session, literal};

/// Who may write, and since which switchover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) switchover: JobId,
    pub(super) state: State,
    /// What the setting was before.
    pub(super) previous: Option<String>,
    /// Until the deadline, in milliseconds; negative after it.
    pub(super) left: Option<i64>,
    /// Whether sessions that began under the other state have been ended.
    pub(super) swept: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Closed,
    Final,
    Open { position: Lsn },
}

/// Whether the row is to be locked until the end of the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    Plain,
    ForUpdate,
}

const READ: &str = "SELECT switchover, state, previous, \
     (extract(epoch FROM deadline - clock_timestamp()) * 1000)::int8, \
     CASE state WHEN 'open' THEN opened_at IS NOT NULL ELSE closed_at IS NOT NULL END, position::text \
     FROM steep_repl.write_stop";

/// `None` where no switchover was ever here.
pub(super) async fn read(session: &Session, reading: Reading) -> Result<Option<Note>, PgError> {
    let sql = match reading {
        Reading::Plain => READ.to_owned(),
        Reading::ForUpdate => format!("{READ} FOR UPDATE"),
    };
    let row = session.query_opt(&sql, &[]).await?;
    row.as_ref().map(parse).transpose()
}

/// The same where the table may be missing.
pub(super) async fn read_any(session: &Session) -> Result<Option<Note>, PgError> {
    let there = "SELECT pg_catalog.to_regclass('steep_repl.write_stop') IS NOT NULL";
    if !own_schema::exists(session).await?
        || !session.query_one(there, &[]).await?.try_get::<_, bool>(0)?
    {
        return Ok(None);
    }
    read(session, Reading::Plain).await
}

fn parse(row: &Row) -> Result<Note, PgError> {
    let bad = |what: &str| {
        PgError::Protocol(format!("{what} in steep_repl.write_stop is not understood"))
    };
    let position: Option<&str> = row.try_get(5)?;
    let position = position.unwrap_or("0/0").parse();
    let switchover: &str = row.try_get(0)?;
    Ok(Note {
        switchover: switchover.parse().map_err(|_| bad("the switchover"))?,
        state: match row.try_get::<_, &str>(1)? {
            "closed" => State::Closed,
            "final" => State::Final,
            "open" => State::Open {
                position: position.map_err(|_| bad("the position"))?,
            },
            _ => return Err(bad("the state")),
        },
        previous: row.try_get(2)?,
        left: row.try_get(3)?,
        swept: row.try_get(4)?,
    })
}

/// This database.
pub(super) async fn database(session: &Session) -> Result<Identifier, PgError> {
    let row = session
        .query_one("SELECT current_database()::text", &[])
        .await?;
    let bad = |_| PgError::Protocol("a database without a name".to_owned());
    Identifier::parse(row.try_get::<_, String>(0)?).map_err(bad)
}

/// Selects what the database's own setting is, where it has one.
pub(crate) const SETTING: &str = "SELECT split_part(e.entry, '=', 2) FROM pg_db_role_setting s \
     CROSS JOIN LATERAL unnest(s.setconfig) AS e (entry) \
     WHERE s.setrole = 0 AND split_part(e.entry, '=', 1) = 'default_transaction_read_only' \
     AND s.setdatabase = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())";

/// What the database's own setting is.
pub(super) async fn setting(session: &Session) -> Result<Option<String>, PgError> {
    let row = session.query_opt(SETTING, &[]).await?;
    row.map(|row| Ok(row.try_get(0)?)).transpose()
}

/// Whether a value of the setting makes sessions read-only. PostgreSQL keeps it as it was written.
pub(crate) fn is_on(value: Option<&str>) -> bool {
    let on = |value: &str| {
        let value = value.to_ascii_lowercase();
        value == "1" || value == "on" || "true".starts_with(&value) || "yes".starts_with(&value)
    };
    value.is_some_and(|value| !value.is_empty() && on(value))
}

/// The statement that makes new sessions read-only.
pub(super) fn closed(database: &Identifier) -> String {
    format!(
        "ALTER DATABASE {} SET default_transaction_read_only = on",
        database.quoted()
    )
}

/// The statement that puts the setting back.
pub(super) fn put_back(database: &Identifier, previous: Option<&str>) -> String {
    let database = database.quoted();
    match previous {
        Some(value) => format!(
            "ALTER DATABASE {database} SET default_transaction_read_only = {}",
            literal(value).trim_start()
        ),
        None => format!("ALTER DATABASE {database} RESET default_transaction_read_only"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_is_put_back_as_it_was_whatever_the_database_is_called() {
        let database = Identifier::parse("a\"; DROP DATABASE b").unwrap();
        let quoted = "\"a\"\"; DROP DATABASE b\"";
        assert_eq!(
            put_back(&database, None),
            format!("ALTER DATABASE {quoted} RESET default_transaction_read_only")
        );
        assert_eq!(
            put_back(&database, Some("o'ff")),
            format!("ALTER DATABASE {quoted} SET default_transaction_read_only = 'o''ff'")
        );
    }

    #[test]
    fn only_what_postgresql_reads_as_true_is_on() {
        for on in ["on", "ON", "true", "t", "yes", "y", "1"] {
            assert!(is_on(Some(on)), "{on}");
        }
        for off in ["off", "false", "f", "no", "n", "0", "o", ""] {
            assert!(!is_on(Some(off)), "{off}");
        }
        assert!(!is_on(None));
    }
}
