//! The tables of a replication at its source, for people.

use std::collections::HashSet;

use steep_protocol::message::job::{ReplicationNames, TableFilter};
use steep_protocol::message::tables::{Carried, LISTED_TABLES_MAX, ListedTable, TableList};
use steep_protocol::{ByteCount, Fault, Identifier, JobId, TableName};

use super::listing::Listing;
use super::{catalog, epochs, listing, plan};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Tables whose sizes are asked for together, since each is locked for that.
const BATCH: usize = 1_000;

/// Every table that the replication carries, and those that the filter admits and it does not carry.
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
    let name = Identifier::parse(ReplicationNames(replication).name());
    let name = name.map_err(|error| fault(PgError::Protocol(error.to_string())))?;
    let followed = epochs::leaves(&session, &listing, &name).await;
    let followed = followed.map_err(fault)?;
    let known: HashSet<&TableName> = followed.iter().collect();
    let mut others = plan::names(&listing, filter);
    others.retain(|table| !known.contains(table));
    let mut list = TableList {
        tables: Vec::new(),
        followed: followed.len() as u64,
        not_followed: others.len() as u64,
    };
    let others = others
        .into_iter()
        .map(|table| (table, Carried::NotFollowed));
    let followed = followed.into_iter().map(|table| (table, Carried::Followed));
    let all: Vec<_> = others.chain(followed).take(LISTED_TABLES_MAX).collect();
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
