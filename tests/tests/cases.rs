//! Databases that broke similar tools. Each folder of `tests/cases` is one: `setup.sql` creates the
//! source, `target.sql` prepares the target, `during.sql` runs on the source while rows are copied,
//! `mend.sql` repairs the target, `check.sql` prints what must be equal on both at the end, and
//! `case.toml` defines the expected result.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use steep_tests::cluster::Cluster;
use steep_tests::pg::{Database, Installation};
use steep_tests::{paths, residue};

/// Slow enough for `during.sql` to run while rows are copied.
const RATE: &str = "4MB";

/// Rows enough for the copy to last a few seconds at that rate.
const FILLER: &str = "CREATE TABLE public.rows_enough (id integer PRIMARY KEY, body text NOT NULL);
    INSERT INTO public.rows_enough SELECT n, repeat(md5(n::text), 16) FROM generate_series(1, 25000) AS n";

/// A job ends, and a node that cannot follow is noticed, within this time.
const LIMIT: Duration = Duration::from_secs(120);

/// `case.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// Why it broke other tools, and what should happen.
    #[expect(dead_code, reason = "for people")]
    about: String,
    end: End,
    /// When `during.sql` runs.
    #[serde(default)]
    during: During,
    /// Texts that `doctor` must print beforehand.
    #[serde(default)]
    doctor: Vec<String>,
    /// Texts that it must not print.
    #[serde(default)]
    doctor_keeps_quiet_about: Vec<String>,
    /// Texts that the node's status or last report must contain at the end.
    #[serde(default)]
    said: Vec<String>,
    /// The required major version of both servers.
    postgres: Option<u32>,
    /// psql variables of a variant, such as `["guard"]`.
    #[serde(default)]
    variables: Vec<String>,
}

/// When the source's application runs.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum During {
    /// While rows are copied.
    #[default]
    Copying,
    /// Once the node is synchronized.
    Following,
}

/// The expected result of a case.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum End {
    /// Synchronized, and `check.sql` prints the same on both nodes.
    Equal,
    /// Preflight refuses it, and nothing is left.
    Refused,
    /// The node is not synchronized; status says why.
    Diverged,
    /// The job fails while rows are copied, says why, and leaves nothing.
    Failed,
    /// The job fails, says why and keeps its rows; after `mend.sql` on the target it is resumed,
    /// and the nodes are equal.
    Resumed,
}

struct Folder(PathBuf);

impl Folder {
    fn of(name: &str) -> Self {
        Self(paths::workspace().join("tests/cases").join(name))
    }

    /// A script, if the case has it.
    fn script(&self, name: &str) -> Result<Option<String>> {
        let path = self.0.join(name);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path);
        text.map(Some).with_context(|| path.display().to_string())
    }

    fn case(&self) -> Result<Case> {
        let text = self.script("case.toml")?.context("no case.toml")?;
        Ok(toml::from_str(&text)?)
    }
}

fn run(name: &str) -> Result<()> {
    run_variant(name, "case.toml")
}

fn run_variant(name: &str, description: &str) -> Result<()> {
    let folder = Folder::of(name);
    let text = folder.script(description)?.context("no such description")?;
    let case: Case = toml::from_str(&text)?;
    let mut cluster = start(&case)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let run = |database: &Database, script: &str| -> Result<Option<String>> {
        let Some(sql) = folder.script(script)? else {
            return Ok(None);
        };
        let variables: Vec<(&str, String)> = case
            .variables
            .iter()
            .map(|name| (name.as_str(), "1".to_owned()))
            .collect();
        let printed = database.sql_with(&sql, &variables);
        printed.map(Some).with_context(|| script.to_owned())
    };
    if folder.script("during.sql")?.is_some() && case.during == During::Copying {
        source.sql(FILLER)?;
    }
    run(&source, "setup.sql")?;
    run(&target, "target.sql")?;

    let doctor = cluster.cli(&["doctor", "node_b", "--from", "node_a", "--json"])?;
    says("doctor", &doctor.text(), &case.doctor)?;
    for word in &case.doctor_keeps_quiet_about {
        ensure!(
            !doctor.text().contains(word),
            "doctor names {word:?}: {doctor}"
        );
    }

    if matches!(case.end, End::Refused) {
        let init = cluster.init(&[])?;
        ensure!(init.code != 0, "it was not refused: {init}");
        says("init", &init.text(), &case.said)?;
        residue::of_jobs(&source)?.none()?;
        return residue::of_everything(&target)?.none();
    }
    cluster.init(&["--detach", "--max-rate", RATE])?.expect(0)?;
    if folder.script("during.sql")?.is_some() {
        match case.during {
            During::Copying => cluster.wait_copying("node_b")?,
            During::Following => drop(cluster.wait_state("node_b", &["synchronized"], LIMIT)?),
        }
        run(&source, "during.sql")?;
    }
    match case.end {
        End::Refused => {}
        End::Equal => {
            if cluster.wait_state("node_b", &["synchronized", "failed"], LIMIT)? == "failed" {
                bail!("the job failed: {}", told(&cluster)?);
            }
            cluster.wait_drained("node_a")?;
            same(&run, &source, &target)?;
            // Nothing that agents do on start or when they observe changes anything.
            cluster.cli(&["schema", "compare", "node_a", "node_b"])?;
            cluster.stop_agent("node_b")?;
            cluster.start_agent("node_b")?;
            cluster.wait_online(&["node_b"])?;
            cluster.wait_drained("node_a")?;
            same(&run, &source, &target)?;
            ensure!(
                cluster.state("node_b")? == "synchronized",
                "{}",
                told(&cluster)?
            );
        }
        End::Diverged => {
            cluster.wait_state("node_b", &["diverged"], LIMIT)?;
        }
        End::Resumed => {
            cluster.wait_state("node_b", &["failed"], LIMIT)?;
            says("the node's status", &told(&cluster)?, &case.said)?;
            run(&target, "mend.sql")?.context("no mend.sql")?;
            cluster.init(&["--resume"])?.expect(0)?;
            cluster.wait_drained("node_a")?;
            return same(&run, &source, &target);
        }
        End::Failed => {
            cluster.wait_state("node_b", &["failed"], LIMIT)?;
            residue::of_jobs(&source)?.none()?;
            residue::of_everything(&target)?.none()?;
        }
    }
    says("the node's status", &told(&cluster)?, &case.said)
}

fn start(case: &Case) -> Result<Cluster> {
    let mut builder = Cluster::builder()
        .setting("node_b", "wal_retrieve_retry_interval", "1s")
        .agent_argument("node_a", "--schema-check-interval=1s")
        .agent_argument("node_b", "--schema-check-interval=1s")
        .coordinator_argument("--drift-grace=2s");
    if let Some(major) = case.postgres {
        let installation = Installation::of_major(major)?;
        for node in ["node_a", "node_b"] {
            builder = builder.postgres(node, &installation);
        }
    }
    builder.start()
}

/// The node's status and last report as text.
fn told(cluster: &Cluster) -> Result<String> {
    let view = cluster.node_view("node_b")?.context("node_b is known")?;
    let report = cluster.cli(&["status", "node_b", "--last-report", "--json"])?;
    Ok(format!("{view}\n{}", report.text()))
}

fn says(who: &str, said: &str, words: &[String]) -> Result<()> {
    for word in words {
        ensure!(said.contains(word), "{who} does not say {word:?}: {said}");
    }
    Ok(())
}

fn same(
    run: &impl Fn(&Database, &str) -> Result<Option<String>>,
    source: &Database,
    target: &Database,
) -> Result<()> {
    let (there, here) = (run(source, "check.sql")?, run(target, "check.sql")?);
    ensure!(there.is_some(), "no check.sql");
    ensure!(
        there == here,
        "the nodes differ\n--- source\n{}\n--- target\n{}",
        there.unwrap_or_default(),
        here.unwrap_or_default()
    );
    Ok(())
}

/// A test for each case, and one that checks that every folder has a test.
macro_rules! cases {
    ($($test:ident: $folder:literal $(, $description:literal)?;)+) => {
        $(
            #[test]
            fn $test() -> Result<()> {
                cases!(@run $folder $(, $description)?)
            }
        )+

        #[test]
        fn every_folder_of_cases_is_run_and_describes_itself() -> Result<()> {
            let known = [$($folder),+];
            for entry in fs::read_dir(paths::workspace().join("tests/cases"))? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                ensure!(known.contains(&name.as_str()), "no test runs tests/cases/{name}");
                Folder::of(&name).case().with_context(|| name.clone())?;
            }
            Ok(())
        }
    };
    (@run $folder:literal) => { run($folder) };
    (@run $folder:literal, $description:literal) => { run_variant($folder, $description) };
}

cases! {
    a_check_may_read_another_table: "check-reads-other-table";
    functions_without_a_search_path_are_named: "unqualified-domain-and-check";
    an_index_that_cannot_be_built_again_is_named: "index-function-replaced";
    labels_of_a_provider_that_is_not_loaded_are_named: "security-label";
    rows_in_the_tables_of_extensions_are_not_forgotten: "extension-config-rows";
    event_triggers_do_not_fire_on_what_makes_the_replica: "ddl-audit-event-trigger";
    an_event_trigger_that_refuses_ddl_is_named: "ddl-audit-event-trigger", "guard.toml";
    an_enum_label_that_is_added_meanwhile_is_named: "enum-value-during-copy";
    a_partition_that_is_made_meanwhile_is_named: "partition-during-copy";
    a_function_of_an_extension_that_was_altered_is_named: "altered-extension-function";
    a_column_that_needs_an_altered_function_is_named: "altered-extension-function", "generated.toml";
    types_without_equality_are_found_wherever_they_hide: "json-inside-full-identity";
    settings_of_the_database_do_not_change_values: "timezone-of-the-database";
    triggers_that_fire_on_replicas_are_named: "triggers-for-replicas";
    tables_whose_policies_bind_their_owner_are_refused: "forced-row-security";
    a_column_that_a_parent_got_later_is_no_drift: "inherited-column-order";
    partitions_by_hash_of_an_enum_are_refused: "enum-hash-partition";
    nulls_in_arrays_stay_nulls: "array-nulls";
    a_not_null_that_is_not_valid_stops_no_rows: "not-null-not-valid";
}
