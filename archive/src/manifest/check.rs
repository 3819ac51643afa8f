//! The rules of a manifest that it can be checked against alone.

use std::collections::HashSet;

use steep_protocol::frame::Packing;
use steep_protocol::limits::{CHUNK_RAW_MAX, CHUNK_WIRE_MAX, PARTS_MAX, TABLES_MAX};
use steep_protocol::{ByteCount, RowCount};

use super::{Manifest, StoredPart, Totals, format_version};
use crate::content::stored_max;
use crate::index::index_bytes;
use crate::name::{Cipher, Names};
use crate::schema::SCHEMA_MAX;
use crate::sequences::SEQUENCES_MAX;

/// PostgreSQL's limit.
const COLUMNS_MAX: usize = 1_600;

/// PostgreSQL 10 introduced logical replication; later numbers have six digits.
const SERVER_VERSIONS: std::ops::Range<u32> = 100_000..1_000_000;

/// A sentence that says which rule is broken.
pub(super) fn check(manifest: &Manifest) -> Result<(), String> {
    if manifest.format_version != format_version(manifest.encryption.as_ref()) {
        return Err(format!("its format version is {}", manifest.format_version));
    }
    source(manifest)?;
    if manifest.tables.len() > TABLES_MAX {
        return Err(format!("it has {} tables", manifest.tables.len()));
    }
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    let mut totals = Totals::default();
    for table in &manifest.tables {
        let shown = format!("table {}.{}", table.schema, table.table);
        if !names.insert((&table.schema, &table.table)) {
            return Err(format!("{shown} is listed twice"));
        }
        if table.columns.len() > COLUMNS_MAX {
            return Err(format!("{shown} has {} columns", table.columns.len()));
        }
        totals.tables += 1;
        for part in &table.parts {
            check_part(part, manifest.names())?;
            if !numbers.insert(part.no) {
                return Err(format!("part {} is listed twice", part.no));
            }
            add(&mut totals, part).ok_or("its sums are beyond all numbers")?;
        }
    }
    if totals != manifest.totals {
        return Err("its totals are not the sums of its parts".to_owned());
    }
    files(manifest)
}

fn source(manifest: &Manifest) -> Result<(), String> {
    let source = &manifest.source;
    let digits = source.system_identifier.bytes().all(|b| b.is_ascii_digit());
    if !digits || source.system_identifier.parse::<u64>().is_err() {
        return Err("its system identifier is not a number".to_owned());
    }
    if !SERVER_VERSIONS.contains(&source.server_version) {
        return Err(format!("its server version is {}", source.server_version));
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !(1..=63).contains(&source.encoding.len()) || !source.encoding.bytes().all(word) {
        return Err("its encoding is not a name of one".to_owned());
    }
    let slot = manifest.slot_name.as_str().bytes();
    if !slot
        .into_iter()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    {
        return Err("its slot's name is not one of a slot".to_owned());
    }
    Ok(())
}

fn check_part(part: &StoredPart, names: Names) -> Result<(), String> {
    let no = part.no;
    let (bytes, stored) = (part.bytes.0, part.stored_bytes.0);
    if no.0 >= PARTS_MAX {
        return Err(format!("part number {no} is over the limit"));
    }
    let most = |each: usize| part.chunks.saturating_mul(each as u64);
    let is_raw = names.packing == Packing::Raw;
    // Content is as long as what is stored, or a little shorter where that is encrypted.
    let (least, longest) = match is_raw {
        true => (bytes, bytes),
        false => (part.chunks, most(CHUNK_WIRE_MAX)),
    };
    let plausible = part.chunks <= bytes
        && bytes <= most(CHUNK_RAW_MAX)
        && least <= stored
        && stored <= stored_max(longest, names.cipher)
        // A row is a line.
        && part.rows.0 <= bytes
        && is_index_plausible(part, names.cipher);
    if plausible {
        Ok(())
    } else {
        Err(format!(
            "part {no} is said to have {} rows and {bytes} bytes in {} chunks of {stored} bytes",
            part.rows.0, part.chunks
        ))
    }
}

fn is_index_plausible(part: &StoredPart, cipher: Cipher) -> bool {
    let content = index_bytes(part.chunks);
    match (cipher, part.index_bytes) {
        (Cipher::None, None) => true,
        (Cipher::Age, Some(stored)) => (content..=stored_max(content, cipher)).contains(&stored.0),
        (Cipher::None, Some(_)) | (Cipher::Age, None) => false,
    }
}

fn add(totals: &mut Totals, part: &StoredPart) -> Option<()> {
    totals.parts += 1;
    totals.rows = RowCount(totals.rows.0.checked_add(part.rows.0)?);
    totals.bytes = ByteCount(totals.bytes.0.checked_add(part.bytes.0)?);
    totals.stored_bytes = ByteCount(totals.stored_bytes.0.checked_add(part.stored_bytes.0)?);
    Some(())
}

fn files(manifest: &Manifest) -> Result<(), String> {
    let schema = &manifest.schema;
    let sections = schema
        .pre_data_bytes
        .0
        .checked_add(schema.post_data_bytes.0);
    let cipher = manifest.names().cipher;
    if schema.bytes.0 > stored_max(SCHEMA_MAX, cipher)
        || sections.is_none_or(|sections| sections > schema.bytes.0)
    {
        return Err("the lengths of its schema.sql are not plausible".to_owned());
    }
    if manifest.sequences.bytes.0 > stored_max(SEQUENCES_MAX, cipher)
        || manifest.sequences.count > manifest.sequences.bytes.0
    {
        return Err("the lengths of its sequences.json are not plausible".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use steep_protocol::PartNo;

    use super::super::tests::sample;
    use super::*;

    #[test]
    fn implausible_manifests_are_refused() {
        type Change = fn(&mut Manifest);
        let changes: &[(&str, Change)] = &[
            ("a part twice", |m| m.tables[0].parts[1].no = PartNo(0)),
            ("a number over the limit", |m| {
                m.tables[0].parts[1].no = PartNo(PARTS_MAX);
            }),
            ("more rows than bytes", |m| {
                m.tables[0].parts[0].rows = RowCount(101);
            }),
            ("a bomb", |m| {
                m.tables[0].parts[0].bytes = ByteCount(u64::MAX);
            }),
            ("huge counts", |m| {
                for part in &mut m.tables[0].parts {
                    part.chunks = 1 << 63;
                    (part.bytes, part.stored_bytes) = (ByteCount(1 << 63), ByteCount(1 << 63));
                }
            }),
            ("bytes without chunks", |m| m.tables[0].parts[0].chunks = 0),
            ("a raw file of another length", |m| {
                m.codec = steep_protocol::stored::StoredCodec::None;
            }),
            ("wrong totals", |m| m.totals.parts = 4),
            ("a table twice", |m| m.tables.push(m.tables[0].clone())),
            ("sections longer than their file", |m| {
                m.schema.pre_data_bytes = ByteCount(u64::MAX);
            }),
            ("a system identifier that is none", |m| {
                m.source.system_identifier = "+1".to_owned();
            }),
            ("an encoding that is none", |m| {
                m.source.encoding = "UTF8; --".to_owned();
            }),
        ];
        assert!(check(&sample()).is_ok());
        for (what, change) in changes {
            let mut manifest = sample();
            change(&mut manifest);
            assert!(check(&manifest).is_err(), "{what} was taken");
        }
    }
}
