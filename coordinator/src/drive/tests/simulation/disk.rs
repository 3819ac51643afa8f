//! The coordinator's disk: the real SQLite store in memory, which outlives the coordinator and can kill it at any write.

use std::sync::{Arc, Mutex, MutexGuard};

use steep_protocol::message::agent::PartDone;
use steep_protocol::message::api::{AuditView, EndView, EventView, ProgressSample};
use steep_protocol::{JobId, NodeId};

use crate::job::progress::Mark;
use crate::store::sqlite::SqliteStore;
use crate::store::{EventQuery, Loaded, Store, StoreError, StoredJob, StoredTable, Write};

/// When the coordinator dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fuse {
    Off,
    /// Before that many more writes are on disk.
    Before(u32),
    /// After them, with nothing sent.
    After(u32),
}

#[derive(Clone)]
pub(super) struct Disk {
    store: Arc<Mutex<SqliteStore>>,
    fuse: Arc<Mutex<Fuse>>,
}

impl Disk {
    pub(super) fn new() -> Self {
        Self {
            store: Arc::new(Mutex::new(SqliteStore::in_memory().unwrap())),
            fuse: Arc::new(Mutex::new(Fuse::Off)),
        }
    }

    pub(super) fn light(&self, fuse: Fuse) {
        *self.fuse.lock().unwrap() = fuse;
    }

    /// Everything is gone; commands are counted from there.
    pub(super) fn forget(&self, next_command: u64) {
        let mut store = SqliteStore::in_memory().unwrap();
        store.apply(&[Write::NextCommand(next_command)]).unwrap();
        *self.store() = store;
        self.light(Fuse::Off);
    }

    fn store(&self) -> MutexGuard<'_, SqliteStore> {
        self.store.lock().unwrap()
    }
}

fn killed() -> StoreError {
    StoreError::Corrupt {
        what: "coordinator".to_owned(),
        reason: "killed".to_owned(),
    }
}

impl Store for Disk {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.store().load()
    }

    fn apply(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let mut fuse = self.fuse.lock().unwrap();
        match *fuse {
            Fuse::Before(0) => {
                *fuse = Fuse::Off;
                return Err(killed());
            }
            Fuse::After(0) => {
                *fuse = Fuse::Off;
                self.store().apply(writes)?;
                return Err(killed());
            }
            Fuse::Before(left) => *fuse = Fuse::Before(left - 1),
            Fuse::After(left) => *fuse = Fuse::After(left - 1),
            Fuse::Off => {}
        }
        self.store().apply(writes)
    }

    fn job(&mut self, id: JobId) -> Result<Option<StoredJob>, StoreError> {
        self.store().job(id)
    }

    fn plan(&mut self, id: JobId) -> Result<Vec<StoredTable>, StoreError> {
        self.store().plan(id)
    }

    fn parts(&mut self, id: JobId, each: &mut dyn FnMut(PartDone)) -> Result<(), StoreError> {
        self.store().parts(id, each)
    }

    fn samples(&mut self, id: JobId) -> Result<Vec<ProgressSample>, StoreError> {
        self.store().samples(id)
    }

    fn last_mark(&mut self, id: JobId) -> Result<Option<Mark>, StoreError> {
        self.store().last_mark(id)
    }

    fn audit(&mut self, query: &EventQuery) -> Result<Vec<AuditView>, StoreError> {
        self.store().audit(query)
    }

    fn last_end(&mut self, target: &NodeId) -> Result<Option<EndView>, StoreError> {
        self.store().last_end(target)
    }

    fn recent_events(
        &mut self,
        node: Option<&NodeId>,
        limit: u32,
    ) -> Result<Vec<EventView>, StoreError> {
        self.store().recent_events(node, limit)
    }

    fn events(&mut self, query: &EventQuery) -> Result<Vec<EventView>, StoreError> {
        self.store().events(query)
    }
}
