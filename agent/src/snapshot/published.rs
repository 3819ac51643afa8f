//! Whether a publication is, and has always been, what was planned with its slot.
//!
//! The slot's position says what was decoded. A table that left the publication for a while misses changes,
//! although the position goes on (G4).

use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::agent::{
    CARRIED_MAX, JoinedTable, Made, PublicationState, PublicationStatus, Published, RowsThere,
};
use steep_protocol::message::job::ReplicationNames;
use steep_protocol::{Fault, FaultKind, Identifier, JobId, TableName};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::pg::catalog::{self, USER_RELATION, enum_labels};
use crate::pg::mark::{self, Marked};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Tables named in a fault.
const NAMED: usize = 5;

/// Marks the publication as complete at the snapshot of `at`'s transaction.
pub(crate) async fn mark(
    session: &Session,
    at: &Session,
    name: &Identifier,
) -> Result<(), PgError> {
    mark::set(session, at, Marked::Publication, name.as_str()).await
}

fn job(row: &Row) -> Option<JobId> {
    let name: &str = row.get(0);
    name.strip_prefix(ReplicationNames::PREFIX)?.parse().ok()
}

/// Our publications in this database.
pub(crate) async fn publication_statuses(
    session: &Session,
) -> Result<Vec<PublicationStatus>, PgError> {
    let sql = format!(
        "SELECT p.pubname::text, CASE WHEN m.mark IS NULL THEN 'u' \
             WHEN {digest} <> {noted} OR p.pubowner::text = {owner} AND {late} THEN 'a' ELSE 's' END, \
             r.members, coalesce(r.newest, 0)::oid, {number} \
         FROM pg_publication p \
         CROSS JOIN LATERAL (SELECT {mark} AS mark) AS m \
         CROSS JOIN LATERAL (SELECT count(*) AS members, max(x.oid::bigint) AS newest \
             FROM pg_publication_rel x WHERE x.prpubid = p.oid) AS r \
         WHERE starts_with(p.pubname::text, $1) ORDER BY 1",
        number = mark::number("m.mark"),
        digest = Marked::Publication.digest(),
        noted = mark::digest("m.mark"),
        owner = mark::owner("m.mark"),
        late = mark::late("p.xmin", &mark::since("m.mark")),
        mark = mark::of("obj_description(p.oid, 'pg_publication')"),
    );
    let rows = session
        .query_typed(&sql, &[(&ReplicationNames::PREFIX, Type::TEXT)])
        .await?;
    let status = |row: &Row| {
        Some(PublicationStatus {
            job: job(row)?,
            state: match row.get::<_, &str>(1) {
                "s" => PublicationState::Sound,
                "a" => PublicationState::Altered,
                _ => PublicationState::Unmarked,
            },
            members: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
            newest: row.get(3),
            mark: row.get(4),
        })
    };
    Ok(rows.iter().filter_map(status).collect())
}

/// The marked publications, and every table with rows that they publish: replication, table, and whether it
/// was added after the mark.
fn leaves() -> String {
    format!(
        "WITH RECURSIVE ours AS MATERIALIZED ( \
             SELECT p.oid, p.pubname::text AS name, {since} AS since, {number} AS mark, p.xmin AS born \
             FROM pg_publication p \
             CROSS JOIN LATERAL (SELECT {mark} AS mark) AS m \
             WHERE starts_with(p.pubname::text, $1) AND m.mark IS NOT NULL \
         ), tree AS ( \
             SELECT o.name, o.since, r.prrelid AS relation, {member_late} AS late, r.xmin::text::bigint AS by \
             FROM ours o JOIN pg_publication_rel r ON r.prpubid = o.oid \
             UNION ALL \
             SELECT t.name, t.since, i.inhrelid, t.late OR {attached_late}, greatest(t.by, i.xmin::text::bigint) \
             FROM tree t JOIN pg_class c ON c.oid = t.relation AND c.relkind = 'p' \
             JOIN pg_inherits i ON i.inhparent = t.relation \
         ), leaves AS MATERIALIZED ( \
             SELECT t.name, t.since, t.relation, bool_and(t.late) AS late, max(t.by) AS by, \
                 n.nspname::text AS schema_name, \
                 c.relname::text AS table_name \
             FROM tree t JOIN pg_class c ON c.oid = t.relation AND c.relkind = 'r' AND c.relpersistence = 'p' \
             JOIN pg_namespace n ON n.oid = c.relnamespace GROUP BY 1, 2, 3, 6, 7 \
         )",
        since = mark::since("m.mark"),
        number = mark::number("m.mark"),
        mark = mark::of("obj_description(p.oid, 'pg_publication')"),
        member_late = mark::late("r.xmin", "o.since"),
        attached_late = mark::late("i.xmin", "t.since"),
    )
}

/// How our marked publications differ from what they were at their mark. A locked table counts as having
/// rows.
pub(crate) async fn published(session: &Session) -> Result<Vec<Published>, PgError> {
    let leaves = leaves();
    let prefix = ReplicationNames::PREFIX;
    let mut all: Vec<Published> = Vec::new();
    let sql = format!("{leaves} SELECT name, mark FROM ours ORDER BY 1");
    for row in session.query_typed(&sql, &[(&prefix, Type::TEXT)]).await? {
        all.extend(job(&row).map(|id| empty(id, row.get(1))));
    }
    if all.is_empty() {
        return Ok(all);
    }
    for (id, mut joined) in joined(session, &leaves).await? {
        let Some(published) = all.iter_mut().find(|p| p.job == id) else {
            continue;
        };
        published.joined_total += 1;
        if published.joined.len() < CARRIED_MAX {
            joined.rows = rows_there(session, &joined.table).await?;
            published.joined.push(joined);
        }
    }
    for (id, table) in appeared(session, &leaves).await? {
        let published = all.iter_mut().find(|p| p.job == id);
        if let Some(published) = published.filter(|p| p.appeared.len() < LISTED_MAX) {
            published.appeared.push(table);
        }
    }
    let carried = format!("{leaves}, carried AS (SELECT name, relation FROM leaves)");
    for (name, labels) in enum_labels(session, &carried, prefix).await? {
        let id = name.strip_prefix(prefix).and_then(|id| id.parse().ok());
        if let Some(published) = all.iter_mut().find(|p| Some(p.job) == id) {
            published.enums.push(labels);
        }
    }
    Ok(all)
}

fn empty(job: JobId, mark: i64) -> Published {
    Published {
        job,
        mark,
        joined: Vec::new(),
        joined_total: 0,
        appeared: Vec::new(),
        enums: Vec::new(),
    }
}

/// Whether a table is younger than the mark `since`: the rows of its own columns are never rewritten.
fn made_late(relation: &str, since: &str) -> String {
    format!(
        "(SELECT {} FROM pg_attribute a WHERE a.attrelid = {relation} AND a.attnum = -1)",
        mark::late("a.xmin", since)
    )
}

/// Whether a table is younger than the publication `o`, or than its mark.
fn made_since(relation: &str) -> String {
    format!(
        "({} OR (SELECT {} > {} FROM pg_attribute a WHERE a.attrelid = {relation} AND a.attnum = -1))",
        made_late(relation, "o.since"),
        mark::whole_xid("a.xmin"),
        mark::whole_xid("o.born"),
    )
}

async fn joined(session: &Session, leaves: &str) -> Result<Vec<(JobId, JoinedTable)>, PgError> {
    let sql = format!(
        "{leaves} SELECT name, schema_name, table_name, coalesce({}, true), by FROM leaves WHERE late ORDER BY 1, 2, 3",
        made_late("leaves.relation", "leaves.since")
    );
    let rows = session
        .query_typed(&sql, &[(&ReplicationNames::PREFIX, Type::TEXT)])
        .await?;
    let mut found = Vec::new();
    for row in &rows {
        let made = if row.get(3) {
            Made::Since
        } else {
            Made::Before
        };
        if let Some(id) = job(row) {
            let joined = JoinedTable {
                table: catalog::table_name(row, 1)?,
                made,
                rows: RowsThere::Some,
                by: u64::try_from(row.get::<_, i64>(4)).unwrap_or(0),
            };
            found.push((id, joined));
        }
    }
    Ok(found)
}

/// Tables created after the publication or its mark and not published; for partitions only their root, where that is
/// new too. The mark alone would not do: it is renewed when other tables join or leave. The publication's own row stays as
/// it was made.
async fn appeared(session: &Session, leaves: &str) -> Result<Vec<(JobId, TableName)>, PgError> {
    let sql = format!(
        "{leaves} SELECT o.name, n.nspname::text, c.relname::text \
         FROM ours o CROSS JOIN pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND {USER_RELATION} AND {made} \
             AND NOT EXISTS (SELECT FROM tree t WHERE t.name = o.name AND t.relation = c.oid) \
             AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid AND c.relispartition \
                 AND {parent_made}) \
         ORDER BY 1, 2, 3",
        made = made_since("c.oid"),
        parent_made = made_since("i.inhparent"),
    );
    let rows = session
        .query_typed(&sql, &[(&ReplicationNames::PREFIX, Type::TEXT)])
        .await?;
    let mut found = Vec::new();
    for row in &rows {
        if let Some(id) = job(row) {
            found.push((id, catalog::table_name(row, 1)?));
        }
    }
    Ok(found)
}

async fn rows_there(session: &Session, table: &TableName) -> Result<RowsThere, PgError> {
    let sql = format!("SELECT EXISTS (SELECT FROM ONLY {})", table.quoted());
    match session.query_typed(&sql, &[]).await {
        Ok(rows) if rows.first().is_some_and(|row| !row.get::<_, bool>(0)) => Ok(RowsThere::None),
        Ok(_) => Ok(RowsThere::Some),
        // Locked, or just dropped: left to the next look.
        Err(error) if error.as_db_error().is_some() => Ok(RowsThere::Some),
        Err(error) => Err(error.into()),
    }
}

/// Fails, naming the change, unless the task's publication has always been what was planned. One that others share, and
/// that the slot's changes were decoded for at first, must be there.
pub(crate) async fn prove(session: &Session, task: &Task) -> Result<Result<(), Fault>, PgError> {
    let (name, id) = (task.replication.name(), task.replication.id);
    let statuses = publication_statuses(session).await?;
    for replication in [Some(task.replication.clone()), task.replication.shared()] {
        let Some(replication) = replication else {
            continue;
        };
        let status = statuses.iter().find(|s| s.job == replication.id);
        let what = match status.map(|s| s.state) {
            Some(PublicationState::Sound) => continue,
            Some(PublicationState::Altered) => "was altered after its slot was made",
            Some(PublicationState::Unmarked) => "was made again by somebody else",
            None => "does not exist any more",
        };
        let text = format!("the publication {} {what}", replication.name());
        return Ok(Err(unproved(task, text)));
    }
    let all = published(session).await?;
    let joined = all.into_iter().find(|p| p.job == id);
    let Some(published) = joined.filter(|p| p.joined_total > 0) else {
        return Ok(Ok(()));
    };
    let tables = published.joined.iter().take(NAMED);
    let mut named: Vec<String> = tables.map(|j| j.table.to_string()).collect();
    let more = published.joined_total.saturating_sub(named.len() as u64);
    if more > 0 {
        named.push(format!("{more} more"));
    }
    let text = format!(
        "tables entered the publication {name} while the job worked: {}",
        named.join(", ")
    );
    Ok(Err(unproved(task, text)))
}

/// Marks a prepared publication again when its slot is taken: tables created since then are in the backup,
/// or come by replication. Fails where an older table was added meanwhile.
pub(crate) async fn renew(session: &Session, task: &Task) -> Result<Result<(), Fault>, PgError> {
    let id = task.replication.id;
    let all = published(session).await?;
    let own = all.iter().find(|p| p.job == id);
    let back = own.and_then(|p| p.joined.iter().find(|j| j.made == Made::Before));
    if let Some(back) = back {
        let text = format!(
            "{} was put into the publication {} after its slot was prepared: changes before that are missing",
            back.table,
            task.replication.name()
        );
        return Ok(Err(Fault::new(FaultKind::Failed, text)
            .hint("prepare another slot, and take a backup after that")
            .on(&task.node)));
    }
    mark(session, session, &task.replication.name()).await?;
    Ok(Ok(()))
}

fn unproved(task: &Task, text: String) -> Fault {
    Fault::new(FaultKind::Failed, text)
        .hint(
            "changes may be missing on the target: leave the publication alone and attach no partitions \
             while a job works, and run init again",
        )
        .on(&task.node)
}
