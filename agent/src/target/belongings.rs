//! What belongs to tables that a schema plan has created and that the plan leaves out, since replication does not need
//! it: owners, privileges, comments, row security, triggers, settings of columns.
//!
//! It is taken from the source's dump, and made with everything else that comes after the rows. Tables that were here
//! before must be their owner's: whoever may create tables could otherwise have the source's rows given to him.

use std::collections::{BTreeMap, HashSet};

use steep_protocol::message::peer::TablePlan;
use steep_protocol::{Fault, FaultKind, JobId, TableName};

use super::bootstrap::Dump;
use crate::chunk::PartReader;
use crate::deferred::objects::{Deferred, DeferredWriter};
use crate::node::connection::Conn;
use crate::schema::batch::Item;
use crate::schema::objects;
use crate::schema::statement::{self, Class};

/// Stores what the dumps have of it, in the caller's transaction. Fails where a table that the job has not created belongs
/// to an ordinary role that does not own it on the source.
pub(super) async fn defer<R: PartReader, Q: PartReader>(
    conn: &Conn,
    (job, plan): (JobId, &[TablePlan]),
    (pre_data, post_data): (R, Q),
) -> Result<(), Fault> {
    let created = objects::created_relations(conn, job).await?;
    let planned: HashSet<&TableName> = plan.iter().map(|table| &table.name).collect();
    let mut owners = Vec::new();
    let mut found = Vec::new();
    let mut policies: BTreeMap<TableName, String> = BTreeMap::new();
    let mut before = Dump::new(pre_data);
    while let Some(sql) = before.next(conn).await? {
        let given = statement::given(&sql);
        owners
            .extend(given.filter(|(table, _)| planned.contains(table) && !created.contains(table)));
        found.extend(belonging(Item::new(sql), &created, &mut policies));
    }
    check_owners(conn, &owners).await?;
    if created.is_empty() {
        return Ok(());
    }
    let mut after = Dump::new(post_data);
    while let Some(sql) = after.next(conn).await? {
        found.extend(belonging(Item::new(sql), &created, &mut policies));
    }
    let policies = policies.into_values().map(Item::new);
    let mut writer = DeferredWriter::new(conn, job).await?;
    for item in found.into_iter().chain(policies) {
        if let Some(deferred) = Deferred::of_dump(item) {
            writer.store(deferred).await?;
        }
    }
    writer.finish().await
}

async fn check_owners(conn: &Conn, owners: &[(TableName, String)]) -> Result<(), Fault> {
    let sql = "SELECT w.schema, w.name, r.rolname::text, w.owner
        FROM unnest($1::text[], $2::text[], $3::text[]) AS w (schema, name, owner)
        JOIN pg_namespace n ON n.nspname = w.schema
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
        JOIN pg_roles r ON r.oid = c.relowner
        WHERE r.rolname <> w.owner AND r.rolname <> current_user AND NOT r.rolsuper ORDER BY 1, 2 LIMIT 1";
    let schemas: Vec<&str> = owners.iter().map(|(of, _)| of.schema.as_str()).collect();
    let names: Vec<&str> = owners.iter().map(|(of, _)| of.table.as_str()).collect();
    let roles: Vec<&str> = owners.iter().map(|(_, role)| role.as_str()).collect();
    let rows = conn.rows(sql, &[&schemas, &names, &roles]).await?;
    let Some(row) = rows.first() else {
        return Ok(());
    };
    let [schema, name, here, there] = [0, 1, 2, 3].map(|at| row.get::<_, &str>(at));
    let text = format!(
        "{schema}.{name} is here already and belongs to {here}, and on the source to {there}: {here} would be given its rows"
    );
    Err(conn
        .own(Fault::new(FaultKind::Failed, text))
        .hint("give it to that role with ALTER TABLE … OWNER TO …, or drop it; nothing was copied"))
}

/// The statement, if it is one of those. The policies of a table are collected, as they are made together or not at all.
fn belonging(
    item: Item,
    created: &HashSet<TableName>,
    policies: &mut BTreeMap<TableName, String>,
) -> Option<Item> {
    let subject = match &item.class {
        Class::Policy { table } => {
            if created.contains(table) {
                let all = policies.entry(table.clone()).or_default();
                if !all.is_empty() {
                    all.push_str(";\n");
                }
                all.push_str(&item.sql);
            }
            return None;
        }
        Class::Privilege | Class::Comment | Class::RowSecurity => statement::subject(&item.sql),
        Class::Other => statement::detail_of(&item.sql),
        _ => None,
    };
    subject
        .is_some_and(|subject| created.contains(&subject))
        .then_some(item)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plan_leaves_out_is_taken_and_what_it_makes_is_not() {
        let created = HashSet::from([
            TableName::new("s", "t").unwrap(),
            TableName::new("s", "t_id_seq").unwrap(),
        ]);
        let mut policies = BTreeMap::new();
        let mut taken = |sql: &str| belonging(Item::new(sql.to_owned()), &created, &mut policies);
        for sql in [
            "ALTER TABLE s.t OWNER TO app",
            "ALTER TABLE s.t_id_seq OWNER TO app",
            "GRANT SELECT ON TABLE s.t TO reader",
            "COMMENT ON COLUMN s.t.id IS 'number'",
            "ALTER TABLE s.t ENABLE ROW LEVEL SECURITY",
            "CREATE TRIGGER told AFTER INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION s.tell()",
            "ALTER TABLE s.t ENABLE ALWAYS TRIGGER told",
            "ALTER TABLE ONLY s.t ALTER COLUMN id SET STATISTICS 100",
        ] {
            assert!(taken(sql).is_some(), "{sql}");
        }
        for sql in [
            "CREATE TABLE s.t (id integer)",
            "ALTER TABLE s.t ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY",
            "ALTER TABLE ONLY s.t ALTER COLUMN id SET DEFAULT nextval('s.t_id_seq'::regclass)",
            "ALTER TABLE ONLY s.t ADD CONSTRAINT t_pkey PRIMARY KEY (id)",
            "CREATE INDEX i ON s.t USING btree (id)",
            "ALTER TABLE s.other OWNER TO app",
            "CREATE TRIGGER told AFTER INSERT ON s.other FOR EACH ROW EXECUTE FUNCTION s.tell()",
            "CREATE POLICY p ON s.t USING (true)",
            "CREATE POLICY r ON s.t AS RESTRICTIVE USING (x)",
        ] {
            assert!(taken(sql).is_none(), "{sql}");
        }
        let all: Vec<&String> = policies.values().collect();
        assert_eq!(
            all,
            [
                "CREATE POLICY p ON s.t USING (true);\nCREATE POLICY r ON s.t AS RESTRICTIVE USING (x)"
            ]
        );
    }
}
