//! Ports that nobody else uses. A lock file per port keeps concurrent tests apart, and the range is
//! outside of the kernel's range for clients.

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// Below Linux's default range for clients (32768–60999), above most services.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A port on 127.0.0.1, TCP and UDP, reserved until dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Reserves a free port.
    ///
    /// # Errors
    /// None is free, or the directory of locks cannot be used.
    pub fn take() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let locks = lock_dir()?;
        let size = u32::from(RANGE.end - RANGE.start);
        // Different processes start at different ports, to need fewer attempts.
        let begin = std::process::id().wrapping_mul(7_919) % size;
        for _ in 0..size {
            let step = NEXT.fetch_add(1, Ordering::Relaxed) % size;
            let number = RANGE.start + u16::try_from((begin + step) % size)?;
            let lock = File::create(locks.join(number.to_string()))?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let free = TcpListener::bind(("127.0.0.1", number)).is_ok()
                && UdpSocket::bind(("127.0.0.1", number)).is_ok();
            if free {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        bail!("no port between {} and {} is free", RANGE.start, RANGE.end)
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

fn lock_dir() -> Result<PathBuf> {
    let uid = rustix::process::getuid().as_raw();
    let dir = std::env::temp_dir().join(format!("steep-repl-ports-{uid}"));
    match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot create {}", dir.display()));
        }
        _ => {}
    }
    let owner = std::fs::symlink_metadata(&dir)?;
    if owner.uid() != uid || !owner.is_dir() {
        bail!("{} belongs to somebody else: remove it", dir.display());
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ports_are_never_the_same() {
        let ports: Vec<Port> = (0..20).map(|_| Port::take().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 20);
    }
}
