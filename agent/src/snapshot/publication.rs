//! What the publication names. Pure, except for creating it.

use std::collections::{BTreeSet, HashSet};

use backon::Retryable as _;
use steep_protocol::message::job::TableFilter;
use steep_protocol::{Identifier, TableName};
use tokio_util::sync::CancellationToken;

use super::listing::{Kind, Listing};
use crate::pg::{PgError, Session, lock_timeout};

/// The tables to publish: plain tables and inheritance children by themselves, partitions by the highest
/// table above them of which nothing is excluded, so that later partitions belong to it.
pub(crate) fn members(listing: &Listing, filter: &TableFilter) -> Vec<TableName> {
    let mut incomplete: BTreeSet<&TableName> = BTreeSet::new();
    for (name, relation) in &listing.relations {
        let complete = match relation.kind {
            Kind::Table => listing.takes_part(filter, name),
            Kind::Partitioned => listing.partitions.admitted(filter, name),
            Kind::NotReplicated => false,
        };
        if !complete {
            incomplete.insert(name);
            incomplete.extend(listing.partitions.above(name));
        }
    }
    let whole = |name: &TableName| {
        let known = listing.relations.get(name);
        known.is_some_and(|relation| relation.kind == Kind::Partitioned)
            && !incomplete.contains(name)
    };
    let mut members = BTreeSet::new();
    for (name, relation) in &listing.relations {
        let highest = listing
            .partitions
            .above(name)
            .filter(|above| whole(above))
            .last();
        match (highest, relation.kind) {
            (Some(above), _) => members.insert(above.clone()),
            (None, Kind::Table) if listing.takes_part(filter, name) => members.insert(name.clone()),
            (None, Kind::Partitioned) if whole(name) => members.insert(name.clone()),
            (None, Kind::Table | Kind::Partitioned | Kind::NotReplicated) => false,
        };
    }
    members.into_iter().collect()
}

/// Those of `names` that a publication of `members` publishes, directly or by a table above them.
pub(crate) fn published(
    listing: &Listing,
    members: &HashSet<u32>,
    names: Vec<TableName>,
) -> Vec<TableName> {
    let member = |name: &TableName| {
        listing
            .relations
            .get(name)
            .is_some_and(|relation| members.contains(&relation.oid))
    };
    names
        .into_iter()
        .filter(|name| member(name) || listing.partitions.above(name).any(member))
        .collect()
}

/// Creates the publication. This locks each table, against VACUUM and DDL only. If one is not available
/// within a moment, it releases all and tries again.
pub(crate) async fn create(
    session: &Session,
    cancel: &CancellationToken,
    name: &Identifier,
    members: &[TableName],
) -> Result<(), PgError> {
    let create = create_statement(name, members);
    let sql = format!("BEGIN; SET LOCAL lock_timeout = '1s'; {create}; COMMIT");
    let attempt = || async {
        let created = session.run(cancel, session.batch_execute(&sql)).await;
        if created.is_err() {
            session.batch_execute("ROLLBACK").await?;
        }
        created
    };
    let attempts = attempt.retry(lock_timeout::always());
    attempts.when(PgError::is_locked).await
}

fn create_statement(name: &Identifier, members: &[TableName]) -> String {
    let mut sql = format!("CREATE PUBLICATION {}", name.quoted());
    for (n, member) in members.iter().enumerate() {
        sql.push_str(if n == 0 {
            " FOR TABLE ONLY "
        } else {
            ", ONLY "
        });
        sql.push_str(&member.quoted());
    }
    sql
}

#[cfg(test)]
mod tests {
    use super::super::listing::Relation;
    use super::*;
    use crate::pg::catalog::Partitions;

    fn name(table: &str) -> TableName {
        TableName::new("public", table).unwrap()
    }

    fn listing(relations: &[(&str, Kind)], attached: &[(&str, &str)]) -> Listing {
        let relations = (1..)
            .zip(relations)
            .map(|(oid, (table, kind))| (name(table), Relation::for_test(oid, *kind)));
        let attached = attached
            .iter()
            .map(|(leaf, above)| (name(leaf), name(above)))
            .collect();
        Listing {
            relations: relations.collect(),
            partitions: Partitions::of(attached),
        }
    }

    fn tree() -> Listing {
        listing(
            &[
                ("plain", Kind::Table),
                ("root", Kind::Partitioned),
                ("middle", Kind::Partitioned),
                ("leaf_1", Kind::Table),
                ("leaf_2", Kind::Table),
                ("elsewhere", Kind::NotReplicated),
            ],
            &[("middle", "root"), ("leaf_1", "middle"), ("leaf_2", "root")],
        )
    }

    fn members_without(table: Option<&str>, listing: &Listing) -> Vec<String> {
        let filter = TableFilter {
            include_schemas: Vec::new(),
            exclude_tables: table.map(name).into_iter().collect(),
            ..TableFilter::default()
        };
        members(listing, &filter)
            .iter()
            .map(|member| member.table.to_string())
            .collect()
    }

    #[test]
    fn a_root_is_published_only_where_nothing_below_it_is_left_out() {
        assert_eq!(members_without(None, &tree()), ["plain", "root"]);
        assert_eq!(
            members_without(Some("leaf_2"), &tree()),
            ["middle", "plain"]
        );
        assert_eq!(
            members_without(Some("leaf_1"), &tree()),
            ["leaf_2", "plain"]
        );
        assert_eq!(
            members_without(Some("middle"), &tree()),
            ["leaf_2", "plain"]
        );
        assert_eq!(members_without(Some("root"), &tree()), ["plain"]);
    }

    #[test]
    fn a_partition_that_is_not_replicated_leaves_the_others_published_by_themselves() {
        let mut tree = tree();
        tree.partitions = Partitions::of(vec![
            (name("leaf_1"), name("root")),
            (name("elsewhere"), name("root")),
        ]);
        assert_eq!(
            members_without(None, &tree),
            ["leaf_1", "leaf_2", "middle", "plain"]
        );
    }

    #[test]
    fn what_a_publication_covers_is_what_is_copied() {
        let tree = tree();
        let of = |table: &str| tree.relations[&name(table)].oid;
        let all = super::super::plan::names(&tree, &TableFilter::default());
        let covered = |members: &[&str]| -> Vec<_> {
            let members = members.iter().map(|table| of(table)).collect();
            let covered = published(&tree, &members, all.clone());
            covered
                .iter()
                .map(|table| table.table.to_string())
                .collect()
        };
        assert_eq!(covered(&["plain", "root"]), ["leaf_1", "leaf_2", "plain"]);
        assert_eq!(covered(&["middle"]), ["leaf_1"]);
        assert_eq!(covered(&[]), Vec::<String>::new());
    }

    #[test]
    fn a_publication_of_nothing_is_still_one() {
        let ours = Identifier::parse("ours").unwrap();
        assert_eq!(create_statement(&ours, &[]), "CREATE PUBLICATION \"ours\"");
        assert_eq!(
            create_statement(&ours, &[name("a\"b"), name("c")]),
            "CREATE PUBLICATION \"ours\" FOR TABLE ONLY \"public\".\"a\"\"b\", ONLY \"public\".\"c\""
        );
    }
}
