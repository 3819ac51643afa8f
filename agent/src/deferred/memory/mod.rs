//! How much memory and how many processes an index build may use.

mod host;

use steep_protocol::Fault;

use crate::node::connection::Conn;
use crate::task::Task;

/// Maximum for one build: sorts gain little beyond it (they merge once in either case).
const WORK_MEM_MAX: u64 = 1024 * 1024 * 1024;

/// Minimum: PostgreSQL's for `maintenance_work_mem`.
const WORK_MEM_MIN: u64 = 1024 * 1024;

/// Maximum for one build, as the gain of each falls off.
const WORKERS_MAX: usize = 8;

/// Chosen once per stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    work_mem: Option<u64>,
    workers: Option<usize>,
}

impl Memory {
    /// The server's own settings.
    pub(super) fn keep() -> Self {
        Self {
            work_mem: None,
            workers: None,
        }
    }

    /// For `parallel` builds of these weights. Divides what the operator allows for all of them, else what
    /// this machine has free, if the server is on it.
    pub(super) async fn choose(
        task: &Task,
        conn: &Conn,
        weights: &[u64],
        parallel: u8,
    ) -> Result<Self, Fault> {
        let sql = "SELECT pg_size_bytes(current_setting('maintenance_work_mem')),
            current_setting('max_parallel_maintenance_workers')::int8,
            inet_server_addr() IS NULL OR inet_server_addr() = inet_client_addr(),
            pg_size_bytes(current_setting('shared_buffers')), pg_backend_pid()";
        let row = conn.row(sql, &[]).await?;
        let set = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
        let server = Server {
            work_mem: set(0),
            workers: set(1),
            shared_buffers: set(3),
        };
        let builds = abreast(weights, parallel);
        let local: bool = row.get(2);
        let backend = row.get(4);
        let here = || {
            let free = host::free_memory(&host::Machine, backend);
            (free, host::processors(&host::Machine))
        };
        Ok(match (task.index_memory, local) {
            (Some(allowed), _) => Self {
                work_mem: Some(within(allowed.0 / builds as u64)),
                workers: local
                    .then(|| server.workers_for(here().1, builds))
                    .flatten(),
            },
            (None, true) => {
                let (free, processors) = here();
                Self {
                    work_mem: server.work_mem_for(free, builds),
                    workers: server.workers_for(processors, builds),
                }
            }
            (None, false) => Self::keep(),
        })
    }

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

/// The server's settings.
struct Server {
    work_mem: u64,
    workers: u64,
    shared_buffers: u64,
}

impl Server {
    /// What one of `builds` gets of the free memory; `None` where that is the server's setting.
    ///
    /// A quarter of it goes to all builds together, as the server may not have touched its own buffers yet.
    /// Never less than its administrator set, unless that many builds at once would take more than half of
    /// what is free.
    fn work_mem_for(&self, free: u64, builds: usize) -> Option<u64> {
        let builds = builds as u64;
        let free = free.saturating_sub(self.shared_buffers);
        let share = (free / 4 / builds).min(WORK_MEM_MAX);
        let chosen = share.max(self.work_mem.min(free / 2 / builds));
        let chosen = within(chosen);
        (chosen != self.work_mem).then_some(chosen)
    }

    /// One process per processor, counting the leader, who sorts too.
    fn workers_for(&self, processors: Option<usize>, builds: usize) -> Option<usize> {
        let wanted = processors.map(|all| (all / builds).clamp(1, 1 + WORKERS_MAX) - 1);
        wanted.filter(|wanted| *wanted as u64 != self.workers)
    }
}

/// Within what PostgreSQL accepts and one build can use.
fn within(bytes: u64) -> u64 {
    bytes.clamp(WORK_MEM_MIN, WORK_MEM_MAX)
}

/// How many builds share the machine: one as heavy as all others together counts as nearly alone.
fn abreast(weights: &[u64], parallel: u8) -> usize {
    let heaviest = weights.iter().copied().max().unwrap_or(0).max(1);
    let total: u64 = weights.iter().sum();
    let as_heavy = (total + heaviest / 2) / heaviest;
    usize::try_from(as_heavy)
        .unwrap_or(usize::MAX)
        .clamp(1, usize::from(parallel.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn server(work_mem: u64) -> Server {
        Server {
            work_mem,
            workers: 2,
            shared_buffers: 128 * MIB,
        }
    }

    #[test]
    fn a_build_gets_its_share_of_what_is_free_beside_the_servers_buffers() {
        let choose = |free, builds| server(64 * MIB).work_mem_for(free + 128 * MIB, builds);
        assert_eq!(choose(16 * 1024 * MIB, 1), Some(1024 * MIB));
        assert_eq!(choose(4096 * MIB, 4), Some(256 * MIB));
        assert_eq!(choose(512 * MIB, 4), None, "as the server has it");
        assert_eq!(Memory::keep().settings(), "");
    }

    #[test]
    fn builds_at_once_never_get_more_than_half_of_what_is_free() {
        let choose = |free, builds| server(1024 * MIB).work_mem_for(free + 128 * MIB, builds);
        assert_eq!(choose(2048 * MIB, 1), None, "the server's own");
        assert_eq!(choose(2048 * MIB, 4), Some(256 * MIB));
        assert_eq!(choose(0, 4), Some(MIB), "what PostgreSQL takes at least");
        assert_eq!(server(64 * MIB).work_mem_for(0, 1), Some(MIB));
    }

    #[test]
    fn builds_have_a_process_for_each_processor() {
        let workers = |all, builds| server(MIB).workers_for(all, builds);
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
}
