//! The image of a host in a container: Debian's smallest system, of the release that runs here, so that
//! the binaries of this workspace and the tests' PostgreSQL run in it as they are. It is made from
//! packages, because there may be no registry of images, and kept by a hash of how it was made.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::required::or_not_tested;
use crate::scratch::Scratch;
use crate::{command, paths};

const SCRIPT: &str = include_str!("host_image.sh");

const NAME: &str = "steep-repl-tests-host";

/// An image that Docker has.
#[derive(Debug, Clone)]
pub struct HostImage {
    tag: String,
}

impl HostImage {
    /// Finds or makes it; `None`, and says so, where that cannot be done: on CI, that is an error.
    ///
    /// # Errors
    /// It cannot be made on CI.
    pub fn available() -> Result<Option<Self>> {
        let lacking = "hosts in containers need Docker and its image";
        or_not_tested(Self::installed(), lacking)
    }

    /// Makes it unless Docker has it.
    ///
    /// # Errors
    /// There is no Docker, no Debian, or what debootstrap printed.
    pub fn installed() -> Result<Self> {
        docker(&["version", "--format", "{{.Server.Version}}"])
            .context("Docker does not answer")?;
        let suite = suite()?;
        let mut how = DefaultHasher::new();
        (SCRIPT, &suite).hash(&mut how);
        let image = Self {
            tag: format!("{:016x}", how.finish()),
        };
        // Tests are many processes that start at the same time.
        let target = paths::target_dir()?;
        fs::create_dir_all(&target)?;
        let lock = File::create(target.join(".host-image.lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        if docker(&["image", "inspect", &image.descriptor()]).is_err() {
            image.make(&suite)?;
        }
        Ok(image)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        NAME
    }

    /// Its tag, the hash.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Both.
    #[must_use]
    pub fn descriptor(&self) -> String {
        format!("{NAME}:{}", self.tag)
    }

    fn make(&self, suite: &str) -> Result<()> {
        eprintln!(
            "{} is not here: making it with debootstrap",
            self.descriptor()
        );
        ensure!(
            rustix::process::getuid().is_root(),
            "debootstrap makes it as root only"
        );
        if command::output(Command::new("debootstrap").arg("--version")).is_err() {
            apt(&["install", "debootstrap"])?;
        }
        let mirror = mirror(suite).or_else(|_| {
            apt(&["update"])?;
            mirror(suite)
        })?;
        let scratch = Scratch::new()?;
        let root = scratch.path().join("root");
        fs::create_dir(&root)?;
        let mut make = Command::new("bash");
        make.args(["-c", SCRIPT, "host_image.sh", suite, &mirror])
            .arg(self.descriptor())
            .arg(&root);
        command::output(&mut make)
            .map(drop)
            .context("cannot make the image")
    }
}

/// Runs the command line of Docker.
///
/// # Errors
/// What it printed.
pub fn docker(arguments: &[&str]) -> Result<String> {
    let printed = command::output(Command::new("docker").args(arguments))?;
    Ok(printed.trim().to_owned())
}

/// A new machine has no lists of packages yet.
fn apt(arguments: &[&str]) -> Result<()> {
    let run = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(["--quiet", "--yes", "--no-install-recommends"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        command::output(&mut apt).map(drop)
    };
    run(arguments).or_else(|_| {
        run(&["update"])?;
        run(arguments)
    })
}

/// The Debian release of this machine (os-release(5)).
fn suite() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let value = |name: &str| {
        let mut lines = release.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    ensure!(
        value("ID").as_deref() == Some("debian"),
        "the image is made from Debian's packages, and this is no Debian"
    );
    value("VERSION_CODENAME").context("this Debian has no codename")
}

/// Where apt gets that release from on this machine.
fn mirror(suite: &str) -> Result<String> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(CODENAME) $(SITE)"]);
    let printed = command::output(targets.arg("Created-By: Packages"))?;
    let mut sites = printed.lines().filter_map(|line| line.split_once(' '));
    let site = sites.find(|(codename, _)| *codename == suite);
    let (_, site) = site.with_context(|| format!("apt has no source of {suite}"))?;
    Ok(site.to_owned())
}
