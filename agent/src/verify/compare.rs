//! A whole comparison: which tables, several at once, and the report.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use steep_protocol::limits::{VERIFY_COLUMNS_ALL, VERIFY_EXAMPLES_ALL, VERIFY_TABLES_MAX};
use steep_protocol::message::verify::{
    ListedTables, RowValues, SubscriptionFacts, TableReport, VerifyAsk, VerifyReply, VerifyReport,
    VerifyTables,
};
use steep_protocol::{Fault, FaultKind, Identifier, NodeId, Phase, TableName};

use super::Dial;
use super::answer::Answerer;
use super::examples::size_of;
use super::fence::Following;
use super::pool::Pool;
use super::progress::Progress;
use super::table::Comparison;
use crate::pg::PgError;
use crate::task::Task;

/// Bytes of all examples: with the tables they fit a control frame.
const EXAMPLES_BYTES: usize = 2 * 1024 * 1024;

/// How long cancelled statements may take to end before their sessions are closed.
const CANCELS_WITHIN: Duration = Duration::from_secs(1);

/// This node's own PostgreSQL.
#[derive(Debug)]
pub(crate) struct Local(pub(crate) Task, pub(crate) RowValues);

impl Dial for Local {
    type Side = Answerer;
    async fn dial(&self) -> Result<Answerer, Fault> {
        Answerer::connect(&self.0, self.1).await
    }
}

/// Compares the rows of `source`, the other node, with this node's.
///
/// # Errors
/// The fault of the side that could not be read. Differences are no fault.
pub(crate) async fn compare_rows<A: Dial>(
    task: &Task,
    source: A,
    request: VerifyTables,
) -> Result<VerifyReport, Fault> {
    let here = Local(task.clone(), request.values);
    let reporting = task.clone();
    let report = move |work| reporting.work(Phase::Copy, work);
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
    request: VerifyTables,
    report: impl Fn(steep_protocol::message::agent::WorkProgress) + Send + Sync + 'static,
) -> Result<VerifyReport, Fault> {
    let VerifyTables {
        source,
        comparing,
        tables,
        values,
        parallel,
        max_rate,
    } = request;
    let a = Pool::new(source.node, a, parallel, max_rate);
    let b = Pool::new(node.clone(), b, parallel, max_rate);
    let follows = subscriptions(&a, &b).await?;
    let sizes = list(&a, &b, &tables, &follows).await?;
    let total = sizes.values().sum();
    let slots = follows
        .into_iter()
        .map(|subscription| subscription.slot)
        .collect();
    let comparison = Comparison {
        progress: Progress::new((total, sizes.len(), parallel), report),
        following: Following::by(slots),
        a,
        b,
        values,
        comparing,
        parallel,
    };
    let comparison = &comparison;
    let compared = stream::iter(sizes.into_keys().enumerate())
        .map(|(at, name)| async move {
            comparison.progress.table(at, &name);
            Box::pin(comparison.table(name)).await
        })
        .buffer_unordered(usize::from(parallel.max(1)));
    let mut compared = std::pin::pin!(compared);
    let (mut tables, mut room, mut bytes) = (Vec::new(), VERIFY_EXAMPLES_ALL, EXAMPLES_BYTES);
    let mut columns = VERIFY_COLUMNS_ALL;
    while let Some(table) = compared.next().await {
        let mut table: TableReport = table?;
        table.examples.truncate(room);
        table.examples.retain(|example| {
            let left = bytes.checked_sub(size_of(example));
            bytes = left.unwrap_or(bytes);
            left.is_some()
        });
        room -= table.examples.len();
        table.columns.truncate(columns);
        columns -= table.columns.len();
        tables.push(table);
    }
    tables.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(VerifyReport {
        tables,
        relation: comparison.following.relation(),
    })
}

/// The subscriptions by which `b` follows `a`: those whose slots are on `a`.
async fn subscriptions<A: Dial, B: Dial>(
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
        let publications = follows
            .iter()
            .flat_map(|s| s.publications.clone())
            .collect();
        let names = follows.iter().map(|s| s.name.clone()).collect();
        (
            ListedTables::Published(publications),
            ListedTables::Subscribed(names),
        )
    };
    let (a_has, b_has) =
        tokio::try_join!(a.ask(VerifyAsk::List(on_a)), b.ask(VerifyAsk::List(on_b)))?;
    let (VerifyReply::Tables(a_has), VerifyReply::Tables(b_has)) = (a_has, b_has) else {
        return Err(a.unexpected());
    };
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
