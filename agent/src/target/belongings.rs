//! What belongs to tables that a schema plan has created and that the plan leaves out, since replication does not need
//! it: owners, privileges, comments, row security, triggers, settings of columns.
//!
//! It is taken from the source's dump, and made with everything else that comes after the rows.

use std::collections::{BTreeMap, HashSet};

use steep_protocol::{Fault, JobId, TableName};

use super::bootstrap::Dump;
use crate::chunk::PartReader;
use crate::deferred::objects::{Deferred, DeferredWriter};
use crate::node::connection::Conn;
use crate::schema::batch::Item;
use crate::schema::objects;
use crate::schema::statement::{self, Class};

/// Stores what the dumps have of it, in the caller's transaction. Nothing where the job has created no table.
pub(super) async fn defer<R: PartReader, Q: PartReader>(
    conn: &Conn,
    job: JobId,
    (pre_data, post_data): (R, Q),
) -> Result<(), Fault> {
    let created = objects::created_relations(conn, job).await?;
    if created.is_empty() {
        return Ok(());
    }
    let mut found = Vec::new();
    let mut policies: BTreeMap<TableName, String> = BTreeMap::new();
    let mut before = Dump::new(pre_data);
    while let Some(sql) = before.next(conn).await? {
        found.extend(belonging(Item::new(sql), &created, &mut policies));
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
