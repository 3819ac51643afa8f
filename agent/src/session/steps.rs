//! The steps of a target that ask its source for something first.

use steep_protocol::message::agent::{
    EarlierEpoch, Outcome, PrepareTarget, RowsFrom, SubscriptionStart,
};
use steep_protocol::message::facts::Finding;
use steep_protocol::message::handover::SchemaCheck;
use steep_protocol::message::lineage::ChangeOrigin;
use steep_protocol::message::peer::SchemaSection;
use steep_protocol::{Epoch, Fault};

use crate::peer::connection::SourceAgent;
use crate::peer::pending::PendingDump;
use crate::snapshot::stored::StoredSnapshot;
use crate::target::{self, Dumps, PrepareRequest, SchemaRequest};
use crate::task::Task;

/// Prepares the target for its rows; for a backup, which has them, only compares the schema.
pub(super) async fn prepare(
    task: &Task,
    link: &SourceAgent,
    carried: Option<&StoredSnapshot>,
    request: PrepareTarget,
) -> Result<Vec<Finding>, Fault> {
    if request.rows == RowsFrom::Backup(SchemaCheck::Skipped) {
        return Ok(Vec::new());
    }
    let schema = |described| SchemaRequest {
        source: link.source().clone(),
        described,
        filter: request.filter,
        existing: request.existing,
        schema_mode: request.schema_mode,
        absent: request.absent,
        note: request.note,
    };
    let RowsFrom::Copy(indexes) = request.rows else {
        let schema = schema(link.described().await?);
        return target::match_schema(task, &schema).await;
    };
    if let Some(stored) = carried {
        let section = |section| stored.schema(section, &task.node);
        let dumps = Dumps {
            pre_data: section(SchemaSection::PreData).await?,
            extension_rows: section(SchemaSection::ExtensionRows).await?,
            post_data: section(SchemaSection::PostData).await?,
        };
        let request = PrepareRequest {
            schema: schema(link.described().await?),
            indexes,
            settings: link.settings().await?,
        };
        return target::prepare(task, &request, stored.tables(), dumps).await;
    }
    if request.epoch != Epoch(0) {
        let schema = schema(link.described().await?);
        let plan = link.plan().await?;
        return target::prepare_again(task, &schema, &plan.tables, &request.unfinished).await;
    }
    // Each takes the source seconds for ten thousand tables, on a connection of its own.
    let (described, pre_data) =
        tokio::try_join!(link.described(), link.schema(SchemaSection::PreData))?;
    let schema = schema(described);
    let plan = link.plan().await?;
    let dumps = Dumps {
        pre_data,
        extension_rows: link.schema(SchemaSection::ExtensionRows).await?,
        // Asked for at once, since it comes from the same dump as the first section.
        post_data: PendingDump::request(link, SchemaSection::PostData),
    };
    let request = PrepareRequest {
        schema,
        indexes,
        settings: link.settings().await?,
    };
    Box::pin(target::prepare(task, &request, &plan.tables, dumps)).await
}

pub(super) async fn subscribe(
    task: &Task,
    link: &SourceAgent,
    (start, origin): (SubscriptionStart, ChangeOrigin),
    earlier: &[EarlierEpoch],
) -> Result<Outcome, Fault> {
    let conninfo = link.conninfo().await?;
    let sync_slots = target::subscribe(task, &conninfo, (start, origin), earlier).await?;
    if let SubscriptionStart::AtSlot(lsn) | SubscriptionStart::AtOrigin(lsn) = start {
        tracing::info!(job_id = %task.job, %lsn, "subscribed");
    }
    let subscribed = |sync_slots| Outcome::Subscribed { sync_slots };
    Ok(sync_slots.map_or(Outcome::Done, subscribed))
}
