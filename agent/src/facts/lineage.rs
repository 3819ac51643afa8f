//! Which database this is, whose changes it applies, and which of our objects are in it. Uses only catalogs
//! that every role may read.
//!
//! Tables of other tools and our own are read only where that runs nobody's code: ordinary tables without
//! row security, owned by a superuser or the agent's role.

use std::collections::{BTreeMap, HashSet};

use steep_protocol::limits::{JOB_NOTE_MAX, LISTED_MAX};
use steep_protocol::message::facts::SubscribedTables;
use steep_protocol::message::job::ReplicationNames;
use steep_protocol::message::lineage::{
    ChangeOrigin, Identity, LINEAGE_MAX, Lineage, MirroredNode, SubscriptionSeen, Tool, WritesMoved,
};
use steep_protocol::{JobId, NodeId, NodeState, TableName};
use tokio_postgres::Row;

use super::content::add;
use crate::pg::{PgError, Session, literal};
use crate::switchover::{SETTING, is_on};

/// Until the first checkpoint after a promotion, only the name of the WAL file has the new timeline.
const IDENTITY_SQL: &str = "
    SELECT c.system_identifier, d.oid,
        CASE WHEN pg_is_in_recovery() THEN (pg_control_checkpoint()).timeline_id
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
        (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8
    FROM pg_control_system() c, pg_database d WHERE d.datname = current_database()";

/// Characters of a mirrored error; at four bytes each they fit
/// [`steep_protocol::message::lineage::MIRRORED_ERROR_MAX`].
const ERROR_CHARACTERS: usize = 500;

/// Everything that this server knows by itself.
pub(crate) async fn lineage(session: &Session, node: &NodeId) -> Result<Lineage, PgError> {
    let identity = session.query_typed(IDENTITY_SQL, &[]).await?;
    let mut lineage = Lineage {
        identity: identity.first().map(identity_of).transpose()?,
        subscriptions: subscriptions(session).await?,
        ..Lineage::default()
    };
    for tool in [Tool::Pglogical, Tool::Spock] {
        foreign_subscriptions(session, tool, &mut lineage.subscriptions).await?;
    }
    let prefix = literal(ReplicationNames::PREFIX);
    let slots = format!(
        "SELECT slot_name::text FROM pg_replication_slots
         WHERE slot_type = 'logical' AND database = current_database()
         ORDER BY starts_with(slot_name::text, {prefix}) DESC, 1 LIMIT {LINEAGE_MAX}"
    );
    for row in session.query_typed(&slots, &[]).await? {
        lineage.slots.push(row.try_get(0)?);
    }
    let publications = format!(
        "SELECT pubname::text FROM pg_publication WHERE starts_with(pubname::text, {prefix})
         ORDER BY 1 LIMIT {LINEAGE_MAX}"
    );
    for row in session.query_typed(&publications, &[]).await? {
        let name: &str = row.try_get(0)?;
        lineage.publications.extend(ReplicationNames::parse(name));
    }
    own_tables(session, node, &mut lineage).await?;
    lineage.subscriptions.truncate(LINEAGE_MAX);
    Ok(lineage)
}

fn identity_of(row: &Row) -> Result<Identity, PgError> {
    let system: i64 = row.try_get(0)?;
    let timeline: i32 = row.try_get(2)?;
    Ok(Identity {
        system: system.cast_unsigned(),
        database: row.try_get(1)?,
        timeline: timeline.cast_unsigned(),
        started: row.try_get(3)?,
    })
}

async fn subscriptions(session: &Session) -> Result<Vec<SubscriptionSeen>, PgError> {
    let origin = match session.server_version() {
        160_000.. => "s.suborigin",
        _ => "'any'::text",
    };
    let prefix = literal(ReplicationNames::PREFIX);
    let sql = format!(
        "SELECT s.subname::text, s.subslotname::text, {origin}
         FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
         WHERE d.datname = current_database()
         ORDER BY starts_with(s.subname::text, {prefix}) DESC, 1 LIMIT {LINEAGE_MAX}"
    );
    let mut found = Vec::new();
    for row in session.query_typed(&sql, &[]).await? {
        found.push(SubscriptionSeen {
            name: row.try_get(0)?,
            tool: Tool::PostgreSql,
            slot: row.try_get(1)?,
            origin: match row.try_get::<_, &str>(2)? {
                "none" => ChangeOrigin::None,
                _ => ChangeOrigin::Any,
            },
        });
    }
    Ok(found)
}

/// Whether reading the table runs nobody's code.
async fn is_plain(session: &Session, schema: &str, table: &str) -> Result<bool, PgError> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            JOIN pg_roles r ON r.oid = c.relowner
            WHERE n.nspname = {} AND c.relname = {} AND c.relkind = 'r' AND NOT c.relrowsecurity
            AND (r.rolsuper OR r.rolname = current_user)
            AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))",
        literal(schema),
        literal(table)
    );
    Ok(session.query_typed(&sql, &[]).await?[0].try_get(0)?)
}

/// Subscriptions of extensions with replication of their own. Both have the same tables; an empty list of
/// forwarded origins corresponds to `origin = none`.
async fn foreign_subscriptions(
    session: &Session,
    tool: Tool,
    found: &mut Vec<SubscriptionSeen>,
) -> Result<(), PgError> {
    let Some(schema) = tool.schema() else {
        return Ok(());
    };
    if !is_plain(session, schema, "subscription").await? {
        return Ok(());
    }
    let sql = format!(
        "SELECT left(s.j ->> 'sub_name', 63), left(s.j ->> 'sub_slot_name', 63),
             coalesce(s.j -> 'sub_forward_origins' = '[]', false)
         FROM (SELECT to_jsonb(t) AS j FROM {schema}.subscription t) s
         WHERE s.j ->> 'sub_name' IS NOT NULL ORDER BY 1 LIMIT {LINEAGE_MAX}"
    );
    for row in session.query_typed(&sql, &[]).await? {
        found.push(SubscriptionSeen {
            name: row.try_get(0)?,
            tool,
            slot: row.try_get(1)?,
            origin: match row.try_get(2)? {
                true => ChangeOrigin::None,
                false => ChangeOrigin::Any,
            },
        });
    }
    Ok(())
}

/// What our own schema says, where it exists and can be read.
async fn own_tables(
    session: &Session,
    node: &NodeId,
    lineage: &mut Lineage,
) -> Result<(), PgError> {
    if is_plain(session, "steep_repl", "jobs").await? {
        let sql = format!("SELECT job FROM steep_repl.jobs ORDER BY job LIMIT {LINEAGE_MAX}");
        for row in session.query_typed(&sql, &[]).await? {
            let job: &str = row.try_get(0)?;
            lineage.jobs.extend(job.parse::<JobId>().ok());
        }
        if let [job] = lineage.jobs[..] {
            lineage.note = note(session, job).await?;
        }
    }
    if is_plain(session, "steep_repl", "nodes").await? {
        let sql = format!(
            "SELECT state, source_node, job, left(error_message, {ERROR_CHARACTERS})
             FROM steep_repl.nodes WHERE node_id = {}",
            literal(node.as_str())
        );
        let rows = session.query_typed(&sql, &[]).await?;
        lineage.mirrored = rows.first().map(mirrored).transpose()?.flatten();
    }
    if is_plain(session, "steep_repl", "write_stop").await? {
        let sql = format!(
            "SELECT switchover, ({SETTING}), current_database()::text FROM steep_repl.write_stop WHERE state = 'final'"
        );
        let rows = session.query_typed(&sql, &[]).await?;
        lineage.moved = rows.first().map(moved).transpose()?.flatten();
    }
    Ok(())
}

fn moved(row: &Row) -> Result<Option<WritesMoved>, PgError> {
    let switchover: &str = row.try_get(0)?;
    let Ok(switchover) = switchover.parse() else {
        return Ok(None);
    };
    Ok(Some(WritesMoved {
        switchover,
        read_only: is_on(row.try_get(1)?),
        database: row.try_get(2)?,
    }))
}

/// The coordinator's note of a job. An older schema has no place for it.
async fn note(session: &Session, job: JobId) -> Result<Option<String>, PgError> {
    let sql = format!(
        "SELECT n FROM (SELECT to_jsonb(j) ->> 'note' AS n FROM steep_repl.jobs j WHERE job = '{job}') kept
         WHERE octet_length(n) <= {JOB_NOTE_MAX}"
    );
    let rows = session.query_typed(&sql, &[]).await?;
    Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
}

fn mirrored(row: &Row) -> Result<Option<MirroredNode>, PgError> {
    let Some(state) = NodeState::from_name(row.try_get(0)?) else {
        return Ok(None);
    };
    let source: Option<&str> = row.try_get(1)?;
    let job: Option<&str> = row.try_get(2)?;
    Ok(Some(MirroredNode {
        state,
        source: source.and_then(|name| NodeId::parse(name).ok()),
        job: job.and_then(|job| job.parse().ok()),
        error: row.try_get(3)?,
    }))
}

/// PostgreSQL's own subscriptions, with every partition below a root that they write to.
const SUBSCRIBED_SQL: &str = "
    SELECT s.subname::text, n.nspname::text, c.relname::text
    FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
    JOIN pg_subscription_rel r ON r.srsubid = s.oid
    CROSS JOIN LATERAL (SELECT r.srrelid AS oid
        UNION SELECT t.relid::oid FROM pg_partition_tree(r.srrelid::regclass) t) written
    JOIN pg_class c ON c.oid = written.oid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE d.datname = current_database() ORDER BY 1, 2, 3";

/// Those of `tables` that a subscription other than the job's own writes to.
pub(super) async fn subscribed(
    session: &Session,
    own: &str,
    tables: &HashSet<&TableName>,
) -> Result<Vec<SubscribedTables>, PgError> {
    let mut found: BTreeMap<(String, u8), SubscribedTables> = BTreeMap::new();
    let mut note = |tool: Tool, row: &Row| -> Result<(), PgError> {
        let subscription: String = row.try_get(0)?;
        let table = TableName::new(row.try_get::<_, &str>(1)?, row.try_get::<_, &str>(2)?);
        let Ok(table) = table else { return Ok(()) };
        if subscription == own || !tables.contains(&table) || found.len() > LISTED_MAX {
            return Ok(());
        }
        let entry = found
            .entry((subscription.clone(), tool as u8))
            .or_insert_with(|| SubscribedTables {
                subscription,
                tool,
                tables: Default::default(),
            });
        add(&mut entry.tables, &table);
        Ok(())
    };
    for row in session.query_typed(SUBSCRIBED_SQL, &[]).await? {
        note(Tool::PostgreSql, &row)?;
    }
    for tool in [Tool::Pglogical, Tool::Spock] {
        let Some(schema) = tool.schema() else {
            continue;
        };
        if !is_plain(session, schema, "subscription").await?
            || !is_plain(session, schema, "local_sync_status").await?
        {
            continue;
        }
        // A row without a table stands for the whole subscription.
        let sql = format!(
            "SELECT s.j ->> 'sub_name', t.j ->> 'sync_nspname', t.j ->> 'sync_relname'
             FROM (SELECT to_jsonb(x) AS j FROM {schema}.subscription x) s
             JOIN (SELECT to_jsonb(x) AS j FROM {schema}.local_sync_status x) t
                 ON t.j ->> 'sync_subid' = s.j ->> 'sub_id'
             WHERE t.j ->> 'sync_relname' IS NOT NULL AND s.j ->> 'sub_name' IS NOT NULL
                 AND t.j ->> 'sync_nspname' IS NOT NULL
             ORDER BY 1, 2, 3"
        );
        for row in session.query_typed(&sql, &[]).await? {
            note(tool, &row)?;
        }
    }
    Ok(found.into_values().collect())
}
