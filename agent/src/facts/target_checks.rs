//! Ways in which a target refuses or changes what its catalog alone would let pass: what it was built
//! without, and triggers that fire on what is replicated as well.

use std::collections::HashSet;

use steep_protocol::TableName;
use steep_protocol::message::facts::TargetFacts;
use tokio_postgres::error::SqlState;

use super::PeerFacts;
use super::content::add;
use super::features;
use crate::pg::catalog::table_name;
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Refused with `feature_not_supported` where there is no libxml.
const XML_SQL: &str = "SELECT xmlparse(content '<a/>') IS NOT NULL";

/// `ENABLE ALWAYS` and `ENABLE REPLICA` (PostgreSQL manual, ALTER TABLE), constraints' own triggers
/// left out.
const TRIGGERS_SQL: &str = "
    SELECT DISTINCT n.nspname::text, c.relname::text
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE t.tgenabled IN ('A', 'R') AND NOT t.tgisinternal ORDER BY 1, 2";

/// Adds both to the facts.
pub(super) async fn gather(
    task: &Task,
    session: &Session,
    peer: &PeerFacts,
    facts: &mut TargetFacts,
) -> Result<(), PgError> {
    let asked = session.run(&task.cancel, session.query(XML_SQL, &[])).await;
    facts.xml = match asked {
        Ok(_) => Some(true),
        Err(error) if error.is(&SqlState::FEATURE_NOT_SUPPORTED) => Some(false),
        Err(error) => return Err(error),
    };
    let abilities = features::of_target(task, session).await?;
    (facts.lz4, facts.icu) = (Some(abilities.lz4), Some(abilities.icu));
    facts.locales = abilities.locales;
    let rows = session
        .run(&task.cancel, session.query(TRIGGERS_SQL, &[]))
        .await?;
    let with: HashSet<TableName> = rows
        .iter()
        .map(|row| table_name(row, 0))
        .collect::<Result<_, _>>()?;
    for table in peer.schema.tables() {
        if with.contains(&table.name) {
            add(&mut facts.firing_triggers, &table.name);
        }
    }
    Ok(())
}
