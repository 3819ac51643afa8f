//! How what a subscription carries differs from its source: tables that only one end has or replicates, and
//! columns.
//!
//! Covers exactly what `steep_repl.replicated_digest` covers, so that two digests differ where this finds a
//! difference: not keys and indexes, which a replica may have of its own, nor tables that are not
//! replicated. Stores nothing.

use std::collections::BTreeSet;

use steep_protocol::message::job::{ReplicationNames, TableFilter};
use steep_protocol::message::schema::{
    Change, ObjectKind, SchemaDifference, SchemaReview, Subject,
};
use steep_protocol::{Fault, JobId, TableName};
use steep_schema::{Schema, Status, compare};

use super::fingerprints::read;
use crate::node::connection::Conn;
use crate::pg::catalog;
use crate::task::Task;

/// Bytes of differences reported one by one; the others are combined in a digest. The coordinator keeps
/// those accepted with the node.
const TOLD_BYTES: usize = 512 * 1024;

/// The longest definition reported, in bytes.
const TEXT_MAX: usize = 600;

/// Compares what the subscription of `replication` carries with the source's own description.
pub(crate) async fn compare_replicated(
    task: &Task,
    described: &Schema,
    filter: &TableFilter,
    replication: JobId,
) -> Result<SchemaReview, Fault> {
    let conn = Conn::to_catalog(task, "compare").await?;
    conn.execute("SET lock_timeout = '5s'").await?;
    let name = ReplicationNames(replication).name();
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_subscription_rel r
        JOIN pg_subscription s ON s.oid = r.srsubid
        JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
        JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE s.subname = $1";
    let rows = conn.rows(sql, &[&name]).await?;
    let subscribed = rows.iter().map(|row| catalog::table_name(row, 0));
    let subscribed: Result<BTreeSet<TableName>, _> = subscribed.collect();
    let subscribed = subscribed.map_err(|error| conn.fault(&error))?;
    let here = read(&conn, filter, described).await?;
    conn.give_back().await;
    let all = drifted(described, &here, &name, &subscribed);
    Ok(SchemaReview {
        differences_total: all.len() as u64,
        differences: told(all, TOLD_BYTES),
        ..SchemaReview::default()
    })
}

/// Every difference between what `source` publishes under that name and what `target` subscribes to.
fn drifted(
    source: &Schema,
    target: &Schema,
    name: &str,
    subscribed: &BTreeSet<TableName>,
) -> Vec<SchemaDifference> {
    let published = |table: &TableName| {
        let mut objects = source.objects_of(table);
        objects.any(|o| o.kind == ObjectKind::Publication && o.name == name)
    };
    let tables = compare(source, target).tables.into_iter();
    let drifted = tables.flat_map(|table| {
        let carried = (published(&table.name), subscribed.contains(&table.name));
        let mut found = table.differences;
        found.retain(|d| matches!(d.subject, Subject::Table | Subject::Column));
        match (table.status, carried) {
            (_, (false, false))
            | (Status::LocalOnly, (false, true))
            | (Status::RemoteOnly, (true, false)) => found.clear(),
            (Status::Match | Status::Mismatch, (true, false)) => {
                found.push(carried_by_one(&table.name, name, Change::Missing));
            }
            (Status::Match | Status::Mismatch, (false, true)) => {
                found.push(carried_by_one(&table.name, name, Change::Extra));
            }
            (_, (true, true)) | (Status::LocalOnly, (true, false)) => {}
            (Status::RemoteOnly, (false, true)) => {}
        }
        found
    });
    drifted.collect()
}

/// A table on both ends that only one replicates.
fn carried_by_one(table: &TableName, name: &str, change: Change) -> SchemaDifference {
    let (local, remote) = match change {
        Change::Missing => ("published, and not subscribed to", ""),
        _ => ("", "subscribed to, and no longer published"),
    };
    SchemaDifference {
        table: Some(table.clone()),
        subject: Subject::Object(ObjectKind::Publication),
        name: Some(name.to_owned()),
        change,
        local: local.to_owned(),
        remote: remote.to_owned(),
    }
}

/// As many as fit into `bytes`, and a digest of the rest that changes with any of them, so that accepted
/// differences can be told from new ones.
fn told(all: Vec<SchemaDifference>, bytes: usize) -> Vec<SchemaDifference> {
    let mut told: Vec<SchemaDifference> = Vec::new();
    let mut rest = Vec::new();
    let mut room = bytes;
    for difference in all.into_iter().map(bounded) {
        let text = format!("{difference:?}");
        match room.checked_sub(text.len()) {
            Some(left) if rest.is_empty() => {
                room = left;
                told.push(difference);
            }
            _ => rest.push(text),
        }
    }
    if !rest.is_empty() {
        told.push(SchemaDifference {
            table: None,
            subject: Subject::Object(ObjectKind::Publication),
            name: Some(format!("{} further differences", rest.len())),
            change: Change::Definition,
            local: steep_schema::bounded(rest.join("\n"), 0),
            remote: String::new(),
        });
    }
    told
}

fn bounded(difference: SchemaDifference) -> SchemaDifference {
    SchemaDifference {
        local: steep_schema::bounded(difference.local, TEXT_MAX),
        remote: steep_schema::bounded(difference.remote, TEXT_MAX),
        ..difference
    }
}

#[cfg(test)]
mod tests {
    use steep_protocol::Identifier;
    use steep_protocol::message::schema::{
        ColumnModel, ColumnValue, Identity, ObjectModel, SchemaPage, TableModel,
    };

    use super::*;

    const NAME: &str = "steep_repl_1";

    fn table(name: &str) -> TableName {
        TableName::new("app", name).unwrap()
    }

    fn schema(tables: &[(&str, &str)], published: &[&str]) -> Schema {
        let tables = tables.iter().map(|(name, column)| TableModel {
            name: table(name),
            fingerprint: (*column).to_owned(),
            rank: 0,
            columns: vec![ColumnModel {
                name: Identifier::parse(*column).unwrap(),
                type_name: "integer".to_owned(),
                collation: None,
                not_null: *column == "k",
                identity: Identity::No,
                value: ColumnValue::Nothing,
            }],
        });
        let objects = published.iter().map(|name| ObjectModel {
            kind: ObjectKind::Publication,
            table: Some(table(name)),
            schema: None,
            name: NAME.to_owned(),
            definition: String::new(),
            rank: 0,
        });
        let mut schema = Schema::default();
        schema.add(SchemaPage {
            tables: tables.collect(),
            objects: objects.collect(),
        });
        schema
    }

    fn found(source: &Schema, target: &Schema, subscribed: &[&str]) -> Vec<(String, Change)> {
        let subscribed = subscribed.iter().map(|name| table(name)).collect();
        let all = drifted(source, target, NAME, &subscribed);
        all.iter()
            .map(|d| {
                let name = d.table.as_ref().unwrap().table.to_string();
                (format!("{} {name}", d.subject.as_str()), d.change)
            })
            .collect()
    }

    #[test]
    fn tables_that_are_not_replicated_are_no_drift() {
        let source = schema(&[("t", "a"), ("later", "a"), ("both", "a")], &["t"]);
        let target = schema(&[("t", "a"), ("own", "a"), ("both", "k")], &[]);
        assert_eq!(found(&source, &target, &["t"]), []);
    }

    #[test]
    fn what_only_one_end_has_or_carries_is_named() {
        let source = schema(
            &[
                ("t", "a"),
                ("gone_here", "a"),
                ("unsubscribed", "a"),
                ("unpublished", "a"),
            ],
            &["t", "gone_here", "unsubscribed"],
        );
        let target = schema(
            &[
                ("t", "k"),
                ("gone_there", "a"),
                ("unsubscribed", "a"),
                ("unpublished", "a"),
            ],
            &[],
        );
        let named = |name: &str, change| (name.to_owned(), change);
        assert_eq!(
            found(&source, &target, &["t", "gone_there", "unpublished"]),
            [
                named("table gone_here", Change::Missing),
                named("table gone_there", Change::Extra),
                named("column t", Change::Missing),
                named("column t", Change::Extra),
                named("publication unpublished", Change::Extra),
                named("publication unsubscribed", Change::Missing),
            ]
        );
    }

    #[test]
    fn what_does_not_fit_is_told_by_a_digest_that_changes_with_any_of_it() {
        let many = |last: &str| -> Vec<SchemaDifference> {
            let one = |at: usize| SchemaDifference {
                table: Some(TableName::new("app", format!("t{at}")).unwrap()),
                subject: Subject::Column,
                name: Some("c".to_owned()),
                change: Change::Missing,
                local: if at == 999 { last } else { "integer" }.to_owned(),
                remote: String::new(),
            };
            (0..1_000).map(one).collect()
        };
        let all = many("integer");
        assert_eq!(told(all.clone(), 1 << 20), all);
        let cut = told(all.clone(), 20_000);
        assert!(cut.len() > 50 && cut.len() < 500, "{}", cut.len());
        assert_eq!(cut, told(all, 20_000));
        let other = told(many("bigint"), 20_000);
        assert_eq!(cut[..cut.len() - 1], other[..other.len() - 1]);
        assert_ne!(cut.last(), other.last());
        assert!(cut.last().unwrap().local.contains("SHA-256"));
    }
}
