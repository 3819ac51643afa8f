//! Why a subscription fails, in PostgreSQL's own words: the end of the server's log, where the role may
//! read it (a superuser, or with EXECUTE on three functions).
//!
//! Uses only entries of that subscription's workers, which name its origin. Repeats a message only as far
//! as it cannot hold a value, and of its details only the columns of a violated key. For an unknown message
//! only its place.

use steep_protocol::message::job::ReplicationNames;
use steep_protocol::{JobId, Lsn};

use crate::pg::{PgError, Session, key_columns};

/// How much of the log's end is read: an entry has a few lines, and workers retry every few seconds.
const READ_BYTES: i64 = 256 * 1024;

const TOLD_MAX: usize = 400;

/// The beginnings of messages with which an apply worker ends, and whether the text after a colon may be
/// repeated: names may, values may not.
const KNOWN: [(&str, Tail); 20] = [
    ("logical replication target relation ", Tail::Names),
    (
        "publisher did not send replica identity column ",
        Tail::Names,
    ),
    (
        "duplicate key value violates unique constraint ",
        Tail::None,
    ),
    (
        "conflicting key value violates exclusion constraint ",
        Tail::None,
    ),
    ("conflict detected on relation ", Tail::Names),
    ("null value in column ", Tail::None),
    ("new row for relation ", Tail::None),
    ("value for domain ", Tail::None),
    ("insert or update on table ", Tail::None),
    ("update or delete on table ", Tail::None),
    ("invalid input value for enum ", Tail::None),
    ("invalid input syntax for type ", Tail::None),
    ("value too long for type ", Tail::None),
    ("numeric field overflow", Tail::None),
    ("no partition of relation ", Tail::None),
    ("permission denied for ", Tail::None),
    ("column ", Tail::None),
    ("relation ", Tail::None),
    ("could not ", Tail::Names),
    ("cannot ", Tail::None),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    None,
    /// Object names, or the operating system's words.
    Names,
}

/// What is known of the errors of each of our subscriptions, in a sentence. An unreadable log is part of
/// the answer.
pub(crate) async fn troubles(
    session: &Session,
    failing: &[JobId],
) -> Result<Vec<(JobId, String)>, PgError> {
    let mut told = Vec::new();
    for job in failing {
        if let Some(own) = Own::find(session, *job).await? {
            told.push((*job, trouble(session, &own).await?));
        }
    }
    Ok(told)
}

/// The table at whose row a subscription fails, `schema.table`, if the log tells: what was applied since is past it.
pub(crate) async fn stuck_at(session: &Session, job: JobId) -> Result<Option<String>, PgError> {
    let Some(own) = Own::find(session, job).await? else {
        return Ok(None);
    };
    let Log::Read { text, .. } = log_end(session).await? else {
        return Ok(None);
    };
    let Some((table, finish)) = last_place(&text, &own.origin) else {
        return Ok(None);
    };
    let sql =
        "SELECT has_function_privilege('pg_replication_origin_progress(text, boolean)', 'EXECUTE')";
    if !session.query_one(sql, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = format!(
        "SELECT coalesce(pg_replication_origin_progress($1, false), '0/0') <= '{finish}'::pg_lsn"
    );
    let row = session.query_one(&sql, &[&own.origin]).await?;
    Ok(row.get::<_, bool>(0).then(|| table.to_owned()))
}

/// How entries of a subscription's workers name it.
struct Own {
    origin: String,
    slot: Option<String>,
    name: String,
}

impl Own {
    async fn find(session: &Session, job: JobId) -> Result<Option<Self>, PgError> {
        let name = ReplicationNames(job).name();
        let sql = "SELECT s.oid, s.subslotname::text FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
             WHERE d.datname = current_database() AND s.subname = $1";
        let row = session.query_opt(sql, &[&name]).await?;
        Ok(row.map(|row| Self {
            origin: format!("pg_{}", row.get::<_, u32>(0)),
            slot: row.get(1),
            name: name.to_string(),
        }))
    }
}

/// The end of the server's log.
enum Log {
    Read {
        file: String,
        text: String,
    },
    /// Where it is, and why it is not read.
    Unread(String),
}

async fn log_end(session: &Session) -> Result<Log, PgError> {
    // Asked first: a refusal would be an error in that log.
    let may = "SELECT has_function_privilege('pg_current_logfile(text)', 'EXECUTE')
        AND has_function_privilege('pg_read_binary_file(text, bigint, bigint, boolean)', 'EXECUTE')
        AND has_function_privilege('pg_stat_file(text, boolean)', 'EXECUTE')";
    if !session.query_one(may, &[]).await?.get::<_, bool>(0) {
        return Ok(Log::Unread(
            "the agent's role may not read it, which takes EXECUTE on pg_current_logfile(text), pg_stat_file(text, boolean) and pg_read_binary_file(text, bigint, bigint, boolean)".to_owned(),
        ));
    }
    let sql = "SELECT pg_current_logfile('stderr')";
    let file: String = match session.query_typed(sql, &[]).await {
        Ok(rows) => match rows.first().and_then(|row| row.get::<_, Option<String>>(0)) {
            Some(file) => file,
            None => {
                return Ok(Log::Unread(
                    "as log_destination of that server says".to_owned(),
                ));
            }
        },
        Err(error) if error.as_db_error().is_some() => {
            return Ok(Log::Unread("the agent's role may not read it".to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    let sql = "SELECT pg_read_binary_file($1, greatest(size - $2, 0), $2, true) FROM pg_stat_file($1, true)";
    let read = session.query_opt(sql, &[&file, &READ_BYTES]).await;
    let bytes: Option<Vec<u8>> = match read {
        Ok(row) => row.and_then(|row| row.get(0)),
        Err(error) if error.as_db_error().is_some() => return Ok(Log::Unread(file)),
        Err(error) => return Err(error.into()),
    };
    let text = bytes.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(Log::Read { file, text })
}

async fn trouble(session: &Session, own: &Own) -> Result<String, PgError> {
    let origin = &own.origin;
    let place = |file: &str| {
        format!(
            "PostgreSQL's log there tells why ({file}; entries with subscription \"{}\" or replication origin \"{origin}\")",
            own.name
        )
    };
    Ok(match log_end(session).await? {
        Log::Unread(why) => place(&why),
        Log::Read { file, text } => {
            let found = last_error(&text, origin).or_else(|| last_refusal(&text, own));
            found.unwrap_or_else(|| place(&file))
        }
    })
}

/// The table and the end of the transaction at which that origin's worker failed last.
fn last_place<'a>(log: &'a str, origin: &str) -> Option<(&'a str, Lsn)> {
    let own = format!("replication origin \"{origin}\"");
    let mut lines = log.lines().rev();
    let context = lines.find(|line| line.contains("CONTEXT:") && line.contains(&own))?;
    let table = quoted_after(context, "for replication target relation ")?;
    Some((table, quoted_lsn(context)?))
}

/// The last entry of that origin's workers, as far as it may be repeated.
fn last_error(log: &str, origin: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().collect();
    let own = format!("replication origin \"{origin}\"");
    let context = lines
        .iter()
        .rposition(|line| line.contains("CONTEXT:") && line.contains(&own))?;
    // The lines of an entry are written at once.
    let before = lines[..context]
        .iter()
        .rposition(|line| line.contains("CONTEXT:"));
    let entry = &lines[before.map_or(0, |at| at + 1)..context];
    let at = entry.iter().rposition(|line| line.contains("ERROR:"))?;
    let (_, message) = entry[at].split_once("ERROR:")?;
    let mut message = tellable(message.trim())?;
    let detail = entry[at..]
        .iter()
        .find_map(|line| line.split_once("DETAIL:"));
    if let Some(columns) = detail.and_then(|(_, detail)| key_columns(detail.trim())) {
        message.push_str(&format!(", key ({columns})"));
    }
    let place = quoted_after(lines[context], "for replication target relation ");
    let during = quoted_after(lines[context], "during message type ");
    let mut text = format!("PostgreSQL says: {message}");
    match (place, during) {
        (Some(table), Some(during)) => text.push_str(&format!(" ({during} on {table})")),
        (None, Some(during)) => text.push_str(&format!(" ({during})")),
        _ => {}
    }
    let finish = quoted_lsn(lines[context]);
    if let Some(lsn) = finish {
        text.push_str(&format!(
            "; the transaction ends at {lsn} of the source's WAL"
        ));
    }
    Some(told(&text))
}

/// The last error with which a worker ended before it received anything: such an entry names the subscription
/// or the slot, and no row has been read yet.
fn last_refusal(log: &str, own: &Own) -> Option<String> {
    let names = [Some(&own.name), own.slot.as_ref()];
    let names: Vec<String> = names
        .into_iter()
        .flatten()
        .map(|name| format!("\"{name}\""))
        .collect();
    let message = log.lines().rev().find_map(|line| {
        let (_, message) = line.split_once("ERROR:")?;
        let message = message.trim();
        let refused = message.starts_with("could not start WAL streaming")
            || message.contains("could not connect to the publisher");
        (refused && names.iter().any(|name| message.contains(name))).then_some(message)
    })?;
    // "could not start WAL streaming: ERROR:  …" repeats the source's own words.
    let words: Vec<&str> = message.split_whitespace().collect();
    Some(told(&format!("PostgreSQL says: {}", words.join(" "))))
}

/// Short, and in one line.
fn told(text: &str) -> String {
    text.chars()
        .take(TOLD_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn tellable(message: &str) -> Option<String> {
    let (_, tail) = KNOWN.iter().find(|(known, _)| message.starts_with(known))?;
    Some(match tail {
        Tail::Names => message.to_owned(),
        Tail::None => match message.split_once(": ") {
            Some((head, _)) => head.to_owned(),
            None => message.to_owned(),
        },
    })
}

fn quoted_after<'a>(line: &'a str, words: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(words)?;
    rest.strip_prefix('"')?
        .split_once('"')
        .map(|(name, _)| name)
}

fn quoted_lsn(line: &str) -> Option<Lsn> {
    let (_, rest) = line.split_once("finished at ")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-11-28 20:00:00 UTC [7] LOG:  logical replication apply worker for subscription \"s\" has started
2026-11-28 20:00:01 UTC [7] ERROR:  duplicate key value violates unique constraint \"t_pkey\"
2026-11-28 20:00:01 UTC [7] DETAIL:  Key (id)=(4711) already exists.
2026-11-28 20:00:01 UTC [7] CONTEXT:  processing remote data for replication origin \"pg_16394\" during message type \"INSERT\" for replication target relation \"public.t\" in transaction 736, finished at 0/1A2B3C
2026-11-28 20:00:02 UTC [9] ERROR:  invalid input value for enum public.mood: \"secret\"
2026-11-28 20:00:02 UTC [9] CONTEXT:  processing remote data for replication origin \"pg_2\" during message type \"INSERT\" for replication target relation \"public.felt\" column \"mood\" in transaction 740, finished at 0/2
2026-11-28 20:00:03 UTC [11] ERROR:  customer 4711 of secret is refused
2026-11-28 20:00:03 UTC [11] CONTEXT:  PL/pgSQL function f() line 1 at RAISE
\tprocessing remote data for replication origin \"pg_3\" during message type \"INSERT\"
";

    #[test]
    fn the_last_error_of_a_subscription_is_told_without_its_values() {
        let told = last_error(LOG, "pg_16394").unwrap();
        assert_eq!(
            told,
            "PostgreSQL says: duplicate key value violates unique constraint \"t_pkey\", key (id) \
             (INSERT on public.t); the transaction ends at 0/1A2B3C of the source's WAL"
        );
        let told = last_error(LOG, "pg_2").unwrap();
        assert!(
            told.contains("enum public.mood (INSERT on public.felt)"),
            "{told}"
        );
        for origin in ["pg_16394", "pg_2", "pg_3", "pg_4"] {
            let told = last_error(LOG, origin).unwrap_or_default();
            assert!(!told.contains("4711") && !told.contains("secret"), "{told}");
        }
        assert_eq!(last_error(LOG, "pg_3"), None);
        let at = |lsn: &str| lsn.parse::<Lsn>().unwrap();
        assert_eq!(last_place(LOG, "pg_2"), Some(("public.felt", at("0/2"))));
        assert_eq!(last_place(LOG, "pg_3"), None);
        assert_eq!(last_error(LOG, "pg_1"), None, "no other's");
    }

    #[test]
    fn a_worker_that_never_got_a_change_is_found_by_subscription_or_slot() {
        let log = "\
2026-11-28 20:00:00 UTC [7] ERROR:  could not start WAL streaming: ERROR:  replication slot \"mine\" was not created in this database
2026-11-28 20:00:01 UTC [8] ERROR:  apply worker for subscription \"yours\" could not connect to the publisher: connection to server at \"h\", port 1 failed: Connection refused
2026-11-28 20:00:02 UTC [9] ERROR:  relation \"mine\" does not exist
";
        let of = |name: &str, slot: &str| {
            let own = Own {
                origin: "pg_1".to_owned(),
                slot: Some(slot.to_owned()),
                name: name.to_owned(),
            };
            last_refusal(log, &own).unwrap_or_default()
        };
        assert_eq!(
            of("s", "mine"),
            "PostgreSQL says: could not start WAL streaming: ERROR: replication slot \"mine\" was not created in this database"
        );
        assert!(of("yours", "t").contains("Connection refused"));
        assert_eq!(of("s", "t"), "");
    }
}
