//! What an agent sees of its server about every second, as `agent/src/session/observe.rs` does.

use jiff::Timestamp;
use steep_protocol::message::agent::{
    AgentMessage, Observed, PublicationState, PublicationStatus, SlotStatus, SubscriptionStatus,
    SubscriptionWiring,
};
use steep_protocol::message::handover::{PreparedSlot, PreparedState, Replication, SlotName};
use steep_protocol::message::job::ReplicationNames;
use steep_protocol::message::lineage::{ChangeOrigin, Lineage, SubscriptionSeen, Tool};
use steep_protocol::{ByteCount, JobId, Lsn};

use super::postgres::{Note, Server, Subscription};
use super::stored::timestamp;
use super::world::{Cluster, Node};

/// How often an agent looks at its server.
const LOOK: i64 = 1_000;

impl Cluster {
    pub(super) fn look(&mut self, n: usize) {
        let now = self.now;
        let Node { server, agent, .. } = &mut self.nodes[n];
        if !agent.is_up() || agent.session.is_none() || agent.looks_at > now {
            return;
        }
        agent.looks_at = now + LOOK;
        let lost = agent.lost_snapshots(server.boots);
        if !server.is_up() {
            agent.say(AgentMessage::Observed(Observed {
                postgres: Some(Err("connection refused".to_owned())),
                lost_snapshots: lost,
                ..Observed::default()
            }));
            return;
        }
        let expired = drop_expired(server, now);
        for slot in expired {
            agent.say(AgentMessage::SlotExpired { slot });
        }
        let prepared = prepared(server, now);
        let observed = Observed {
            postgres: Some(Ok(180_000)),
            slots: slots(server),
            subscriptions: Vec::new(),
            lost_snapshots: lost,
            publications: publications(server),
            ..Observed::default()
        };
        agent.say(AgentMessage::Prepared(prepared));
        let lineage = lineage(server);
        if let Some(session) = &mut agent.session
            && session.lineage.as_ref() != Some(&lineage)
        {
            session.lineage = Some(lineage.clone());
            agent.say(AgentMessage::Lineage(Box::new(lineage)));
        }
        let subscriptions = self.subscriptions(n);
        self.nodes[n].agent.say(AgentMessage::Observed(Observed {
            subscriptions,
            ..observed
        }));
    }

    fn subscriptions(&self, n: usize) -> Vec<SubscriptionStatus> {
        let source = &self.nodes[0].server;
        let own = self.nodes[n].server.subscriptions.iter();
        let statuses = own.filter_map(|(name, own)| {
            let slot = source.slots.get(&own.slot);
            let works = source.is_up() && slot.is_some_and(|slot| !slot.lost);
            Some(SubscriptionStatus {
                job: job_of(name)?,
                enabled: own.enabled,
                running: own.enabled && works,
                apply_errors: 0,
                wiring: SubscriptionWiring::Sound,
                mark: 7,
                altered_by: 1,
                trouble: None,
            })
        });
        statuses.collect()
    }
}

/// Unfinished jobs, and the note of a single one.
fn lineage(server: &Server) -> Lineage {
    let mut records = server.records.values();
    let note = records.next().and_then(|record| record.note.clone());
    let subscriptions = server.subscriptions.iter();
    let seen = |(name, subscription): (&String, &Subscription)| SubscriptionSeen {
        name: name.clone(),
        tool: Tool::PostgreSql,
        slot: Some(subscription.slot.clone()),
        origin: ChangeOrigin::Any,
    };
    Lineage {
        subscriptions: subscriptions.map(seen).collect(),
        jobs: server.records.keys().copied().collect(),
        note: note.filter(|_| records.next().is_none()),
        ..Lineage::default()
    }
}

fn job_of(name: &str) -> Option<JobId> {
    name.strip_prefix(ReplicationNames::PREFIX)?.parse().ok()
}

fn slots(server: &Server) -> Vec<SlotStatus> {
    let statuses = server.slots.iter().filter_map(|(name, slot)| {
        let noted = server.notes.get(name).filter(|note| note.target.is_some());
        Some(SlotStatus {
            job: noted.map(|note| note.job).or_else(|| job_of(name))?,
            slot: SlotName::parse(name.as_str()).unwrap(),
            active: true,
            lag: ByteCount(0),
            wal_held: ByteCount(server.wal - slot.confirmed),
            wal_status: if slot.lost { "lost" } else { "reserved" }.to_owned(),
            confirmed: Lsn(slot.confirmed),
        })
    });
    statuses.collect()
}

fn publications(server: &Server) -> Vec<PublicationStatus> {
    let statuses = server.publications().iter().filter_map(|(name, members)| {
        Some(PublicationStatus {
            job: job_of(name)?,
            state: PublicationState::Sound,
            members: u32::try_from(members.len()).unwrap().into(),
            newest: 1,
            mark: 7,
        })
    });
    statuses.collect()
}

fn prepared(server: &Server, now: i64) -> Vec<PreparedSlot> {
    let noted = server.notes.iter().filter_map(|(name, note)| {
        let slot = server.slots.get(name).filter(|slot| !slot.lost);
        let state = match (&note.target, slot) {
            (_, None) => PreparedState::Lost("it was dropped".to_owned()),
            (Some(target), Some(_)) => PreparedState::Taken(target.clone()),
            (None, Some(_)) if note.expires_at <= now => PreparedState::Expired,
            (None, Some(_)) => PreparedState::Waiting,
        };
        Some(PreparedSlot {
            replication: Replication {
                id: note.job,
                slot: SlotName::parse(name.as_str()).unwrap(),
            },
            lsn: Lsn(note.lsn?),
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: timestamp(note.expires_at),
            wal_held: ByteCount(1),
            wal_limit: None,
            state,
        })
    });
    noted.collect()
}

/// Drops the slots that nobody has taken in time.
fn drop_expired(server: &mut Server, now: i64) -> Vec<SlotName> {
    let due = |note: &Note| note.target.is_none() && note.expires_at <= now;
    let due: Vec<(String, JobId)> = server
        .notes
        .iter()
        .filter(|(_, note)| due(note))
        .map(|(name, note)| (name.clone(), note.job))
        .collect();
    for (name, job) in &due {
        let publication = Replication::of(*job).name();
        server.drop_replication(publication.as_str(), name);
    }
    let names = due.into_iter();
    names
        .map(|(name, _)| SlotName::parse(name).unwrap())
        .collect()
}
