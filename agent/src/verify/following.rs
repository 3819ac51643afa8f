//! What a server's catalog says of who follows whom.

use steep_protocol::Identifier;
use steep_protocol::message::repair::DatabaseId;
use steep_protocol::message::verify::{SlotPosition, SubscriptionFacts};
use tokio_postgres::Row;

use super::catalog::{get, texts};
use crate::pg::catalog::identifier;
use crate::pg::{PgError, Session};

/// Enabled subscriptions of this database.
pub(super) async fn subscriptions(session: &Session) -> Result<Vec<SubscriptionFacts>, PgError> {
    let sql = "SELECT s.subname::text, s.subslotname::text, s.subpublications FROM pg_subscription s \
         JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database() \
         WHERE s.subenabled AND s.subslotname IS NOT NULL ORDER BY s.subname LIMIT 100";
    let rows = session.query(sql, &[]).await?;
    let facts = |row: &Row| {
        let publications: Vec<String> = get(row, 2)?;
        Ok(SubscriptionFacts {
            name: identifier(get(row, 0)?)?,
            slot: identifier(get(row, 1)?)?,
            publications: publications
                .into_iter()
                .map(identifier)
                .collect::<Result<_, _>>()?,
        })
    };
    rows.iter().map(facts).collect()
}

/// Those of the slots that are logical ones of this database.
pub(super) async fn slots(
    session: &Session,
    names: &[Identifier],
) -> Result<Vec<SlotPosition>, PgError> {
    let sql = "SELECT s.slot_name::text, s.confirmed_flush_lsn::text, s.active FROM pg_replication_slots s \
         WHERE s.slot_name = ANY ($1) AND s.database = current_database() \
         AND s.confirmed_flush_lsn IS NOT NULL";
    let rows = session.query(sql, &[&texts(names)]).await?;
    let position = |row: &Row| {
        let confirmed: String = get(row, 1)?;
        Ok(SlotPosition {
            name: identifier(get(row, 0)?)?,
            confirmed: confirmed.parse().map_err(|_| not_an_lsn())?,
            active: get(row, 2)?,
        })
    };
    rows.iter().map(position).collect()
}

pub(super) fn not_an_lsn() -> PgError {
    PgError::Protocol("an LSN that is none".to_owned())
}

/// Which database this is.
pub(super) async fn identity(session: &Session) -> Result<DatabaseId, PgError> {
    let sql = "SELECT c.system_identifier, d.oid FROM pg_control_system() c, pg_database d \
         WHERE d.datname = current_database()";
    let row = session.query_one(sql, &[]).await?;
    let system: i64 = get(&row, 0)?;
    Ok(DatabaseId {
        system: system.cast_unsigned(),
        database: get(&row, 1)?,
    })
}
