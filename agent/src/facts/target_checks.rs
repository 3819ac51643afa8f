//! Ways in which a target refuses or changes what its catalog alone would let pass: what it was built
//! without, triggers that fire on what is replicated as well, and policies that bind the owner.

use std::collections::HashMap;

use steep_protocol::TableName;
use steep_protocol::message::facts::TargetFacts;
use tokio_postgres::error::SqlState;

use super::PeerFacts;
use super::content::{FORCED_SECURITY, add};
use super::features;
use crate::pg::catalog::table_name;
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Roles that bypass row security are few.
const ROLES_MAX: usize = 1_024;

/// Refused with `feature_not_supported` where there is no libxml.
const XML_SQL: &str = "SELECT xmlparse(content '<a/>') IS NOT NULL";

/// `ENABLE ALWAYS` and `ENABLE REPLICA` (PostgreSQL manual, ALTER TABLE), constraints' own triggers
/// left out; and [`FORCED_SECURITY`].
fn tables_sql() -> String {
    format!(
        "SELECT n.nspname::text, c.relname::text, t.firing, {FORCED_SECURITY}
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid
             AND t.tgenabled IN ('A', 'R') AND NOT t.tgisinternal) AS firing) AS t
         WHERE c.relkind IN ('r', 'p') AND (t.firing OR {FORCED_SECURITY})"
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
    let found: HashMap<TableName, (bool, bool)> = rows
        .iter()
        .map(|row| Ok((table_name(row, 0)?, (row.get(2), row.get(3)))))
        .collect::<Result<_, PgError>>()?;
    for table in peer.schema.tables() {
        let (firing, forced) = found.get(&table.name).copied().unwrap_or_default();
        if firing {
            add(&mut facts.firing_triggers, &table.name);
        }
        if forced {
            add(&mut facts.forced_security, &table.name);
        }
    }
    let sql = "SELECT rolname::text FROM pg_roles WHERE rolsuper OR rolbypassrls ORDER BY 1";
    let rows = session.run(&task.cancel, session.query(sql, &[])).await?;
    let names = rows.iter().take(ROLES_MAX).map(|row| row.try_get(0));
    facts.bypassing = names.collect::<Result<_, _>>()?;
    Ok(())
}
