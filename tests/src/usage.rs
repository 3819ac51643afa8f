//! CPU seconds and peak memory of processes, from `/proc` (proc(5)).

use std::fs;

use anyhow::{Context as _, Result};

/// CPU seconds (user and system) used by that process itself.
///
/// # Errors
/// There is no such process.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = Stat::read(pid)?;
    Ok(seconds(stat.own))
}

/// CPU seconds of a process, its living children, and the children it has waited for: for a
/// postmaster, its whole server.
///
/// # Errors
/// There is no such process.
pub fn tree_cpu_seconds(pid: u32) -> Result<f64> {
    let stat = Stat::read(pid)?;
    let mut ticks = stat.own + stat.waited_for;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end between being listed and being read.
        if let Ok(child) = Stat::read(child)
            && child.parent == pid
        {
            ticks += child.own + child.waited_for;
        }
    }
    Ok(seconds(ticks))
}

/// The peak resident memory of that process in bytes (`VmHWM`).
///
/// # Errors
/// There is no such process.
pub fn peak_memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| {
        rest.trim()
            .trim_end_matches("kB")
            .trim()
            .parse::<u64>()
            .ok()
    });
    Ok(kib.with_context(|| format!("process {pid} has no VmHWM"))? * 1024)
}

/// When that process started, in ticks since boot: distinguishes it from a later one with the same
/// id.
///
/// # Errors
/// There is no such process.
pub fn begun(pid: u32) -> Result<u64> {
    Ok(Stat::read(pid)?.begun)
}

/// Whether that process exists and is not a zombie.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    Stat::read(pid).is_ok_and(|stat| stat.state != 'Z')
}

struct Stat {
    state: char,
    parent: u32,
    own: u64,
    waited_for: u64,
    begun: u64,
}

impl Stat {
    fn read(pid: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("there is no process {pid}"))?;
        // The second field is the name in parentheses, which may itself contain parentheses and
        // blanks.
        let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // proc(5) counts from 1 with the state as field 3.
        let field = |number: usize| -> Result<u64> {
            let text = fields.get(number - 3).copied().unwrap_or_default();
            text.parse()
                .with_context(|| format!("/proc/{pid}/stat has no field {number}"))
        };
        Ok(Self {
            state: rest.trim_start().chars().next().unwrap_or('?'),
            parent: u32::try_from(field(4)?)?,
            own: field(14)? + field(15)?,
            waited_for: field(16)? + field(17)?,
            begun: field(22)?,
        })
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "ticks of a process stay far below 2^52"
)]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_has_used_memory() {
        let me = std::process::id();
        assert!(is_alive(me));
        assert!(peak_memory(me).unwrap() > 100_000);
        // In this order, because CPU time keeps growing.
        let own = cpu_seconds(me).unwrap();
        assert!(tree_cpu_seconds(me).unwrap() >= own);
        assert!(begun(me).unwrap() > 0);
    }
}
