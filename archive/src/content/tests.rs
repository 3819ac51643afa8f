//! Age files in pieces of any length, whole and damaged.

use std::io::Write;

use bytes::Bytes;
use proptest::prelude::*;

use super::decrypt::{Decrypting, Undecryptable};
use super::*;
use crate::keys::Keys;
use crate::keys::tests::{SECRET_KEY, keys, new_key};

/// Decrypts a file that comes in pieces of that length.
fn decrypt(stored: &[u8], keys: &Keys, piece: usize) -> Result<Vec<u8>, Undecryptable> {
    let mut pieces = stored.chunks(piece).map(Bytes::copy_from_slice);
    let first = pieces.next().unwrap_or_default();
    let (mut decrypting, mut content) =
        Decrypting::begin(first, keys).map(|(begun, content)| (begun, content.to_vec()))?;
    for piece in pieces {
        content.extend_from_slice(&decrypting.push(piece)?);
    }
    content.extend_from_slice(&decrypting.finish()?);
    Ok(content)
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = length as u64 + 1;
    let byte = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u8
    };
    (0..length).map(byte).collect()
}

#[test]
fn a_file_of_the_age_tool_is_read() {
    // printf '1\tthe first row\n2\t\\N\n' | age -r RECIPIENT -r ANOTHER, of age 1.1.1
    let stored = include_bytes!("frozen.age");
    let expected = b"1\tthe first row\n2\t\\N\n";
    assert_eq!(
        decrypt(stored, &keys(SECRET_KEY), stored.len()).unwrap(),
        expected
    );
    let several = keys(&format!("{}\n{SECRET_KEY}\n", new_key()));
    assert_eq!(decrypt(stored, &several, stored.len()).unwrap(), expected);
    let other = decrypt(stored, &keys(&new_key()), stored.len());
    assert_eq!(other, Err(Undecryptable::OtherKey));
    let none = decrypt(stored, &Keys::default(), stored.len());
    assert_eq!(none, Err(Undecryptable::OtherKey));
}

#[test]
fn lengths_around_a_chunk_round_trip_in_pieces_of_any_length() {
    let keys = keys(&new_key());
    let chunk = AGE_CHUNK as usize;
    for length in [0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, 5 * chunk + 7] {
        let content = noise(length);
        let stored = encrypt(&content, &keys).unwrap();
        assert!(stored.len() as u64 <= stored_max(length as u64, Cipher::Age));
        for piece in [2_000, chunk, chunk + 16, 100_000, stored.len()] {
            let read = decrypt(&stored, &keys, piece).unwrap();
            assert!(read == content, "{length} bytes in pieces of {piece}");
        }
    }
}

#[test]
fn a_file_that_was_cut_off_or_goes_on_is_damaged() {
    let keys = keys(&new_key());
    let chunk = AGE_CHUNK as usize + AGE_TAG as usize;
    let stored = encrypt(&noise(3 * AGE_CHUNK as usize), &keys).unwrap();
    let head = stored.len() - 3 * chunk;
    for cut in [
        0,
        1,
        head - 1,
        head,
        head + 1,
        head + chunk,
        head + 2 * chunk,
        stored.len() - 1,
    ] {
        let read = decrypt(&stored[..cut], &keys, 50_000);
        assert!(
            matches!(read, Err(Undecryptable::Damaged(_))),
            "{cut}: {read:?}"
        );
    }
    for further in [&b"x"[..], &stored[head..head + chunk], &stored] {
        let longer = [&stored[..], further].concat();
        let read = decrypt(&longer, &keys, 50_000);
        assert!(matches!(read, Err(Undecryptable::Damaged(_))), "{read:?}");
    }
    // Two chunks that changed places.
    let mut swapped = stored.clone();
    let (one, other) = swapped[head..].split_at_mut(chunk);
    one.swap_with_slice(&mut other[..chunk]);
    let read = decrypt(&swapped, &keys, 50_000);
    assert!(matches!(read, Err(Undecryptable::Damaged(_))), "{read:?}");
}

#[test]
fn a_head_without_end_is_not_read_on() {
    let mut stored = b"age-encryption.org/v1\n".to_vec();
    while stored.len() < 2 * AGE_HEAD_MAX {
        stored.extend_from_slice(b"-> X25519 abc\nabc\n");
    }
    let read = decrypt(&stored, &keys(&new_key()), stored.len());
    assert!(matches!(read, Err(Undecryptable::Damaged(_))), "{read:?}");
}

#[test]
fn as_many_recipients_as_are_allowed_fit_into_a_head() {
    let most = steep_protocol::encryption::RECIPIENTS_MAX;
    let own: Vec<String> = (0..most).map(|_| new_key()).collect();
    let recipients = own.iter().map(|key| {
        let facts = keys(key).facts().unwrap().clone();
        facts.encrypts.recipients.to_string()
    });
    let all = keys(&recipients.collect::<Vec<_>>().join("\n"));
    let stored = encrypt(b"row\n", &all).unwrap();
    assert!(stored.len() < AGE_HEAD_MAX, "{}", stored.len());
    for key in &own {
        assert_eq!(decrypt(&stored, &keys(key), 4_096).unwrap(), b"row\n");
    }
}

#[test]
fn nothing_is_kept_back_beyond_a_chunk() {
    let keys = keys(&new_key());
    let content = noise(40 * AGE_CHUNK as usize);
    let stored = encrypt(&content, &keys).unwrap();
    let (mut decrypting, first) =
        Decrypting::begin(Bytes::copy_from_slice(&stored[..4_096]), &keys).unwrap();
    let (mut fed, mut got) = (4_096, first.len());
    for piece in stored[4_096..].chunks(1024 * 1024) {
        got += decrypting
            .push(Bytes::copy_from_slice(piece))
            .unwrap()
            .len();
        fed += piece.len();
        assert!(fed - got < 2 * AGE_CHUNK as usize, "{fed} in, {got} out");
    }
    let mut encrypting = super::encrypt::Encrypting::begin(&keys).unwrap();
    let (mut pushed, mut out) = (0, Vec::new());
    for piece in content.chunks(256 * 1024) {
        encrypting.push(piece, &mut out).unwrap();
        pushed += piece.len();
        assert!(pushed.saturating_sub(out.len()) <= AGE_CHUNK as usize);
    }
    std::io::sink().write_all(&out).unwrap();
}

proptest! {
    #[test]
    fn any_changed_byte_is_noticed(at: prop::sample::Index, bit in 0u8..8, length in 0usize..200_000) {
        let keys = keys(SECRET_KEY);
        let content = noise(length);
        let mut stored = encrypt(&content, &keys).unwrap();
        let at = at.index(stored.len());
        stored[at] ^= 1 << bit;
        prop_assert!(decrypt(&stored, &keys, 30_000).is_err());
    }

    #[test]
    fn any_bytes_are_a_file_or_an_error(bytes: Vec<u8>, after in "(age-encryption.org/v1\n)?(-> [ -~]{0,20}\n){0,3}(--- [ -~]{0,50}\n)?") {
        let stored = [after.as_bytes(), &bytes].concat();
        let _ = decrypt(&stored, &keys(SECRET_KEY), 10);
        let _ = decrypt(&stored, &keys(SECRET_KEY), 10_000);
    }
}
