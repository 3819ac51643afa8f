//! The binary on its own pseudo-terminal.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Action, LocalModes, Winsize, tcflow, tcgetattr, tcsetwinsize};

use crate::coordinator::{Coordinator, PATIENCE};

/// Columns and lines.
const SIZE: (u16, u16) = (80, 24);

/// A child on a terminal, and its output.
pub(crate) struct OnTerminal {
    child: Child,
    master: File,
    /// Kept open, so that the terminal's settings can be read after the child has exited.
    slave: File,
    output: Arc<(Mutex<Vec<u8>>, Condvar)>,
}

impl OnTerminal {
    pub(crate) fn start(coordinator: &Coordinator, line: &str) -> Self {
        Self::start_with(coordinator, line, &[])
    }

    /// Starts it with those environment variables.
    pub(crate) fn start_with(
        coordinator: &Coordinator,
        line: &str,
        variables: &[(&str, &str)],
    ) -> Self {
        // Close-on-exec: a child that holds its own master would never see its terminal close.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let size = Winsize {
            ws_col: SIZE.0,
            ws_row: SIZE.1,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .open(name)
            .unwrap();
        let mut command = coordinator.command(line);
        command.env("TERM", "xterm").env("LANG", "C.UTF-8");
        command.envs(variables.iter().copied());
        command.stdin(Stdio::from(slave.try_clone().unwrap()));
        command.stdout(Stdio::from(slave.try_clone().unwrap()));
        command.stderr(Stdio::from(slave.try_clone().unwrap()));
        let child = command.spawn().unwrap();
        let master = File::from(master);
        let output = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let (writes, mut reads) = (Arc::clone(&output), master.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Reading fails once nobody holds the slave.
            while let Ok(length @ 1..) = reads.read(&mut bytes) {
                writes.0.lock().unwrap().extend_from_slice(&bytes[..length]);
                writes.1.notify_all();
            }
        });
        Self {
            child,
            master,
            slave,
            output,
        }
    }

    /// All output so far.
    pub(crate) fn written(&self) -> String {
        String::from_utf8_lossy(&self.output.0.lock().unwrap()).into_owned()
    }

    /// Waits until that text has been output.
    pub(crate) fn wait_for(&self, text: &str) {
        self.wait(text, |written| {
            String::from_utf8_lossy(written).contains(text)
        });
    }

    /// Waits until the screen shows that text.
    pub(crate) fn wait_on_screen(&self, text: &str) {
        self.wait(text, |written| {
            screen_of(written).screen().contents().contains(text)
        });
    }

    pub(crate) fn screen(&self) -> vt100::Parser {
        screen_of(&self.output.0.lock().unwrap())
    }

    fn wait(&self, what: &str, found: impl Fn(&[u8]) -> bool) {
        let written = self.output.0.lock().unwrap();
        let (written, _) = self
            .output
            .1
            .wait_timeout_while(written, PATIENCE, |written| !found(written))
            .unwrap();
        assert!(
            found(&written),
            "{what:?} did not appear in {:?}, screen:\n{}",
            String::from_utf8_lossy(&written),
            screen_of(&written).screen().contents()
        );
    }

    /// Whether the terminal is in line mode with echo, as a shell needs it.
    pub(crate) fn is_for_lines(&self) -> bool {
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn answer(&mut self, line: &str) {
        writeln!(self.master, "{line}").unwrap();
    }

    /// From now on the terminal accepts no output, like one behind a stalled connection.
    pub(crate) fn stall(&self) {
        tcflow(&self.slave, Action::OOff).unwrap();
    }

    /// Resizes the terminal, like dragging a window.
    pub(crate) fn resize(&self, columns: u16, lines: u16) {
        let size = Winsize {
            ws_col: columns,
            ws_row: lines,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).unwrap();
        // The kernel signals only processes that have it as their controlling terminal.
        self.signal(Signal::WINCH);
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn code(&mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // Cleans up after a failed test; otherwise the child has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn screen_of(written: &[u8]) -> vt100::Parser {
    let mut parser = vt100::Parser::new(SIZE.1, SIZE.0, 0);
    parser.process(written);
    parser
}
