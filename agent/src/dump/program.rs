//! Finds a `pg_dump` with its `pg_restore`: there may be several on a machine.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::sync::Mutex;

/// Where installations put their programs; `*` stands for a directory name.
const PLACES: [&str; 5] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
];

/// How long a look at the machine counts: one that was installed meanwhile is found after this time.
const REMEMBERED: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    major: u32,
}

/// The major version of the newest `pg_dump`, up to which servers can be dumped; else a message that says
/// why there is none.
pub(crate) async fn pg_dump_major() -> Result<u32, String> {
    let newest = survey()
        .await
        .into_iter()
        .map(|program| program.major)
        .max();
    newest.ok_or_else(|| "there is no pg_dump with its pg_restore beside this agent".to_owned())
}

/// Of those at least as new as the server, the one in `STEEP_PG_BIN`, else the nearest: an older target may
/// not understand the output of a newer one.
pub(super) async fn find(server_version: u32) -> Result<Program, String> {
    let server = server_version / 10_000;
    if let Some(program) = named().await.filter(|program| program.major >= server) {
        return Ok(program);
    }
    choose(&survey().await, server)
}

/// The one in `STEEP_PG_BIN`.
async fn named() -> Option<Program> {
    let dir = std::env::var_os("STEEP_PG_BIN").filter(|dir| !dir.is_empty())?;
    inspect(&Path::new(&dir).join("pg_dump")).await
}

/// Those on this machine. A job asks several times, and each look starts them all, so one is remembered for a while.
async fn survey() -> Vec<Program> {
    static LAST: Mutex<Option<(Instant, Vec<Program>)>> = Mutex::const_new(None);
    let mut last = LAST.lock().await;
    if let Some((_, seen)) = last.as_ref().filter(|(at, _)| at.elapsed() < REMEMBERED) {
        return seen.clone();
    }
    let seen = look().await;
    *last = Some((Instant::now(), seen.clone()));
    seen
}

async fn look() -> Vec<Program> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(PLACES.iter().flat_map(|place| expand(place)));
    let mut seen: Vec<Program> = named().await.into_iter().collect();
    let mut looked = HashSet::new();
    for dir in dirs.filter_map(|dir| dir.canonicalize().ok()) {
        // One directory may have several names, such as /bin.
        if looked.insert(dir.clone()) {
            seen.extend(inspect(&dir.join("pg_dump")).await);
        }
    }
    seen
}

fn choose(seen: &[Program], server: u32) -> Result<Program, String> {
    let fitting = seen.iter().filter(|program| program.major >= server);
    fitting
        .min_by_key(|program| program.major)
        .cloned()
        .ok_or_else(|| {
            let found: Vec<_> = seen
                .iter()
                .map(|program| program.major.to_string())
                .collect();
            let found = if found.is_empty() {
                "there is none".to_owned()
            } else {
                format!("found: {}", found.join(", "))
            };
            format!(
                "a pg_dump of version {server} or newer, with its pg_restore in the same directory, is needed beside \
                 this agent; {found}"
            )
        })
}

/// The directories that `place` stands for.
fn expand(place: &str) -> Vec<PathBuf> {
    let Some((before, after)) = place.split_once('*') else {
        return vec![PathBuf::from(place)];
    };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let Ok(entries) = std::fs::read_dir(parent) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join(after.trim_start_matches('/')))
        .collect()
}

/// `None` where it is not a `pg_dump`, does not run, or has no `pg_restore` beside it, which reads what it writes.
async fn inspect(path: &Path) -> Option<Program> {
    if !path.is_file() || !path.with_file_name("pg_restore").is_file() {
        return None;
    }
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output = output.ok().filter(|output| output.status.success())?;
    let major = major_of(&String::from_utf8_lossy(&output.stdout))?;
    Some(Program {
        path: path.to_owned(),
        major,
    })
}

/// `pg_dump (PostgreSQL) 18.6 (Debian …)`.
fn major_of(text: &str) -> Option<u32> {
    let version = text.split_whitespace().nth(2)?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_version_that_is_not_older_is_chosen() {
        let program = |major: u32| Program {
            path: PathBuf::from(major.to_string()),
            major,
        };
        let seen = [program(18), program(14), program(16), program(17)];
        assert_eq!(choose(&seen, 16), Ok(program(16)));
        assert_eq!(choose(&seen, 15), Ok(program(16)));
        let refused = choose(&seen, 19).unwrap_err();
        assert!(
            refused.contains("19") && refused.contains("14"),
            "{refused}"
        );
        assert!(choose(&[], 15).is_err());
    }

    #[tokio::test]
    async fn a_pg_dump_without_its_pg_restore_is_none() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("pg_dump");
        std::fs::write(&program, "#!/bin/sh\necho 'pg_dump (PostgreSQL) 18.6'\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(inspect(&program).await, None);
        std::fs::write(dir.path().join("pg_restore"), "").unwrap();
        assert_eq!(inspect(&program).await.unwrap().major, 18);
    }

    #[test]
    fn versions_are_read_from_what_pg_dump_says() {
        assert_eq!(
            major_of("pg_dump (PostgreSQL) 18.6 (Debian 18.6-1)\n"),
            Some(18)
        );
        assert_eq!(major_of("pg_dump (PostgreSQL) 19devel"), Some(19));
        assert_eq!(major_of("something else"), None);
    }
}
