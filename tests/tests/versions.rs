//! Source and target of different major versions. Missing versions are named: `cargo xtask test`
//! lists them before it begins.

use anyhow::Result;
use steep_tests::cluster::Cluster;
use steep_tests::hostile::{self, Large, NOT_COPIED};
use steep_tests::pg::Installation;
use steep_tests::{compare, sample};

/// A cluster of two versions; `None` if one is missing and cannot be downloaded.
fn cluster(source: u32, target: u32) -> Result<Option<Cluster>> {
    let mut builder = Cluster::builder();
    for (node, major) in [("node_a", source), ("node_b", target)] {
        match Installation::of_major(major) {
            Ok(found) => builder = builder.postgres(node, &found),
            // 17 and 18 can be downloaded wherever the tests run; older ones cannot.
            Err(error) if major < 17 => {
                eprintln!("NOT TESTED: PostgreSQL {major} is not on this machine: {error:#}");
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
    builder.start().map(Some)
}

fn the_sample_arrives(source: u32, target: u32) -> Result<()> {
    let Some(cluster) = cluster(source, target)? else {
        return Ok(());
    };
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    cluster.init(&[])?.expect(0)?;
    source.sql("UPDATE pgbench_accounts SET abalance = 1 WHERE aid < 100")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()?;
    compare::sequences(&source, &target)?.none()
}

fn everything_hostile_arrives(source: u32, target: u32) -> Result<()> {
    let Some(cluster) = cluster(source, target)? else {
        return Ok(());
    };
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    hostile::create_roles(&source)?;
    hostile::create_roles(&target)?;
    hostile::create(&source, &target, Large { megabytes: 5 })?;
    cluster.init(&[])?.expect(0)?;
    compare::rows_except(&source, &target, &[NOT_COPIED])?.none()?;
    compare::sequences(&source, &target)?.none()
}

#[test]
fn the_sample_arrives_from_15_on_18() -> Result<()> {
    the_sample_arrives(15, 18)
}

#[test]
fn the_sample_arrives_from_18_on_15() -> Result<()> {
    the_sample_arrives(18, 15)
}

#[test]
fn the_sample_arrives_from_18_on_17() -> Result<()> {
    the_sample_arrives(18, 17)
}

#[test]
fn everything_hostile_arrives_from_17_on_18() -> Result<()> {
    everything_hostile_arrives(17, 18)
}

#[test]
fn everything_hostile_arrives_from_15_on_17() -> Result<()> {
    everything_hostile_arrives(15, 17)
}

/// Debian's 15 is built with libxml, unlike the packages: this is where XML is tested.
#[test]
fn everything_hostile_arrives_from_15_on_15() -> Result<()> {
    everything_hostile_arrives(15, 15)
}
