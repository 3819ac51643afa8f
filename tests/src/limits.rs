//! Limits of the operating system that a process is started with.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::memory_group::MemoryGroup;

/// None, unless set.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    files: Option<u64>,
    group: Option<PathBuf>,
}

impl Limits {
    /// At most that many open files and sockets. The process cannot raise it.
    #[must_use]
    pub fn files(mut self, most: u64) -> Self {
        self.files = Some(most);
        self
    }

    /// In that group, with the programs that it runs.
    #[must_use]
    pub fn within(mut self, group: &MemoryGroup) -> Self {
        self.group = Some(group.entrance());
        self
    }

    /// A command that runs `program` under these limits, with the process id that it is started with.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut before = String::new();
        if let Some(files) = self.files {
            before.push_str(&format!("ulimit -n {files} && "));
        }
        if let Some(group) = &self.group {
            before.push_str(&format!("echo $$ > '{}' && ", group.display()));
        }
        if before.is_empty() {
            return Command::new(program);
        }
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{before}exec \"$@\""), "sh"])
            .arg(program);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command;

    #[test]
    fn a_process_cannot_raise_the_limit_that_it_is_started_with() {
        let limits = Limits::default().files(200);
        let mut shell = limits.command(Path::new("sh"));
        shell.args(["-c", "ulimit -Sn; ulimit -Hn"]);
        assert_eq!(command::output(&mut shell).unwrap(), "200\n200\n");
    }

    #[test]
    fn a_process_that_needs_more_than_its_group_may_have_is_killed() {
        let Some(group) = MemoryGroup::make().unwrap() else {
            return;
        };
        assert!(group.limit(8 << 20).unwrap());
        let mut shell = Limits::default().within(&group).command(Path::new("sh"));
        shell.args(["-c", "x=$(head -c 50000000 /dev/zero | tr '\\0' x)"]);
        let _ = command::output(&mut shell);
        assert!(group.killed().unwrap() > 0 && group.times_at_limit().unwrap() > 0);
        assert!(group.peak().unwrap() <= 8 << 20);
    }
}
