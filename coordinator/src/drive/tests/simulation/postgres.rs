//! PostgreSQL as far as the simulation needs it: a WAL with the publications that were in force at each write, slots,
//! rows that commit together with their ledger row, and subscriptions that apply what their slot decodes.
//!
//! Everything here survives a crash of the server but snapshots: one is lost when [`Server::boots`] changes.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use steep_protocol::message::agent::PrepareTarget;
use steep_protocol::{Epoch, JobId, NodeId};

/// Tables of the source's database, by number.
pub(super) const TABLES: u32 = 4;

/// Parts of each table.
pub(super) const PARTS: [u32; TABLES as usize] = [1, 2, 3, 1];

/// What a slot has confirmed is on disk when the WAL has reached a multiple of this.
const CHECKPOINT: u64 = 8;

pub(super) type Publications = BTreeMap<String, BTreeSet<u32>>;

/// One committed row of the source.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) lsn: u64,
    pub(super) table: u32,
    pub(super) row: u64,
    /// Decoding sees the catalog of the past.
    published: Rc<Publications>,
}

impl Change {
    pub(super) fn part(&self) -> u32 {
        u32::try_from(self.row).unwrap() % PARTS[self.table as usize]
    }
}

pub(super) struct Slot {
    pub(super) confirmed: u64,
    /// What of that is on disk.
    saved: u64,
    pub(super) lost: bool,
}

/// A row of `steep_repl.init_slots`.
pub(super) struct Note {
    pub(super) job: JobId,
    pub(super) target: Option<NodeId>,
    pub(super) lsn: Option<u64>,
    /// In milliseconds of the simulation.
    pub(super) expires_at: i64,
}

pub(super) struct Subscription {
    pub(super) slot: String,
    pub(super) publication: String,
    pub(super) enabled: bool,
    /// The origin: the last change that was applied.
    pub(super) position: u64,
    /// The tables that it applies changes of, and from where on; `None` until PostgreSQL has copied one itself.
    pub(super) tables: BTreeMap<u32, Option<u64>>,
}

/// What a target's database notes about a job.
#[derive(Default)]
pub(super) struct Record {
    pub(super) planned: BTreeSet<u32>,
    pub(super) owns_rows: bool,
    pub(super) prepared: bool,
    /// The coordinator's.
    pub(super) note: Option<String>,
}

impl Record {
    pub(super) fn open(&mut self, plan: &[u32], request: &PrepareTarget) {
        self.planned.extend(plan);
        self.note.clone_from(&request.note);
    }
}

/// A directory with a stored snapshot.
pub(super) struct Archive {
    pub(super) snapshot: JobId,
    pub(super) lsn: u64,
    /// Rows by part of the plan.
    pub(super) parts: BTreeMap<u32, Vec<u64>>,
    pub(super) complete: bool,
    pub(super) damaged: bool,
}

#[derive(Default)]
pub(super) struct Server {
    /// Down until then.
    pub(super) down_until: Option<i64>,
    /// Starts so far. Sessions and snapshots live in one of them.
    pub(super) boots: u64,
    pub(super) wal: u64,
    pub(super) log: Vec<Change>,
    publications: Rc<Publications>,
    pub(super) slots: BTreeMap<String, Slot>,
    pub(super) notes: BTreeMap<String, Note>,
    /// How often each row is there, by table.
    pub(super) rows: BTreeMap<u32, BTreeMap<u64, u32>>,
    /// Table and rows of each committed part.
    pub(super) ledger: BTreeMap<(JobId, Epoch, u32), (u32, u64)>,
    pub(super) records: BTreeMap<JobId, Record>,
    pub(super) subscriptions: BTreeMap<String, Subscription>,
    pub(super) archives: BTreeMap<String, Archive>,
}

impl Server {
    pub(super) fn is_up(&self) -> bool {
        self.down_until.is_none()
    }

    pub(super) fn tick_wal(&mut self) -> u64 {
        self.wal += 1;
        self.wal
    }

    pub(super) fn write(&mut self, table: u32) {
        let lsn = self.tick_wal();
        let published = Rc::clone(&self.publications);
        let row = self.log.len() as u64;
        self.log.push(Change {
            lsn,
            table,
            row,
            published,
        });
    }

    pub(super) fn publications(&self) -> &Publications {
        &self.publications
    }

    pub(super) fn publications_mut(&mut self) -> &mut Publications {
        self.wal += 1;
        Rc::make_mut(&mut self.publications)
    }

    pub(super) fn create_slot(&mut self, name: &str) -> u64 {
        let lsn = self.tick_wal();
        self.copy_slot(name, lsn);
        lsn
    }

    pub(super) fn copy_slot(&mut self, name: &str, confirmed: u64) {
        let slot = Slot {
            confirmed,
            saved: confirmed,
            lost: false,
        };
        self.slots.insert(name.to_owned(), slot);
    }

    /// The rows of a table's part at that position.
    pub(super) fn part_at(&self, lsn: u64, table: u32, part: u32) -> Vec<u64> {
        let rows = self.log.iter().filter(|change| change.lsn <= lsn);
        let rows = rows.filter(|change| change.table == table && change.part() == part);
        rows.map(|change| change.row).collect()
    }

    pub(super) fn insert(&mut self, table: u32, rows: impl IntoIterator<Item = u64>) {
        let there = self.rows.entry(table).or_default();
        for row in rows {
            *there.entry(row).or_default() += 1;
        }
    }

    pub(super) fn truncate(&mut self, table: u32) {
        self.rows.remove(&table);
    }

    /// Whether the publication of that name belongs to other slots than this one.
    pub(super) fn is_shared(&self, publication: &str, own: &str) -> bool {
        let prefix = format!("{publication}_");
        // A template that is being made is noted, and has no slot yet.
        let noted = self.notes.iter().filter(|(_, note)| note.lsn.is_none());
        let all = self.slots.keys().chain(noted.map(|(name, _)| name));
        let mut names = all.filter(|name| *name != own);
        names.any(|name| name == publication || name.starts_with(&prefix))
    }

    /// Drops a slot, its note, and its publication with the last slot of that name.
    pub(super) fn drop_replication(&mut self, publication: &str, slot: &str) {
        self.slots.remove(slot);
        if !self.is_shared(publication, slot) && self.publications.contains_key(publication) {
            self.publications_mut().remove(publication);
        }
        if slot != publication {
            self.notes.remove(slot);
        }
    }

    pub(super) fn crash(&mut self, until: i64) {
        self.down_until = Some(until);
        self.boots += 1;
        for slot in self.slots.values_mut() {
            slot.confirmed = slot.saved;
        }
    }
}

/// Lets the target's subscriptions apply what their slots decode.
pub(super) fn replicate(source: &mut Server, target: &mut Server) {
    let names: Vec<String> = target.subscriptions.keys().cloned().collect();
    for name in names {
        let Some(mut subscription) = target.subscriptions.remove(&name) else {
            continue;
        };
        if subscription.enabled {
            apply(source, target, &mut subscription);
        }
        target.subscriptions.insert(name, subscription);
    }
}

fn apply(source: &mut Server, target: &mut Server, subscription: &mut Subscription) {
    let Some(slot) = source.slots.get_mut(&subscription.slot) else {
        return;
    };
    if slot.lost {
        return;
    }
    let from = slot.confirmed.max(subscription.position);
    let after = source.log.partition_point(|change| change.lsn <= from);
    for change in &source.log[after..] {
        let listed = subscription.tables.get(&change.table).copied().flatten();
        let published = change.published.get(&subscription.publication);
        assert!(
            published.is_some(),
            "the publication {} did not exist when row {} was written, and decoding fails for good",
            subscription.publication,
            change.row
        );
        let carried = published.is_some_and(|tables| tables.contains(&change.table));
        if carried && listed.is_some_and(|from| change.lsn > from) {
            target.insert(change.table, [change.row]);
            subscription.position = change.lsn;
        }
    }
    slot.confirmed = source.wal;
    if source.wal.is_multiple_of(CHECKPOINT) {
        slot.saved = source.wal;
    }
    // PostgreSQL's own copy takes one table after another.
    let mut native = subscription.tables.iter_mut();
    if let Some((table, from)) = native.find(|(_, from)| from.is_none()) {
        let rows = source.log.iter().filter(|change| change.table == *table);
        let rows: Vec<u64> = rows.map(|change| change.row).collect();
        *from = Some(source.wal);
        target.insert(*table, rows);
    }
}
