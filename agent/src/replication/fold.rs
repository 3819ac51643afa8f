//! Several epochs of a job become one: the subscription of the present one takes over the tables of an earlier one,
//! whose own is then dropped (G1).
//!
//! The present subscription stands still while the source moves the tables from publication to publication and the
//! earlier subscription applies what came before that. It cannot be given tables while it stands still, so it is
//! created again, on the same slot and at the position where it stopped, and reads its tables from the publication.
//! The one that stopped keeps its position, under another name, until then: whatever dies in between, the next try goes
//! on from there.

use std::time::{Duration, Instant};

use steep_protocol::message::agent::{EarlierEpoch, SubscriptionStart};
use steep_protocol::message::lineage::ChangeOrigin;
use steep_protocol::{Fault, FaultKind, Identifier, Retry, TableName};

use super::options;
use super::subscription::{
    Position, advance, create, enable, find, gone, unsubscribe, use_own_publication,
};
use crate::node::connection::Conn;
use crate::peer::connection::SourceAgent;
use crate::pg::literal;
use crate::schema::missing;
use crate::task::Task;

/// How long an apply worker may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Between two looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Tables named in a fault.
const NAMED: usize = 5;

/// The name of the subscription that has stopped.
pub(crate) fn stopped_name(name: &Identifier) -> Identifier {
    let stopped = Identifier::parse(format!("{}_stopped", name.as_str()));
    stopped.expect("35 bytes of a-z, 0-9 and underscore")
}

/// Folds the earlier epochs into the task's. Idempotent. The fault of tables that are written to all the time can be
/// retried: what could be moved is moved, and all subscriptions go on meanwhile.
pub(crate) async fn fold(
    task: &Task,
    source: &SourceAgent,
    origin: ChangeOrigin,
    earlier: &[EarlierEpoch],
) -> Result<(), Fault> {
    let conn = Conn::open(task, "fold").await?;
    for epoch in earlier {
        let from = epoch.replication.name();
        if find(&conn, &from).await?.is_none() {
            // An earlier try has come this far.
            source.drop_epoch(&epoch.replication).await?;
            continue;
        }
        part(&conn, task, source, epoch).await?;
        stop(&conn, task, &task.replication.name()).await?;
        // Where this fails, nobody knows which tables were moved: it stands still until the next try has told.
        let left = source
            .move_tables(&epoch.replication, task.replication.id)
            .await?;
        start_again(&conn, task, source, origin).await?;
        if !left.is_empty() {
            return Err(conn.own(busy(&left)));
        }
        unsubscribe(&conn, &from).await?;
        source.drop_epoch(&epoch.replication).await?;
        tracing::info!(job_id = %task.job, epoch = %from, "an earlier epoch is folded into the present one");
    }
    missing::check_references_again(&conn, task.job).await?;
    conn.session.close().await;
    Ok(())
}

/// Lets an epoch that shared its snapshot be decoded for its own publication alone, out of which its tables can be moved.
/// Does nothing where that is done.
async fn part(
    conn: &Conn,
    task: &Task,
    source: &SourceAgent,
    epoch: &EarlierEpoch,
) -> Result<(), Fault> {
    let (replication, name) = (&epoch.replication, epoch.replication.name());
    if replication.shared().is_none() {
        return Ok(());
    }
    // An earlier try may have died while it stood still.
    enable(conn, &name).await?;
    if is_decoded_for(conn, &name).await? {
        return Ok(());
    }
    let position = source.pass_fence(replication).await?;
    stop(conn, task, &name).await?;
    // The source forgets what its slot has confirmed if it crashes; the position says it again.
    use_own_publication(conn, replication, position).await
}

/// Whether a subscription's publication is the one of its own name.
async fn is_decoded_for(conn: &Conn, name: &Identifier) -> Result<bool, Fault> {
    let sql = "SELECT s.subpublications = ARRAY[$1::text] FROM pg_subscription s
        JOIN pg_database d ON d.oid = s.subdbid
        WHERE d.datname = current_database() AND s.subname = $1";
    Ok(conn.row(sql, &[&name.as_str()]).await?.get(0))
}

/// Stops a subscription. An earlier try may have stopped the present one and renamed it.
pub(super) async fn stop(conn: &Conn, task: &Task, name: &Identifier) -> Result<(), Fault> {
    let Some(found) = find(conn, name).await? else {
        return Ok(());
    };
    conn.execute(&format!("ALTER SUBSCRIPTION {} DISABLE", name.quoted()))
        .await?;
    let until = Instant::now() + STOP_LIMIT;
    while is_applying(conn, found.oid).await? {
        if Instant::now() > until {
            let text = format!("the worker of subscription {name} does not end");
            return Err(conn.own(Fault::new(FaultKind::Failed, text).retry(Retry::Backoff)));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = task.cancel.cancelled() => {
                return Err(conn.own(Fault::new(FaultKind::Cancelled, "cancelled")));
            }
        }
    }
    Ok(())
}

async fn is_applying(conn: &Conn, oid: u32) -> Result<bool, Fault> {
    let sql =
        "SELECT EXISTS (SELECT FROM pg_stat_subscription WHERE subid = $1 AND pid IS NOT NULL)";
    Ok(conn.row(sql, &[&oid]).await?.get(0))
}

/// Creates the subscription again where it stopped, with the tables that its publication has now.
pub(super) async fn start_again(
    conn: &Conn,
    task: &Task,
    source: &SourceAgent,
    origin: ChangeOrigin,
) -> Result<(), Fault> {
    let (name, replication) = (task.replication.name(), &task.replication);
    let stopped = stopped_name(&name);
    if find(conn, &stopped).await?.is_none() {
        let (from, to) = (name.quoted(), stopped.quoted());
        conn.execute(&format!("ALTER SUBSCRIPTION {from} RENAME TO {to}"))
            .await?;
    }
    let gone = |name: &Identifier| conn.own(Fault::new(FaultKind::Failed, gone(name)));
    let old = find(conn, &stopped).await?.ok_or_else(|| gone(&stopped))?;
    if find(conn, &name).await?.is_none() {
        // The start only decides whether it copies by itself.
        let how = (SubscriptionStart::AtSlot(steep_protocol::Lsn(0)), origin);
        create(conn, &source.conninfo().await?, how, replication).await?;
    }
    let new = find(conn, &name).await?.ok_or_else(|| gone(&name))?;
    let origin = literal(&format!("pg_{}", old.oid));
    let sql = format!("SELECT pg_replication_origin_progress({origin}, true)::text");
    let position = conn.row(&sql, &[]).await.map_err(|fault| {
        fault.hint("GRANT EXECUTE ON FUNCTION pg_replication_origin_advance(text, pg_lsn), pg_replication_origin_progress(text, boolean) to the agent's role")
    })?;
    let position: Option<String> = position.get(0);
    if let Some(position) = position.and_then(|lsn| lsn.parse().ok()) {
        advance(conn, new.oid, position, Position::Decides).await?;
    }
    options::carry_over(conn, (old.oid, new.oid), &name).await?;
    unsubscribe(conn, &stopped).await?;
    enable(conn, &name).await
}

pub(super) fn busy(left: &[TableName]) -> Fault {
    let named: Vec<String> = left.iter().take(NAMED).map(ToString::to_string).collect();
    let more = match left.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let text = format!(
        "no moment was found in which nobody writes to {}{more}, to move them to one publication",
        named.join(", ")
    );
    Fault::new(FaultKind::Failed, text)
        .hint("it is tried again; a transaction that stays open keeps its tables from being moved")
        .retry(Retry::Backoff)
}
