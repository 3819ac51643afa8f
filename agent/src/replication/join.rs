//! Tables join the subscription that a node follows by, or leave it, while all its others go on.
//!
//! The tables that join have been copied and have caught up by a subscription of their own. That one is folded into the
//! one that goes on in the same way as two epochs of a job ([`fold`](super::fold)), which then stands still for a
//! moment. So that nothing keeps it from starting again, its creation is tried before it stops.

use steep_protocol::message::tables::{ChangedTables, Followed};
use steep_protocol::{Fault, FaultKind, Identifier, Retry, TableName};

use super::fold::{busy, start_again, stop, stopped_name};
use super::subscription::{find, gone, in_a_block, unsubscribe};
use crate::node::connection::Conn;
use crate::peer::connection::SourceAgent;
use crate::schema::missing;
use crate::task::Task;

/// Why tables leave a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// An operator has ordered it.
    Ordered,
    /// The job that let them join is undone. It may have stopped the subscription.
    Undone,
}

/// Lets the followed subscription carry the tables of the task's own, which is dropped with its slot and publication.
/// Idempotent. The fault of tables that are written to all the time can be retried.
pub(crate) async fn join(
    task: &Task,
    source: &SourceAgent,
    followed: &Followed,
) -> Result<(), Fault> {
    let conn = Conn::open(task, "fold").await?;
    let (own, base) = (&task.replication, &followed.replication);
    // Otherwise an earlier try has come this far.
    if find(&conn, &own.name()).await?.is_some() {
        try_to_create(&conn, source, &base.name()).await?;
        stop(&conn, task, &base.name()).await?;
        // Where this fails, nobody knows which tables were moved: it stands still until the next try has told.
        let left = source.move_tables(own, base.id).await?;
        let goes_on = Task {
            replication: base.clone(),
            ..task.clone()
        };
        start_again(&conn, &goes_on, source, followed.origin).await?;
        if !left.is_empty() {
            return Err(conn.own(busy(&left)));
        }
        unsubscribe(&conn, &own.name()).await?;
    }
    source.drop_epoch(own).await?;
    missing::check_references_again(&conn, task.job).await?;
    conn.session.close().await;
    tracing::info!(job_id = %task.job, subscription = %base.name(), "tables have joined the subscription");
    Ok(())
}

/// Takes tables out of the followed publication and subscription. Idempotent. A subscription that stands still because
/// of tables that were to join goes on as it was.
pub(crate) async fn leave(
    task: &Task,
    source: &SourceAgent,
    changed: &ChangedTables,
    why: Leaving,
) -> Result<(), Fault> {
    source.leave_tables().await?;
    let conn = Conn::open(task, "leave").await?;
    let name = changed.followed.replication.name();
    unsubscribe(&conn, &trial_name(&name)).await?;
    let stopped = stopped_name(&name);
    if find(&conn, &stopped).await?.is_some() {
        // The one that was to take its place has not been started.
        unsubscribe(&conn, &name).await?;
        let (from, to) = (stopped.quoted(), name.quoted());
        conn.execute(&format!("ALTER SUBSCRIPTION {from} RENAME TO {to}"))
            .await?;
    }
    let found = find(&conn, &name).await?;
    let found = found.ok_or_else(|| conn.own(Fault::new(FaultKind::Failed, gone(&name))))?;
    match why {
        _ if found.enabled => {}
        Leaving::Undone => {
            conn.execute(&format!("ALTER SUBSCRIPTION {} ENABLE", name.quoted()))
                .await?;
        }
        Leaving::Ordered => return Err(disabled(&conn, &name)),
    }
    if lists(&conn, found.oid, &changed.tables).await? {
        refresh(&conn, &name).await?;
    }
    conn.session.close().await;
    Ok(())
}

/// Refuses where the followed subscription is gone: there is nothing that tables could leave.
pub(crate) async fn can_leave(conn: &Conn, followed: &Followed) -> Result<(), Fault> {
    let name = followed.replication.name();
    if find(conn, &name).await?.is_some() || find(conn, &stopped_name(&name)).await?.is_some() {
        return Ok(());
    }
    Err(conn.own(Fault::new(FaultKind::Failed, gone(&name))))
}

fn disabled(conn: &Conn, name: &Identifier) -> Fault {
    let text = format!("subscription {name} is disabled");
    conn.own(Fault::new(FaultKind::Failed, text))
        .hint("only one that is enabled can be told which tables it has: enable it")
}

/// Drops a subscription that has lost changes, in whatever state: nothing is applied by it from then on. Idempotent.
pub(crate) async fn end(conn: &Conn, followed: &Followed) -> Result<(), Fault> {
    let name = followed.replication.name();
    for name in [trial_name(&name), stopped_name(&name), name] {
        unsubscribe(conn, &name).await?;
    }
    Ok(())
}

/// Takes tables out of the followed publication and subscription until they join them again. From then on nothing applies
/// a change to them: a worker remembers which tables it applies, so it begins anew. It passes over changes at which it has
/// failed, and loses none of other tables. Idempotent.
pub(crate) async fn part(
    conn: &Conn,
    task: &Task,
    source: &SourceAgent,
    changed: &ChangedTables,
) -> Result<(), Fault> {
    can_leave(conn, &changed.followed).await?;
    let Followed {
        replication,
        origin,
        ..
    } = &changed.followed;
    let name = replication.name();
    source.leave_tables().await?;
    let Some(found) = find(conn, &name).await?.filter(|found| found.enabled) else {
        // One that stands still cannot be told, and were it enabled for that, it would fail again.
        try_to_create(conn, source, &name).await?;
        stop(conn, task, &name).await?;
        let goes_on = Task {
            replication: replication.clone(),
            ..task.clone()
        };
        return start_again(conn, &goes_on, source, *origin).await;
    };
    if lists(conn, found.oid, &changed.tables).await? {
        refresh(conn, &name).await?;
    }
    stop(conn, task, &name).await?;
    conn.execute(&format!("ALTER SUBSCRIPTION {} ENABLE", name.quoted()))
        .await
}

/// Tells the subscription which tables its publication has. Rows of a table that has entered it meanwhile are copied by
/// PostgreSQL.
async fn refresh(conn: &Conn, name: &Identifier) -> Result<(), Fault> {
    let refresh = format!("ALTER SUBSCRIPTION {} REFRESH PUBLICATION", name.quoted());
    conn.execute(&refresh).await.map_err(|mut fault| {
        let text = format!("subscription {name} cannot be told that tables have left");
        fault.message = format!("{text}: {}", fault.message);
        fault.retry(Retry::Backoff)
    })
}

fn trial_name(name: &Identifier) -> Identifier {
    let trial = Identifier::parse(format!("{}_trial", name.as_str()));
    trial.expect("33 bytes of a-z, 0-9 and underscore")
}

/// Creates a subscription like that one, which does nothing, and drops it: what would keep the real one from being
/// created again shows while that still works.
async fn try_to_create(conn: &Conn, source: &SourceAgent, name: &Identifier) -> Result<(), Fault> {
    let trial = trial_name(name);
    unsubscribe(conn, &trial).await?;
    let statement = format!(
        "CREATE SUBSCRIPTION {} CONNECTION %L PUBLICATION {} WITH (create_slot = false, slot_name = NONE, \
         enabled = false, copy_data = false)",
        trial.quoted(),
        name.quoted()
    );
    let created = in_a_block(conn, (&statement, None), &source.conninfo().await?).await;
    created.map_err(|error| {
        let mut fault = conn.fault(&error);
        let text = format!("subscription {name} could not be created again with more tables");
        fault.message = format!("{text}: {}", fault.message);
        fault.hint("a table that its source publishes and that is missing here can be added too, with steep-repl tables add")
    })?;
    unsubscribe(conn, &trial).await
}

/// Whether the subscription lists any of these tables, or one attached to them.
async fn lists(conn: &Conn, subscription: u32, tables: &[TableName]) -> Result<bool, Fault> {
    let names: Vec<String> = tables.iter().map(TableName::quoted).collect();
    let sql = "SELECT EXISTS (SELECT FROM pg_subscription_rel r WHERE r.srsubid = $1 AND r.srrelid IN (
            SELECT to_regclass(name) FROM unnest($2::text[]) AS t (name)
            UNION ALL
            SELECT p.relid FROM unnest($2::text[]) AS t (name), pg_partition_tree(to_regclass(name)) AS p))";
    Ok(conn.row(sql, &[&subscription, &names]).await?.get(0))
}
