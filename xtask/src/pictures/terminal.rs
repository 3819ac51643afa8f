//! A command on a pseudo-terminal, and its screen.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use steep_tests::wait;

/// After this time without output, a frame is considered complete.
const QUIET: Duration = Duration::from_millis(40);

/// A command on its own terminal, killed when dropped.
pub(super) struct Terminal {
    child: Child,
    master: File,
    shown: Arc<Mutex<Shown>>,
}

struct Shown {
    parser: vt100::Parser,
    last: Instant,
}

impl Terminal {
    /// Starts a command on a terminal with that many lines and columns.
    pub(super) fn start(mut command: Command, (lines, columns): (u16, u16)) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let size = Winsize {
            ws_row: lines,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size)?;
        let name = ptsname(&master, Vec::new())?.into_string()?;
        let slave = OpenOptions::new().read(true).write(true).open(name)?;
        command
            .env("TERM", "xterm-256color")
            .env("LANG", "C.UTF-8")
            .env_remove("LC_ALL")
            .env_remove("NO_COLOR")
            .stdin(Stdio::from(slave.try_clone()?))
            .stdout(Stdio::from(slave.try_clone()?))
            .stderr(Stdio::from(slave));
        let child = command.spawn().context("cannot start the command")?;
        // Closes our copies of the slave, which `command` owns, so that the master ends with the
        // child.
        drop(command);
        let master = File::from(master);
        let shown = Arc::new(Mutex::new(Shown {
            parser: vt100::Parser::new(lines, columns, 0),
            last: Instant::now(),
        }));
        let (mut reads, writes) = (master.try_clone()?, Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut bytes = [0; 8_192];
            while let Ok(length @ 1..) = reads.read(&mut bytes) {
                let mut shown = locked(&writes);
                shown.parser.process(&bytes[..length]);
                shown.last = Instant::now();
            }
        });
        Ok(Self {
            child,
            master,
            shown,
        })
    }

    /// Waits until the screen has the wanted text and nothing is being drawn.
    pub(super) fn wait(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        wait::until_true(what, limit, || {
            let shown = locked(&self.shown);
            let still = shown.last.elapsed() >= QUIET;
            Ok(still && wanted(&text(shown.parser.screen())))
        })
        .with_context(|| format!("on the screen:\n{}", text(&self.screen())))
    }

    pub(super) fn screen(&self) -> vt100::Screen {
        locked(&self.shown).parser.screen().clone()
    }

    pub(super) fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Waits until the command has succeeded and all of its output has arrived.
    pub(super) fn finish(&mut self, limit: Duration) -> Result<()> {
        let child = &mut self.child;
        let status = wait::until("the command's end", limit, || Ok(child.try_wait()?))?;
        self.wait("its output", limit, |_| true)?;
        if !status.success() {
            bail!("the command ended with {status}:\n{}", text(&self.screen()));
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Line by line, because `contents` would join a full line with the next.
fn text(screen: &vt100::Screen) -> String {
    let (_, columns) = screen.size();
    screen.rows(0, columns).collect::<Vec<_>>().join("\n")
}

fn locked(shown: &Mutex<Shown>) -> MutexGuard<'_, Shown> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}
