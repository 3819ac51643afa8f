//! What every connection of ours sets, and how versions are read.

use super::PgError;

/// Lets the server notice within seconds that the agent is gone while it works for it (PostgreSQL
/// manual, `client_connection_check_interval`). Refused where the operating system cannot.
pub(super) const CHECK_CLIENT: &str = "SET client_connection_check_interval = '2s'";

/// Settings for a server of that version, as one simple query.
///
/// Timeouts: a job's own limits end it, not a server's default. `search_path`: names in our SQL and
/// in `format_type` output are qualified. Formats: text that means the same on any server.
/// `row_security`: an error rather than rows left out. `lc_monetary`: `money` in text reads back as
/// the same number wherever it is read under the same setting.
pub(super) fn statements(version: u32) -> String {
    let mut sql = "SET statement_timeout = 0; SET lock_timeout = 0; \
         SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0; \
         SET search_path = ''; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; \
         SET extra_float_digits = 3; SET bytea_output = 'hex'; SET xmloption = 'content'; \
         SET lc_monetary = 'C'; SET row_security = off; SET synchronize_seqscans = off"
        .to_owned();
    if version >= 170_000 {
        sql.push_str("; SET transaction_timeout = 0");
    }
    sql
}

/// Makes the session a replica's where the role may: no trigger and no event trigger of a user's fires on
/// what we do, but those that are enabled for replicas too. Asks first, since what is refused is logged.
pub(super) fn replica(version: u32) -> &'static str {
    if version >= 150_000 {
        "SELECT pg_catalog.set_config('session_replication_role', 'replica', false)
         WHERE pg_catalog.has_parameter_privilege('session_replication_role', 'SET')"
    } else {
        "SELECT pg_catalog.set_config('session_replication_role', 'replica', false)
         FROM pg_catalog.pg_roles WHERE rolname = current_user AND rolsuper"
    }
}

/// `server_version_num` from `server_version` ("18.6 (Debian …)", "19devel", "18beta1").
pub(super) fn version_num(text: &str) -> Result<u32, PgError> {
    let bad = || PgError::Protocol("the server's version is not understood".to_owned());
    let digits = |text: &str| {
        text.chars()
            .take_while(char::is_ascii_digit)
            .collect::<String>()
    };
    let major = digits(text);
    let minor = match text[major.len()..].strip_prefix('.') {
        Some(rest) => digits(rest).parse::<u32>().map_err(|_| bad())?,
        None => 0,
    };
    let major: u32 = major.parse().map_err(|_| bad())?;
    major
        .checked_mul(10_000)
        .and_then(|num| num.checked_add(minor))
        .ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbered_as_postgresql_does() {
        let cases = [
            ("18.6 (Debian 18.6-1)", 180_006),
            ("15.14", 150_014),
            ("19devel", 190_000),
        ];
        for (text, num) in cases {
            assert_eq!(version_num(text).unwrap(), num);
        }
        for bad in ["", "devel", "99999999999", "429496.7296", "4294967295.1"] {
            assert!(version_num(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_setting_is_made_only_where_it_exists() {
        assert!(!statements(160_000).contains("transaction_timeout"));
        assert!(statements(170_000).contains("transaction_timeout"));
    }
}
