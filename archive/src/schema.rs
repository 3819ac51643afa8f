//! The file `schema.sql`: the sections of a schema's dump between comments, so that `psql -f schema.sql`
//! runs it. The manifest has the sections' lengths, so that they are split again exactly, whatever they
//! contain. Pure.

use bytes::Bytes;
use steep_protocol::ByteCount;

use crate::manifest::StoredSchema;
use crate::place::FileDigests;

/// The longest `schema.sql`, in bytes: a million tables of a few columns each.
pub(crate) const SCHEMA_MAX: u64 = 1024 * 1024 * 1024;

const PRE: &str = "-- steep-repl: section pre-data. Run it before the rows are loaded.\n";
const POST: &str = "\n-- steep-repl: section post-data. Run it after the rows are loaded.\n";

/// The two sections of a schema's dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// Types, tables, functions: what rows need.
    pub pre_data: Bytes,
    /// Indexes, constraints, triggers: what rows are loaded before.
    pub post_data: Bytes,
}

/// The file's pieces, in order.
pub(crate) fn pieces<'a>(pre_data: &'a [u8], post_data: &'a [u8]) -> [&'a [u8]; 4] {
    [PRE.as_bytes(), pre_data, POST.as_bytes(), post_data]
}

/// The manifest's record of such a file.
pub(crate) fn record(pre_data: &[u8], post_data: &[u8], digests: FileDigests) -> StoredSchema {
    StoredSchema {
        bytes: ByteCount(digests.bytes),
        pre_data_bytes: ByteCount(pre_data.len() as u64),
        post_data_bytes: ByteCount(post_data.len() as u64),
        sha256: digests.sha256,
        blake3: digests.blake3,
    }
}

/// Splits the file, whose digests have been checked.
///
/// # Errors
/// A sentence, if it does not have that shape.
pub(crate) fn split(file: &Bytes, record: &StoredSchema) -> Result<Schema, String> {
    let cut = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let (pre, post) = (cut(record.pre_data_bytes.0), cut(record.post_data_bytes.0));
    let begin = PRE.len();
    let middle = begin
        .checked_add(pre)
        .and_then(|at| Some((at, at.checked_add(POST.len())?)));
    let (end, second) = middle.ok_or("its sections are too long")?;
    let shaped = file.starts_with(PRE.as_bytes())
        && file.get(end..second) == Some(POST.as_bytes())
        && second.checked_add(post) == Some(file.len());
    if !shaped {
        return Err("its sections are not where the manifest says".to_owned());
    }
    Ok(Schema {
        pre_data: file.slice(begin..end),
        post_data: file.slice(second..),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::place::Digests;

    proptest! {
        #[test]
        fn sections_are_split_exactly(pre: Vec<u8>, post in ".{0,40}", markers: bool) {
            let post = if markers { format!("{PRE}{POST}{post}") } else { post }.into_bytes();
            let file = Bytes::from(pieces(&pre, &post).concat());
            let mut digests = Digests::default();
            digests.update(&file);
            let mut record = record(&pre, &post, digests.finish());
            let schema = split(&file, &record).unwrap();
            prop_assert_eq!((&schema.pre_data[..], &schema.post_data[..]), (&pre[..], &post[..]));
            record.pre_data_bytes = ByteCount(u64::MAX);
            prop_assert!(split(&file, &record).is_err());
        }
    }
}
