//! The file `sequences.json`: an array of `{schema, sequence, last_value, is_called}`, whose values are
//! `setval`'s arguments. Pure.

use serde::{Deserialize, Serialize};
use steep_protocol::message::peer::SequenceValue;
use steep_protocol::{Identifier, TableName};

/// The longest `sequences.json`, in bytes: a million sequences.
pub(crate) const SEQUENCES_MAX: u64 = 512 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    schema: Identifier,
    sequence: Identifier,
    last_value: i64,
    is_called: bool,
}

/// The file's content.
///
/// # Errors
/// A sentence, if it is too long.
pub(crate) fn encode(values: &[SequenceValue]) -> Result<Vec<u8>, String> {
    let entries: Vec<_> = values
        .iter()
        .map(|value| Entry {
            schema: value.name.schema.clone(),
            sequence: value.name.table.clone(),
            last_value: value.last_value,
            is_called: value.is_called,
        })
        .collect();
    let mut bytes = serde_json::to_vec_pretty(&entries).map_err(|e| e.to_string())?;
    bytes.push(b'\n');
    if bytes.len() as u64 > SEQUENCES_MAX {
        return Err(format!("{} sequences are too many", values.len()));
    }
    Ok(bytes)
}

/// Reads the file's content.
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<SequenceValue>, String> {
    let entries: Vec<Entry> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    Ok(entries
        .into_iter()
        .map(|entry| SequenceValue {
            name: TableName {
                schema: entry.schema,
                table: entry.sequence,
            },
            last_value: entry.last_value,
            is_called: entry.is_called,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sequences_round_trip(values in proptest::collection::vec(("[^\0]{1,15}", any::<i64>(), any::<bool>()), 0..5)) {
            let values: Vec<_> = values
                .into_iter()
                .map(|(name, last_value, is_called)| SequenceValue {
                    name: TableName::new("public", name).unwrap(),
                    last_value,
                    is_called,
                })
                .collect();
            prop_assert_eq!(decode(&encode(&values).unwrap()).unwrap(), values);
        }

        #[test]
        fn any_bytes_are_sequences_or_an_error(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
