//! Tables join the publication of a replication that goes on, or leave it.
//!
//! The publication's mark is renewed when tables join it. What has entered it unnoticed, and may lack rows on the
//! target, must not be covered by that: such a table has to be added itself first (G4).

use std::collections::HashSet;
use std::time::Duration;

use steep_protocol::message::agent::Published;
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::tables::Followed;
use steep_protocol::{Fault, FaultKind, Identifier, Phase, TableName};
use tokio_util::sync::CancellationToken;

use super::epochs::{below, leaves, members, set_members};
use super::listing::Listing;
use super::{plan, published};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Tables named in a fault.
const NAMED: usize = 5;

/// Between two looks at transactions that have not ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Sees whether the tables that `filter` names may join. Partitions that the publication has taken in by itself leave
/// it until then. Idempotent.
pub(super) async fn check(
    session: &Session,
    task: &Task,
    followed: &Followed,
    filter: &TableFilter,
) -> Result<(), Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let name = followed.replication.name();
    let listing = Listing::load(session).await.map_err(fault)?;
    let entered = entered(session, task, followed).await?;
    let wanted = |table: &TableName| listing.partitions.admitted(filter, table);
    let others = entered.iter().filter(|table| !wanted(table));
    refuse_entered(task, others)?;
    let carried = leaves(session, &listing, &name).await.map_err(fault)?;
    let carried = carried.iter().filter(|table| wanted(table));
    let known: Vec<&TableName> = carried.filter(|table| !entered.contains(table)).collect();
    if !known.is_empty() {
        let text = format!("the node follows {} already", named(known.into_iter()));
        return Err(Fault::new(FaultKind::BadRequest, text)
            .hint("name only tables that it does not follow; see steep-repl tables list")
            .on(&task.node));
    }
    leave(session, task, followed, filter).await
}

/// Refuses tables that the publication does not carry completely. Changes nothing.
pub(crate) async fn check_followed(
    task: &Task,
    followed: &Followed,
    filter: &TableFilter,
) -> Result<(), Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let session = task.connect("tables").await?;
    let listing = Listing::load(&session).await.map_err(fault)?;
    let entered = entered(&session, task, followed).await?;
    let name = followed.replication.name();
    let carried = leaves(&session, &listing, &name).await.map_err(fault)?;
    session.give_back().await;
    let carried: HashSet<&TableName> = carried.iter().collect();
    let wanted = plan::names(&listing, filter);
    let mut others = wanted
        .iter()
        .filter(|table| !carried.contains(table) || entered.contains(table))
        .peekable();
    if others.peek().is_none() {
        return Ok(());
    }
    let text = format!("the node does not follow {}", named(others));
    Err(Fault::new(FaultKind::BadRequest, text)
        .hint("steep-repl tables add copies tables and follows them from then on; see steep-repl tables list")
        .on(&task.node))
}

/// Waits until every transaction has ended that may have written to the job's tables so far.
pub(crate) async fn await_writers(task: &Task) -> Result<(), Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let session = task.connect("writers").await?;
    let listing = Listing::load(&session).await.map_err(fault)?;
    let tables = leaves(&session, &listing, &task.replication.name()).await;
    let tables = tables.map_err(fault)?;
    let known = tables.iter().filter_map(|name| listing.relations.get(name));
    let oids: Vec<u32> = known.map(|relation| relation.oid).collect();
    let writers = writers(&session, &oids).await.map_err(fault)?;
    ended(&session, task, writers).await.map_err(fault)?;
    // One of them may have been prepared meanwhile, and have another number since.
    let mut prepared = self::writers(&session, &oids).await.map_err(fault)?;
    prepared.retain(|writer| writer.starts_with("-1/"));
    ended(&session, task, prepared).await.map_err(fault)?;
    session.give_back().await;
    Ok(())
}

/// Transactions that may have written to these tables, as `pg_locks` names them.
async fn writers(session: &Session, oids: &[u32]) -> Result<Vec<String>, PgError> {
    let sql = "SELECT DISTINCT virtualtransaction FROM pg_locks
        WHERE locktype = 'relation' AND relation = ANY ($1) AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')";
    let rows = session.query(sql, &[&oids]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn ended(session: &Session, task: &Task, mut writers: Vec<String>) -> Result<(), PgError> {
    while !writers.is_empty() {
        let what = format!(
            "{} open transactions that wrote to the tables",
            writers.len()
        );
        task.items(Phase::CatchUp, (0, 1), Some(what));
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = task.cancel.cancelled() => return Err(PgError::Cancelled),
        }
        let sql =
            "SELECT DISTINCT virtualtransaction FROM pg_locks WHERE virtualtransaction = ANY ($1)";
        let rows = session.query(sql, &[&writers]).await?;
        writers = rows.iter().map(|row| row.get(0)).collect();
    }
    Ok(())
}

/// The tables that the publication is to have once those of `from` have joined it.
pub(crate) async fn before(
    session: &Session,
    task: &Task,
    followed: &Followed,
    (from, adding): (&Identifier, &TableFilter),
) -> Result<Vec<TableName>, Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let listing = Listing::load(session).await.map_err(fault)?;
    let joining = leaves(session, &listing, from).await.map_err(fault)?;
    let entered = entered(session, task, followed).await?;
    // An earlier try may have moved them without renewing the mark.
    let others = entered.iter();
    let others = others.filter(|table| !listing.partitions.admitted(adding, table));
    refuse_entered(task, others)?;
    let into = followed.replication.name();
    let mut wanted = leaves(session, &listing, &into).await.map_err(fault)?;
    wanted.extend(joining);
    Ok(wanted)
}

/// Takes out again what came in while the mark was renewed.
pub(crate) async fn after(
    session: &Session,
    cancel: &CancellationToken,
    into: &Identifier,
    wanted: Vec<TableName>,
) -> Result<(), PgError> {
    let listing = Listing::load(session).await?;
    let mut now = leaves(session, &listing, into).await?;
    if now.iter().all(|table| wanted.contains(table)) {
        return Ok(());
    }
    now.retain(|table| wanted.contains(table));
    set_members(session, cancel, into, &now).await?;
    published::mark(session, session, into).await
}

/// Takes the tables out that `leaving` admits, with everything attached to them. A partitioned table of which a part leaves is published by its
/// other partitions from then on. Idempotent.
pub(crate) async fn leave(
    session: &Session,
    task: &Task,
    followed: &Followed,
    leaving: &TableFilter,
) -> Result<(), Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let name = followed.replication.name();
    let listing = Listing::load(session).await.map_err(fault)?;
    let now = members(session, &name).await.map_err(fault)?;
    let Staying { members, split } = stay(&listing, &now, leaving);
    if members == now {
        return Ok(());
    }
    if split == Split::Some {
        let entered = entered(session, task, followed).await?;
        let others = entered.iter();
        let others = others.filter(|table| !listing.partitions.admitted(leaving, table));
        refuse_entered(task, others)?;
    }
    let set = set_members(session, &task.cancel, &name, &members).await;
    set.map_err(fault)?;
    if split == Split::Some {
        let marked = published::mark(session, session, &name).await;
        marked.map_err(fault)?;
    }
    Ok(())
}

/// Whether a partitioned table is named by its partitions from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    None,
    Some,
}

/// What a publication still names.
#[derive(Debug)]
struct Staying {
    members: Vec<TableName>,
    split: Split,
}

fn stay(listing: &Listing, members: &[TableName], leaving: &TableFilter) -> Staying {
    let leaves = |table: &TableName| listing.partitions.admitted(leaving, table);
    let mut staying = Staying {
        members: Vec::new(),
        split: Split::None,
    };
    for member in members.iter().filter(|member| !leaves(member)) {
        let own = listing.relations.get(member).map(|relation| relation.oid);
        let covered = below(listing, &own.into_iter().collect::<HashSet<u32>>());
        if covered.iter().any(leaves) {
            staying.split = Split::Some;
            let rest = covered.into_iter().filter(|table| !leaves(table));
            staying.members.extend(rest);
        } else {
            staying.members.push(member.clone());
        }
    }
    staying
}

/// Tables that the publication has taken in since its mark, and that are not known to be complete on the target.
async fn entered(
    session: &Session,
    task: &Task,
    followed: &Followed,
) -> Result<Vec<TableName>, Fault> {
    let all = published::published(session).await;
    let all = all.map_err(|error| error.to_fault(&task.node))?;
    let own = |published: &Published| published.job == followed.replication.id;
    let Some(published) = all.into_iter().find(own) else {
        let text = format!(
            "the publication {} is gone, or was made by somebody else",
            followed.replication.name()
        );
        return Err(Fault::new(FaultKind::Failed, text)
            .hint("the node no longer follows its source completely: initialise it again")
            .on(&task.node));
    };
    if published.joined_total > published.joined.len() as u64 {
        let text = "so many tables have entered the publication that they are not listed";
        return Err(Fault::new(FaultKind::Failed, text).on(&task.node));
    }
    let joined = published.joined.into_iter().map(|joined| joined.table);
    Ok(joined
        .filter(|table| !followed.complete.contains(table))
        .collect())
}

fn refuse_entered<'a>(
    task: &Task,
    tables: impl Iterator<Item = &'a TableName>,
) -> Result<(), Fault> {
    let mut tables = tables.peekable();
    if tables.peek().is_none() {
        return Ok(());
    }
    let text = format!(
        "other tables have entered the publication, and the node may lack rows of them: {}",
        named(tables)
    );
    Err(Fault::new(FaultKind::Failed, text)
        .hint("name them too in steep-repl tables add, which copies them")
        .on(&task.node))
}

fn named<'a>(tables: impl Iterator<Item = &'a TableName>) -> String {
    let tables: Vec<String> = tables.map(ToString::to_string).collect();
    let more = tables.len().saturating_sub(NAMED);
    let mut text = tables[..tables.len().min(NAMED)].join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::listing::{Kind, Relation};
    use super::*;
    use crate::pg::catalog::Partitions;

    fn name(table: &str) -> TableName {
        TableName::new("app", table).unwrap()
    }

    fn listing() -> Listing {
        let relations = [
            ("plain", Kind::Table),
            ("root", Kind::Partitioned),
            ("leaf_1", Kind::Table),
            ("leaf_2", Kind::Table),
        ];
        let attached = [("leaf_1", "root"), ("leaf_2", "root")];
        let numbered = (1..).zip(relations);
        Listing {
            relations: numbered
                .map(|(oid, (table, kind))| (name(table), Relation::for_test(oid, kind)))
                .collect(),
            partitions: Partitions::of(
                attached
                    .map(|(leaf, above)| (name(leaf), name(above)))
                    .into(),
            ),
        }
    }

    fn staying(leaving: &[&str]) -> (Vec<String>, Split) {
        let leaving = leaving.iter().map(|table| name(table)).collect();
        let members = [name("plain"), name("root")];
        let staying = stay(&listing(), &members, &TableFilter::only(leaving));
        let members = staying.members.iter().map(|m| m.table.to_string());
        (members.collect(), staying.split)
    }

    #[test]
    fn a_table_leaves_with_everything_attached_to_it_and_a_partition_alone() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(staying(&["plain"]), (names(&["root"]), Split::None));
        assert_eq!(staying(&["root"]), (names(&["plain"]), Split::None));
        assert_eq!(
            staying(&["leaf_1"]),
            (names(&["plain", "leaf_2"]), Split::Some)
        );
        assert_eq!(
            staying(&["other"]),
            (names(&["plain", "root"]), Split::None)
        );
    }

    #[test]
    fn only_the_first_of_many_tables_are_named() {
        let tables: Vec<TableName> = (0..7).map(|n| name(&format!("t{n}"))).collect();
        let text = named(tables.iter());
        assert!(text.ends_with("app.t4 and 2 more"), "{text}");
    }
}
