//! A node as it is stored, and what is stored with it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::message::agent::MissingObjects;
use steep_protocol::message::api::DetachedFrom;
use steep_protocol::message::handover::{Replication, SlotName};
use steep_protocol::message::job::NewTables;
use steep_protocol::message::lineage::Lineage;
use steep_protocol::message::schema::SchemaDifference;
use steep_protocol::message::snapshot::LoadedSnapshot;
use steep_protocol::message::verify::VerifySchedule;
use steep_protocol::{JobId, NodeId, NodeState, TableName};

use crate::job::membership::Complete;

/// A node as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub id: NodeId,
    /// Its state.
    pub state: NodeState,
    /// Where its rows come from.
    pub source: Option<NodeId>,
    /// Its last job.
    pub job: Option<JobId>,
    /// The job that changes its tables, while that runs.
    #[serde(default)]
    pub change: Option<JobId>,
    /// The id that the last job's publication and subscription are named after, if not its own.
    #[serde(default)]
    pub replication: Option<JobId>,
    /// Its slot on the source, if it is not named like the replication.
    #[serde(default)]
    pub slot: Option<SlotName>,
    /// When the last job began.
    pub init_started_at: Option<Timestamp>,
    /// When a job last succeeded.
    pub init_completed_at: Option<Timestamp>,
    /// Why the last job failed, or why the node diverged.
    pub error_message: Option<String>,
    /// Its agent's version, when it last registered.
    pub agent_version: Option<String>,
    /// Where other agents reached its agent, when it last registered.
    pub advertise: Option<String>,
    /// Its PostgreSQL's version, when last seen.
    pub postgres_version: Option<u32>,
    /// How the columns of its replicated tables may differ from the source's.
    #[serde(default)]
    pub columns: Columns,
    /// Why changes may be missing, so that it cannot follow even with a working slot and subscription. Only
    /// a new job or a cancel clears it.
    #[serde(default)]
    pub lost: Option<String>,
    /// Preflight warnings that could stop its subscription, a sentence each.
    pub risks: Vec<String>,
    /// What it lacks of its source's schema, as last reported by its agent.
    pub missing: MissingObjects,
    /// Complete tables that entered its replication later.
    #[serde(default)]
    pub complete: Vec<Complete>,
    /// Tables of its source that were created later, are not replicated and have been announced.
    #[serde(default)]
    pub appeared: Vec<TableName>,
    /// What happens to tables that are created on its source later.
    #[serde(default)]
    pub new_tables: NewTables,
    /// What was loaded into it without replication, where its last job did that.
    #[serde(default)]
    pub loaded: Option<LoadedSnapshot>,
    /// From whom it was detached, if nothing has happened to its rows since.
    #[serde(default)]
    pub detached: Option<DetachedFrom>,
    /// What it left on sources that were away when it was detached.
    #[serde(default)]
    pub left: Vec<LeftBehind>,
    /// How its rows are compared regularly.
    #[serde(default)]
    pub verify: Option<RegularVerify>,
    /// Its database's identity, its subscriptions and traces of jobs, as last reported by its agent.
    pub lineage: Option<Box<Lineage>>,
    /// Since when it cannot be observed.
    pub unseen_since: Option<Timestamp>,
}

/// Comparisons of a node's rows with its source's that the coordinator begins by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegularVerify {
    /// The source.
    pub source: NodeId,
    /// How.
    pub schedule: VerifySchedule,
    /// When the next one begins.
    pub next_at: Timestamp,
    /// Which rows differ, until a comparison finds none.
    pub differ: Option<String>,
    /// Their tables, if they are not many.
    #[serde(default)]
    pub differing: Vec<TableName>,
    /// The last one.
    pub last: Option<LastVerify>,
}

/// What came of such a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastVerify {
    /// When it ended.
    pub at: Timestamp,
    /// Whether rows are equal, where that is known.
    pub equal: Option<bool>,
    /// Which tables differ, or why that is not known.
    pub message: Option<String>,
}

/// A slot with its publication that a node has left on a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftBehind {
    /// The source.
    pub source: NodeId,
    /// What replicated from there.
    pub replication: Replication,
}

/// How the columns of a synchronized node may differ from its source's without being drift.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Columns {
    /// Not at all.
    #[default]
    Equal,
    /// As when first observed after the job, as far as its mode allows.
    AsFirstSeen,
    /// In these ways.
    Accepted(Accepted),
}

/// Accepted differences.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Accepted {
    /// The listed ones.
    pub differences: Vec<SchemaDifference>,
    /// The number of further ones.
    pub unlisted: u64,
}

impl NodeRecord {
    /// A new node.
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            state: NodeState::Uninitialized,
            source: None,
            job: None,
            change: None,
            replication: None,
            slot: None,
            init_started_at: None,
            init_completed_at: None,
            error_message: None,
            agent_version: None,
            advertise: None,
            postgres_version: None,
            columns: Columns::Equal,
            lost: None,
            risks: Vec::new(),
            missing: MissingObjects::default(),
            complete: Vec::new(),
            appeared: Vec::new(),
            new_tables: NewTables::Report,
            loaded: None,
            detached: None,
            left: Vec::new(),
            verify: None,
            lineage: None,
            unseen_since: None,
        }
    }

    /// Clears what was recorded about its replication, before another one begins.
    pub fn forget_following(&mut self) {
        self.lost = None;
        self.complete.clear();
        self.appeared.clear();
        if let Some(regular) = &mut self.verify {
            regular.differ = None;
            regular.differing.clear();
        }
    }

    /// The job at work on it, or else its last one.
    #[must_use]
    pub fn newest_job(&self) -> Option<JobId> {
        self.change.or(self.job)
    }

    /// From now on it follows by that job, if it is the one that has changed it. Its former replication is to be removed
    /// from the source.
    pub fn followed_anew(&mut self, (job, begun): (JobId, Timestamp), replication: &Replication) {
        if self.change != Some(job) {
            return;
        }
        if let (Some(source), Some(id)) = (self.source.clone(), self.replication()) {
            let slot = self.slot.clone();
            let former = slot.map_or_else(|| Replication::of(id), |slot| Replication { id, slot });
            self.left.push(LeftBehind {
                source,
                replication: former,
            });
        }
        self.change = None;
        self.job = Some(job);
        self.init_started_at = Some(begun);
        self.replicates_by(replication);
    }

    /// Notes what its last job replicates by.
    pub fn replicates_by(&mut self, replication: &Replication) {
        self.replication = (self.job != Some(replication.id)).then_some(replication.id);
        self.slot = replication.is_prepared().then(|| replication.slot.clone());
    }

    /// The id that publication and subscription of its last job are named after.
    #[must_use]
    pub fn replication(&self) -> Option<JobId> {
        self.replication.or(self.job)
    }
}
