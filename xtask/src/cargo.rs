//! Running cargo, with its output where the user sees it.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use steep_tests::paths::{self, Binaries};

/// A cargo command in the workspace, as if typed by hand.
///
/// This process was started by cargo itself, which describes the package being run in its
/// environment. Build scripts that watch those variables would take each change between here and the
/// user's shell for a reason to build again, and most of the tree with them.
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

/// Runs a command to its end, output inherited.
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

/// Builds the product's binaries for use, not for debugging.
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
