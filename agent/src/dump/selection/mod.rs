//! What a filter makes of a schema: it chooses tables, and their dependencies choose everything else.
//! Preflight reports it, and the dump is cut to it.

mod archive;
mod graph;

use std::collections::{HashMap, HashSet};

use steep_protocol::message::facts::{FilterFacts, Listed};
use steep_protocol::message::job::TableFilter;
use steep_protocol::{Identifier, TableName};

pub(crate) use archive::ListFile;
use graph::{Chosen, Dependence, Graph, Object, Outcome, Relation, class};

use crate::pg::catalog::{Partitions, USER_RELATION, identifier, table_name};
use crate::pg::{PgError, Session};

/// The first user oid. Schema `public` is smaller, and still a user's.
const FIRST_OF_USERS: u32 = 16_384;

/// What to create of the source's schema.
#[derive(Debug)]
pub(crate) struct Selection {
    outcome: Outcome,
    /// To dump; `None` for all.
    schemas: Vec<Identifier>,
    /// Tables outside the filter that a dump of those schemas contains.
    outside: Vec<TableName>,
    names: HashMap<u32, TableName>,
}

impl Selection {
    /// Reads the catalog as `session` sees it; `None` where the filter chooses everything.
    pub(crate) async fn load(
        session: &Session,
        filter: &TableFilter,
        partitions: &Partitions,
    ) -> Result<Option<Self>, PgError> {
        if filter.is_everything() {
            return Ok(None);
        }
        let mut graph = dependencies(session).await?;
        let sql = "SELECT oid FROM pg_constraint WHERE contype IN ('c', 'n')";
        for row in session.query(sql, &[]).await? {
            graph.checks.insert(row.try_get(0)?);
        }
        let mut chosen = Chosen::default();
        let names = relations(session, &mut graph, |name| {
            partitions.admitted(filter, name)
        })
        .await?;
        let excluded = names.iter().filter(|(_, (_, admitted))| !admitted);
        chosen.excluded = excluded
            .map(|(oid, _)| Object {
                class: class::RELATION,
                oid: *oid,
            })
            .collect();
        let mut schemas = HashMap::new();
        let sql = "SELECT oid, nspname::text FROM pg_namespace";
        for row in session.query(sql, &[]).await? {
            let (oid, name) = (row.try_get::<_, u32>(0)?, identifier(row.try_get(1)?)?);
            if !filter.includes_all() && filter.reaches(name.as_str()) {
                chosen.schemas.insert(oid);
            }
            schemas.insert(oid, name);
        }
        let outcome = graph.choose(&chosen);
        let dumped: HashSet<Identifier> = outcome
            .schemas()
            .iter()
            .filter_map(|oid| schemas.get(oid).cloned())
            .collect();
        let outside = names.iter().filter(|(oid, (name, admitted))| {
            let table = matches!(graph.relations.get(oid), Some(Relation::Table { .. }));
            table && !admitted && dumped.contains(&name.schema)
        });
        Ok(Some(Self {
            outside: outside.map(|(_, (name, _))| name.clone()).collect(),
            names: names
                .iter()
                .map(|(oid, (name, _))| (*oid, name.clone()))
                .collect(),
            schemas: dumped.into_iter().collect(),
            outcome,
        }))
    }

    /// The schemas to dump; `None` for all.
    pub(crate) fn schemas(&self) -> &[Identifier] {
        &self.schemas
    }

    /// Tables outside the filter that need not be dumped or locked.
    pub(crate) fn outside(&self) -> &[TableName] {
        &self.outside
    }

    /// Cuts the output of `pg_restore --list --verbose` down to what is to be created.
    pub(crate) fn cut(&self, list: &str) -> String {
        archive::cut(list, |class, oid| {
            self.outcome.admits(Object { class, oid })
        })
    }

    /// What preflight reports of it.
    pub(crate) async fn facts(&self, session: &Session) -> Result<FilterFacts, PgError> {
        let split = self.outcome.split.iter();
        let split = split.filter_map(|object| Some(self.names.get(&object.oid)?.to_string()));
        Ok(FilterFacts {
            left_out: described(session, &self.outcome.missed).await?,
            along: described(session, &self.outcome.along).await?,
            split: split.collect(),
        })
    }
}

/// Dependencies of user objects.
async fn dependencies(session: &Session) -> Result<Graph, PgError> {
    let sql = format!(
        "SELECT classid, objid, refclassid, refobjid, deptype::text FROM pg_depend \
         WHERE deptype IN ('n', 'a', 'i', 'e') AND objid >= {FIRST_OF_USERS} \
         AND (refobjid >= {FIRST_OF_USERS} OR refclassid = 'pg_namespace'::regclass)"
    );
    let mut graph = Graph::default();
    for row in session.query(&sql, &[]).await? {
        let from = Object {
            class: row.try_get(0)?,
            oid: row.try_get(1)?,
        };
        let to = Object {
            class: row.try_get(2)?,
            oid: row.try_get(3)?,
        };
        match row.try_get(4)? {
            "n" => graph.add(from, to, Dependence::Normal),
            "a" => graph.add(from, to, Dependence::Auto),
            "i" => graph.add(from, to, Dependence::Internal),
            _ => _ = graph.members.insert(from),
        }
    }
    Ok(graph)
}

/// Relations by oid, with whether they are admitted.
async fn relations(
    session: &Session,
    graph: &mut Graph,
    admitted: impl Fn(&TableName) -> bool,
) -> Result<HashMap<u32, (TableName, bool)>, PgError> {
    let sql = format!(
        "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relispartition \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND {USER_RELATION}"
    );
    let mut names = HashMap::new();
    for row in session.query(&sql, &[]).await? {
        let (oid, name) = (row.try_get(0)?, table_name(&row, 1)?);
        let (relation, admitted) = match row.try_get(3)? {
            kind @ ("r" | "p" | "f") => {
                let table = Relation::Table {
                    partition: row.try_get(4)?,
                    partitioned: kind == "p",
                };
                (table, admitted(&name))
            }
            // From outside the included schemas it comes along where a default needs it.
            "S" => (Relation::Other, true),
            _ => (Relation::Other, admitted(&name)),
        };
        graph.relations.insert(oid, relation);
        names.insert(oid, (name, admitted));
    }
    Ok(names)
}

/// What PostgreSQL calls them.
async fn described(session: &Session, objects: &[Object]) -> Result<Listed, PgError> {
    let shown = &objects[..objects.len().min(steep_protocol::limits::LISTED_MAX)];
    let classes: Vec<u32> = shown.iter().map(|object| object.class).collect();
    let oids: Vec<u32> = shown.iter().map(|object| object.oid).collect();
    let sql = "SELECT d.type || ' ' || d.identity \
         FROM unnest($1::oid[], $2::oid[]) AS o (class, oid) \
         CROSS JOIN LATERAL pg_identify_object(o.class, o.oid, 0) AS d";
    let mut names = Vec::new();
    for row in session.query(sql, &[&classes, &oids]).await? {
        // NULL for an object that is gone.
        names.extend(row.try_get::<_, Option<String>>(0)?);
    }
    Ok(Listed {
        names,
        count: objects.len() as u64,
    })
}

#[cfg(test)]
impl Selection {
    pub(crate) fn for_test(schemas: Vec<Identifier>, outside: Vec<TableName>) -> Self {
        Self {
            outcome: Outcome::default(),
            schemas,
            outside,
            names: HashMap::new(),
        }
    }
}
