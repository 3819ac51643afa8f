//! Which waiting indexes replication finds rows by: the one that REPLICA IDENTITY names, else the primary
//! key, for replicated tables (PostgreSQL manual, "Publication"). Without them UPDATE and DELETE cannot be
//! applied; without any other index only time is lost.

use std::collections::{HashMap, HashSet};

use steep_protocol::{Fault, JobId, TableName};

use super::objects::{Waiting, waiting};
use crate::node::connection::Conn;
use crate::node::job_records;
use crate::schema::statement::{Class, Stage, classify, is_primary_key};

/// How each planned table identifies its rows.
#[derive(Debug, Default)]
pub(super) struct Identities(HashMap<TableName, Identity>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Identity {
    PrimaryKey,
    Index(String),
    /// By the whole row, or not at all.
    NoIndex,
}

impl Identities {
    pub(super) async fn read(conn: &Conn, job: JobId) -> Result<Self, Fault> {
        let planned = job_records::planned(conn, job).await?;
        let oids: Vec<u32> = planned.iter().map(|p| p.oid).collect();
        let sql = "SELECT oid FROM pg_class WHERE oid = ANY ($1) AND relreplident IN ('f', 'n')";
        let rows = conn.rows(sql, &[&oids]).await?;
        let without: HashSet<u32> = rows.iter().map(|row| row.get(0)).collect();
        let details = waiting(conn, job, Stage::IndexDetails).await?;
        let tables = planned.into_iter().map(|table| {
            let identity = match without.contains(&table.oid) {
                true => Identity::NoIndex,
                false => Identity::PrimaryKey,
            };
            (table.name, identity)
        });
        Ok(Self::of(tables.collect(), &details))
    }

    /// A named index wins: the table refers to it only once it exists.
    fn of(mut tables: HashMap<TableName, Identity>, details: &[Waiting]) -> Self {
        for detail in details {
            if let Class::Identity { table, index } = classify(&detail.sql)
                && let Some(identity) = tables.get_mut(&table)
            {
                *identity = Identity::Index(index);
            }
        }
        Self(tables)
    }

    /// Those of `all` that are an identity.
    pub(super) fn among(&self, all: &[Waiting]) -> HashSet<i32> {
        let is_identity = |one: &&Waiting| {
            let identity = one.table.as_ref().and_then(|table| self.0.get(table));
            match identity {
                Some(Identity::PrimaryKey) => is_primary_key(&one.sql),
                Some(Identity::Index(index)) => one.name.as_ref() == Some(index),
                Some(Identity::NoIndex) | None => false,
            }
        };
        all.iter().filter(is_identity).map(|one| one.ord).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deferred::objects::Deferred;
    use crate::schema::batch::Item;

    fn waiting(ord: i32, sql: &str) -> Waiting {
        let deferred = Deferred::of_dump(Item::new(sql.to_owned())).unwrap();
        Waiting {
            ord,
            kind: deferred.kind,
            table: deferred.table,
            name: deferred.name,
            sql: deferred.sql,
            added: false,
            weight: 0,
        }
    }

    #[test]
    fn only_what_rows_are_found_by_is_needed() {
        let table = |name| TableName::new("public", name).unwrap();
        let tables = HashMap::from([
            (table("keyed"), Identity::PrimaryKey),
            (table("named"), Identity::PrimaryKey),
            (table("whole"), Identity::NoIndex),
        ]);
        let details = [
            waiting(
                0,
                "ALTER TABLE ONLY public.named REPLICA IDENTITY USING INDEX \"U\"",
            ),
            waiting(1, "ALTER TABLE public.keyed CLUSTER ON i"),
        ];
        let all = [
            waiting(
                10,
                "ALTER TABLE ONLY public.keyed ADD CONSTRAINT a PRIMARY KEY (x)",
            ),
            waiting(
                11,
                "ALTER TABLE ONLY public.keyed ADD CONSTRAINT b UNIQUE (x)",
            ),
            waiting(
                12,
                "CREATE UNIQUE INDEX \"U\" ON public.named USING btree (x)",
            ),
            waiting(
                13,
                "ALTER TABLE ONLY public.named ADD CONSTRAINT c PRIMARY KEY (x)",
            ),
            waiting(
                14,
                "ALTER TABLE ONLY public.whole ADD CONSTRAINT d PRIMARY KEY (x)",
            ),
            waiting(
                15,
                "ALTER TABLE ONLY public.unplanned ADD CONSTRAINT e PRIMARY KEY (x)",
            ),
        ];
        let needed = Identities::of(tables, &details).among(&all);
        assert_eq!(needed, HashSet::from([10, 12]));
    }
}
