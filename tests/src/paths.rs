//! Paths of the workspace, the target directory and the binaries under test.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The workspace's root.
///
/// # Panics
/// This crate has no parent directory, which the workspace's layout rules out.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies inside the workspace")
        .to_path_buf()
}

/// `target/debug` or `target/release`: where the running executable was built.
///
/// # Errors
/// The running executable cannot be found.
pub fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot tell where this executable is")?;
    // Tests are in deps/, doctests elsewhere, xtask in the profile's directory.
    let dir = exe
        .ancestors()
        .skip(1)
        .find(|dir| {
            dir.file_name()
                .is_some_and(|name| name == "debug" || name == "release")
        })
        .with_context(|| format!("{} is not in a target directory", exe.display()))?;
    Ok(dir.to_path_buf())
}

/// The largest file of a directory.
///
/// # Errors
/// It cannot be read, or is empty.
pub fn largest_in(directory: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(directory)?.filter_map(Result::ok);
    let largest = entries.max_by_key(|entry| entry.metadata().map_or(0, |data| data.len()));
    let largest = largest.with_context(|| format!("{} is empty", directory.display()))?;
    Ok(largest.path())
}

/// Cargo's target directory.
///
/// # Errors
/// As [`profile_dir`].
pub fn target_dir() -> Result<PathBuf> {
    let profile = profile_dir()?;
    Ok(profile
        .parent()
        .map_or_else(|| profile.clone(), Path::to_path_buf))
}

/// The product's binaries, of one build.
#[derive(Debug, Clone)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    const NAMES: [&str; 3] = ["steep-repl", "steep-agent", "steep-coordinator"];

    /// The binaries beside the running executable.
    ///
    /// # Errors
    /// Some are not built, and how to build them.
    pub fn beside_me() -> Result<Self> {
        Self::within(profile_dir()?)
    }

    /// The binaries in that directory.
    ///
    /// # Errors
    /// As [`Binaries::beside_me`].
    pub fn within(dir: PathBuf) -> Result<Self> {
        for name in Self::NAMES {
            if !dir.join(name).is_file() {
                let release = if dir.ends_with("release") {
                    " --release"
                } else {
                    ""
                };
                bail!(
                    "{name} is not in {}: run cargo build --workspace{release}",
                    dir.display()
                );
            }
        }
        Ok(Self { dir })
    }

    /// Their directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The CLI.
    #[must_use]
    pub fn cli(&self) -> PathBuf {
        self.dir.join("steep-repl")
    }

    /// The agent.
    #[must_use]
    pub fn agent(&self) -> PathBuf {
        self.dir.join("steep-agent")
    }

    /// The coordinator.
    #[must_use]
    pub fn coordinator(&self) -> PathBuf {
        self.dir.join("steep-coordinator")
    }
}
