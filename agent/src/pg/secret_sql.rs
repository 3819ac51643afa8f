//! Runs a statement with a connection string in its text, so that no log and no view shows the password.
//!
//! The string goes to a temporary table as COPY data, which no server logs. The statement is composed on
//! the server and run in a block that catches its errors. So neither query text, parameters, errors nor
//! `pg_stat_activity` hold the string, and the server's message is cleaned before anybody reads it.

use bytes::Bytes;
use futures_util::{SinkExt, pin_mut};

use super::{Conninfo, Session};

/// Visible to this session only, and dropped with the transaction.
const PLACE: &str = "CREATE TEMPORARY TABLE steep_repl_secret (value text) ON COMMIT DROP";

const PASS_IN: &str = "COPY pg_temp.steep_repl_secret FROM STDIN (FORMAT text)";

const ANSWER: &str = "SELECT current_setting('steep_repl.answer', true)";

/// The server refused the statement; its effects are undone, the transaction goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: String,
    /// Without the password.
    pub(crate) message: String,
}

/// Runs `statement` with `conninfo` for its `%L`, in the open transaction of `session`. Other percent signs
/// are doubled. Fails where it cannot be tried: no `plpgsql`, no right to temporary tables, a broken
/// connection.
pub(crate) async fn execute(
    session: &Session,
    statement: &str,
    conninfo: &str,
) -> Result<Result<(), Refusal>, tokio_postgres::Error> {
    session.batch_execute(PLACE).await?;
    pass_in(session, conninfo).await?;
    session.batch_execute(&block(statement)).await?;
    let answer: Option<String> = session.query_one(ANSWER, &[]).await?.try_get(0)?;
    Ok(read(answer.unwrap_or_default().as_str(), conninfo))
}

async fn pass_in(session: &Session, secret: &str) -> Result<(), tokio_postgres::Error> {
    let sink = session.copy_in::<_, Bytes>(PASS_IN).await?;
    pin_mut!(sink);
    sink.send(Bytes::from(line(secret))).await?;
    sink.finish().await?;
    Ok(())
}

/// One column of COPY's text format (PostgreSQL manual, COPY, "Text Format").
fn line(value: &str) -> String {
    let mut line = String::with_capacity(value.len() + 1);
    for character in value.chars() {
        match character {
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            other => line.push(other),
        }
    }
    line.push('\n');
    line
}

fn block(statement: &str) -> String {
    let statement = statement.replace('\'', "''");
    format!(
        "DO $secret$ BEGIN
            PERFORM set_config('steep_repl.answer', '', true);
            EXECUTE format('{statement}', (SELECT value FROM pg_temp.steep_repl_secret));
        EXCEPTION WHEN query_canceled OR others THEN
            PERFORM set_config('steep_repl.answer', SQLSTATE || ' ' || SQLERRM, true);
        END $secret$"
    )
}

fn read(answer: &str, conninfo: &str) -> Result<(), Refusal> {
    let (code, message) = answer.split_once(' ').unwrap_or((answer, ""));
    if code.is_empty() {
        return Ok(());
    }
    Err(Refusal {
        code: code.to_owned(),
        message: cleaned(code, message, conninfo),
    })
}

fn cleaned(code: &str, message: &str, conninfo: &str) -> String {
    // Syntax errors: libpq quotes parts of a string that it cannot parse.
    if code == "42601" {
        return "the connection string is not valid for libpq".to_owned();
    }
    let password = Conninfo::parse(conninfo).ok().and_then(|c| c.password());
    match password {
        Some(password) if !password.expose().is_empty() => message.replace(password.expose(), "…"),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_of_the_statement_stay_inside_the_block() {
        assert!(block("X CONNECTION %L SLOT 'a'").contains("format('X CONNECTION %L SLOT ''a'''"));
    }

    #[test]
    fn a_secret_of_any_characters_is_one_column_of_one_row() {
        assert_eq!(line("a\\b\nc\td\re'\""), "a\\\\b\\nc\\td\\re'\"\n");
        assert_eq!(line(""), "\n");
    }

    #[test]
    fn an_answer_is_a_code_and_a_message_without_the_password() {
        let read = |answer| read(answer, "host=h user=u password=hunter2");
        assert_eq!(read(""), Ok(()));
        let refused = |code: &str, message: &str| {
            Err(Refusal {
                code: code.to_owned(),
                message: message.to_owned(),
            })
        };
        assert_eq!(
            read("08006 FATAL:  no pg_hba.conf entry, hunter2 for me"),
            refused("08006", "FATAL:  no pg_hba.conf entry, … for me")
        );
        assert_eq!(
            read("42601 invalid connection string syntax: missing \"=\" after \"hunter2\""),
            refused("42601", "the connection string is not valid for libpq")
        );
    }
}
