//! The sessions of both sides: at most so many on each, shared by all tables.

use std::sync::Mutex;

use steep_protocol::message::repair::{DatabaseId, FetchedRow, Horizon, SeenRow};
use steep_protocol::message::verify::{
    BucketSum, HeapRange, KeyedRow, OpenedTable, RowDigest, RowKey, RowShape, Sieve, Summed,
    VerifyAsk, VerifyReply,
};
use steep_protocol::{ByteCount, Fault, FaultKind, NodeId, TableName};
use tokio::sync::Semaphore;

use super::catalog::PAGE;
use super::{Ask, Dial};
use crate::mutex::lock;
use crate::rate::Rate;

/// One side.
#[derive(Debug)]
pub(super) struct Pool<D: Dial> {
    node: NodeId,
    dial: D,
    idle: Mutex<Vec<Held<D::Side>>>,
    permits: Semaphore,
    rate: Rate,
}

/// A conversation, and the table it has open.
#[derive(Debug)]
struct Held<S> {
    side: S,
    at: Option<Subject>,
}

/// A table, and how its rows are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) table: TableName,
    pub(super) shape: RowShape,
    pub(super) summed: Summed,
}

/// What a range of pages holds.
#[derive(Debug)]
pub(super) enum Within<T> {
    All(T),
    /// More than fits: ask for less.
    TooMuch,
}

impl<D: Dial> Pool<D> {
    pub(super) fn new(node: NodeId, dial: D, parallel: u8, max_rate: Option<ByteCount>) -> Self {
        Self {
            node,
            dial,
            idle: Mutex::new(Vec::new()),
            permits: Semaphore::new(usize::from(parallel.max(1))),
            rate: Rate::new(max_rate),
        }
    }

    pub(super) fn node(&self) -> &NodeId {
        &self.node
    }

    /// Bytes that may be read in one statement.
    pub(super) fn piece(&self) -> u64 {
        // `Rate` counts pieces of a twentieth of a second; a statement may take a second.
        u64::try_from(self.rate.piece())
            .unwrap_or(u64::MAX)
            .saturating_mul(20)
    }

    /// A question about no table.
    pub(super) async fn ask(&self, ask: VerifyAsk) -> Result<VerifyReply, Fault> {
        let _permit = self.permit().await?;
        let mut held = self.take(None).await?;
        let reply = held.side.ask(ask).await?;
        lock(&self.idle).push(held);
        Ok(reply)
    }

    /// Opens a table, to see what it is like.
    pub(super) async fn open(&self, table: &TableName) -> Result<Option<OpenedTable>, Fault> {
        let _permit = self.permit().await?;
        let mut held = self.take(None).await?;
        held.at = None;
        let reply = held.side.ask(VerifyAsk::Open(table.clone())).await?;
        lock(&self.idle).push(held);
        match reply {
            VerifyReply::Opened(opened) => Ok(opened.map(|opened| *opened)),
            _ => Err(self.unexpected()),
        }
    }

    /// Sums by bucket of the rows of those pages.
    pub(super) async fn sums(
        &self,
        of: &Subject,
        range: HeapRange,
        (sieve, bits): (&Sieve, u8),
    ) -> Result<Within<Vec<BucketSum>>, Fault> {
        let sieve = sieve.clone();
        match self
            .about(of, VerifyAsk::Sums { range, sieve, bits })
            .await?
        {
            VerifyReply::Sums(sums) => Ok(Within::All(sums)),
            VerifyReply::TooMuch => Ok(Within::TooMuch),
            _ => Err(self.unexpected()),
        }
    }

    /// The rows of those pages.
    pub(super) async fn rows(
        &self,
        of: &Subject,
        range: HeapRange,
        sieve: &Sieve,
    ) -> Result<Within<Vec<KeyedRow>>, Fault> {
        let sieve = sieve.clone();
        match self.about(of, VerifyAsk::Rows { range, sieve }).await? {
            VerifyReply::Rows(rows) => Ok(Within::All(rows)),
            VerifyReply::TooMuch => Ok(Within::TooMuch),
            _ => Err(self.unexpected()),
        }
    }

    /// The digest of each key's row.
    pub(super) async fn look_up(
        &self,
        of: &Subject,
        keys: &[RowKey],
    ) -> Result<Vec<Option<RowDigest>>, Fault> {
        match self.about(of, VerifyAsk::LookUp(keys.to_vec())).await? {
            VerifyReply::Found(found) if found.len() == keys.len() => Ok(found),
            _ => Err(self.unexpected()),
        }
    }

    /// The version of each key's row, and the server's transactions at that moment.
    pub(super) async fn versions(
        &self,
        of: &Subject,
        keys: &[RowKey],
    ) -> Result<(Horizon, Vec<Option<SeenRow>>), Fault> {
        match self.about(of, VerifyAsk::Versions(keys.to_vec())).await? {
            VerifyReply::Versions { horizon, rows } if rows.len() == keys.len() => {
                Ok((horizon, rows))
            }
            _ => Err(self.unexpected()),
        }
    }

    /// Each key's row with its values, unless it is longer than `longest` bytes.
    pub(super) async fn fetch(
        &self,
        of: &Subject,
        keys: &[RowKey],
        longest: u32,
    ) -> Result<Vec<Option<FetchedRow>>, Fault> {
        let keys = keys.to_vec();
        let (count, width) = (keys.len(), of.shape.columns.len());
        let whole = |row: &FetchedRow| row.values.as_ref().is_none_or(|v| v.len() == width);
        match self.about(of, VerifyAsk::Fetch { keys, longest }).await? {
            VerifyReply::Fetched(rows)
                if rows.len() == count && rows.iter().flatten().all(whole) =>
            {
                Ok(rows)
            }
            _ => Err(self.unexpected()),
        }
    }

    /// Which database it is.
    pub(super) async fn identity(&self) -> Result<DatabaseId, Fault> {
        match self.ask(VerifyAsk::Identity).await? {
            VerifyReply::Identity(database) => Ok(database),
            _ => Err(self.unexpected()),
        }
    }

    /// Waits until so many pages may be read.
    pub(super) async fn admit(&self, pages: u64) {
        let bytes = usize::try_from(pages.saturating_mul(PAGE)).unwrap_or(usize::MAX);
        self.rate.admit_all(bytes).await;
    }

    /// A question about a table.
    pub(super) async fn about(&self, of: &Subject, ask: VerifyAsk) -> Result<VerifyReply, Fault> {
        let _permit = self.permit().await?;
        let mut held = self.take(Some(of)).await?;
        if held.at.as_ref() != Some(of) {
            held.at = None;
            match held.side.ask(VerifyAsk::Open(of.table.clone())).await? {
                VerifyReply::Opened(Some(_)) => {}
                VerifyReply::Opened(None) => return Err(dropped(&self.node, &of.table)),
                _ => return Err(self.unexpected()),
            }
            let read = VerifyAsk::Read(of.shape.clone(), of.summed);
            match held.side.ask(read).await? {
                VerifyReply::Done => held.at = Some(of.clone()),
                _ => return Err(self.unexpected()),
            }
        }
        // An error costs the conversation: its session may be in any state.
        let reply = held.side.ask(ask).await?;
        lock(&self.idle).push(held);
        Ok(reply)
    }

    async fn permit(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Fault> {
        let permit = self.permits.acquire().await;
        permit.map_err(|_| Fault::new(FaultKind::Cancelled, "the comparison is over"))
    }

    /// An idle conversation, if possible about that table, or a new one.
    async fn take(&self, about: Option<&Subject>) -> Result<Held<D::Side>, Fault> {
        let idle = {
            let mut idle = lock(&self.idle);
            let same = idle
                .iter()
                .position(|held| about.is_some() && held.at.as_ref() == about);
            match same {
                Some(at) => Some(idle.swap_remove(at)),
                None => idle.pop(),
            }
        };
        match idle {
            Some(held) => Ok(held),
            None => {
                let side = self.dial.dial().await?;
                Ok(Held { side, at: None })
            }
        }
    }

    pub(super) fn unexpected(&self) -> Fault {
        Fault::unexpected_answer(&self.node)
    }
}

/// The fault of a table that was there when the comparison began.
pub(super) fn dropped(node: &NodeId, table: &TableName) -> Fault {
    let text = format!("{table} was dropped during the comparison");
    let fault = Fault::new(FaultKind::Failed, text).on(node);
    fault.at(table).hint("run the command again")
}
