//! Which tables a subscription has added since it was complete, and whether it was altered.

use steep_protocol::message::agent::{
    AddedRows, AddedTable, CARRIED_MAX, Subscribed, SubscriptionWiring,
};
use steep_protocol::message::job::ReplicationNames;
use steep_protocol::{Identifier, JobId};
use tokio_postgres::types::Type;

use crate::node::connection::Conn;
use crate::pg::catalog::{enum_labels, table_name};
use crate::pg::mark::{self, Marked};
use crate::pg::{PgError, Session};

/// Marks the subscription as complete now.
pub(crate) async fn mark(conn: &Conn, name: &Identifier) -> Result<(), PgError> {
    let session = &conn.session;
    mark::set(session, session, Marked::Subscription, name.as_str()).await
}

/// How a subscription `s` is wired, for a `SELECT`: a letter for [`wiring`], the mark's number, and a
/// number that changes when it is altered.
pub(crate) fn wiring_sql(server_version: u32) -> String {
    let skips = match server_version {
        150_000.. => "s.subskiplsn <> '0/0'",
        _ => "false",
    };
    let mark = mark::of("obj_description(s.oid, 'pg_subscription')");
    let digest = Marked::Subscription.digest();
    // All roles may read pg_subscription's columns except the connection string, but no system column,
    // hence not xmin.
    format!(
        "(SELECT CASE WHEN {skips} THEN 'k' WHEN m.mark IS NULL THEN 'u' \
             WHEN {digest} <> {} THEN 'c' ELSE 's' END FROM (SELECT {mark} AS mark) AS m), {}, \
         hashtextextended(concat({digest}, s.subenabled), 0) & 9223372036854775807",
        mark::digest("m.mark"),
        mark::number(&mark)
    )
}

pub(crate) fn wiring(letter: &str) -> SubscriptionWiring {
    match letter {
        "s" => SubscriptionWiring::Sound,
        "c" => SubscriptionWiring::Changed,
        "k" => SubscriptionWiring::Skipping,
        _ => SubscriptionWiring::Unmarked,
    }
}

/// How our marked subscriptions differ from what they were at their mark.
pub(crate) async fn subscribed(session: &Session) -> Result<Vec<Subscribed>, PgError> {
    let prefix = ReplicationNames::PREFIX;
    let ours = format!(
        "WITH RECURSIVE ours AS MATERIALIZED ( \
             SELECT s.oid, s.subname::text AS name, {} AS since, {} AS mark FROM pg_subscription s \
             JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database() \
             CROSS JOIN LATERAL (SELECT {} AS mark) AS m \
             WHERE starts_with(s.subname::text, $1) AND m.mark IS NOT NULL \
         )",
        mark::since("m.mark"),
        mark::number("m.mark"),
        mark::of("obj_description(s.oid, 'pg_subscription')")
    );
    let job = |name: &str| -> Option<JobId> { name.strip_prefix(prefix)?.parse().ok() };
    let mut all: Vec<Subscribed> = Vec::new();
    let sql = format!("{ours} SELECT name, mark FROM ours ORDER BY 1");
    for row in session.query_typed(&sql, &[(&prefix, Type::TEXT)]).await? {
        let empty = |job| Subscribed {
            job,
            mark: row.get(1),
            added: Vec::new(),
            added_total: 0,
            enums: Vec::new(),
        };
        all.extend(job(row.get(0)).map(empty));
    }
    if all.is_empty() {
        return Ok(all);
    }
    let sql = format!(
        "{ours} SELECT o.name, n.nspname::text, c.relname::text, r.xmin::text::bigint, \
             CASE WHEN r.srsubstate <> 'r' THEN 'i' WHEN r.srsublsn IS NULL THEN 'n' ELSE 'c' END \
         FROM ours o JOIN pg_subscription_rel r ON r.srsubid = o.oid \
         JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE {} ORDER BY 1, 2, 3",
        mark::late("r.xmin", "o.since")
    );
    for row in &session.query_typed(&sql, &[(&prefix, Type::TEXT)]).await? {
        let id = job(row.get(0));
        let Some(subscribed) = all.iter_mut().find(|s| Some(s.job) == id) else {
            continue;
        };
        subscribed.added_total += 1;
        if subscribed.added.len() < CARRIED_MAX {
            subscribed.added.push(AddedTable {
                table: table_name(row, 1)?,
                by: u64::try_from(row.get::<_, i64>(3)).unwrap_or(0),
                rows: match row.get::<_, &str>(4) {
                    "c" => AddedRows::Copied,
                    "n" => AddedRows::NotCopied,
                    _ => AddedRows::Copying,
                },
            });
        }
    }
    let carried = format!(
        "{ours}, carried AS (SELECT o.name, r.srrelid AS relation \
             FROM ours o JOIN pg_subscription_rel r ON r.srsubid = o.oid)"
    );
    for (name, labels) in enum_labels(session, &carried, prefix).await? {
        let id = job(&name);
        if let Some(subscribed) = all.iter_mut().find(|s| Some(s.job) == id) {
            subscribed.enums.push(labels);
        }
    }
    Ok(all)
}
