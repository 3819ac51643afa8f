//! Stored snapshots of node_a, by the commands that operators use.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Cluster, Output, Running};

impl Cluster {
    /// Runs `snapshot generate --json`; its last line is the snapshot.
    ///
    /// # Errors
    /// The CLI cannot be run.
    pub fn generate(&self, output: impl AsRef<Path>, further: &[&str]) -> Result<Output> {
        self.generate_spawn(output, further)?
            .finish(super::CLI_LIMIT)
    }

    /// The same, which must succeed: the snapshot.
    ///
    /// # Errors
    /// It does not.
    pub fn generated(&self, output: impl AsRef<Path>, further: &[&str]) -> Result<Value> {
        self.generate(output, further)?.expect(0)?.last_object()
    }

    /// The same, not waited for.
    ///
    /// # Errors
    /// The CLI cannot be run.
    pub fn generate_spawn(&self, output: impl AsRef<Path>, further: &[&str]) -> Result<Running> {
        let output = output.as_ref().to_str().context("a path in UTF-8")?;
        let command = [
            "snapshot", "generate", "--source", "node_a", "--json", "--output", output,
        ];
        self.cli_spawn(&[&command, further].concat())
    }

    /// A stored snapshot, as `snapshot show --json` has it.
    ///
    /// # Errors
    /// It is not known.
    pub fn show_snapshot(&self, id: &str) -> Result<Value> {
        let shown = self.cli(&["snapshot", "show", id, "--json"])?;
        shown.expect(0)?.last_object()
    }

    /// Runs `snapshot apply --yes` of a path, a URL or an id.
    ///
    /// # Errors
    /// The CLI cannot be run.
    pub fn apply(
        &self,
        targets: &[&str],
        input: impl AsRef<Path>,
        further: &[&str],
    ) -> Result<Output> {
        self.apply_spawn(targets, input, further)?
            .finish(super::CLI_LIMIT)
    }

    /// The same, not waited for.
    ///
    /// # Errors
    /// The CLI cannot be run.
    pub fn apply_spawn(
        &self,
        targets: &[&str],
        input: impl AsRef<Path>,
        further: &[&str],
    ) -> Result<Running> {
        let input = input.as_ref().to_str().context("a path in UTF-8")?;
        let command = ["snapshot", "apply", "--yes", "--input", input, "--target"];
        self.cli_spawn(&[&command, targets, further].concat())
    }
}

/// The id of a snapshot, as any command tells it.
///
/// # Errors
/// It has none.
pub fn snapshot_id(snapshot: &Value) -> Result<String> {
    let id = snapshot["snapshot_id"].as_str();
    Ok(id.context("an id")?.to_owned())
}
