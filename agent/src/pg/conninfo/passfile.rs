//! The password file (PostgreSQL manual, section "The Password File").
//!
//! As in libpq, ignored with a warning where others may read it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use steep_protocol::message::peer::Secret;
use tracing::warn;

/// The rest is not read.
const FILE_MAX: u64 = 1024 * 1024;

/// What a line must match.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// As given; `localhost` for a socket in the default directory.
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// The file's text, if it may be used.
pub(super) fn load(path: &Path) -> Option<String> {
    let ignored = |why: &dyn std::fmt::Display| {
        warn!(path = %path.display(), why = %why, "password file ignored");
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            ignored(&error);
            return None;
        }
    };
    let meta = file.metadata().ok()?;
    if !meta.is_file() {
        ignored(&"it is not a plain file");
        return None;
    }
    if meta.permissions().mode() & 0o077 != 0 {
        ignored(&"others may read it; set its mode to 0600");
        return None;
    }
    let mut text = String::new();
    match file.take(FILE_MAX).read_to_string(&mut text) {
        Ok(_) => Some(text),
        Err(error) => {
            ignored(&error);
            None
        }
    }
}

/// The password of the first matching line.
pub(super) fn find(text: &str, wanted: Wanted<'_>) -> Option<Secret> {
    text.lines()
        .find_map(|line| matching(line, wanted))
        .map(Secret::new)
}

fn matching(line: &str, wanted: Wanted<'_>) -> Option<String> {
    if line.starts_with('#') || line.is_empty() {
        return None;
    }
    let port = wanted.port.to_string();
    let mut rest = line;
    for value in [wanted.host, &port, wanted.database, wanted.user] {
        let (field, after) = take_field(rest)?;
        if field != Field::Any && field != Field::Text(value.to_owned()) {
            return None;
        }
        rest = after;
    }
    // The rest of the line: a colon in it may be escaped, but need not be.
    let mut password = String::new();
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => password.extend(chars.next()),
            c => password.push(c),
        }
    }
    (!password.is_empty()).then_some(password)
}

#[derive(Debug, PartialEq, Eq)]
enum Field {
    Any,
    Text(String),
}

/// One field up to its colon, which must exist, and what follows.
fn take_field(text: &str) -> Option<(Field, &str)> {
    if let Some(rest) = text.strip_prefix("*:") {
        return Some((Field::Any, rest));
    }
    let mut field = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => field.push(chars.next()?.1),
            ':' => return Some((Field::Text(field), &text[at + 1..])),
            c => field.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const WANTED: Wanted<'_> = Wanted {
        host: "db.example",
        port: 5432,
        database: "shop",
        user: "rep",
    };

    fn found(text: &str) -> Option<String> {
        find(text, WANTED).map(|secret| secret.expose().to_owned())
    }

    #[test]
    fn the_first_line_that_matches_wins() {
        let text =
            "# comment\nother:5432:shop:rep:no\n*:*:*:rep:first\ndb.example:5432:shop:rep:second\n";
        assert_eq!(found(text).unwrap(), "first");
        assert_eq!(found("db.example:5433:*:*:x"), None);
        assert_eq!(found("db.example:*:*:nobody:x"), None);
    }

    #[test]
    fn backslashes_escape_colons_and_themselves() {
        assert_eq!(
            found(r"db\.example:5432:*:*:a\:b\\c:d").unwrap(),
            r"a:b\c:d"
        );
        assert_eq!(found(r"\*:5432:*:*:x"), None);
    }

    #[test]
    fn broken_lines_match_nothing() {
        for bad in [
            "",
            "*",
            "*:*:*:*",
            "*:*:*:*:",
            "\\",
            "db.example:5432:shop:rep\\:x",
        ] {
            assert_eq!(found(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        let mut file = File::create(&path).unwrap();
        writeln!(file, "*:*:*:*:secret").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o640);
        assert_eq!(load(&path), None);
        mode(0o600);
        assert!(load(&path).is_some());
        assert_eq!(load(&dir.path().join("none")), None);
    }
}
