//! Whole snapshots in directories and in-memory stores.

mod encrypted;
mod faults;
mod resume;
mod round_trip;
mod store;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use steep_protocol::limits::CHUNK_RAW_MAX;
use steep_protocol::message::peer::SequenceValue;
use steep_protocol::stored::StoredCodec;
use steep_protocol::{Identifier, NodeId, PartNo, RowCount, SnapshotId, TableName};

use crate::chunk::{Packer, Unpacker};
use crate::keys::tests::{keys, new_key};
use crate::place::{Place, Purpose};
use crate::write::PlannedTable;
use crate::{
    Archive, Contents, Error, Finished, Identity, Keys, Location, Manifest, Source, StoredPart,
    Writing,
};

const CODECS: [StoredCodec; 4] = [
    StoredCodec::None,
    StoredCodec::Gzip,
    StoredCodec::Lz4,
    StoredCodec::Zstd(3),
];

fn identity(codec: StoredCodec) -> Identity {
    Identity {
        snapshot_id: SnapshotId(0xABCD),
        node_id: NodeId::parse("node_a").unwrap(),
        lsn: "16/B374D848".parse().unwrap(),
        codec,
        encryption: None,
    }
}

/// The same, encrypted with those keys if there are any.
fn identity_with(codec: StoredCodec, keys: &Keys) -> Identity {
    Identity {
        encryption: keys.facts().map(|facts| facts.encrypts.clone()),
        ..identity(codec)
    }
}

/// Whom those keys encrypt to.
fn recipient(keys: &Keys) -> String {
    keys.facts().unwrap().encrypts.recipients.to_string()
}

fn contents(parts: &[u32]) -> Contents {
    let name = |text| Identifier::parse(text).unwrap();
    Contents {
        created_at: "2026-11-29T12:00:00Z".parse().unwrap(),
        source: Source {
            node_id: NodeId::parse("node_a").unwrap(),
            system_identifier: "7300000000000000001".to_owned(),
            server_version: 170_004,
            database: name("shop"),
            encoding: "UTF8".to_owned(),
        },
        slot_name: name("steep_1"),
        publication: name("steep_1"),
        include_schemas: Vec::new(),
        exclude_tables: Vec::new(),
        tables: vec![PlannedTable {
            name: TableName::new("public", "orders").unwrap(),
            columns: vec![name("id"), name("note")],
            parts: parts.iter().copied().map(PartNo).collect(),
        }],
    }
}

/// COPY text of about that many bytes.
fn rows(seed: u64, bytes: usize) -> Vec<u8> {
    let mut text = Vec::new();
    let mut state = seed;
    while text.len() < bytes {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        text.extend_from_slice(format!("{state}\tnote of {seed}\n").as_bytes());
    }
    text
}

/// Rows that no codec shrinks.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let byte = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u8
    };
    let mut text: Vec<u8> = (0..bytes).map(byte).collect();
    text.push(b'\n');
    text
}

fn lines(text: &[u8]) -> RowCount {
    RowCount(text.iter().filter(|b| **b == b'\n').count() as u64)
}

/// The first attempt to write one.
async fn create(location: &Location, identity: Identity, keys: &Keys) -> Result<Writing, Error> {
    Archive::create(location, identity, keys, &Finished::default()).await
}

async fn create_in(place: Place, identity: Identity, keys: &Keys) -> Result<Writing, Error> {
    Writing::create_in(place, identity, keys, &Finished::default()).await
}

async fn write_part(writing: &Writing, no: u32, text: &[u8]) -> Result<StoredPart, Error> {
    let mut packer = Packer::stored(writing.codec());
    let mut part = writing.part(PartNo(no)).await?;
    for raw in text.chunks(CHUNK_RAW_MAX) {
        let (head, payload) = packer.pack(&mut raw.to_vec())?;
        part.chunk(head, &payload).await?;
    }
    part.finish(lines(text)).await
}

async fn write_rest(writing: &Writing, parts: &[u32]) -> Result<Manifest, Error> {
    writing
        .schema(b"CREATE TABLE orders ();\n", b"CREATE INDEX;\n")
        .await?;
    let sequence = SequenceValue {
        name: TableName::new("public", "orders_id_seq").unwrap(),
        last_value: 42,
        is_called: true,
    };
    writing.sequences(&[sequence]).await?;
    writing.finish(contents(parts)).await
}

async fn read_part(archive: &Archive, no: u32) -> Result<Vec<u8>, Error> {
    let mut reader = archive.part(PartNo(no)).await?;
    let (mut unpacker, mut text) = (Unpacker::default(), Vec::new());
    let mut ended = false;
    while let Some((head, payload)) = reader.next().await? {
        use steep_protocol::frame::FrameHead;
        match head {
            FrameHead::Chunk {
                packing,
                raw,
                digest,
                ..
            } => text.extend_from_slice(unpacker.unpack(packing, raw, &digest, &payload)?),
            FrameHead::End { rows, .. } => {
                assert_eq!(rows, lines(&text));
                ended = true;
            }
            FrameHead::Fault { .. } => panic!("a fault"),
        }
    }
    assert!(ended);
    Ok(text)
}

/// A directory that does not exist yet, in one that is removed at the end.
fn directory() -> (tempfile::TempDir, Location, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshots/one");
    (dir, Location::Directory(path.clone()), path)
}

fn memory() -> (Arc<dyn ObjectStore>, Place) {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    (Arc::clone(&store), Place::in_store(store, "a/b"))
}

/// A complete snapshot of three parts, of which the last is empty.
async fn sample(codec: StoredCodec) -> (tempfile::TempDir, Location, PathBuf) {
    sample_with(codec, &Keys::default()).await
}

async fn sample_with(codec: StoredCodec, keys: &Keys) -> (tempfile::TempDir, Location, PathBuf) {
    let (dir, location, path) = directory();
    let identity = identity_with(codec, keys);
    let writing = create(&location, identity, keys).await.unwrap();
    write_part(&writing, 0, &rows(1, 600_000)).await.unwrap();
    write_part(&writing, 1, &rows(2, 300_000)).await.unwrap();
    write_part(&writing, 2, b"").await.unwrap();
    write_rest(&writing, &[0, 1, 2]).await.unwrap();
    (dir, location, path)
}

fn files(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["", "parts"] {
        let Ok(entries) = std::fs::read_dir(path.join(folder)) else {
            continue;
        };
        for entry in entries {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                let name = entry.file_name().into_string().unwrap();
                found.push(Path::new(folder).join(name).display().to_string());
            }
        }
    }
    found.retain(|name| name != ".lock");
    found.sort();
    found
}

async fn place(location: &Location, purpose: Purpose) -> Place {
    Place::open(location, purpose).await.unwrap()
}

/// The problems of a cheap look, and of a full one.
async fn problems(location: &Location, keys: &Keys) -> (Vec<String>, Vec<String>) {
    let archive = Archive::open(location, keys).await.unwrap();
    let shown = |problems: Vec<crate::Problem>| problems.iter().map(ToString::to_string).collect();
    (
        shown(archive.check_presence().await.unwrap()),
        shown(archive.verify(2, |_| ()).await.unwrap().problems),
    )
}

/// Changes one bit, in the byte that `at` chooses by the file's length.
fn flip(path: &Path, at: impl Fn(usize) -> usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path, by: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - by).unwrap();
}

fn swap(one: &Path, other: &Path) {
    let (a, b) = (fs::read(one).unwrap(), fs::read(other).unwrap());
    fs::write(one, b).unwrap();
    fs::write(other, a).unwrap();
}
