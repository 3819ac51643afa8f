//! A dump of the whole schema, and its sections as SQL.
//!
//! Most of a dump's time goes into reading the catalog, which either section needs whole.

use std::path::{Path, PathBuf};

use steep_protocol::message::peer::SchemaSection;
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::program::Program;
use super::selection::{ListFile, Selection};
use super::{printed, unusable};

/// An archive of `pg_dump`, in a directory that is removed with it.
#[derive(Debug)]
pub(crate) struct Whole {
    files: ListFile,
    pg_restore: PathBuf,
}

impl Whole {
    /// `files` hold an archive of that program.
    pub(super) fn new(files: ListFile, program: &Program) -> Self {
        let pg_restore = program.path.with_file_name("pg_restore");
        Self { files, pg_restore }
    }

    /// SQL for the entries of a section, only the selected ones where something is.
    pub(super) async fn section(
        &self,
        section: SchemaSection,
        selection: Option<&Selection>,
    ) -> Result<Result<File, String>, String> {
        let list = match selection {
            Some(selection) => match self.list(selection).await? {
                Ok(list) => Some(list),
                Err(complaints) => return Ok(Err(complaints)),
            },
            None => None,
        };
        let mut restore = Command::new(&self.pg_restore);
        restore.args(["--file=-", "--no-tablespaces"]);
        restore.arg(match section {
            SchemaSection::PreData | SchemaSection::ExtensionRows => "--section=pre-data",
            SchemaSection::PostData => "--section=post-data",
        });
        if let Some(list) = &list {
            restore.arg("--use-list").arg::<&Path>(list);
        }
        restore.arg(self.files.archive());
        printed(restore).await
    }

    /// The file with the selected entries.
    async fn list(&self, selection: &Selection) -> Result<Result<PathBuf, String>, String> {
        let mut list = Command::new(&self.pg_restore);
        list.args(["--list", "--verbose"]).arg(self.files.archive());
        let mut contents = Vec::new();
        match printed(list).await? {
            Ok(mut list) => list.read_to_end(&mut contents).await.map_err(unusable)?,
            Err(complaints) => return Ok(Err(complaints)),
        };
        let list = selection.cut(&String::from_utf8_lossy(&contents));
        Ok(Ok(self.files.write(&list).map_err(unusable)?))
    }
}
