//! The table of contents of a `pg_dump` archive, as `pg_restore --list --verbose` prints it and
//! `pg_restore --use-list` takes it back. Pure but for the files at the end.
//!
//! ```text
//! 226; 1259 18054 VIEW app v owner
//! ;       depends on: 224 6
//! 2636; 0 0 COMMENT app VIEW v owner
//! ;       depends on: 226
//! ```

use std::collections::HashSet;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::class;

/// Entries that attach one object to another, and need both.
const ATTACHMENTS: [&str; 2] = ["TABLE ATTACH", "INDEX ATTACH"];

/// An entry of the list.
struct Entry<'a> {
    line: &'a str,
    id: u64,
    class: u32,
    oid: u32,
    text: &'a str,
    needs: Vec<u64>,
}

/// The entries that `admits` accepts by catalog and oid. An entry without an oid, such as a comment or a
/// grant, goes with what it depends on.
pub(super) fn cut(list: &str, admits: impl Fn(u32, u32) -> bool) -> String {
    let entries = entries(list);
    let mut dropped = HashSet::new();
    for entry in &entries {
        let admitted = match (entry.class, entry.oid) {
            (_, 0) => true,
            // Row security, and the filling of a materialised view: both belong to the relation.
            (0, oid) => admits(class::RELATION, oid),
            (class, oid) => admits(class, oid),
        };
        if !admitted {
            dropped.insert(entry.id);
        }
    }
    let mut cut = String::new();
    for entry in &entries {
        let attached = ATTACHMENTS.iter().any(|kind| entry.text.starts_with(kind));
        let goes = dropped.contains(&entry.id)
            || (entry.oid == 0 && entry.needs.iter().any(|need| dropped.contains(need)))
            || (attached && entry.needs.len() < 2);
        if !goes {
            cut.push_str(entry.line);
            cut.push('\n');
        }
    }
    cut
}

fn entries(list: &str) -> Vec<Entry<'_>> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for line in list.lines() {
        if let Some(needs) = line.strip_prefix(";\tdepends on:") {
            if let Some(entry) = entries.last_mut() {
                let needs = needs.split_whitespace().filter_map(|id| id.parse().ok());
                entry.needs = needs.collect();
            }
        } else {
            entries.extend(entry(line));
        }
    }
    entries
}

fn entry(line: &str) -> Option<Entry<'_>> {
    let (id, rest) = line.split_once("; ")?;
    let mut words = rest.splitn(3, ' ');
    Some(Entry {
        line,
        id: id.parse().ok()?,
        class: words.next()?.parse().ok()?,
        oid: words.next()?.parse().ok()?,
        text: words.next()?,
        needs: Vec::new(),
    })
}

/// Files in a private directory, removed when dropped.
#[derive(Debug)]
pub(crate) struct ListFile {
    dir: PathBuf,
}

impl ListFile {
    /// Creates the directory among temporary files.
    pub(crate) fn new() -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let at = jiff::Timestamp::now().as_nanosecond();
        let name = format!("steep-repl-schema-{}-{number}-{at}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        // Fails where that name exists.
        DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self { dir })
    }

    pub(crate) fn archive(&self) -> PathBuf {
        self.dir.join("archive")
    }

    pub(crate) fn write(&self, list: &str) -> io::Result<PathBuf> {
        let path: &Path = &self.dir;
        let path = path.join("list");
        std::fs::write(&path, list)?;
        Ok(path)
    }
}

impl Drop for ListFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "a temporary directory stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
;
; Archive created at 2026-11-28 20:02:57 UTC
;
2631; 0 0 ENCODING - ENCODING 
6; 2615 18011 SCHEMA - app owner
224; 1259 18032 TABLE other x owner
;\tdepends on: 8
226; 1259 18054 VIEW app v; - odd owner
;\tdepends on: 224 6
2636; 0 0 COMMENT app VIEW v owner
;\tdepends on: 226
2638; 0 0 ACL app SCHEMA app owner
;\tdepends on: 6
2455; 0 0 TABLE ATTACH app leaf owner
;\tdepends on: 230
2456; 0 0 TABLE ATTACH app twig owner
;\tdepends on: 230 6
2627; 0 18054 MATERIALIZED VIEW DATA app v owner
;\tdepends on: 226 2630
";

    #[test]
    fn what_is_said_of_an_entry_goes_with_it() {
        let cut = cut(LIST, |class, oid| (class, oid) != (1259, 18_054));
        let ids: Vec<_> = cut
            .lines()
            .map(|line| line.split_once(';').unwrap().0)
            .collect();
        assert_eq!(ids, ["2631", "6", "224", "2638", "2456"]);
    }

    #[test]
    fn any_text_is_a_list() {
        for text in ["", ";", "1;", "x; y z", "1; 2 3", ";\tdepends on: 1"] {
            assert_eq!(cut(text, |_, _| true), "", "{text:?}");
        }
    }

    #[test]
    fn files_are_gone_with_their_value() {
        let files = ListFile::new().unwrap();
        let list = files.write("1").unwrap();
        assert!(list.exists());
        drop(files);
        assert!(!list.exists());
    }
}
