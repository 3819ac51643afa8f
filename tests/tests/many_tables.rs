//! Many tables: plan, schema and hand-off without rows.

use std::time::Duration;

use anyhow::Result;
use steep_tests::cluster::Cluster;
use steep_tests::{compare, sample};

/// Far above what it takes (a few seconds), far below what a query per table would.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_thousand_empty_tables_are_initialised_and_replicate() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::many_tables(&source, 1_000)?;
    let output = cluster.init(&[])?.expect(0)?;
    assert!(output.took < LIMIT, "{:?}", output.took);
    source.sql("INSERT INTO many.t1 VALUES (1, 'x'); INSERT INTO many.t1000 VALUES (1, 'x')")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    assert_eq!(compare::contents(&target)?.len(), 1_000);
    Ok(())
}
