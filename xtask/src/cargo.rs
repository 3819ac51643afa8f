//! Runs cargo with visible output.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use steep_tests::paths::{self, Binaries};

/// A cargo command in the workspace, as if typed by hand.
///
/// Cargo started this process and describes the running package in its environment. Build scripts
/// that depend on those variables would see a change and rebuild themselves and most of the tree,
/// so they are removed.
pub(crate) fn command() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.current_dir(paths::workspace());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
        ];
        if ours.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a command to its end, with inherited output.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot run {name}"))?;
    if !status.success() {
        let arguments: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect();
        bail!("{name} {} failed ({status})", arguments.join(" "));
    }
    Ok(())
}

/// Builds the product's binaries in release mode.
pub(crate) fn release_binaries() -> Result<Binaries> {
    let mut build = command();
    build.args([
        "build",
        "--release",
        "-p",
        "steep-cli",
        "-p",
        "steep-agent",
        "-p",
    ]);
    run(build.arg("steep-coordinator"))?;
    Binaries::within(paths::target_dir()?.join("release"))
}
