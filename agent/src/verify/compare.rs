//! A whole comparison: which tables, several at once, and the report.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use steep_protocol::limits::{VERIFY_COLUMNS_ALL, VERIFY_EXAMPLES_ALL, VERIFY_TABLES_MAX};
use steep_protocol::message::repair::PlannedTable;
use steep_protocol::message::verify::{
    Comparing, ListedTables, Relation, RowAccess, SubscriptionFacts, TableProblem, TableReport,
    TableSize, VerifyAsk, VerifyReply, VerifyReport, VerifyTables,
};
use steep_protocol::{Fault, FaultKind, Identifier, NodeId, Phase, Retry, TableName};

use super::Dial;
use super::answer::Answerer;
use super::examples::size_of;
use super::fence::Following;
use super::plan::Room;
use super::pool::Pool;
use super::progress::{News, Progress};
use super::table::{Compared, Comparison};
use crate::pg::PgError;
use crate::task::Task;

/// Bytes of all examples: with the tables they fit a control frame.
const EXAMPLES_BYTES: usize = 2 * 1024 * 1024;

/// How long cancelled statements may take to end before their sessions are closed.
const CANCELS_WITHIN: Duration = Duration::from_secs(1);

/// This node's own PostgreSQL.
#[derive(Debug)]
pub(crate) struct Local(pub(crate) Task, pub(crate) RowAccess);

impl Dial for Local {
    type Side = Answerer;
    async fn dial(&self) -> Result<Answerer, Fault> {
        Answerer::connect(&self.0, self.1).await
    }
}

/// Compares the rows of `source`, the other node, with this node's, in all tables but those that are `done`.
///
/// # Errors
/// The fault of the side that could not be read. Differences are no fault.
pub(crate) async fn compare_rows<A: Dial>(
    task: &Task,
    source: A,
    (request, done): (VerifyTables, Vec<TableName>),
) -> Result<VerifyReport, Fault> {
    let access = match request.comparing {
        // Values of unique columns are looked up on the other side.
        Comparing::Merge => RowAccess::Repair,
        _ => RowAccess::Compare(request.values),
    };
    let here = Local(task.clone(), access);
    let reporting = task.clone();
    let report = move |news| match news {
        News::Work(work) => reporting.work(Phase::Copy, work),
        News::Table(table) => reporting.compared(table),
    };
    let request = (request, done);
    let compared = Box::pin(compare((source, here), &task.node, request, report));
    tokio::select! {
        compared = compared => compared,
        // Statements are cancelled meanwhile; what only waits is given up.
        () = async { task.cancel.cancelled().await; tokio::time::sleep(CANCELS_WITHIN).await } => {
            Err(PgError::Cancelled.to_fault(&task.node))
        }
    }
}

/// The same for any two sides.
pub(super) async fn compare<A: Dial, B: Dial>(
    (a, b): (A, B),
    node: &NodeId,
    (request, done): (VerifyTables, Vec<TableName>),
    report: impl Fn(News) + Send + Sync + 'static,
) -> Result<VerifyReport, Fault> {
    let VerifyTables {
        source,
        comparing,
        tables,
        values,
        parallel,
        max_rate,
        modified,
    } = request;
    let a = Pool::new(source.node, a, parallel, max_rate);
    let b = Pool::new(node.clone(), b, parallel, max_rate);
    let follows = subscriptions(&a, &b).await?;
    let back = way_back(&a, &b, &follows).await?;
    let mut sizes = list(&a, &b, &tables, &follows).await?;
    let done: BTreeSet<TableName> = done.into_iter().collect();
    sizes.retain(|name, _| !done.contains(name));
    let mut results = Results::default();
    if comparing == Comparing::Repair {
        if follows.is_empty() {
            return Err(not_followed(a.node(), b.node()));
        }
        let replicated = replicated(&a, &b, &follows).await?;
        if let Some(own) = tables.iter().find(|name| !replicated.contains(name)) {
            return Err(not_replicated(a.node(), b.node(), own));
        }
        let own: Vec<TableName> = sizes
            .keys()
            .filter(|n| !replicated.contains(n))
            .cloned()
            .collect();
        sizes.retain(|name, _| replicated.contains(name));
        for name in own {
            let why = not_replicated(a.node(), b.node(), &name);
            results.unreadable(name, why);
        }
    }
    let total = sizes.values().sum();
    let slots = follows
        .into_iter()
        .map(|subscription| subscription.slot)
        .collect();
    let comparison = Comparison {
        progress: Progress::new((total, sizes.len(), parallel), report),
        following: Following::by(slots),
        back,
        a,
        b,
        values,
        comparing,
        modified,
        parallel,
        room: Room::default(),
    };
    let names: Vec<TableName> = sizes.into_keys().collect();
    let again = comparison.all(names, &mut results).await?;
    // Somebody had altered, locked or dropped them.
    let (again, lost): (Vec<_>, Vec<_>) = again.into_iter().partition(|(_, fault)| passes(fault));
    let again = again.into_iter().map(|(name, _)| name).collect();
    let still = comparison.all(again, &mut results).await?;
    for (name, fault) in lost.into_iter().chain(still) {
        results.unreadable(name, fault);
    }
    let Results {
        mut tables,
        planned,
        ..
    } = results;
    tables.sort_by(|one, other| one.name.cmp(&other.name));
    let relation = comparison.relation();
    let plan = match comparing {
        Comparing::Equality | Comparing::Overlap => None,
        Comparing::Merge if relation != Relation::Stopped => {
            Some(comparison.whole_plan(planned).await?)
        }
        Comparing::Repair if relation == Relation::Replicates => {
            Some(comparison.whole_plan(planned).await?)
        }
        Comparing::Repair | Comparing::Merge => return Err(comparison.not_connected()),
    };
    Ok(VerifyReport {
        tables,
        relation,
        plan,
    })
}

/// What is known so far, bounded.
#[derive(Debug)]
struct Results {
    tables: Vec<TableReport>,
    planned: Vec<PlannedTable>,
    /// Rows, bytes and columns that the report still has room for.
    examples: usize,
    bytes: usize,
    columns: usize,
}

impl Default for Results {
    fn default() -> Self {
        Self {
            tables: Vec::new(),
            planned: Vec::new(),
            examples: VERIFY_EXAMPLES_ALL,
            bytes: EXAMPLES_BYTES,
            columns: VERIFY_COLUMNS_ALL,
        }
    }
}

impl Results {
    fn add(&mut self, compared: Compared) -> &TableReport {
        let Compared {
            report: mut table,
            planned,
        } = compared;
        table.examples.truncate(self.examples);
        table.examples.retain(|example| {
            let left = self.bytes.checked_sub(size_of(example));
            self.bytes = left.unwrap_or(self.bytes);
            left.is_some()
        });
        self.examples -= table.examples.len();
        table.columns.truncate(self.columns);
        self.columns -= table.columns.len();
        self.planned.extend(planned);
        self.tables.push(table);
        &self.tables[self.tables.len() - 1]
    }

    /// A table that could not be read costs itself alone.
    fn unreadable(&mut self, name: TableName, mut fault: Fault) {
        match self
            .bytes
            .checked_sub(fault.message.len() + fault.hint.len())
        {
            Some(left) => self.bytes = left,
            None => {
                let text = "it could not be read, like others before it";
                fault = Fault::new(fault.kind, text);
            }
        }
        fault.table = None;
        let problem = Some(TableProblem::Unreadable(Box::new(fault)));
        let report = TableReport::new(name);
        self.tables.push(TableReport { problem, ..report });
    }
}

impl<A: Dial, B: Dial> Comparison<A, B> {
    /// The fault of a subscription that is not connected.
    pub(super) fn not_connected(&self) -> Fault {
        let (a, b) = (self.a.node(), self.b.node());
        match self.following.relation() {
            Relation::Stopped => not_connected(a, b),
            Relation::Replicates | Relation::Unrelated => not_connected(b, a),
        }
    }

    /// Compares these tables, several at once. Returns those that could not be read.
    async fn all(
        &self,
        names: Vec<TableName>,
        results: &mut Results,
    ) -> Result<Vec<(TableName, Fault)>, Fault> {
        let compared = stream::iter(names.into_iter().enumerate())
            .map(|(at, name)| async move {
                self.progress.table(at, &name);
                (name.clone(), Box::pin(self.table(name)).await)
            })
            .buffer_unordered(usize::from(self.parallel.max(1)));
        let mut compared = std::pin::pin!(compared);
        let mut unread = Vec::new();
        while let Some((name, outcome)) = compared.next().await {
            match outcome {
                Ok(table) => {
                    let table = results.add(table);
                    // A plan is made of all tables at once.
                    if self.comparing != Comparing::Repair {
                        self.progress.compared(table.clone());
                    }
                }
                Err(fault) if is_about(&fault, &name) => unread.push((name, fault)),
                Err(fault) => return Err(fault),
            }
        }
        Ok(unread)
    }
}

/// Whether only that table cannot be read, so that the others can.
pub(super) fn is_about(fault: &Fault, table: &TableName) -> bool {
    let elsewhere = matches!(fault.kind, FaultKind::Unreachable | FaultKind::Cancelled)
        || fault.retry == Retry::NewConnection;
    fault.table.as_deref() == Some(table) && !elsewhere
}

/// Whether the table may be readable a little later.
fn passes(fault: &Fault) -> bool {
    fault.kind != FaultKind::Unauthorized
}

/// Also of a repair.
pub(super) fn not_followed(a: &NodeId, b: &NodeId) -> Fault {
    let text = format!(
        "{b} has no enabled subscription to {a}, so nobody can say when its rows are up to date"
    );
    Fault::new(FaultKind::Failed, text).on(b).hint(format!(
        "enable its subscription, or make it a replica with steep-repl init {b} --from {a}"
    ))
}

fn not_connected(a: &NodeId, b: &NodeId) -> Fault {
    let text = format!(
        "the subscription of {b} to {a} is not connected, so rows may differ that only wait for their changes"
    );
    Fault::new(FaultKind::Failed, text).on(b).hint(format!(
        "see steep-repl status {b} for what holds it up; once it has caught up, run the command again"
    ))
}

/// The subscriptions by which `b` follows `a`: those whose slots are on `a`.
pub(super) async fn subscriptions<A: Dial, B: Dial>(
    a: &Pool<A>,
    b: &Pool<B>,
) -> Result<Vec<SubscriptionFacts>, Fault> {
    let VerifyReply::Subscriptions(mut all) = b.ask(VerifyAsk::Subscriptions).await? else {
        return Err(b.unexpected());
    };
    if all.is_empty() {
        return Ok(all);
    }
    let names = all
        .iter()
        .map(|subscription| subscription.slot.clone())
        .collect();
    let VerifyReply::Slots(slots) = a.ask(VerifyAsk::Slots(names)).await? else {
        return Err(a.unexpected());
    };
    let there: BTreeSet<Identifier> = slots.into_iter().map(|slot| slot.name).collect();
    all.retain(|subscription| there.contains(&subscription.slot));
    Ok(all)
}

/// How `a` follows `b`, if `b` follows `a`.
pub(super) async fn way_back<A: Dial, B: Dial>(
    a: &Pool<A>,
    b: &Pool<B>,
    follows: &[SubscriptionFacts],
) -> Result<Following, Fault> {
    let back = match follows {
        [] => Vec::new(),
        _ => subscriptions(b, a).await?,
    };
    let slots = back.into_iter().map(|subscription| subscription.slot);
    Ok(Following::by(slots.collect()))
}

/// The tables to compare, with the bytes of both sides.
async fn list<A: Dial, B: Dial>(
    a: &Pool<A>,
    b: &Pool<B>,
    named: &[TableName],
    follows: &[SubscriptionFacts],
) -> Result<BTreeMap<TableName, u64>, Fault> {
    let (on_a, on_b) = if !named.is_empty() {
        (
            ListedTables::Named(named.to_vec()),
            ListedTables::Named(named.to_vec()),
        )
    } else if follows.is_empty() {
        (ListedTables::All, ListedTables::All)
    } else {
        carried_by(follows)
    };
    let (a_has, b_has) = both_lists(a, b, (on_a, on_b)).await?;
    let mut sizes = BTreeMap::new();
    for table in a_has.into_iter().chain(b_has) {
        *sizes.entry(table.name).or_insert(0) += table.bytes.0;
    }
    if let Some(unknown) = named.iter().find(|name| !sizes.contains_key(name)) {
        let text = format!(
            "neither {} nor {} has a table {unknown}",
            a.node(),
            b.node()
        );
        return Err(Fault::new(FaultKind::BadRequest, text)
            .hint("check the names after --tables, which are separated by commas; a name without a schema is one of public"));
    }
    if sizes.len() > VERIFY_TABLES_MAX {
        let text = format!("more than {VERIFY_TABLES_MAX} tables cannot be compared at once");
        return Err(Fault::new(FaultKind::BadRequest, text).hint("name some of them with --tables"));
    }
    Ok(sizes)
}

/// The tables that the subscriptions carry, as each side knows them.
fn carried_by(follows: &[SubscriptionFacts]) -> (ListedTables, ListedTables) {
    let publications = follows.iter().flat_map(|s| s.publications.clone());
    let names = follows.iter().map(|s| s.name.clone());
    (
        ListedTables::Published(publications.collect()),
        ListedTables::Subscribed(names.collect()),
    )
}

async fn both_lists<A: Dial, B: Dial>(
    a: &Pool<A>,
    b: &Pool<B>,
    (on_a, on_b): (ListedTables, ListedTables),
) -> Result<(Vec<TableSize>, Vec<TableSize>), Fault> {
    let both = tokio::try_join!(a.ask(VerifyAsk::List(on_a)), b.ask(VerifyAsk::List(on_b)));
    match both? {
        (VerifyReply::Tables(a_has), VerifyReply::Tables(b_has)) => Ok((a_has, b_has)),
        _ => Err(a.unexpected()),
    }
}

/// The tables that are replicated as a whole: of others, a fence does not say which rows the replica must have.
pub(super) async fn replicated<A: Dial, B: Dial>(
    a: &Pool<A>,
    b: &Pool<B>,
    follows: &[SubscriptionFacts],
) -> Result<BTreeSet<TableName>, Fault> {
    let (published, subscribed) = both_lists(a, b, carried_by(follows)).await?;
    let publications = follows.iter().flat_map(|s| s.publications.clone());
    let filtered = ListedTables::Filtered(publications.collect());
    let VerifyReply::Tables(filtered) = a.ask(VerifyAsk::List(filtered)).await? else {
        return Err(a.unexpected());
    };
    let names = |tables: Vec<TableSize>| -> BTreeSet<TableName> {
        tables.into_iter().map(|table| table.name).collect()
    };
    let (published, filtered) = (names(published), names(filtered));
    let mut whole = names(subscribed);
    whole.retain(|name| published.contains(name) && !filtered.contains(name));
    Ok(whole)
}

/// Of a table in which the replica may have rows of its own.
pub(super) fn not_replicated(a: &NodeId, b: &NodeId, table: &TableName) -> Fault {
    let text = format!("{b} does not replicate {table} as a whole from {a}: rows may be its own");
    Fault::new(FaultKind::BadRequest, text).on(b).at(table)
}
