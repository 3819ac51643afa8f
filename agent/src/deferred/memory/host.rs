//! What the machine has for PostgreSQL: free memory within every limit around the server, and processors.
//!
//! A container's limit is its control group's, not the machine's. The server's own group counts where its
//! process is visible, else this agent's, as both share one in a common container.

use std::path::{Path, PathBuf};

const MOUNT: &str = "/sys/fs/cgroup";

/// Reads a file below `/proc` or `/sys`; `None` where it is missing.
pub(super) trait Files {
    fn read(&self, path: &Path) -> Option<String>;
}

pub(super) struct Machine;

impl Files for Machine {
    fn read(&self, path: &Path) -> Option<String> {
        std::fs::read_to_string(path).ok()
    }
}

/// Free bytes for index builds on the server to which the process `backend` belongs.
pub(super) fn free_memory(files: &impl Files, backend: i32) -> u64 {
    let meminfo = files.read(Path::new("/proc/meminfo")).unwrap_or_default();
    let host = available(&meminfo).unwrap_or(0);
    let groups = server_groups(files, backend)
        .or_else(|| files.read(Path::new("/proc/self/cgroup")))
        .unwrap_or_default();
    let limits = groups.lines().filter_map(|line| group_free(files, line));
    limits.min().map_or(host, |free| free.min(host))
}

/// The groups of the server's process, where its number is a PostgreSQL process on this machine.
fn server_groups(files: &impl Files, backend: i32) -> Option<String> {
    let of = |file: &str| files.read(Path::new(&format!("/proc/{backend}/{file}")));
    let name = of("comm")?;
    name.trim().starts_with("postgres").then(|| of("cgroup"))?
}

/// What a line of `/proc/PID/cgroup` (`0::/path`, or `4:memory:/path` in version 1) leaves free: the least
/// of the group and all above it. `None` without a limit.
fn group_free(files: &impl Files, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let version = match controllers {
        "" => Version::Two,
        all if all.split(',').any(|name| name == "memory") => Version::One,
        _ => return None,
    };
    let root = match version {
        Version::One => PathBuf::from(MOUNT).join("memory"),
        Version::Two => PathBuf::from(MOUNT),
    };
    let group = Path::new(path.trim_start_matches('/'));
    group
        .ancestors()
        .filter_map(|group| version.free(files, &root.join(group)))
        .min()
}

#[derive(Clone, Copy)]
enum Version {
    One,
    Two,
}

impl Version {
    /// Files of limit and use, and the entry that counts reclaimable memory.
    fn names(self) -> [&'static str; 3] {
        match self {
            Self::One => [
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            ],
            Self::Two => ["memory.max", "memory.current", "inactive_file"],
        }
    }

    fn free(self, files: &impl Files, group: &Path) -> Option<u64> {
        let [limit, usage, inactive] = self.names();
        let number = |name: &str| files.read(&group.join(name))?.trim().parse::<u64>().ok();
        // `max` in version 2 is not a number, and means no limit.
        let (limit, used) = (number(limit)?, number(usage)?);
        let stat = files.read(&group.join("memory.stat")).unwrap_or_default();
        let cached = stat.lines().find_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            (name == inactive).then(|| bytes.trim().parse::<u64>().ok())?
        });
        Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))))
    }
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The machine's processors: limits of this process are not the server's.
pub(super) fn processors(files: &impl Files) -> Option<usize> {
    let cpuinfo = files.read(Path::new("/proc/cpuinfo"))?;
    let of_one = |line: &&str| {
        line.split(':')
            .next()
            .is_some_and(|k| k.trim() == "processor")
    };
    let count = cpuinfo.lines().filter(of_one).count();
    (count > 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const MIB: u64 = 1024 * 1024;

    struct Made(BTreeMap<&'static str, &'static str>);

    impl Files for Made {
        fn read(&self, path: &Path) -> Option<String> {
            self.0.get(path.to_str()?).map(|text| (*text).to_owned())
        }
    }

    fn free(files: &[(&'static str, &'static str)]) -> u64 {
        free_memory(&Made(files.iter().copied().collect()), 77)
    }

    const HOST: (&str, &str) = (
        "/proc/meminfo",
        "MemTotal:  9000000 kB\nMemAvailable:   2048 kB\n",
    );

    #[test]
    fn without_a_limit_the_machine_counts() {
        assert_eq!(free(&[HOST]), 2 * MIB);
        assert_eq!(free(&[("/proc/meminfo", "MemAvailable: lots")]), 0);
        let unlimited = [
            HOST,
            ("/proc/self/cgroup", "0::/"),
            ("/sys/fs/cgroup/memory.max", "max\n"),
            ("/sys/fs/cgroup/memory.current", "1\n"),
        ];
        assert_eq!(free(&unlimited), 2 * MIB);
    }

    #[test]
    fn the_tightest_group_around_the_server_counts_and_its_cache_is_free() {
        let v2 = [
            HOST,
            ("/proc/self/cgroup", "0::/agent"),
            ("/sys/fs/cgroup/agent/memory.max", "1"),
            ("/sys/fs/cgroup/agent/memory.current", "1"),
            ("/proc/77/comm", "postgres\n"),
            ("/proc/77/cgroup", "0::/db.slice/pg.service\n"),
            ("/sys/fs/cgroup/db.slice/pg.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/db.slice/memory.max", "1000000\n"),
            ("/sys/fs/cgroup/db.slice/memory.current", "900000\n"),
            (
                "/sys/fs/cgroup/db.slice/memory.stat",
                "anon 1\nactive_file 7\ninactive_file 300000\n",
            ),
        ];
        assert_eq!(free(&v2), 400_000);
        let v1 = [
            HOST,
            ("/proc/self/cgroup", "9:cpu:/x\n4:memory:/box\n0::/\n"),
            ("/proc/77/comm", "bash\n"),
            ("/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "500000"),
            ("/sys/fs/cgroup/memory/box/memory.usage_in_bytes", "600000"),
        ];
        assert_eq!(free(&v1), 0, "over its limit is not below zero");
    }

    #[test]
    fn processors_are_counted_as_linux_tells_of_them() {
        let text = "processor\t: 0\nmodel name\t: A processor: B\n\nprocessor\t: 1\n";
        let count = |text| processors(&Made(BTreeMap::from([("/proc/cpuinfo", text)])));
        assert_eq!(count(text), Some(2));
        assert_eq!(count(""), None);
    }
}
