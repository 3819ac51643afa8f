//! The tables of a replication at its source, for people.

use std::collections::HashSet;

use steep_protocol::message::job::{ReplicationNames, TableFilter};
use steep_protocol::message::tables::{Carried, LISTED_TABLES_MAX, ListedTable, TableList};
use steep_protocol::{ByteCount, Fault, FaultKind, Identifier, JobId, TableName};

use super::listing::Listing;
use super::{catalog, epochs, listing, plan};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Tables whose sizes are asked for together, since each is locked for that.
const BATCH: usize = 1_000;

/// The tables that the filter excludes by name.
fn left_out(listing: &Listing, filter: &TableFilter) -> Vec<TableName> {
    match filter.exclude_tables.is_empty() {
        true => Vec::new(),
        false => plan::names(listing, &TableFilter::only(filter.exclude_tables.clone())),
    }
}

/// Fails, naming them, unless the replication carries all these tables, or a part of each.
pub(crate) async fn check_replicated(
    task: &Task,
    replication: JobId,
    tables: &[TableName],
) -> Result<(), Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let session = task.connect("list").await?;
    let listing = Listing::load(&session).await.map_err(fault)?;
    let name = publication(replication).map_err(fault)?;
    let followed = epochs::leaves(&session, &listing, &name).await;
    let followed = followed.map_err(fault)?;
    session.give_back().await;
    let carried = |table: &TableName| {
        let below = TableFilter::only(vec![table.clone()]);
        let mut all = followed.iter();
        all.any(|leaf| listing.partitions.admitted(&below, leaf))
    };
    let others = tables.iter().filter(|table| !carried(table));
    let named: Vec<String> = others
        .map(|table| match listing.relations.contains_key(table) {
            true => table.to_string(),
            false => format!("{table} (there is no such table)"),
        })
        .collect();
    if named.is_empty() {
        return Ok(());
    }
    let text = format!("not replicated from here: {}", named.join(", "));
    let hint = "nothing was changed; steep-repl tables list shows which tables are followed";
    Err(Fault::new(FaultKind::Failed, text)
        .on(&task.node)
        .hint(hint))
}

fn publication(replication: JobId) -> Result<Identifier, PgError> {
    let name = Identifier::parse(ReplicationNames(replication).name());
    name.map_err(|error| PgError::Protocol(error.to_string()))
}

/// Every table that the replication carries, those that the filter admits and it does not carry, and those that the
/// filter excludes by name.
pub(crate) async fn list(
    task: &Task,
    replication: JobId,
    filter: &TableFilter,
) -> Result<TableList, Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let session = Session::connect_impatient(&task.conninfo, &format!("list {}", task.job))
        .await
        .map_err(fault)?;
    let listing = Listing::load(&session).await.map_err(fault)?;
    let name = publication(replication).map_err(fault)?;
    let followed = epochs::leaves(&session, &listing, &name).await;
    let followed = followed.map_err(fault)?;
    let known: HashSet<&TableName> = followed.iter().collect();
    let mut others = plan::names(&listing, filter);
    others.retain(|table| !known.contains(table));
    let mut left_out = left_out(&listing, filter);
    left_out.retain(|table| !known.contains(table));
    let mut list = TableList {
        tables: Vec::new(),
        followed: followed.len() as u64,
        not_followed: others.len() as u64,
    };
    let others = others
        .into_iter()
        .map(|table| (table, Carried::NotFollowed));
    let followed = followed.into_iter().map(|table| (table, Carried::Followed));
    let left_out = left_out.into_iter().map(|table| (table, Carried::LeftOut));
    let all = others.chain(followed).chain(left_out);
    let all: Vec<_> = all.take(LISTED_TABLES_MAX).collect();
    for batch in all.chunks(BATCH) {
        let names: Vec<TableName> = batch.iter().map(|(table, _)| table.clone()).collect();
        let sizes = listing::sizes(&session, &catalog::oids(&listing, &names)).await;
        let sizes = sizes.map_err(fault)?;
        list.tables.extend(batch.iter().map(|(table, carried)| {
            let relation = listing.relations.get(table);
            let size = relation.and_then(|relation| sizes.get(&relation.oid));
            ListedTable {
                table: table.clone(),
                bytes: ByteCount(size.map_or(0, |size| size.bytes)),
                carried: *carried,
            }
        }));
    }
    session.give_back().await;
    Ok(list)
}
