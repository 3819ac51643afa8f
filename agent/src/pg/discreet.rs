//! A statement that takes a secret but no parameters, run so that no log and no view shows it.
//!
//! The secret goes in as a parameter and comes back out of a setting of the transaction; the
//! statement is put together on the server and run in a block that catches its errors. So neither
//! the text of a query, nor an error, nor `pg_stat_activity` holds it, unless a server logs the
//! parameters of all statements and this role may not change that.

use super::Session;

/// Where the role may, statements and their parameters are kept out of the log for this
/// transaction.
const HUSH: &str = "SELECT set_config(s.name, s.value, true) FROM (VALUES \
    ('log_statement', 'none'), ('log_min_duration_statement', '-1'), \
    ('log_min_duration_sample', '-1'), ('log_duration', 'off'), \
    ('log_parameter_max_length', '0'), ('log_transaction_sample_rate', '0')) s (name, value) \
    WHERE (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user)";

const PASS_IN: &str = "SELECT set_config('steep_repl.secret', $1, true) IS NULL";

const ANSWER: &str = "SELECT current_setting('steep_repl.answer', true)";

/// A statement that the server refused; what it did is undone, the transaction goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The SQLSTATE.
    pub code: String,
    /// The message as the server gave it. May quote the secret.
    pub message: String,
}

/// Runs `statement` with `secret` in the place of its `%L`, in the open transaction of `session`.
/// Other percent signs are doubled.
///
/// # Errors
/// The driver's, where it could not be tried: no `plpgsql`, a broken connection.
pub async fn execute(
    session: &Session,
    statement: &str,
    secret: &str,
) -> Result<Result<(), Refusal>, tokio_postgres::Error> {
    session.query(HUSH, &[]).await?;
    session.query_one(PASS_IN, &[&secret]).await?;
    session.batch_execute(&block(statement)).await?;
    let answer: Option<String> = session.query_one(ANSWER, &[]).await?.try_get(0)?;
    Ok(read(answer.unwrap_or_default().as_str()))
}

fn block(statement: &str) -> String {
    let statement = statement.replace('\'', "''");
    format!(
        "DO $discreet$ BEGIN
            PERFORM set_config('steep_repl.answer', '', true);
            EXECUTE format('{statement}', current_setting('steep_repl.secret'));
        EXCEPTION WHEN query_canceled OR others THEN
            PERFORM set_config('steep_repl.answer', SQLSTATE || ' ' || SQLERRM, true);
        END $discreet$"
    )
}

fn read(answer: &str) -> Result<(), Refusal> {
    let (code, message) = answer.split_once(' ').unwrap_or((answer, ""));
    if code.is_empty() {
        return Ok(());
    }
    Err(Refusal {
        code: code.to_owned(),
        message: message.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_of_the_statement_stay_inside_the_block() {
        assert!(block("X CONNECTION %L SLOT 'a'").contains("format('X CONNECTION %L SLOT ''a'''"));
    }

    #[test]
    fn an_answer_is_a_code_and_a_message() {
        assert_eq!(read(""), Ok(()));
        let refusal = read("42601 invalid connection string: x y").unwrap_err();
        assert_eq!(refusal.code, "42601");
        assert_eq!(refusal.message, "invalid connection string: x y");
    }
}
