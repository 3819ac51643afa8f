//! Everything that is hard to copy arrives unchanged and is replicated afterwards.

use anyhow::Result;
use steep_tests::cluster::Cluster;
use steep_tests::hostile::{self, Large, NOT_COPIED};
use steep_tests::pg::Database;
use steep_tests::{compare, usage};

/// The contract: an agent uses less than this, whatever the rows.
const AGENT_MEMORY: u64 = 128 * 1024 * 1024;

/// Whether changes on the source arrive, for every kind of replica identity.
fn changes_arrive(cluster: &Cluster, source: &Database, target: &Database) -> Result<()> {
    source.sql(
        "SET search_path = hostile, public;
         UPDATE types SET c_text = 'changed' WHERE id > 1;
         DELETE FROM no_primary_key WHERE a < 5;
         UPDATE no_primary_key SET b = 'again' WHERE a = 20;
         DELETE FROM identity_index WHERE a < 5;
         UPDATE parted SET region = 'us' WHERE id = 4;
         INSERT INTO parted VALUES (1000, 'venus', 1), (1001, 'eu', 2);
         INSERT INTO identity_always (body) VALUES ('new');
         INSERT INTO generated (a, b) VALUES (1000, 'new');
         UPDATE capital SET people = 5;
         DELETE FROM booking WHERE room = 3;
         SET session_replication_role = replica;
         UPDATE triggered SET body = 'changed';
         INSERT INTO triggered VALUES (1000, 'new');",
    )?;
    cluster.wait_drained("node_a")?;
    compare::rows_except(source, target, &[NOT_COPIED])?.none()
}

#[test]
fn a_hostile_schema_with_values_of_100_mb_arrives_equal_and_replicates() -> Result<()> {
    let cluster = Cluster::builder().nodes(4).start()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    hostile::create_roles(&source)?;
    hostile::create_roles(&target)?;
    hostile::create(&source, &target, Large { megabytes: 100 })?;
    cluster.init(&[])?.expect(0)?;
    // Through a spool, and from one target to the other.
    let spooled = [
        "init",
        "node_c",
        "node_d",
        "--from",
        "node_a",
        "--method",
        "two-phase",
        "--yes",
    ];
    for node in ["node_c", "node_d"] {
        hostile::create_roles(&cluster.database(node))?;
    }
    cluster.cli(&spooled)?.expect(0)?;
    let expected = compare::contents(&source)?;
    for node in ["node_b", "node_c", "node_d"] {
        let arrived = compare::contents(&cluster.database(node))?;
        compare::differences(&expected, &arrived, &[NOT_COPIED]).none()?;
        assert_eq!(arrived[NOT_COPIED].rows, 0);
    }
    compare::schema(&source, &target)?.none()?;
    compare::sequences(&source, &target)?.none()?;
    changes_arrive(&cluster, &source, &target)?;
    for node in cluster.nodes() {
        let agent = node.agent().expect("it runs").pid();
        let peak = usage::peak_memory(agent)?;
        assert!(
            peak < AGENT_MEMORY,
            "{}'s agent had {peak} bytes",
            node.name()
        );
    }
    Ok(())
}

#[test]
fn roles_that_the_target_lacks_are_named_and_stop_nothing() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    hostile::create_roles(&source)?;
    hostile::create(&source, &target, Large { megabytes: 1 })?;
    let output = cluster
        .cli(&["init", "node_b", "--from", "node_a", "--yes"])?
        .expect(0)?;
    for role in ["steep_owner", "steep_reader", "Odd \"Role\""] {
        assert!(
            output.text().contains(role),
            "{role} is not named in {output}"
        );
    }
    compare::rows_except(&source, &target, &[NOT_COPIED])?.none()
}

#[test]
fn one_large_table_is_split_into_ranges_and_arrives_whole() -> Result<()> {
    let cluster = Cluster::builder().without_data_dir("node_a").start()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    // With holes: pages without rows, and pages beyond the planner's estimate.
    source.sql(
        "CREATE TABLE large (id bigint PRIMARY KEY, body text);
         INSERT INTO large SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 200000) AS n;
         ANALYZE large;
         DELETE FROM large WHERE id BETWEEN 50000 AND 90000;
         VACUUM large;
         INSERT INTO large SELECT n, 'late' FROM generate_series(300001, 400000) AS n;",
    )?;
    let end = cluster
        .init(&["--parallel", "4", "--large-table-threshold", "4MB"])?
        .expect(0)?;
    let rows: u64 = source.value("SELECT count(*) FROM large")?;
    assert_eq!(end.last_object()?["rows_copied"].as_u64(), Some(rows));
    compare::rows(&source, &target)?.none()
}

#[test]
fn a_target_with_the_same_schema_keeps_its_indexes_and_triggers() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let schema = "
        CREATE TABLE parent (id integer PRIMARY KEY, name text NOT NULL UNIQUE);
        CREATE TABLE child (id integer PRIMARY KEY, parent_id integer REFERENCES parent,
                            body text CHECK (body <> ''));
        CREATE INDEX child_parent ON child (parent_id);
        CREATE FUNCTION fired() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN RAISE EXCEPTION ''fired''; END';
        CREATE TRIGGER child_trigger BEFORE INSERT ON child
            FOR EACH ROW EXECUTE FUNCTION fired();
        ALTER TABLE child REPLICA IDENTITY FULL;";
    for database in [&source, &target] {
        database.sql(schema)?;
    }
    source.sql(
        "SET session_replication_role = replica;
         INSERT INTO parent SELECT n, 'p' || n FROM generate_series(1, 1000) AS n;
         INSERT INTO child SELECT n, 1 + n % 1000, 'b' FROM generate_series(1, 20000) AS n;",
    )?;
    cluster.init(&[])?.expect(0)?;
    compare::rows(&source, &target)?.none()?;
    compare::schema(&source, &target)?.none()?;
    let invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
    assert_eq!(target.value::<u32>(invalid)?, 0);
    let open = "SELECT count(*) FROM pg_constraint WHERE NOT convalidated";
    assert_eq!(target.value::<u32>(open)?, 0);
    Ok(())
}

/// Two findings that protect the source's applications, and what a target's triggers write.
#[test]
fn what_would_fail_on_the_source_or_fire_on_the_target_is_refused_and_what_helps_helps()
-> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let schema = "
        CREATE TABLE cart (item text);
        CREATE TABLE audited (id integer PRIMARY KEY);
        CREATE FUNCTION fired() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN RAISE EXCEPTION ''fired''; END';
        CREATE TRIGGER audit BEFORE INSERT ON audited FOR EACH ROW EXECUTE FUNCTION fired();
        ALTER TABLE audited DISABLE TRIGGER audit;";
    source.sql(schema)?;
    target.sql(schema)?;
    target.sql("ALTER TABLE audited ENABLE ALWAYS TRIGGER audit")?;
    source.sql(
        "INSERT INTO cart SELECT 'item ' || n FROM generate_series(1, 10) n;
         UPDATE cart SET item = 'tea' WHERE item = 'item 7';
         INSERT INTO audited SELECT generate_series(1, 100)",
    )?;
    let refused = cluster.init(&[])?.expect(1)?;
    for word in [
        "replica_identity_needed",
        "public.cart",
        "firing_triggers",
        "public.audited",
    ] {
        assert!(
            refused.text().contains(word),
            "{word:?} is not said: {refused}"
        );
    }
    source.sql("ALTER TABLE cart REPLICA IDENTITY FULL")?;
    target.sql(
        "ALTER TABLE cart REPLICA IDENTITY FULL;
         ALTER TABLE audited DISABLE TRIGGER audit",
    )?;
    cluster.init(&[])?.expect(0)?;
    source.sql("UPDATE cart SET item = 'coffee' WHERE item = 'tea'")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()
}
