//! Encrypted snapshots: made, applied with and without a key, and never read by whoever has none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use memchr::memmem::Finder;
use serde_json::Value;
use steep_tests::cluster::Cluster;
use steep_tests::load::{Intensity, Load};
use steep_tests::paths::{self, Binaries};
use steep_tests::pg::Grouping;
use steep_tests::{command, compare, residue, sample, wait};

const LIMIT: Duration = Duration::from_secs(90);

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";

/// The agent's setting, as a variable.
const KEY: &str = "STEEP_AGENT_SNAPSHOT_KEY";

/// Makes a key like an operator; returns its file and its recipient.
fn make_key(cluster: &Cluster, name: &str) -> Result<(PathBuf, String)> {
    let file = cluster.dir().join(name);
    let output = file.to_str().context("UTF-8")?;
    let made = cluster.cli(&["snapshot", "keygen", "--output", output, "--json"])?;
    let made = made.expect(0)?.last_object()?;
    let recipient = made["recipient"].as_str().context("a recipient")?;
    Ok((file, recipient.to_owned()))
}

/// Starts a node's agent anew, with that key.
fn give_key(cluster: &mut Cluster, node: &str, file: &Path) -> Result<()> {
    cluster.stop_agent(node)?;
    let file = file.to_str().context("UTF-8")?;
    cluster.node_mut(node).set_agent_variable(KEY, file);
    cluster.start_agent(node)?;
    cluster.wait_online(&[node])
}

/// The lines of secret keys.
fn secrets(files: &[&Path]) -> Result<Vec<String>> {
    let mut secrets = Vec::new();
    for file in files {
        let text = fs::read_to_string(file)?;
        let secret = text
            .lines()
            .find(|line| line.starts_with("AGE-SECRET-KEY-1"));
        secrets.push(secret.context("a secret key")?.to_owned());
    }
    Ok(secrets)
}

/// No file of the cluster but the keys' own has a secret key in it: no log, no database, no snapshot.
fn no_secret_is_anywhere(cluster: &Cluster, keys: &[&Path]) -> Result<()> {
    let secrets = secrets(keys)?;
    let secrets: Vec<Finder<'_>> = secrets.iter().map(Finder::new).collect();
    let mut looked_at = 0;
    let mut left = vec![cluster.dir().to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir)?.filter_map(Result::ok) {
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                left.push(path);
            } else if kind.is_file() && !keys.contains(&path.as_path()) {
                // A server may remove a file meanwhile.
                let Ok(bytes) = fs::read(&path) else { continue };
                looked_at += 1;
                let found = secrets.iter().any(|secret| secret.find(&bytes).is_some());
                ensure!(!found, "{} has a secret key", path.display());
            }
        }
    }
    ensure!(looked_at > 20, "only {looked_at} files were looked at");
    Ok(())
}

#[test]
fn an_encrypted_snapshot_is_begun_again_and_loaded_with_the_key_and_through_an_agent_that_has_it()
-> Result<()> {
    let mut cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 3)?;
    let place = cluster.dir().join("stored");

    let refused = cluster.generate(&place, &["--encrypt"])?.expect(1)?.text();
    for part in ["node_a", "no key", "snapshot keygen", "--snapshot-key"] {
        ensure!(refused.contains(part), "{part} is not in {refused}");
    }
    ensure!(!place.exists(), "nothing is made for it");
    assert_eq!(source.value::<u32>(SLOTS)?, 0);

    let (key, recipient) = make_key(&cluster, "snapshot.key")?;
    let again = key.to_str().context("UTF-8")?;
    let again = cluster.cli(&["snapshot", "keygen", "--output", again])?;
    ensure!(
        again.expect(1)?.text().contains("exists"),
        "a key is never overwritten"
    );
    for node in ["node_a", "node_b"] {
        give_key(&mut cluster, node, &key)?;
    }

    // The source's agent is killed in the middle.
    let begun = cluster.generate(&place, &["--encrypt", "--max-rate", "8MB", "--detach"])?;
    let begun = begun.expect(0)?.last_object()?;
    let id = begun["snapshot_id"].as_str().context("an id")?.to_owned();
    wait::until_true("rows to be read", LIMIT, || {
        let shown = cluster.show_snapshot(&id)?;
        Ok(shown["state"] == "live" && shown["bytes"].as_u64() > Some(0))
    })?;
    assert_eq!(
        cluster.show_snapshot(&id)?["encryption"]["recipients"][0],
        recipient
    );
    cluster.kill_agent("node_a")?;
    cluster.start_agent("node_a")?;
    wait::until_true("the snapshot to be complete", LIMIT, || {
        Ok(cluster.show_snapshot(&id)?["state"] == "sealed")
    })?;

    let shown = cluster.show_snapshot(&id)?;
    assert_eq!(shown["encryption"]["format"], "age");
    for arguments in [&["snapshot", "show", &id][..], &["snapshot", "list"]] {
        let text = cluster.cli(arguments)?.expect(0)?.text();
        ensure!(text.contains("encrypted"), "{text}");
    }
    let input = place.to_str().context("UTF-8")?;
    let with_key = ["snapshot", "verify", input, "--json", "--snapshot-key"];
    let with_key: Vec<&str> = with_key.into_iter().chain(key.to_str()).collect();
    for arguments in [&["snapshot", "verify", &id, "--json"][..], &with_key] {
        let verified = cluster.cli(arguments)?.expect(0)?.last_object()?;
        assert_eq!(
            (&verified["rows"], &verified["unread"]),
            (&shown["rows"], &Value::Null)
        );
    }
    // Without the key, the files are checked as they are stored.
    let verified = cluster.cli(&["snapshot", "verify", input, "--json"])?;
    let verified = verified.expect(0)?.last_object()?;
    assert_eq!(
        (&verified["whole"], &verified["rows"]),
        (&true.into(), &0.into())
    );
    ensure!(
        verified["unread"].to_string().contains(&recipient),
        "{verified}"
    );

    // node_b reads it itself; node_c finds it and has no key: node_a's agent serves it.
    source.sql("UPDATE pgbench_accounts SET abalance = 7 WHERE aid % 100 = 0")?;
    let intensity = Intensity::LIGHT;
    let load = Load::start(&source, intensity, Grouping::Shared)?;
    let applied = cluster
        .apply(&["node_b", "node_c"], input, &["--json"])?
        .expect(0)?;
    load.stop()?;
    for part in [
        "node_c finds",
        "cannot read it",
        "the agent of node_a reads it",
    ] {
        ensure!(applied.stderr.contains(part), "{part} is not in {applied}");
    }
    ensure!(!applied.stderr.contains("node_b finds"), "{applied}");
    cluster.wait_drained("node_a")?;
    for node in ["node_b", "node_c"] {
        assert_eq!(cluster.state(node)?, "synchronized", "{applied}");
        compare::rows(&source, &cluster.database(node))?.none()?;
        compare::schema(&source, &cluster.database(node))?.none()?;
    }
    no_secret_is_anywhere(&cluster, &[&key])?;
    cluster
        .cli(&["snapshot", "delete", &id, "--yes"])?
        .expect(0)?;
    ensure!(!place.join("manifest.json").exists(), "it is deleted");
    Ok(())
}

#[test]
fn without_its_key_an_encrypted_snapshot_is_refused_and_nothing_is_changed() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    let (key, recipient) = make_key(&cluster, "snapshot.key")?;
    let (other, other_recipient) = make_key(&cluster, "other.key")?;
    give_key(&mut cluster, "node_a", &key)?;
    let place = cluster.dir().join("stored");
    let made = cluster.generate(&place, &["--encrypt", "--compress", "lz4"])?;
    let made = made.expect(0)?.last_object()?;
    let id = made["snapshot_id"].as_str().context("an id")?.to_owned();
    let input = place.to_str().context("UTF-8")?;

    let recorded =
        "SELECT recipients[1] FROM steep_repl.snapshots WHERE cardinality(recipients) = 1";
    assert_eq!(source.sql(recorded)?, recipient);

    // The key of the source's agent is another one now, and the target's agent has none.
    give_key(&mut cluster, "node_a", &other)?;
    for (which, further) in [
        (input, &[][..]),
        (id.as_str(), &[]),
        (id.as_str(), &["--no-subscribe"]),
        (id.as_str(), &["--dry-run"]),
    ] {
        let refused = cluster
            .apply(&["node_b"], which, further)?
            .expect(1)?
            .text();
        for part in [
            recipient.as_str(),
            &other_recipient,
            "node_a",
            "--snapshot-key",
        ] {
            ensure!(refused.contains(part), "{part} is not in {refused}");
        }
        assert!(target.is_empty()?, "{refused}");
        wait::until_true("the job to be cleaned up", LIMIT, || {
            Ok(source.value::<u32>(SLOTS)? == 1)
        })?;
        residue::of_everything(&target)?.none()?;
    }
    let verified = cluster.cli(&["snapshot", "verify", &id, "--json"])?;
    let verified = verified.expect(0)?.last_object()?;
    ensure!(
        verified["unread"].to_string().contains(&recipient),
        "{verified}"
    );

    // Recipients alone encrypt; what they have written they cannot read.
    let only = cluster.dir().join("recipients.txt");
    fs::write(&only, format!("# whoever is on duty\n{recipient}\n"))?;
    give_key(&mut cluster, "node_a", &only)?;
    let second = cluster.dir().join("second");
    let made = cluster
        .generate(&second, &["--encrypt"])?
        .expect(0)?
        .last_object()?;
    assert_eq!(made["encryption"]["recipients"][0], recipient);
    let second = made["snapshot_id"].as_str().context("an id")?;
    let refused = cluster.apply(&["node_b"], second, &[])?.expect(1)?.text();
    ensure!(refused.contains("only recipients"), "{refused}");
    assert!(target.is_empty()?, "{refused}");

    // A target that has the key does not need the source's.
    give_key(&mut cluster, "node_b", &key)?;
    let largest = paths::largest_in(&place.join("parts"))?;
    let whole = fs::read(&largest)?;
    fs::write(&largest, &whole[..whole.len() - 1])?;
    let refused = cluster.apply(&["node_b"], input, &[])?.expect(1)?.text();
    for part in [".age", "truncated", "node_b"] {
        ensure!(refused.contains(part), "{part} is not in {refused}");
    }
    assert!(target.is_empty()?, "{refused}");
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    fs::write(&largest, changed)?;
    let refused = cluster.apply(&["node_b"], input, &[])?.expect(1)?.text();
    for part in [".age", "damaged", "node_b"] {
        ensure!(refused.contains(part), "{part} is not in {refused}");
    }
    fs::write(&largest, whole)?;
    let resume = ["init", "node_b", "--from", "node_a", "--resume", "--yes"];
    cluster.cli(&resume)?.expect(0)?;
    cluster.wait_drained("node_a")?;
    assert_eq!(cluster.state("node_b")?, "synchronized");
    compare::rows(&source, &target)?.none()?;
    no_secret_is_anywhere(&cluster, &[&key, &other])
}

#[test]
fn an_agent_with_a_key_that_cannot_be_used_says_why_and_does_not_start() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (key, _) = make_key(&cluster, "snapshot.key")?;
    let secret = secrets(&[&key])?.remove(0);
    cluster.stop_agent("node_a")?;
    let start = |cluster: &mut Cluster, file: &Path| -> Result<String> {
        let file = file.to_str().context("UTF-8")?;
        cluster.node_mut("node_a").set_agent_variable(KEY, file);
        match cluster.start_agent("node_a") {
            Ok(()) => Ok("it started".to_owned()),
            Err(error) => Ok(format!("{error:#}")),
        }
    };
    let exposed = cluster.dir().join("exposed.key");
    fs::copy(&key, &exposed)?;
    command::output(Command::new("chmod").arg("644").arg(&exposed))?;
    let said = start(&mut cluster, &exposed)?;
    ensure!(
        said.contains("chmod 600") && !said.contains(&secret),
        "{said}"
    );
    let cut = cluster.dir().join("cut.key");
    fs::write(&cut, &secret[..40])?;
    command::output(Command::new("chmod").arg("600").arg(&cut))?;
    let said = start(&mut cluster, &cut)?;
    ensure!(
        said.contains("line 1") && !said.contains(&secret[..40]),
        "{said}"
    );

    let print = |arguments: &[&str], variable: Option<&Path>| -> Result<String> {
        let mut agent = Command::new(Binaries::beside_me()?.agent());
        agent.args(["run", "--print-config"]).args(arguments);
        if let Some(file) = variable {
            agent.env(KEY, file);
        }
        command::output(&mut agent)
    };
    let file = cluster.dir().join("agent.toml");
    fs::write(&file, "snapshot-key = \"/from/file\"\n")?;
    let config = file.to_str().context("UTF-8")?;
    let shown = print(&["--config", config], None)?;
    ensure!(shown.contains("snapshot-key = \"/from/file\""), "{shown}");
    let shown = print(&["--config", config], Some(&key))?;
    ensure!(
        shown.contains("snapshot.key") && !shown.contains(&secret),
        "{shown}"
    );
    let flags = ["--config", config, "--snapshot-key", "/from/flag"];
    let shown = print(&flags, Some(&key))?;
    ensure!(shown.contains("snapshot-key = \"/from/flag\""), "{shown}");
    give_key(&mut cluster, "node_b", &key)
}

#[test]
fn a_key_whose_recipient_cannot_be_printed_is_named_with_its_file() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let key = scratch.path().join("k");
    for json in [&[][..], &["--json"]] {
        let mut keygen = Command::new(Binaries::beside_me()?.cli());
        keygen.args(["snapshot", "keygen", "--output"]).arg(&key);
        keygen.args(json).env("HOME", scratch.path());
        let full = fs::File::options().write(true).open("/dev/full")?;
        let output = keygen.stdout(full).output()?;
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{said}");
        let file = fs::read_to_string(&key)?;
        let recipient = file
            .split_whitespace()
            .find(|word| word.starts_with("age1"));
        let path = key.display().to_string();
        for part in [
            path.as_str(),
            recipient.context("a recipient")?,
            "exists",
            "No space",
        ] {
            ensure!(said.contains(part), "{part} is not in {said}");
        }
        fs::remove_file(&key)?;
    }
    Ok(())
}
