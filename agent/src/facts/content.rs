//! What a source holds: one pass over its relations, folded into counts and bounded lists.
//!
//! The query returns flags for every user relation. [`Partitions::admitted`] decides which take part, and
//! [`Census::count`], which is pure, what each flag counts for.

use std::pin::pin;

use futures_util::TryStreamExt;
use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::facts::{Listed, OwnedTables, SourceFacts};
use steep_protocol::message::job::TableFilter;
use steep_protocol::{ByteCount, TableName};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use super::{features, filters, identity};
use crate::dump;
use crate::pg::catalog::{Partitions, USER_RELATION, table_name};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Whether a relation has triggers that also fire on replicated rows: `ENABLE ALWAYS` and `ENABLE REPLICA`
/// (PostgreSQL manual, ALTER TABLE), except those of constraints.
pub(super) const FIRING_TRIGGERS: &str = "EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid
    AND t.tgenabled IN ('A', 'R') AND NOT t.tgisinternal)";

/// The owner, where the relation's policies bind owners too: since PostgreSQL 16 the owner applies changes,
/// and an apply worker refuses such tables unless the owner bypasses row security.
pub(super) const FORCED_ON: &str = "CASE WHEN c.relrowsecurity AND c.relforcerowsecurity THEN pg_get_userbyid(c.relowner)::text END";

fn relations_sql() -> String {
    format!(
        "SELECT n.nspname::text, c.relname::text, c.oid, c.relkind::text,
            c.relpersistence = 'u' AS unlogged,
            pg_has_role(c.relowner, 'USAGE') AS owned, pg_get_userbyid(c.relowner)::text AS owner,
            coalesce(has_schema_privilege(n.oid, 'USAGE')
                AND CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(c.oid, 'SELECT')
                    ELSE has_table_privilege(c.oid, 'SELECT') END, true) AS readable,
            c.relrowsecurity AND row_security_active(c.oid) AS row_security,
            {FORCED_ON} AS forced_on,
            c.relkind IN ('r', 'p') AND EXISTS (
                SELECT FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS w (needed)
                WHERE NOT has_table_privilege(c.relowner, c.oid, w.needed)) AS owner_denied,
            {FIRING_TRIGGERS} AS firing_triggers,
            c.relkind = 'r' AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid
                AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid IN (142, 143)) AS xml
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'f', 'm', 'S') AND {USER_RELATION}
        ORDER BY n.nspname, c.relname"
    )
}

/// Of a table of up to 32 pages, the indexes are estimated, a page of content at least: to ask for their sizes,
/// the server opens each and looks for all its files, which takes seconds for ten thousand tables.
const SIZE_SQL: &str = "
    SELECT coalesce(sum(CASE WHEN heap > 32 * page THEN pg_total_relation_size(oid)
        ELSE heap + coalesce(toast, 0) + (
            SELECT coalesce(sum(greatest(x.relpages * page, heap, 2 * page)), 0)
            FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = sized.oid) END), 0)::int8,
        coalesce(sum(heap + coalesce(toast, 0)) FILTER (WHERE relkind = 'r'), 0)::int8,
        coalesce(max(heap + coalesce(toast, 0)) FILTER (WHERE relkind = 'r'), 0)::int8
    FROM (SELECT c.oid, c.relkind, pg_relation_size(c.oid) AS heap, current_setting('block_size')::int8 AS page,
            CASE WHEN c.reltoastrelid <> 0 THEN pg_relation_size(c.reltoastrelid) END AS toast
        FROM unnest($1::oid[]) AS t (oid) JOIN pg_class c ON c.oid = t.oid OFFSET 0) AS sized";

/// As of the last `VACUUM` or `ANALYZE`; takes no lock, for tables that are locked.
const SIZE_ESTIMATE_SQL: &str = "
    WITH chosen AS (SELECT c.oid, c.reltoastrelid, c.relkind, current_setting('block_size')::int8 AS page,
            c.relpages::int8 + coalesce(t.relpages, 0)::int8 AS pages
        FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.oid = ANY ($1::oid[])),
    heap AS (SELECT oid FROM chosen UNION ALL SELECT reltoastrelid FROM chosen),
    file AS (SELECT oid FROM heap UNION ALL
        SELECT i.indexrelid FROM pg_index i JOIN heap ON heap.oid = i.indrelid)
    SELECT (SELECT coalesce(sum(c.relpages::int8 * current_setting('block_size')::int8), 0)::int8
            FROM file JOIN pg_class c ON c.oid = file.oid),
        (SELECT coalesce(sum(pages * page) FILTER (WHERE relkind = 'r'), 0)::int8 FROM chosen),
        (SELECT coalesce(max(pages * page) FILTER (WHERE relkind = 'r'), 0)::int8 FROM chosen)";

/// Owners and grantees: those that `pg_shdepend` records for this database, and the owners it omits because
/// they are pinned (initdb's role).
const ROLES_SQL: &str = "
    SELECT DISTINCT r.rolname::text FROM pg_roles r JOIN (
        SELECT s.refobjid AS oid FROM pg_shdepend s
        WHERE s.refclassid = 'pg_authid'::regclass AND s.deptype IN ('o', 'a', 'r')
        AND s.dbid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
        UNION SELECT c.relowner FROM pg_class c WHERE c.oid >= 16384
        UNION SELECT n.nspowner FROM pg_namespace n WHERE n.oid >= 16384
        UNION SELECT p.proowner FROM pg_proc p WHERE p.oid >= 16384
    ) used ON used.oid = r.oid
    WHERE r.rolname !~ '^pg_' ORDER BY 1";

/// Everything but the server's own facts.
pub(super) async fn gather(
    task: &Task,
    session: &Session,
    filter: &TableFilter,
) -> Result<SourceFacts, PgError> {
    let mut census = census(task, session, filter).await?;
    let sizes = size(task, session, &census.with_storage).await?;
    let mut facts = std::mem::take(&mut census.facts);
    [facts.total_bytes, facts.table_bytes, facts.largest_table] = sizes;
    facts.identities = identity::gather(task, session, filter).await?;
    facts.features = features::of_source(task, session, filter).await?;
    facts.filter = dump::filter_facts(session, filter).await?;
    facts.unmatched = filters::gather(task, session, filter).await?;
    let sql = "SELECT count(*) FROM pg_largeobject_metadata";
    let row = session
        .run(&task.cancel, session.query_one(sql, &[]))
        .await?;
    facts.large_objects = u64::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0);
    for row in session
        .run(&task.cancel, session.query(ROLES_SQL, &[]))
        .await?
    {
        facts.roles.push(row.try_get(0)?);
    }
    facts.pg_dump = Some(dump::pg_dump_major().await);
    Ok(facts)
}

async fn census(task: &Task, session: &Session, filter: &TableFilter) -> Result<Census, PgError> {
    let partitions = Partitions::load(session).await?;
    let sql = relations_sql();
    let none: [&(dyn ToSql + Sync); 0] = [];
    let rows = session
        .run(&task.cancel, session.query_raw(&sql, none))
        .await?;
    let mut rows = pin!(rows);
    let mut census = Census::default();
    while let Some(row) = session.run(&task.cancel, rows.try_next()).await? {
        let name = table_name(&row, 0)?;
        if partitions.admitted(filter, &name) {
            census.count(&name, &Relation::read(&row)?);
        }
    }
    Ok(census)
}

/// The bytes of everything, of the tables without their indexes, and of the largest of these.
async fn size(task: &Task, session: &Session, oids: &[u32]) -> Result<[ByteCount; 3], PgError> {
    let row = match session
        .run(&task.cancel, session.query_one(SIZE_SQL, &[&oids]))
        .await
    {
        Err(error) if error.is(&SqlState::LOCK_NOT_AVAILABLE) => {
            session
                .run(&task.cancel, session.query_one(SIZE_ESTIMATE_SQL, &[&oids]))
                .await?
        }
        other => other?,
    };
    let mut sizes = [ByteCount(0); 3];
    for (at, size) in sizes.iter_mut().enumerate() {
        *size = ByteCount(u64::try_from(row.try_get::<_, i64>(at)?).unwrap_or(0));
    }
    Ok(sizes)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Table,
    Partitioned,
    Foreign,
    Materialized,
    Sequence,
}

#[derive(Debug, Clone)]
struct Relation {
    oid: u32,
    kind: Kind,
    unlogged: bool,
    owned: bool,
    owner: String,
    readable: bool,
    row_security: bool,
    /// Only where its policies bind the owner too.
    forced_on: Option<String>,
    owner_denied: bool,
    firing_triggers: bool,
    xml: bool,
}

impl Relation {
    fn read(row: &Row) -> Result<Self, PgError> {
        let kind = match row.try_get("relkind")? {
            "r" => Kind::Table,
            "p" => Kind::Partitioned,
            "f" => Kind::Foreign,
            "m" => Kind::Materialized,
            "S" => Kind::Sequence,
            other => {
                return Err(PgError::Protocol(format!(
                    "relkind {other:?} was not asked for"
                )));
            }
        };
        Ok(Self {
            oid: row.try_get("oid")?,
            kind,
            unlogged: row.try_get("unlogged")?,
            owned: row.try_get("owned")?,
            owner: row.try_get("owner")?,
            readable: row.try_get("readable")?,
            row_security: row.try_get("row_security")?,
            forced_on: row.try_get("forced_on")?,
            owner_denied: row.try_get("owner_denied")?,
            firing_triggers: row.try_get("firing_triggers")?,
            xml: row.try_get("xml")?,
        })
    }
}

#[derive(Debug, Default)]
struct Census {
    facts: SourceFacts,
    /// Relations that need space on the target too.
    with_storage: Vec<u32>,
}

impl Census {
    fn count(&mut self, name: &TableName, relation: &Relation) {
        let facts = &mut self.facts;
        match relation.kind {
            Kind::Table if relation.unlogged => add(&mut facts.unlogged, name),
            Kind::Table => {
                facts.tables += 1;
                self.with_storage.push(relation.oid);
                if relation.xml {
                    add(&mut facts.xml, name);
                }
            }
            Kind::Partitioned => {}
            Kind::Foreign => {
                add(&mut facts.foreign_tables, name);
                return;
            }
            Kind::Materialized => {
                add(&mut facts.materialized_views, name);
                self.with_storage.push(relation.oid);
                return;
            }
            Kind::Sequence => {
                facts.sequences += 1;
                if !relation.readable {
                    add(&mut facts.unreadable, name);
                }
                return;
            }
        }
        if !relation.readable {
            add(&mut facts.unreadable, name);
        } else if relation.row_security && !relation.unlogged {
            add(&mut facts.row_security, name);
        }
        if let Some(owner) = relation.forced_on.as_ref().filter(|_| !relation.unlogged) {
            add_owned(&mut facts.forced_security, owner, name);
        }
        if relation.owner_denied && !relation.unlogged {
            add(&mut facts.owner_denied, name);
        }
        if relation.firing_triggers && !relation.unlogged {
            add(&mut facts.firing_triggers, name);
        }
        if !relation.owned && !relation.unlogged {
            add_owned(&mut facts.not_owned, &relation.owner, name);
        }
    }
}

/// As [`add`], by owner.
pub(super) fn add_owned(owned: &mut Vec<OwnedTables>, owner: &str, name: &TableName) {
    if let Some(known) = owned.iter_mut().find(|known| known.owner == owner) {
        add(&mut known.tables, name);
    } else if owned.len() < LISTED_MAX {
        let mut tables = Listed::default();
        add(&mut tables, name);
        owned.push(OwnedTables {
            owner: owner.to_owned(),
            tables,
        });
    }
}

/// Counts one more; keeps its name while there is room.
pub(super) fn add(listed: &mut Listed, name: &TableName) {
    add_text(listed, name.to_string());
}

/// As [`add`], for any text.
pub(super) fn add_text(listed: &mut Listed, text: String) {
    if listed.names.len() < LISTED_MAX {
        listed.names.push(text);
    }
    listed.count += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(kind: Kind) -> Relation {
        Relation {
            oid: 1,
            kind,
            unlogged: false,
            owned: true,
            owner: "ann".to_owned(),
            readable: true,
            row_security: false,
            forced_on: None,
            owner_denied: false,
            firing_triggers: false,
            xml: false,
        }
    }

    fn counted(relation: &Relation) -> SourceFacts {
        let mut census = Census::default();
        census.count(&TableName::new("s", "t").unwrap(), relation);
        census.facts
    }

    #[test]
    fn a_plain_table_is_counted_and_nothing_else() {
        let expected = SourceFacts {
            tables: 1,
            ..SourceFacts::default()
        };
        assert_eq!(counted(&plain(Kind::Table)), expected);
    }

    #[test]
    fn each_flag_names_the_table_in_its_list() {
        type Case = (fn(&mut Relation), fn(&SourceFacts) -> &Listed);
        let cases: [Case; 6] = [
            (|r| r.unlogged = true, |f| &f.unlogged),
            (|r| r.readable = false, |f| &f.unreadable),
            (|r| r.row_security = true, |f| &f.row_security),
            (|r| r.owner_denied = true, |f| &f.owner_denied),
            (|r| r.firing_triggers = true, |f| &f.firing_triggers),
            (|r| r.xml = true, |f| &f.xml),
        ];
        for (n, (flag, list)) in cases.into_iter().enumerate() {
            let mut relation = plain(Kind::Table);
            flag(&mut relation);
            assert_eq!(list(&counted(&relation)).names, ["s.t"], "case {n}");
        }
    }

    #[test]
    fn tables_whose_policies_bind_their_owners_are_listed_by_owner() {
        let mut forced = plain(Kind::Table);
        forced.forced_on = Some("ann".to_owned());
        let facts = counted(&forced);
        assert_eq!(facts.forced_security[0].owner, "ann");
        assert_eq!(facts.forced_security[0].tables.names, ["s.t"]);
    }

    #[test]
    fn tables_of_others_are_listed_by_owner() {
        let mut theirs = plain(Kind::Table);
        theirs.owned = false;
        let facts = counted(&theirs);
        assert_eq!(facts.not_owned[0].owner, "ann");
        assert_eq!(facts.not_owned[0].tables.names, ["s.t"]);
    }

    #[test]
    fn a_table_that_is_not_published_needs_no_owner() {
        let mut unlogged = plain(Kind::Table);
        unlogged.unlogged = true;
        unlogged.owned = false;
        let facts = counted(&unlogged);
        assert_eq!(facts.tables, 0);
        assert!(facts.not_owned.is_empty());
    }
}
