//! Facts about a server, gathered before anything is changed: a few catalog queries for any number of
//! tables.
//!
//! Gathers only: the coordinator judges, from both ends' facts. Nothing here changes anything that outlives
//! its transaction. Two probes do more than read and are rolled back: whether triggers can be silenced
//! ([`server`]), and whether this PostgreSQL reaches the other one ([`reachability`]). A third opens a
//! replication connection and closes it ([`walsender`]).
//!
//! Invariants: names go into SQL only through quoted types; no fact holds a password; a catalog of any size
//! is streamed and kept as counts and bounded lists.

mod content;
mod event_triggers;
mod features;
mod filters;
mod identity;
mod lineage;
mod loading;
mod owner_code;
mod pooler;
mod reachability;
mod receiver;
mod server;
mod settings;
mod target_checks;
mod walsender;

use std::collections::HashSet;
use std::time::Duration;

use backon::Retryable as _;
use steep_protocol::Fault;
use steep_protocol::message::facts::{ServerFacts, SourceFacts, TargetFacts};
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::peer::{DatabaseSetting, Secret};
use steep_schema::Schema;

pub(crate) use lineage::lineage;
pub(crate) use owner_code::powers;

use self::owner_code::Indexes;
use crate::pg::{PgError, SHORT_LOCK_TIMEOUT, Session, lock_timeout};
use crate::task::Task;

/// What the source's agent reported, as far as it was reached.
#[derive(Debug)]
pub(crate) struct PeerFacts {
    pub(crate) link: Result<Duration, String>,
    pub(crate) clock_ahead: f64,
    pub(crate) conninfo: Option<Secret>,
    pub(crate) schema: Schema,
    pub(crate) settings: Vec<DatabaseSetting>,
}

/// The oldest version for which these queries are written; of an older server only its version is reported.
const OLDEST_READABLE: u32 = 140_000;

/// Facts about this node as a source. Fails only where PostgreSQL cannot be asked.
pub(crate) async fn source(task: &Task, filter: &TableFilter) -> Result<SourceFacts, Fault> {
    let facts = (|| try_source(task, filter)).retry(lock_timeout::a_few_times());
    let facts = facts.when(PgError::is_locked).await;
    facts.map_err(|error| task.fault(error))
}

async fn try_source(task: &Task, filter: &TableFilter) -> Result<SourceFacts, PgError> {
    let (server, session) = look(task).await?;
    let mut facts = SourceFacts::default();
    if let Some(session) = session {
        facts = content::gather(task, &session, filter).await?;
        facts.loading = loading::gather(task, &session, filter).await?;
        let calls = owner_code::calls(task, &session, filter, Indexes::Elsewhere).await?;
        (facts.owner_code, facts.index_code) = (calls.loading, calls.indexes);
        session.give_back().await;
        facts.replication_link = walsender::probe(task, &server).await?;
    }
    facts.server = server;
    Ok(facts)
}

/// Facts about this node as a target of that source. Fails only where PostgreSQL cannot be asked.
pub(crate) async fn target(
    task: &Task,
    filter: &TableFilter,
    peer: PeerFacts,
) -> Result<TargetFacts, Fault> {
    let facts = (|| try_target(task, filter, &peer)).retry(lock_timeout::a_few_times());
    let facts = facts.when(PgError::is_locked).await;
    facts.map_err(|error| task.fault(error))
}

async fn try_target(
    task: &Task,
    filter: &TableFilter,
    peer: &PeerFacts,
) -> Result<TargetFacts, PgError> {
    let (server, session) = look(task).await?;
    let mut facts = TargetFacts::default();
    if let Some(session) = session {
        facts = receiver::gather(task, &session, filter, peer).await?;
        target_checks::gather(task, &session, peer, &mut facts).await?;
        facts.loading = loading::gather(task, &session, filter).await?;
        facts.mutable_members = loading::altered::mutable(task, &session).await?;
        settings::gather(task, &session, peer, &mut facts).await?;
        let wanted: HashSet<_> = peer.schema.tables().map(|table| &table.name).collect();
        let calls = owner_code::calls(task, &session, filter, Indexes::Here(&wanted)).await?;
        (facts.owner_code, facts.index_code) = (calls.loading, calls.indexes);
        let own = task.replication.name();
        facts.subscribed = lineage::subscribed(&session, own.as_str(), &wanted).await?;
        if let Some(conninfo) = &peer.conninfo {
            facts.server_link = reachability::probe(task, &session, conninfo).await?;
            facts.server_reached = reachability::reached(task, conninfo).await?;
        }
        session.give_back().await;
    }
    facts.server = server;
    facts.clock_ahead_seconds = peer.clock_ahead;
    let micros = |rtt: Duration| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
    facts.agent_link = Some(peer.link.clone().map(micros));
    Ok(facts)
}

/// The server's facts, and a session for more questions; `None` where the facts say why not.
async fn look(task: &Task) -> Result<(ServerFacts, Option<Session>), PgError> {
    // What somebody has just set for the database or the role holds for new sessions only.
    let session = Session::connect_anew(&task.conninfo, "preflight").await?;
    let mut facts = ServerFacts {
        version: session.server_version(),
        ..ServerFacts::default()
    };
    if facts.version < OLDEST_READABLE {
        return Ok((facts, None));
    }
    // First, as prepared statements may not work behind a pooler.
    facts.pooled = pooler::detect(task, &session).await?;
    if facts.pooled.is_some() {
        return Ok((facts, None));
    }
    session
        .run(&task.cancel, session.batch_execute(SHORT_LOCK_TIMEOUT))
        .await?;
    let mut facts = server::gather(task, &session, facts).await?;
    facts.powers = owner_code::powers(task, &session).await?;
    facts.event_triggers = event_triggers::gather(task, &session).await?;
    facts.lineage = lineage::lineage(&session, &task.node).await?;
    Ok((facts, Some(session)))
}
