//! The only place that encodes control messages: bincode, with a size limit, rejecting trailing
//! bytes. A frame is a big-endian `u32` length and that many bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::limits::CONTROL_FRAME_MAX;

/// Encoding or decoding failed.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The message exceeds the limit.
    #[error("a control message of {length} bytes is over the limit of {longest}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
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

/// Encodes a message, without the length prefix.
///
/// # Errors
/// [`CodecError::TooLong`] if the message exceeds [`CONTROL_FRAME_MAX`].
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

/// Decodes a message. Allocates no more than the input justifies and never panics.
///
/// # Errors
/// [`CodecError`] if the bytes are not exactly one message.
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

/// The length in a frame's prefix, if it is at most `longest`.
///
/// # Errors
/// [`CodecError::TooLong`], before anything of that length is allocated.
pub fn frame_length(prefix: [u8; 4], longest: usize) -> Result<usize, CodecError> {
    let length = u32::from_be_bytes(prefix) as usize;
    if length > longest.min(CONTROL_FRAME_MAX) {
        Err(CodecError::TooLong { length, longest })
    } else {
        Ok(length)
    }
}
