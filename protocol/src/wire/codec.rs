//! The one place that knows how a control message becomes bytes: bincode, bounded, nothing left
//! over. A frame is a big-endian `u32` length and that many bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::limits::CONTROL_FRAME_MAX;

/// Bytes that are not the message they should be, or a message that is too long to send.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The message is longer than a control frame may be.
    #[error("a control message of {length} bytes is over the limit of {longest}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The most that is allowed there.
        longest: usize,
    },
    /// The bytes do not decode.
    #[error("not a control message: {0}")]
    Malformed(String),
    /// Bytes remained after the message.
    #[error("{0} bytes follow the control message")]
    Trailing(usize),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<CONTROL_FRAME_MAX>()
}

/// The message's bytes, without the length prefix.
///
/// # Errors
/// [`CodecError::TooLong`] where the message exceeds [`CONTROL_FRAME_MAX`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(message, bincode::config::standard())
        .map_err(|e| CodecError::Malformed(e.to_string()))?;
    if bytes.len() > CONTROL_FRAME_MAX {
        return Err(CodecError::TooLong {
            length: bytes.len(),
            longest: CONTROL_FRAME_MAX,
        });
    }
    Ok(bytes)
}

/// The message in those bytes. Never allocates more than the bytes can justify, never panics.
///
/// # Errors
/// [`CodecError`] where they are not exactly one message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > CONTROL_FRAME_MAX {
        return Err(CodecError::TooLong {
            length: bytes.len(),
            longest: CONTROL_FRAME_MAX,
        });
    }
    let (message, used) = bincode::serde::decode_from_slice(bytes, config())
        .map_err(|e| CodecError::Malformed(e.to_string()))?;
    match bytes.len() - used {
        0 => Ok(message),
        rest => Err(CodecError::Trailing(rest)),
    }
}

/// The length in a frame's prefix, where it is at most `longest`.
///
/// # Errors
/// [`CodecError::TooLong`] before anything of that length is allocated.
pub fn frame_length(prefix: [u8; 4], longest: usize) -> Result<usize, CodecError> {
    let length = u32::from_be_bytes(prefix) as usize;
    if length > longest.min(CONTROL_FRAME_MAX) {
        Err(CodecError::TooLong { length, longest })
    } else {
        Ok(length)
    }
}
