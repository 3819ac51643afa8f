//! Ways in which a target refuses or changes what its catalog alone would let pass: what it was built
//! without, triggers that fire on what is replicated as well, and policies that bind the owner.

use std::collections::HashMap;

use steep_protocol::TableName;
use steep_protocol::message::facts::TargetFacts;
use tokio_postgres::error::SqlState;

use super::PeerFacts;
use super::content::{FIRING_TRIGGERS, FORCED_ON, add, add_owned};
use super::features;
use crate::pg::catalog::table_name;
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Roles that bypass row security are few.
const ROLES_MAX: usize = 1_024;

/// Refused with `feature_not_supported` where there is no libxml.
const XML_SQL: &str = "SELECT xmlparse(content '<a/>') IS NOT NULL";

/// Tables with triggers that fire on replicated rows, or with policies that bind their owner.
fn tables_sql() -> String {
    format!(
        "SELECT n.nspname::text, c.relname::text, f.firing, f.forced_on
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         CROSS JOIN LATERAL (SELECT {FIRING_TRIGGERS} AS firing, {FORCED_ON} AS forced_on) AS f
         WHERE c.relkind IN ('r', 'p') AND (f.firing OR f.forced_on IS NOT NULL)"
    )
}

/// Adds them to the facts.
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
        .run(&task.cancel, session.query(&tables_sql(), &[]))
        .await?;
    let found: HashMap<TableName, (bool, Option<String>)> = rows
        .iter()
        .map(|row| Ok((table_name(row, 0)?, (row.get(2), row.get(3)))))
        .collect::<Result<_, PgError>>()?;
    for table in peer.schema.tables() {
        let Some((firing, forced_on)) = found.get(&table.name) else {
            continue;
        };
        if *firing {
            add(&mut facts.firing_triggers, &table.name);
        }
        if let Some(owner) = forced_on {
            add_owned(&mut facts.forced_security, owner, &table.name);
        }
    }
    let sql = "SELECT rolname::text FROM pg_roles WHERE rolsuper OR rolbypassrls ORDER BY 1";
    let rows = session.run(&task.cancel, session.query(sql, &[])).await?;
    let names = rows.iter().take(ROLES_MAX).map(|row| row.try_get(0));
    facts.bypassing = names.collect::<Result<_, _>>()?;
    Ok(())
}
