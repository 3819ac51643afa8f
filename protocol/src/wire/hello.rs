//! The first bytes of every connection. They never change, so any two versions can tell each other
//! why they are incompatible.
//!
//! ```text
//! hello    "STEEPREP"  lowest:u16  highest:u16  reserved:u32     16 bytes, both ways of speaking
//! answer   "STEEPYES"  version:u16 reserved:u48                  16 bytes
//! refusal  "STEEPNO!"  code:u16 length:u16 reserved:u32 reason   16 bytes and the reason (UTF-8)
//! ```
//! Numbers are big-endian; reserved bytes are sent as zero and ignored on arrival. Who the peer is
//! stands in its certificate, never here.

use super::close::CloseCode;
use super::limits::REFUSAL_REASON_MAX;

/// The TLS ALPN that both ends must offer to exchange a hello.
pub const ALPN: &[u8] = b"steep-repl/1";

/// The protocol version of this build.
///
/// 3: the first. Earlier numbers were never published, and no build speaks them.
///
/// 4: filters name tables to include, and snapshots are opened for a replication that goes on.
pub const VERSION: u16 = 4;

/// The oldest version this build can speak.
pub const VERSION_MIN: u16 = 4;

/// The length of a hello, of an answer and of a refusal without its reason.
pub const HELLO_LENGTH: usize = 16;

const HELLO: &[u8; 8] = b"STEEPREP";
const ANSWER: &[u8; 8] = b"STEEPYES";
const REFUSAL: &[u8; 8] = b"STEEPNO!";

/// The versions that the dialling end can speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The oldest.
    pub lowest: u16,
    /// The newest.
    pub highest: u16,
}

/// The listening end's answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Go on with that version.
    Accepted {
        /// The version to use.
        version: u16,
    },
    /// The connection ends.
    Refused {
        /// The reason as a code.
        code: CloseCode,
        /// The reason as text; at most [`REFUSAL_REASON_MAX`] bytes are sent.
        reason: String,
    },
}

/// Not a valid hello or answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The first eight bytes are not ours: the peer is another program.
    #[error("the peer does not speak steep-repl's protocol")]
    NotSteep,
    /// A version range whose end lies before its beginning.
    #[error("the peer offers no version at all")]
    EmptyRange,
    /// A refusal whose reason is longer than allowed.
    #[error("the peer's refusal is {0} bytes long")]
    TooLong(usize),
}

impl Hello {
    /// This build's hello.
    pub const OURS: Self = Self {
        lowest: VERSION_MIN,
        highest: VERSION,
    };

    /// Encodes the hello.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HELLO_LENGTH] {
        let mut bytes = [0; HELLO_LENGTH];
        bytes[..8].copy_from_slice(HELLO);
        bytes[8..10].copy_from_slice(&self.lowest.to_be_bytes());
        bytes[10..12].copy_from_slice(&self.highest.to_be_bytes());
        bytes
    }

    /// Decodes a hello.
    ///
    /// # Errors
    /// [`HelloError`] if it is not valid.
    pub fn from_bytes(bytes: &[u8; HELLO_LENGTH]) -> Result<Self, HelloError> {
        if &bytes[..8] != HELLO {
            return Err(HelloError::NotSteep);
        }
        let lowest = u16::from_be_bytes([bytes[8], bytes[9]]);
        let highest = u16::from_be_bytes([bytes[10], bytes[11]]);
        if lowest > highest {
            Err(HelloError::EmptyRange)
        } else {
            Ok(Self { lowest, highest })
        }
    }

    /// Chooses the newest common version, or refuses with the reason.
    #[must_use]
    pub fn answer(self, ours: Self) -> Answer {
        let version = self.highest.min(ours.highest);
        if version >= self.lowest && version >= ours.lowest {
            return Answer::Accepted { version };
        }
        Answer::Refused {
            code: CloseCode::Version,
            reason: format!(
                "this end speaks protocol {} to {}, yours {} to {}: upgrade the older one",
                ours.lowest, ours.highest, self.lowest, self.highest
            ),
        }
    }
}

impl Answer {
    /// Encodes the answer.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; HELLO_LENGTH];
        match self {
            Self::Accepted { version } => {
                bytes[..8].copy_from_slice(ANSWER);
                bytes[8..10].copy_from_slice(&version.to_be_bytes());
            }
            Self::Refused { code, reason } => {
                let mut end = reason.len().min(REFUSAL_REASON_MAX);
                while !reason.is_char_boundary(end) {
                    end -= 1;
                }
                // Both fit: codes are small and the length is limited above.
                let code = u16::try_from(code.code()).unwrap_or(u16::MAX);
                let length = u16::try_from(end).unwrap_or(0);
                bytes[..8].copy_from_slice(REFUSAL);
                bytes[8..10].copy_from_slice(&code.to_be_bytes());
                bytes[10..12].copy_from_slice(&length.to_be_bytes());
                bytes.extend_from_slice(&reason.as_bytes()[..end]);
            }
        }
        bytes
    }

    /// The length of the reason that follows this head; 0 after an acceptance.
    ///
    /// # Errors
    /// [`HelloError`] if the head is neither.
    pub fn reason_length(head: &[u8; HELLO_LENGTH]) -> Result<usize, HelloError> {
        match &head[..8] {
            b if b == ANSWER => Ok(0),
            b if b == REFUSAL => {
                let length = usize::from(u16::from_be_bytes([head[10], head[11]]));
                if length > REFUSAL_REASON_MAX {
                    Err(HelloError::TooLong(length))
                } else {
                    Ok(length)
                }
            }
            _ => Err(HelloError::NotSteep),
        }
    }

    /// Decodes an answer from its head and reason.
    ///
    /// # Errors
    /// [`HelloError`] if the head is neither an acceptance nor a refusal.
    pub fn from_bytes(head: &[u8; HELLO_LENGTH], reason: &[u8]) -> Result<Self, HelloError> {
        let number = u16::from_be_bytes([head[8], head[9]]);
        match &head[..8] {
            b if b == ANSWER => Ok(Self::Accepted { version: number }),
            b if b == REFUSAL => Ok(Self::Refused {
                code: CloseCode::from_code(u32::from(number)),
                reason: String::from_utf8_lossy(reason).into_owned(),
            }),
            _ => Err(HelloError::NotSteep),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hello_bytes_are_frozen() {
        assert_eq!(
            Hello {
                lowest: 1,
                highest: 0x0203
            }
            .to_bytes(),
            *b"STEEPREP\x00\x01\x02\x03\x00\x00\x00\x00"
        );
    }

    #[test]
    fn answer_bytes_are_frozen() {
        assert_eq!(
            Answer::Accepted { version: 7 }.to_bytes(),
            b"STEEPYES\x00\x07\x00\x00\x00\x00\x00\x00"
        );
        let refused = Answer::Refused {
            code: CloseCode::Version,
            reason: "no".into(),
        };
        assert_eq!(
            refused.to_bytes(),
            b"STEEPNO!\x00\x02\x00\x02\x00\x00\x00\x00no"
        );
    }

    #[test]
    fn the_newest_common_version_is_taken_and_none_is_explained() {
        let ours = Hello {
            lowest: 2,
            highest: 4,
        };
        let say = |lowest, highest| Hello { lowest, highest }.answer(ours);
        assert_eq!(say(1, 3), Answer::Accepted { version: 3 });
        assert_eq!(say(4, 9), Answer::Accepted { version: 4 });
        assert!(matches!(
            say(5, 9),
            Answer::Refused {
                code: CloseCode::Version,
                ..
            }
        ));
        assert!(matches!(
            say(1, 1),
            Answer::Refused {
                code: CloseCode::Version,
                ..
            }
        ));
    }

    proptest! {
        #[test]
        fn any_sixteen_bytes_are_a_hello_or_an_error(bytes: [u8; HELLO_LENGTH]) {
            if let Ok(hello) = Hello::from_bytes(&bytes) {
                let again = Hello::from_bytes(&hello.to_bytes());
                prop_assert_eq!(again, Ok(hello));
            }
            let _ = Answer::reason_length(&bytes);
        }

        #[test]
        fn a_refusal_survives_any_reason(reason: String) {
            let bytes = Answer::Refused { code: CloseCode::Forbidden, reason }.to_bytes();
            let head: [u8; HELLO_LENGTH] = bytes[..HELLO_LENGTH].try_into().unwrap();
            let length = Answer::reason_length(&head).unwrap();
            prop_assert_eq!(length, bytes.len() - HELLO_LENGTH);
            let back = Answer::from_bytes(&head, &bytes[HELLO_LENGTH..]).unwrap();
            let refused = matches!(back, Answer::Refused { code: CloseCode::Forbidden, .. });
            prop_assert!(refused);
        }
    }
}
