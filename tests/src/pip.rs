//! Installs Python packages into a directory, with the machine's pip or that of a virtual environment.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command;

/// What is installed with a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dependencies {
    /// Nothing.
    None,
    /// What it needs.
    All,
}

/// Installs what `requirement` names into a directory that does not exist.
///
/// # Errors
/// The error of each attempt.
pub(crate) fn install(requirement: &str, dependencies: Dependencies, into: &Path) -> Result<()> {
    let venv = into.with_extension("venv");
    let ways: [(&str, &dyn Fn() -> Result<()>); 2] = [
        ("python3 -m pip", &|| {
            pip(Path::new("python3"), requirement, dependencies, into)
        }),
        ("a virtual environment", &|| {
            command::output(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
            pip(&venv.join("bin/python"), requirement, dependencies, into)
        }),
    ];
    let mut failures = Vec::new();
    for (name, way) in ways {
        let outcome = way();
        drop(fs::remove_dir_all(&venv));
        match outcome {
            Ok(()) => return Ok(()),
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
        drop(fs::remove_dir_all(into));
    }
    bail!("{}", failures.join("\n"))
}

fn pip(python: &Path, requirement: &str, dependencies: Dependencies, into: &Path) -> Result<()> {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-input"])
        .args(["--no-compile", "--disable-pip-version-check"])
        .args(["--only-binary", ":all:", "--target"])
        .arg(into)
        .arg(requirement);
    if dependencies == Dependencies::None {
        pip.arg("--no-deps");
    }
    command::output(&mut pip).map(drop)
}
