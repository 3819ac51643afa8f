//! What a snapshot is: `manifest.json`, written last. Pure.
//!
//! Its checksum is the SHA-256 of the same JSON without the member `checksum`, in this order and without
//! white space: `jq -j -c 'del(.checksum)' manifest.json | sha256sum` prints it.

mod check;

use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use steep_protocol::encryption::Encryption;
use steep_protocol::stored::StoredCodec;
use steep_protocol::{ByteCount, Identifier, Lsn, NodeId, PartNo, RowCount, SnapshotId, TableName};

use crate::index::index_bytes;
use crate::name::Names;

pub use steep_protocol::Sum;

/// The newest format that this build reads and writes.
///
/// 1: the first. 2: files are encrypted, which `encryption` describes, and parts have `index_bytes`. What is not
/// encrypted is still written as 1.
pub const FORMAT_VERSION: u32 = 2;

/// The format of a snapshot that is encrypted like that.
pub(crate) fn format_version(encryption: Option<&Encryption>) -> u32 {
    match encryption {
        None => 1,
        Some(_) => FORMAT_VERSION,
    }
}

/// The longest manifest, in bytes: some half a million parts.
pub(crate) const MANIFEST_MAX: u64 = 256 * 1024 * 1024;

/// Most values in a manifest: 200,000 tables of ten columns have six million. A value of one byte takes some fifty when it
/// is read, so that the longest manifest could fill gigabytes.
const ENTRIES_MAX: usize = 8_000_000;

/// Whether a manifest fits into memory, before it is read.
fn check_entries(bytes: &[u8]) -> Result<(), String> {
    let entries = bytes.iter().filter(|byte| **byte == b',').count();
    if entries > ENTRIES_MAX {
        return Err(format!(
            "its manifest has {entries} values, at most {ENTRIES_MAX} are allowed; use fewer parts"
        ));
    }
    Ok(())
}

/// A stored snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// At most [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Its id.
    #[serde(with = "text")]
    pub snapshot_id: SnapshotId,
    /// When its consistent point was taken, by the agent's clock.
    pub created_at: Timestamp,
    /// The database that it was read from.
    pub source: Source,
    /// The consistent point: rows are as of this position, replication begins there.
    #[serde(with = "text")]
    pub lsn: Lsn,
    /// The replication slot that keeps the changes since.
    pub slot_name: Identifier,
    /// The publication of its tables.
    pub publication: Identifier,
    /// The filter: only tables of these schemas, if any are named.
    pub include_schemas: Vec<Identifier>,
    /// The filter: without these tables.
    pub exclude_tables: Vec<TableName>,
    /// The compression of every part.
    pub codec: StoredCodec,
    /// How all files but `manifest.json` and `snapshot.json` are encrypted, if they are. Lengths and digests are those
    /// of the encrypted files then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// The format of the rows.
    pub copy_format: CopyFormat,
    /// Its tables.
    pub tables: Vec<StoredTable>,
    /// The file `schema.sql`.
    pub schema: StoredSchema,
    /// The file `sequences.json`.
    pub sequences: StoredSequences,
    /// Sums over all parts.
    pub totals: Totals,
    /// SHA-256 of everything above; see the module. Always present once written or read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Sum>,
}

/// A snapshot's origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The node.
    pub node_id: NodeId,
    /// PostgreSQL's system identifier, in decimal digits.
    pub system_identifier: String,
    /// `server_version_num`, such as 170004.
    pub server_version: u32,
    /// The database.
    pub database: Identifier,
    /// The encoding of the rows and of the schema, as PostgreSQL names it.
    pub encoding: String,
}

/// The format of COPY data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyFormat {
    /// PostgreSQL's text format: a row is a line.
    Text,
}

/// A table and its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredTable {
    /// Its schema.
    pub schema: Identifier,
    /// Its name.
    pub table: Identifier,
    /// The columns in the rows, in order.
    pub columns: Vec<Identifier>,
    /// Its parts; each row is in one of them.
    pub parts: Vec<StoredPart>,
}

impl StoredTable {
    /// Its full name.
    #[must_use]
    pub fn name(&self) -> TableName {
        TableName {
            schema: self.schema.clone(),
            table: self.table.clone(),
        }
    }
}

/// A part: a file with a table's rows, or some of them, and its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredPart {
    /// Its number, unique in the snapshot.
    pub no: PartNo,
    /// Its rows.
    pub rows: RowCount,
    /// Its chunks.
    pub chunks: u64,
    /// Bytes of COPY data.
    pub bytes: ByteCount,
    /// Bytes of the file.
    pub stored_bytes: ByteCount,
    /// SHA-256 of the file.
    pub sha256: Sum,
    /// BLAKE3 of the file.
    pub blake3: Sum,
    /// BLAKE3 of the index.
    pub index_blake3: Sum,
    /// Bytes of an encrypted index. The chunks determine those of one that is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_bytes: Option<ByteCount>,
}

impl StoredPart {
    /// Bytes of the index's file.
    #[must_use]
    pub fn stored_index_bytes(&self) -> ByteCount {
        let plain = || ByteCount(index_bytes(self.chunks));
        self.index_bytes.unwrap_or_else(plain)
    }
}

/// The file `schema.sql`: two sections after one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredSchema {
    /// Bytes of the file.
    pub bytes: ByteCount,
    /// Bytes of the pre-data section within it.
    pub pre_data_bytes: ByteCount,
    /// Bytes of the post-data section within it.
    pub post_data_bytes: ByteCount,
    /// SHA-256 of the file.
    pub sha256: Sum,
    /// BLAKE3 of the file.
    pub blake3: Sum,
}

/// The file `sequences.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredSequences {
    /// Sequences in it.
    pub count: u64,
    /// Bytes of the file.
    pub bytes: ByteCount,
    /// SHA-256 of the file.
    pub sha256: Sum,
    /// BLAKE3 of the file.
    pub blake3: Sum,
}

/// Sums over all parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Tables.
    pub tables: u64,
    /// Parts.
    pub parts: u64,
    /// Rows.
    pub rows: RowCount,
    /// Bytes of COPY data.
    pub bytes: ByteCount,
    /// Bytes of the parts' files, without indexes.
    pub stored_bytes: ByteCount,
}

impl Manifest {
    /// The names of its files.
    pub(crate) fn names(&self) -> Names {
        Names {
            packing: self.codec.packing(),
            cipher: self.encryption.as_ref().into(),
        }
    }

    /// All parts, table by table.
    pub fn parts(&self) -> impl Iterator<Item = &StoredPart> {
        self.tables.iter().flat_map(|table| &table.parts)
    }

    /// The file's content. Computes the checksum.
    ///
    /// # Errors
    /// A sentence, if it breaks a rule or is too long.
    pub(crate) fn encode(&mut self) -> Result<Vec<u8>, String> {
        check::check(self)?;
        self.checksum = None;
        self.checksum = Some(self.compute()?);
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|e| e.to_string())?;
        if bytes.len() as u64 > MANIFEST_MAX {
            bytes = serde_json::to_vec(self).map_err(|e| e.to_string())?;
        }
        if bytes.len() as u64 > MANIFEST_MAX {
            return Err(format!(
                "its manifest has {} bytes, at most {MANIFEST_MAX} are allowed; use fewer parts",
                bytes.len()
            ));
        }
        check_entries(&bytes)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a file's content and checks everything that the manifest alone can tell.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        check_entries(bytes)?;
        let Version { format_version } =
            serde_json::from_slice(bytes).map_err(|e| format!("it is not a manifest: {e}"))?;
        if !(1..=FORMAT_VERSION).contains(&format_version) {
            return Err(format!(
                "its format version is {format_version}; this version reads 1 to {FORMAT_VERSION}"
            ));
        }
        let mut manifest: Self =
            serde_json::from_slice(bytes).map_err(|e| format!("it is not a manifest: {e}"))?;
        let said = manifest.checksum.take();
        if said != Some(manifest.compute()?) {
            return Err("its checksum does not match its content".to_owned());
        }
        manifest.checksum = said;
        check::check(&manifest)?;
        Ok(manifest)
    }

    /// The checksum of what is there; `checksum` itself is absent.
    fn compute(&self) -> Result<Sum, String> {
        let mut hasher = Hasher(Sha256::new());
        serde_json::to_writer(&mut hasher, self).map_err(|e| e.to_string())?;
        Ok(Sum(hasher.0.finalize().into()))
    }
}

struct Hasher(Sha256);

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Ids and positions as people write them.
pub(crate) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<T: Display, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn sample() -> Manifest {
        let name = |text| Identifier::parse(text).unwrap();
        let part = |no, rows: u64| StoredPart {
            no: PartNo(no),
            rows: RowCount(rows),
            chunks: u64::from(rows > 0),
            bytes: ByteCount(rows * 10),
            stored_bytes: ByteCount(rows * 5),
            sha256: Sum([1; 32]),
            blake3: Sum([2; 32]),
            index_blake3: Sum([3; 32]),
            index_bytes: None,
        };
        Manifest {
            format_version: 1,
            snapshot_id: SnapshotId(7),
            created_at: "2026-11-29T12:00:00Z".parse().unwrap(),
            source: Source {
                node_id: NodeId::parse("node_a").unwrap(),
                system_identifier: "7300000000000000001".to_owned(),
                server_version: 170_004,
                database: name("shop"),
                encoding: "UTF8".to_owned(),
            },
            lsn: "16/B374D848".parse().unwrap(),
            slot_name: name("steep_1"),
            publication: name("steep_1"),
            include_schemas: vec![name("public")],
            exclude_tables: vec![TableName::new("public", "log").unwrap()],
            codec: StoredCodec::Zstd(3),
            encryption: None,
            copy_format: CopyFormat::Text,
            tables: vec![StoredTable {
                schema: name("public"),
                table: name("größe \"\u{1}"),
                columns: vec![name("id"), name("b")],
                parts: vec![part(0, 10), part(1, 0), part(2, 1_000)],
            }],
            schema: StoredSchema {
                bytes: ByteCount(10_000),
                pre_data_bytes: ByteCount(4_000),
                post_data_bytes: ByteCount(5_000),
                sha256: Sum([4; 32]),
                blake3: Sum([5; 32]),
            },
            sequences: StoredSequences {
                count: 1,
                bytes: ByteCount(100),
                sha256: Sum([6; 32]),
                blake3: Sum([7; 32]),
            },
            totals: Totals {
                tables: 1,
                parts: 3,
                rows: RowCount(1_010),
                bytes: ByteCount(10_100),
                stored_bytes: ByteCount(5_050),
            },
            checksum: None,
        }
    }

    #[test]
    fn a_manifest_reads_back_and_any_change_is_noticed() {
        let mut manifest = sample();
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        let text = String::from_utf8(bytes).unwrap();
        for (from, to) in [
            ("\"rows\": 1000", "\"rows\": 1001"),
            ("node_a", "node_b"),
            ("16/B374D848", "16/B374D849"),
            ("\"zstd:3\"", "\"zstd:4\""),
            ("\"format_version\": 1", "\"format_version\": 2"),
            ("\"format_version\": 1", "\"format_version\": 3"),
            (
                "\"format_version\": 1",
                "\"format_version\": 1, \"extra\": 1",
            ),
        ] {
            assert!(text.contains(from), "{from}");
            let changed = text.replacen(from, to, 1);
            assert!(Manifest::decode(changed.as_bytes()).is_err(), "{to}");
        }
    }

    #[test]
    fn the_checksum_does_not_depend_on_white_space() {
        let mut manifest = sample();
        let bytes = manifest.encode().unwrap();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let compact = serde_json::to_vec(&value).unwrap();
        assert_eq!(Manifest::decode(&compact).unwrap(), manifest);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_manifest_or_an_error(bytes: Vec<u8>, at in 0usize..4_000, byte: u8) {
            prop_assert!(Manifest::decode(&bytes).is_err());
            let mut manifest = sample();
            let mut good = manifest.encode().unwrap();
            let at = at % good.len();
            if good[at] != byte && !good[at].is_ascii_whitespace() && !byte.is_ascii_whitespace() {
                good[at] = byte;
                // A time may end with `z` as well, and is the same.
                let changed = Manifest::decode(&good);
                prop_assert!(changed.is_err() || changed == Ok(manifest));
            }
        }
    }
}
