//! The settings of our connections, and the parsing of versions.

use super::PgError;

/// Lets the server notice within seconds that its client is gone (PostgreSQL manual,
/// `client_connection_check_interval`). Some operating systems do not support it.
pub(super) const CHECK_CLIENT: &str = "SET client_connection_check_interval = '2s'";

/// Makes commits wait for this server's disk, whatever is set. Stricter settings, which also wait for
/// standbys, stay. `pg_temp` is never searched for functions, but the rest of the path may be somebody
/// else's.
pub(crate) const DURABLE: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'on', false) \
     WHERE pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'off'";

/// Waits until the disk has all commits before it. PostgreSQL waits for the disk only where a transaction has an
/// id and has written WAL before its commit (`RecordTransactionCommit`), and the message is that.
pub(crate) fn sync() -> String {
    format!(
        "BEGIN; SELECT pg_catalog.pg_logical_emit_message(true, 'steep_repl', ''); {DURABLE}; COMMIT"
    )
}

/// Settings for a server of that version, as one simple query. Includes the replica role and the refusal of user views.
///
/// `synchronous_commit`: what we report as done survives a crash. Timeouts: a job's own limits apply.
/// `search_path`: names in our SQL and in `format_type` output are qualified, and no temporary table comes
/// before PostgreSQL's own, as with an empty path. Formats: text means the same on any server.
/// `array_nulls`: a NULL in an array's text is a NULL. `row_security`: an error instead of missing rows.
/// `lc_monetary`: `money` as text reads back as the same number. `jit`: a query of a large catalog is expected
/// to cost much and takes milliseconds, less than compiling it. `standard_conforming_strings`, `backslash_quote`,
/// `transform_null_equals`: definitions that a server printed mean the same when they are run, and end where they should,
/// whatever the owner of the database has set. `default_transaction_read_only`: a database that a
/// switchover has closed to applications is not closed to us.
pub(super) fn statements(version: u32) -> String {
    let mut sql = format!("{DURABLE}; ")
        + "SET default_transaction_read_only = off; SET statement_timeout = 0; SET lock_timeout = 0; \
         SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0; \
         SET search_path = pg_catalog, pg_temp; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; \
         SET extra_float_digits = 3; SET bytea_output = 'hex'; SET xmloption = 'content'; \
         SET lc_monetary = 'C'; SET array_nulls = on; SET standard_conforming_strings = on; \
         SET backslash_quote = safe_encoding; SET transform_null_equals = off; \
         SET row_security = off; SET synchronize_seqscans = off; SET jit = off";
    if version >= 170_000 {
        sql.push_str("; SET transaction_timeout = 0");
    }
    if let Some(refuse) = user_views(version, UserViews::Refused) {
        sql.push_str("; ");
        sql.push_str(&refuse);
    }
    sql + "; " + replica(version)
}

/// What a session that waits for its next use runs, as one simple query. The first row says whether it is outside of
/// any transaction, which would otherwise have begun before this query: then only do the two times agree.
pub(super) fn rest(application_name: &str) -> String {
    format!(
        "SELECT pg_catalog.now() OPERATOR(pg_catalog.=) pg_catalog.statement_timestamp(); \
         RESET ALL; SET idle_session_timeout = 0; SET application_name = {application_name}"
    )
}

/// Keeps a session from reading user views and foreign tables: one could be put in the place of a table or
/// sequence between listing and reading, and a view's functions run with the reader's rights (CVE-2024-7348
/// in pg_dump).
const RESTRICT: &str = "restrict_nonsystem_relation_kind";

/// Whether a session may read user views and foreign tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UserViews {
    /// The session names only tables and sequences.
    Refused,
    /// Functions in constraints and materialised views may need them.
    Read,
}

/// `None` where the server lacks the setting: it has it from 14.13, 15.8, 16.4 and 17 on.
pub(super) fn user_views(version: u32, views: UserViews) -> Option<String> {
    let known = match version / 10_000 {
        14 => version >= 140_013,
        15 => version >= 150_008,
        16 => version >= 160_004,
        major => major >= 17,
    };
    let value = match views {
        UserViews::Refused => "view, foreign-table",
        UserViews::Read => "",
    };
    known.then(|| format!("SET {RESTRICT} = '{value}'"))
}

/// Sets the replica role where possible: only triggers enabled for replicas fire. Asks first, since the
/// server logs a refusal.
fn replica(version: u32) -> &'static str {
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
    fn views_of_users_are_refused_where_the_server_can() {
        for old in [140_012, 150_007, 160_003] {
            assert_eq!(user_views(old, UserViews::Refused), None);
            assert!(user_views(old + 1, UserViews::Refused).is_some());
        }
        let refused = user_views(180_000, UserViews::Refused).unwrap();
        assert!(refused.ends_with("= 'view, foreign-table'"), "{refused}");
        let read = user_views(180_000, UserViews::Read).unwrap();
        assert!(read.ends_with("= ''"), "{read}");
    }

    #[test]
    fn a_setting_is_made_only_where_it_exists() {
        assert!(!statements(160_000).contains("transaction_timeout"));
        assert!(statements(170_000).contains("transaction_timeout"));
    }
}
