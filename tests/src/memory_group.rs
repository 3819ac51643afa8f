//! A limit on the memory of processes: a control group, of version 1 or 2 (cgroups(7)).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::required::or_not_tested;
use crate::wait;

const ROOT: &str = "/sys/fs/cgroup";

/// The kernel lets go of a process well within this time after its end.
const EMPTY_LIMIT: Duration = Duration::from_secs(20);

/// Distinguishes the groups of one process.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A control group without a limit at first, removed when dropped: drop what runs in it before.
#[derive(Debug)]
pub struct MemoryGroup {
    version: Version,
    path: PathBuf,
}

/// The versions give their files other names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl MemoryGroup {
    /// Makes one. `None`, and says so, where this machine has no such groups, or this process may not make them.
    ///
    /// # Errors
    /// The machine has them, but on CI none can be made.
    pub fn make() -> Result<Option<Self>> {
        let Some((version, parent)) = hierarchy() else {
            eprintln!(
                "NOT TESTED: a limit on memory needs control groups, and this machine has none"
            );
            return Ok(None);
        };
        or_not_tested(
            Self::within(version, &parent),
            "a limit on memory needs the right to make a control group",
        )
    }

    fn within(version: Version, parent: &Path) -> Result<Self> {
        if version == Version::Two {
            write(&parent.join("cgroup.subtree_control"), "+memory")?;
        }
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("steep-tests-{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let group = Self { version, path };
        // A group that swaps slows down instead of coming to its limit.
        match version {
            Version::One => write(&group.path.join("memory.swappiness"), "0")?,
            Version::Two if group.path.join("memory.swap.max").exists() => {
                write(&group.path.join("memory.swap.max"), "0")?;
            }
            Version::Two => {}
        }
        Ok(group)
    }

    /// The file that takes the ids of processes that enter.
    #[must_use]
    pub fn entrance(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Sets the limit, in bytes. False if the group uses more and the kernel cannot take that away.
    ///
    /// # Errors
    /// The group is gone.
    pub fn limit(&self, bytes: u64) -> Result<bool> {
        let file = match self.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        let limited = fs::write(self.path.join(file), bytes.to_string());
        match limited {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                Ok(false)
            }
            other => {
                other.with_context(|| format!("cannot set {file} of {}", self.path.display()))?;
                Ok(true)
            }
        }
    }

    /// The bytes that it uses, with cached pages of files that its processes were the first to read or write.
    ///
    /// # Errors
    /// The group is gone.
    pub fn used(&self) -> Result<u64> {
        self.number(match self.version {
            Version::One => "memory.usage_in_bytes",
            Version::Two => "memory.current",
        })
    }

    /// The most that it ever used.
    ///
    /// # Errors
    /// The group is gone, or the kernel is older than 5.19.
    pub fn peak(&self) -> Result<u64> {
        self.number(match self.version {
            Version::One => "memory.max_usage_in_bytes",
            Version::Two => "memory.peak",
        })
    }

    /// How often it came to its limit.
    ///
    /// # Errors
    /// The group is gone.
    pub fn times_at_limit(&self) -> Result<u64> {
        match self.version {
            Version::One => self.number("memory.failcnt"),
            Version::Two => self.counter("memory.events", "max"),
        }
    }

    /// How many of its processes the kernel killed for want of memory.
    ///
    /// # Errors
    /// The group is gone.
    pub fn killed(&self) -> Result<u64> {
        match self.version {
            Version::One => self.counter("memory.oom_control", "oom_kill"),
            Version::Two => self.counter("memory.events", "oom_kill"),
        }
    }

    fn number(&self, file: &str) -> Result<u64> {
        let text = self.read(file)?;
        let number = text.trim().parse();
        number.with_context(|| format!("{file} is no number: {text:?}"))
    }

    fn counter(&self, file: &str, name: &str) -> Result<u64> {
        let text = self.read(file)?;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let value = lines.find_map(|(key, value)| (key == name).then_some(value));
        let value = value.with_context(|| format!("{file} has no {name}: {text:?}"))?;
        Ok(value.trim().parse()?)
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.path.join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let removed = wait::until_true("a control group to be empty", EMPTY_LIMIT, || {
            Ok(fs::remove_dir(&self.path).is_ok())
        });
        if let Err(error) = removed {
            eprintln!("{} stays: {error:#}", self.path.display());
        }
    }
}

/// The version that manages memory, and where a group can be made. Version 2 allows none below a group that has
/// processes, such as our own.
fn hierarchy() -> Option<(Version, PathBuf)> {
    let root = Path::new(ROOT);
    let first = root.join("memory");
    if first.join("memory.limit_in_bytes").exists() {
        let own = own_group().map(|own| first.join(own));
        let own = own.filter(|own| own.join("cgroup.procs").exists());
        return Some((Version::One, own.unwrap_or(first)));
    }
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let managed = controllers.split_whitespace().any(|name| name == "memory");
    managed.then(|| (Version::Two, root.to_path_buf()))
}

/// This process's group of version 1, below its root.
fn own_group() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut paths = groups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let memory = controllers.split(',').any(|name| name == "memory");
        memory.then(|| PathBuf::from(path.trim_start_matches('/')))
    });
    paths.next()
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {text:?} to {}", file.display()))
}
