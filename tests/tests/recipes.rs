//! Every command of docs/recipes.md, in its order.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use steep_tests::age::Age;
use steep_tests::bucket::Bucket;
use steep_tests::cluster::Cluster;
use steep_tests::paths::Binaries;
use steep_tests::pg::Database;
use steep_tests::scratch::Scratch;
use steep_tests::{command, compare, paths, sample};

/// The commands of that recipe: what follows each `$ ` in its blocks.
fn recipe(title: &str) -> Result<Vec<String>> {
    let page = fs::read_to_string(paths::workspace().join("docs/recipes.md"))?;
    let (_, section) = page
        .split_once(&format!("## {title}\n"))
        .with_context(|| format!("no recipe is called {title}"))?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let blocks = section.split("```console\n").skip(1);
    let blocks = blocks.filter_map(|block| block.split("\n```").next());
    let commands = blocks.flat_map(|block| block.strip_prefix("$ ").unwrap_or(block).split("\n$ "));
    Ok(commands.map(str::to_owned).collect())
}

/// A shell on the cluster, with other places for those of the page.
struct Kitchen<'a> {
    cluster: &'a Cluster,
    places: Vec<(String, String)>,
    environment: Vec<(&'static str, String)>,
}

impl<'a> Kitchen<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let here = |name: &str| cluster.dir().join(name).display().to_string();
        let places = vec![
            ("rsync -a --partial ".to_owned(), "cp -a ".to_owned()),
            // A copy of the directory's content, into a new one.
            (
                "b.example.net:/srv/restore/app/".to_owned(),
                here("restore"),
            ),
            ("/srv/restore/app".to_owned(), here("restore")),
            (
                "/backup/".to_owned(),
                format!("{}/backup-", cluster.dir().display()),
            ),
            ("/mnt/disk".to_owned(), here("disk")),
        ];
        Self {
            cluster,
            places,
            environment: Vec::new(),
        }
    }

    /// Runs the recipe in one shell.
    fn cook(&self, title: &str) -> Result<String> {
        let mut script = recipe(title)?.join("\n");
        ensure!(!script.is_empty(), "{title} has no commands");
        for (theirs, ours) in &self.places {
            script = script.replace(theirs, ours);
        }
        let binaries = self.cluster.binaries().cli();
        let binaries = binaries.parent().context("a directory")?;
        let psql = self.cluster.node("node_a").server().installation().bin();
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{}:{path}", binaries.display(), psql.display());
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &script]);
        shell.current_dir(self.cluster.dir()).env("PATH", path);
        shell.envs(self.cluster.cli_environment());
        shell.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command::output(&mut shell).with_context(|| format!("{title}:\n{script}"))
    }
}

fn follows(cluster: &Cluster, source: &Database, nodes: &[&str]) -> Result<()> {
    cluster.wait_drained("node_a")?;
    for node in nodes {
        assert_eq!(cluster.state(node)?, "synchronized", "{node}");
        compare::rows(source, &cluster.database(node))?.none()?;
    }
    Ok(())
}

#[test]
fn five_replicas() -> Result<()> {
    let builder = Cluster::builder().nodes(6);
    let cluster = builder
        .setting("node_a", "max_replication_slots", "20")
        .start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    Kitchen::new(&cluster).cook("Five replicas")?;
    let nodes = ["node_b", "node_c", "node_d", "node_e", "node_f"];
    follows(&cluster, &source, &nodes)
}

#[test]
fn another_datacenter_a_bucket_a_disk_and_no_steep_repl_at_all() -> Result<()> {
    let bucket = Bucket::start()?;
    let mut builder = Cluster::builder().nodes(5);
    builder = builder.setting("node_a", "max_replication_slots", "20");
    for (name, value) in bucket.iter().flat_map(Bucket::environment) {
        builder = builder.agent_variable("node_a", name, &value);
        builder = builder.agent_variable("node_d", name, &value);
    }
    let cluster = builder.start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    // A name that an owner chose with care.
    source.sql(
        r#"CREATE TABLE "x"" from program 'false' --" ("a""b" integer PRIMARY KEY);
           INSERT INTO "x"" from program 'false' --" VALUES (1)"#,
    )?;
    let write = "UPDATE pgbench_tellers SET tbalance = tbalance + 1";
    let mut kitchen = Kitchen::new(&cluster);

    kitchen.cook("To another datacenter")?;
    source.sql(write)?;
    follows(&cluster, &source, &["node_b", "node_c"])?;

    if let Some(bucket) = &bucket {
        let place = bucket.place("app");
        kitchen.places.push(("s3://backups/app".to_owned(), place));
        kitchen.cook("Through a bucket")?;
        source.sql(write)?;
        follows(&cluster, &source, &["node_d"])?;
    }

    let told = kitchen.cook("Offline, on a disk")?;
    ensure!(told.contains("sealed"), "{told}");
    source.sql(write)?;
    follows(&cluster, &source, &["node_e"])?;

    let plain = cluster.node("node_e").server().create_database("plain")?;
    let conninfo = cluster.node("node_e").server().conninfo("plain");
    let psql = format!("psql '{conninfo}' ");
    kitchen.places.push(("psql app ".to_owned(), psql));
    let password = cluster.node("node_e").server().password().to_owned();
    kitchen.environment.push(("PGPASSWORD", password));
    kitchen.cook("Read a snapshot without steep-repl")?;
    compare::rows(&source, &plain)?.none()
}

#[test]
fn an_encrypted_snapshot_without_steep_repl() -> Result<()> {
    let Some(age) = Age::installed()? else {
        return Ok(());
    };
    // The agent has its key when it starts.
    let scratch = Scratch::new()?;
    let key = scratch.path().join("snapshot.key").display().to_string();
    let mut keygen = Command::new(Binaries::beside_me()?.cli());
    keygen.args(["snapshot", "keygen", "--output", &key]);
    command::output(keygen.env("HOME", scratch.path()))?;
    let builder = Cluster::builder().agent_variable("node_a", "STEEP_AGENT_SNAPSHOT_KEY", &key);
    let cluster = builder.start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    let plain = cluster.node("node_b").server().create_database("plain")?;
    let conninfo = cluster.node("node_b").server().conninfo("plain");
    let mut kitchen = Kitchen::new(&cluster);
    kitchen.places.extend([
        ("/etc/steep-repl/snapshot.key".to_owned(), key),
        ("psql app ".to_owned(), format!("psql '{conninfo}' ")),
        (
            "[\"age\", ".to_owned(),
            format!("[\"{}\", ", age.bin().join("age").display()),
        ),
    ]);
    let password = cluster.node("node_b").server().password().to_owned();
    kitchen.environment.push(("PGPASSWORD", password));
    kitchen.cook("Read an encrypted snapshot without steep-repl")?;
    compare::rows(&source, &plain)?.none()
}
