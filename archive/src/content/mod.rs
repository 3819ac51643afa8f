//! What is in a file, whichever way it is stored: as it is, or encrypted as a standard age file.
//!
//! Between [`crate::place`], which knows only stored bytes, and everything that knows what they mean. Digests are of
//! the stored bytes, so files are checked without a key. Memory is bounded: an age file is encrypted and decrypted in
//! its chunks of 64 KiB, while it is written and read. Nothing is passed on that was not authenticated.

mod decrypt;
mod encrypt;
mod read;
mod write;

#[cfg(test)]
mod tests;

pub(crate) use encrypt::encrypt;
pub(crate) use read::{ContentReader, Digesting};
pub(crate) use write::ContentWriter;

use crate::name::Cipher;

/// Bytes of content in one chunk of an age file, and of what authenticates it.
const AGE_CHUNK: u64 = 64 * 1024;
const AGE_TAG: u64 = 16;

/// The longest head of an age file that is read, in bytes: [`steep_protocol::encryption::RECIPIENTS_MAX`] recipients
/// have some two thousand.
const AGE_HEAD_MAX: usize = 4 * 1024;

/// The longest stored file with that much content.
pub(crate) fn stored_max(content: u64, cipher: Cipher) -> u64 {
    match cipher {
        Cipher::None => content,
        Cipher::Age => {
            let chunks = content / AGE_CHUNK + 1;
            let tags = chunks.saturating_mul(AGE_TAG);
            content
                .saturating_add(tags)
                .saturating_add(AGE_HEAD_MAX as u64)
        }
    }
}

/// Bytes that a file holds in memory at most while it is encrypted.
pub(crate) fn cipher_memory(cipher: Cipher) -> usize {
    match cipher {
        Cipher::None => 0,
        // A chunk that is collected, its encrypted form, and what was encrypted last: a chunk of rows, perhaps of several.
        Cipher::Age => 8 * AGE_CHUNK as usize,
    }
}
