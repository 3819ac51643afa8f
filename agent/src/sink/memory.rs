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

    /// For that many builds at once. What this machine has free counts only if the server is on it.
    pub(super) async fn choose(conn: &Conn, builds: usize) -> Result<Self, Fault> {
        let sql = "SELECT pg_size_bytes(current_setting('maintenance_work_mem')),
            current_setting('max_parallel_maintenance_workers')::int8,
            inet_server_addr() IS NULL OR inet_server_addr() = inet_client_addr()";
        let row = conn.row(sql, &[]).await?;
        let set = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
        if !row.get::<_, bool>(2) {
            return Ok(Self::keep());
        }
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let free = std::fs::read_to_string("/proc/meminfo").ok();
        let free = free.as_deref().and_then(available);
        Ok(Self::judge(set(0), set(1), free, processors, builds))
    }

    fn judge(
        work_mem: u64,
        workers: u64,
        free: Option<u64>,
        processors: usize,
        builds: usize,
    ) -> Self {
        let share = free.unwrap_or(0) / 4 / builds.max(1) as u64;
        let share = share.min(WORK_MEM_MAX);
        // Not below the server's setting: its administrator knew about the machine.
        let work_mem = (share > work_mem).then_some(share);
        let wanted = (processors / builds.max(1)).min(WORKERS_MAX);
        let workers = (wanted as u64 > workers).then_some(wanted);
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

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_build_gets_its_share_and_never_less_than_the_server_gives() {
        let choose = |free: u64, builds| Memory::judge(64 * MIB, 2, Some(free), 16, builds);
        assert_eq!(choose(16 * 1024 * MIB, 1).work_mem, Some(1024 * MIB));
        assert_eq!(choose(4096 * MIB, 4).work_mem, Some(256 * MIB));
        assert_eq!(choose(512 * MIB, 4).work_mem, None);
        assert_eq!(choose(MIB, 1).workers, Some(8));
        assert_eq!(choose(MIB, 4).workers, Some(4));
        assert_eq!(choose(MIB, 16).workers, None);
        assert_eq!(Memory::keep().settings(), "");
    }

    #[test]
    fn free_memory_is_read_as_linux_writes_it() {
        let text = "MemTotal:  100 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(available(text), Some(2 * MIB));
        assert_eq!(available("MemAvailable: lots"), None);
    }
}
