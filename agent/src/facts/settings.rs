//! Database and role settings that differ from the source's.

use std::collections::BTreeSet;

use steep_protocol::message::facts::TargetFacts;

use super::PeerFacts;
use crate::pg::catalog::{differences, read_settings};
use crate::pg::{PgError, Session};
use crate::task::Task;

const DATABASE_SQL: &str = "SELECT datname::text, pg_has_role(datdba, 'USAGE')
    FROM pg_database WHERE datname = current_database()";

/// Needs the roles that are here in `facts`.
pub(super) async fn gather(
    task: &Task,
    session: &Session,
    peer: &PeerFacts,
    facts: &mut TargetFacts,
) -> Result<(), PgError> {
    let row = session
        .run(&task.cancel, session.query_one(DATABASE_SQL, &[]))
        .await?;
    facts.owns_database = row.try_get(1)?;
    let here = read_settings(session).await?;
    let roles: BTreeSet<&str> = facts.roles.iter().map(String::as_str).collect();
    facts.settings = differences(&peer.settings, &here, row.try_get(0)?, &roles);
    Ok(())
}
