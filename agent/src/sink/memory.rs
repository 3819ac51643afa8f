//! How much memory and how many processes an index build may use.

use steep_protocol::Fault;

use super::conn::Conn;

/// What one build gets at most: beyond it sorts gain little (they merge once in either case).
const WORK_MEM_MAX: u64 = 1024 * 1024 * 1024;

/// Workers of one build at most, as the gain of each falls off.
const WORKERS_MAX: usize = 8;

/// The choice, made once per stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    work_mem: Option<u64>,
    workers: Option<usize>,
}

impl Memory {
    /// As the server has it.
    pub(super) fn keep() -> Self {
        Self {
            work_mem: None,
            workers: None,
        }
    }

    /// For builds of these weights, so many at once. What this machine has counts only if the server
    /// is on it.
    pub(super) async fn choose(conn: &Conn, weights: &[u64], parallel: u8) -> Result<Self, Fault> {
        let sql = "SELECT pg_size_bytes(current_setting('maintenance_work_mem')),
            current_setting('max_parallel_maintenance_workers')::int8,
            inet_server_addr() IS NULL OR inet_server_addr() = inet_client_addr()";
        let row = conn.row(sql, &[]).await?;
        let set = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
        if !row.get::<_, bool>(2) {
            return Ok(Self::keep());
        }
        let proc = |file| std::fs::read_to_string(file).unwrap_or_default();
        let free = available(&proc("/proc/meminfo")).unwrap_or(0);
        let processors = processors(&proc("/proc/cpuinfo"));
        let builds = abreast(weights, parallel);
        Ok(Self::judge(set(0), set(1), free, processors, builds))
    }

    fn judge(
        work_mem: u64,
        workers: u64,
        free: u64,
        processors: Option<usize>,
        builds: usize,
    ) -> Self {
        let share = (free / 4 / builds as u64).min(WORK_MEM_MAX);
        // Not below the server's setting: its administrator knew about the machine.
        let work_mem = (share > work_mem).then_some(share);
        // One process for each processor: whoever began the build sorts too. More only wait.
        let wanted = processors.map(|all| (all / builds).clamp(1, 1 + WORKERS_MAX) - 1);
        let workers = wanted.filter(|wanted| *wanted as u64 != workers);
        Self { work_mem, workers }
    }

    /// The statements that set it.
    pub(super) fn settings(self) -> String {
        let mut sql = String::new();
        if let Some(bytes) = self.work_mem {
            sql.push_str(&format!("SET maintenance_work_mem = '{}kB';", bytes / 1024));
        }
        if let Some(workers) = self.workers {
            sql.push_str(&format!(
                "SET max_parallel_maintenance_workers = {workers};"
            ));
        }
        sql
    }
}

/// How many builds share the machine: one that is as heavy as all others together has it nearly for
/// itself, however many they are.
fn abreast(weights: &[u64], parallel: u8) -> usize {
    let heaviest = weights.iter().copied().max().unwrap_or(0).max(1);
    let total: u64 = weights.iter().sum();
    let as_heavy = (total + heaviest / 2) / heaviest;
    usize::try_from(as_heavy)
        .unwrap_or(usize::MAX)
        .clamp(1, usize::from(parallel.max(1)))
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The machine's processors, of `/proc/cpuinfo`. What this process may use of them is not the
/// server's limit.
fn processors(cpuinfo: &str) -> Option<usize> {
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
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_build_gets_its_share_and_never_less_memory_than_the_server_gives() {
        let choose = |free, builds| Memory::judge(64 * MIB, 2, free, Some(16), builds);
        assert_eq!(choose(16 * 1024 * MIB, 1).work_mem, Some(1024 * MIB));
        assert_eq!(choose(4096 * MIB, 4).work_mem, Some(256 * MIB));
        assert_eq!(choose(512 * MIB, 4).work_mem, None);
        assert_eq!(Memory::keep().settings(), "");
    }

    #[test]
    fn builds_have_a_process_for_each_processor() {
        let workers = |all, builds| Memory::judge(MIB, 2, 0, all, builds).workers;
        assert_eq!(workers(Some(16), 1), Some(8), "enough is enough");
        assert_eq!(workers(Some(16), 4), Some(3));
        assert_eq!(workers(Some(3), 1), None, "as the server has it");
        assert_eq!(workers(Some(2), 1), Some(1));
        assert_eq!(workers(Some(2), 4), Some(0));
        assert_eq!(workers(None, 1), None);
    }

    #[test]
    fn light_builds_do_not_take_the_machine_from_a_heavy_one() {
        assert_eq!(abreast(&[], 4), 1);
        assert_eq!(abreast(&[0, 0], 4), 1);
        assert_eq!(abreast(&[1_000_000, 8, 8, 8], 4), 1);
        assert_eq!(abreast(&[100, 90, 80, 70, 60, 50], 4), 4);
        assert_eq!(abreast(&[100, 90, 8], 4), 2);
    }

    #[test]
    fn the_machine_is_read_as_linux_tells_of_it() {
        let text = "MemTotal:  100 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(available(text), Some(2 * MIB));
        assert_eq!(available("MemAvailable: lots"), None);
        let text = "processor\t: 0\nmodel name\t: A processor: B\n\nprocessor\t: 1\n";
        assert_eq!(processors(text), Some(2));
        assert_eq!(processors(""), None);
    }
}
