//! The contract with scripts: keys, exit codes, completions, and every command of the README.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;
use steep_tests::cluster::Cluster;
use steep_tests::{paths, sample, wait};

const NODE: &[&str] = &[
    "node_id",
    "state",
    "source_node",
    "init_started_at",
    "init_completed_at",
    "error_message",
    "agent_online",
    "lag_bytes",
    "progress",
];
const PROGRESS: &[&str] = &[
    "node_id",
    "state",
    "phase",
    "overall_percent",
    "tables_total",
    "tables_completed",
    "current_table",
    "current_table_percent",
    "rows_copied",
    "bytes_copied",
    "wire_bytes",
    "throughput_rows_sec",
    "throughput_bytes_sec",
    "eta_seconds",
    "parallel_workers",
    "started_at",
    "error_message",
    "tables",
];
const TABLE: &[&str] = &["schema", "table", "rows", "bytes", "state", "percent"];
const COMPLETED: &[&str] = &[
    "event",
    "node_id",
    "state",
    "rows_copied",
    "bytes_copied",
    "duration_seconds",
    "phases",
];
const PHASES: &[&str] = &["preparing", "copying", "indexing", "catching_up"];

/// Every key of the contract exists, with `null` for missing values.
fn has_keys(value: &Value, keys: &[&str]) {
    let object = value
        .as_object()
        .unwrap_or_else(|| panic!("not an object: {value}"));
    for key in keys {
        assert!(object.contains_key(*key), "{key} is missing in {value}");
    }
}

#[test]
fn json_has_the_keys_of_the_contract_before_during_and_after_a_job() -> Result<()> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    for view in cluster.cli(&["nodes", "--json"])?.expect(0)?.objects() {
        has_keys(&view, NODE);
    }

    let following = cluster.init_spawn(&["--max-rate", "5MB"])?;
    cluster.wait_copying("node_b")?;
    let progress = cluster.progress("node_b")?;
    has_keys(&progress, PROGRESS);
    assert_eq!(progress["state"], "copying");
    let tables = progress["tables"].as_array().context("tables")?;
    assert!(!tables.is_empty(), "{progress}");
    for table in tables {
        has_keys(table, TABLE);
    }
    let node = cluster.node_view("node_b")?.context("node_b is known")?;
    assert_eq!(node["source_node"], "node_a");
    assert!(
        node["progress"].is_number() && node["init_started_at"].is_string(),
        "{node}"
    );

    let lines = following.finish(Duration::from_secs(60))?.expect(0)?;
    // One object a line, nothing else.
    for line in lines.stdout.lines() {
        let parsed: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        assert!(parsed.is_object(), "{line}");
    }
    let end = lines.last_object()?;
    has_keys(&end, COMPLETED);
    has_keys(&end["phases"], PHASES);
    let node = cluster.node_view("node_b")?.context("node_b is known")?;
    has_keys(&node, NODE);
    assert!(node["init_completed_at"].is_string(), "{node}");
    assert!(node["lag_bytes"].is_number(), "{node}");
    for arguments in [&["status", "--json"][..], &["status", "node_b", "--json"]] {
        let objects = cluster.cli(arguments)?.expect(0)?.objects();
        assert!(!objects.is_empty(), "{arguments:?}");
    }
    Ok(())
}

#[test]
fn a_stream_of_progress_has_an_update_at_least_every_half_second() -> Result<()> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    let mut following = cluster.init_spawn(&["--max-rate", "3MB"])?;
    // When each update was readable.
    let mut seen: Vec<Instant> = Vec::new();
    wait::until_true("the end of the job", Duration::from_secs(90), || {
        let ended = !following.is_running()?;
        let updates = following
            .stdout_so_far()?
            .matches("\"overall_percent\"")
            .count();
        seen.resize(updates.max(seen.len()), Instant::now());
        Ok(ended)
    })?;
    let gaps: Vec<Duration> = seen.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let longest = gaps.iter().max().context("updates")?;
    let mean = gaps.iter().sum::<Duration>() / u32::try_from(gaps.len())?;
    assert!(
        mean <= Duration::from_millis(500),
        "{mean:?} between updates"
    );
    // Twice the promise, because this machine may be busy.
    assert!(
        *longest <= Duration::from_secs(1),
        "{longest:?} without an update"
    );
    let output = following.finish(Duration::from_secs(5))?.expect(0)?;
    let percents: Vec<f64> = output
        .objects()
        .iter()
        .filter_map(|object| object["overall_percent"].as_f64())
        .collect();
    assert!(
        percents.is_sorted(),
        "progress went backwards: {percents:?}"
    );
    let distinct: BTreeSet<u64> = percents.iter().map(|percent| percent.to_bits()).collect();
    assert!(distinct.len() > 3, "progress does not move: {percents:?}");
    Ok(())
}

#[test]
fn the_preflight_of_a_sound_pair_finds_no_error_and_changes_nothing() -> Result<()> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    cluster
        .cli(&["doctor", "node_b", "--from", "node_a"])?
        .expect(0)?;
    let findings = cluster
        .cli(&["doctor", "node_b", "--from", "node_a", "--json"])?
        .expect(0)?;
    assert!(!findings.stdout.contains("\"error\""), "{findings}");
    steep_tests::residue::of_jobs(&cluster.database("node_a"))?.none()?;
    steep_tests::residue::of_everything(&cluster.database("node_b"))?.none()?;
    assert_eq!(cluster.state("node_b")?, "uninitialized");
    Ok(())
}

#[test]
fn completions_are_written_for_every_shell() -> Result<()> {
    let cluster = Cluster::builder().nodes(0).start_servers()?;
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = cluster.cli(&["completions", shell])?.expect(0)?.stdout;
        for word in ["steep-repl", "doctor", "max-rate"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
    }
    Ok(())
}

#[test]
fn help_and_version_are_there_without_a_cluster() -> Result<()> {
    let cluster = Cluster::builder().nodes(0).start_servers()?;
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["init", "--help"],
        &["init", "cancel", "--help"],
        &["certs", "issue", "--help"],
    ] {
        assert!(
            !cluster.cli(arguments)?.expect(0)?.stdout.is_empty(),
            "{arguments:?}"
        );
    }
    for binary in [cluster.binaries().agent(), cluster.binaries().coordinator()] {
        for argument in ["--help", "--version"] {
            let output = std::process::Command::new(&binary).arg(argument).output()?;
            assert!(
                output.status.success() && !output.stdout.is_empty(),
                "{}",
                binary.display()
            );
        }
    }
    Ok(())
}

#[test]
fn keys_are_for_their_owner_and_nothing_is_overwritten() -> Result<()> {
    let cluster = Cluster::builder().nodes(1).start_servers()?;
    let certs = cluster.dir().join("certs");
    let dir = certs.display().to_string();
    for key in ["ca.key", "operator.key", "node_a.key"] {
        let mode = fs::metadata(certs.join(key))?.permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{key}");
    }
    let before = fs::read(certs.join("ca.key"))?;
    assert_ne!(cluster.cli(&["certs", "init", "--dir", &dir])?.code, 0);
    let again = [
        "certs", "issue", "--dir", &dir, "--role", "agent", "--name", "node_a",
    ];
    assert_ne!(cluster.cli(&again)?.code, 0);
    assert_eq!(fs::read(certs.join("ca.key"))?, before);
    let shown = cluster.cli(&[
        "certs",
        "show",
        &certs.join("node_a.pem").display().to_string(),
    ])?;
    let shown = shown.expect(0)?.stdout;
    assert!(
        shown.contains("agent") && shown.contains("node_a"),
        "{shown}"
    );
    Ok(())
}

/// Runs the README's commands in their order on a test cluster: they must work for a newcomer.
#[test]
fn every_command_of_the_readme_works() -> Result<()> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    let readme = fs::read_to_string(paths::workspace().join("README.md"))?;
    let mut run = 0;
    for line in console_commands(&readme) {
        let Some(arguments) = line.strip_prefix("steep-repl ") else {
            // The project's other tests run cargo's commands; the harness sets the exports.
            assert!(
                line.starts_with("cargo ") || line.starts_with("export "),
                "{line}"
            );
            continue;
        };
        // Certificates and the stored snapshot go to directories beside the cluster's.
        let own = cluster.dir().join("readme-certs").display().to_string();
        let stored = cluster.dir().join("readme-stored").display().to_string();
        let words = arguments
            .split_whitespace()
            .enumerate()
            .map(|(at, word)| match word {
                "certs" if at > 0 => own.clone(),
                "/backup/app" => stored.clone(),
                _ => word
                    .strip_prefix("certs/")
                    .map_or_else(|| word.to_owned(), |file| format!("{own}/{file}")),
            });
        let words: Vec<String> = words.collect();
        let replaced: Vec<&str> = words.iter().map(String::as_str).collect();
        cluster
            .cli(&replaced)?
            .expect(0)
            .with_context(|| format!("README: {line}"))?;
        run += 1;
    }
    assert!(run >= 8, "only {run} commands found in the README");
    Ok(())
}

/// Lines that start with `$ ` in blocks marked `console`, with continuations joined.
fn console_commands(readme: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut inside = false;
    let mut continued = false;
    for line in readme.lines() {
        if let Some(kind) = line.strip_prefix("```") {
            inside = !inside && kind.trim() == "console";
            continue;
        }
        if !inside {
            continue;
        }
        let (text, more) = match line.strip_suffix('\\') {
            Some(text) => (text, true),
            None => (line, false),
        };
        if let Some(command) = text.strip_prefix("$ ") {
            commands.push(command.trim().to_owned());
        } else if continued && let Some(last) = commands.last_mut() {
            last.push(' ');
            last.push_str(text.trim());
        }
        continued = more;
    }
    commands
}
