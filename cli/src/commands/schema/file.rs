//! Exported schemas. The same schema gives the same JSON except for `exported_at`, so that version control
//! can compare exports.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::message::schema::SchemaPage;
use steep_protocol::{FaultKind, NodeId};
use steep_schema::Schema;

use crate::failure::Failure;

/// The version of the file format.
const FORMAT: &str = "steep-repl schema 1";

/// The size limit of a file, in bytes: enough for more than a hundred thousand tables.
const FILE_MAX: u64 = 512 * 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Exported {
    format: String,
    node_id: NodeId,
    exported_at: Timestamp,
    #[serde(flatten)]
    schema: SchemaPage,
}

/// Reads an export.
pub(super) fn read(path: &Path) -> Result<Schema, Failure> {
    let unusable = |why: String| {
        Failure::bad_request(format!("{} cannot be used: {why}", path.display()))
            .hint("schema export writes such files; a node is called by its name as nodes shows it")
    };
    let mut text = Vec::new();
    let file = File::open(path).map_err(|error| unusable(error.to_string()))?;
    let read = file.take(FILE_MAX + 1).read_to_end(&mut text);
    read.map_err(|error| unusable(error.to_string()))?;
    if text.len() as u64 > FILE_MAX {
        return Err(unusable(format!("it is longer than {FILE_MAX} bytes")));
    }
    let exported: Exported =
        serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
    if exported.format != FORMAT {
        return Err(unusable(format!(
            "its format is {:?}, not {FORMAT:?}",
            exported.format
        )));
    }
    let mut schema = Schema::default();
    schema.add(exported.schema);
    Ok(schema)
}

/// Writes an export atomically.
pub(super) fn write(
    path: &Path,
    node: &NodeId,
    schema: Schema,
    now: Timestamp,
) -> Result<(), Failure> {
    let exported = Exported {
        format: FORMAT.to_owned(),
        node_id: node.clone(),
        exported_at: now,
        schema: schema.into_page(),
    };
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let written = put(partial, &exported).and_then(|()| fs::rename(partial, path));
    written.map_err(|error| {
        // Best effort: the error that counts is the one above.
        let _ = fs::remove_file(partial);
        let text = format!("{} cannot be written: {error}", path.display());
        Failure::new(FaultKind::Failed, text)
    })
}

fn put(path: &Path, exported: &Exported) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    serde_json::to_writer_pretty(&mut file, exported)?;
    file.write_all(b"\n")?;
    file.into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_all()
}

#[cfg(test)]
mod tests {
    use steep_protocol::message::schema::{ObjectKind, ObjectModel};

    use super::*;
    use crate::render::samples::{at, id};

    fn schema() -> Schema {
        let mut schema = Schema::default();
        let mut page = SchemaPage::default();
        page.objects.push(ObjectModel {
            kind: ObjectKind::Extension,
            table: None,
            schema: None,
            name: "hstore".to_owned(),
            definition: "1.8".to_owned(),
            rank: 0,
        });
        schema.add(page);
        schema
    }

    #[test]
    fn what_is_written_reads_back_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for second in [0, 1] {
            write(&path, &id("node_a"), schema(), at(second)).unwrap();
            assert_eq!(read(&path).unwrap(), schema());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_export_is_a_bad_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert_eq!(read(&path).unwrap_err().exit_code(), 2);
        for text in [
            "",
            "{}",
            "[1]",
            r#"{"format":"x","node_id":"a","exported_at":"2026-01-01T00:00:00Z","tables":[],"objects":[]}"#,
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(read(&path).unwrap_err().exit_code(), 2, "{text}");
        }
        let nowhere = dir.path().join("no/such/dir.json");
        assert_eq!(
            write(&nowhere, &id("a"), schema(), at(0))
                .unwrap_err()
                .exit_code(),
            1
        );
    }
}
