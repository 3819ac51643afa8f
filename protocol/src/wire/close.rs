//! Reasons for closing a connection or stream. Peers branch on the code, never on text.

use std::fmt;

macro_rules! close_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)+) => {
        /// A close reason, carried as a QUIC application error code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum CloseCode {
            $($(#[$doc])* $name,)+
            /// A code from a newer peer.
            Unknown(u32),
        }

        impl CloseCode {
            /// The code on the wire.
            #[must_use]
            pub fn code(self) -> u32 {
                match self {
                    $(Self::$name => $code,)+
                    Self::Unknown(code) => code,
                }
            }

            /// The reason with that code.
            #[must_use]
            pub fn from_code(code: u32) -> Self {
                match code {
                    $($code => Self::$name,)+
                    other => Self::Unknown(other),
                }
            }
        }

        impl fmt::Display for CloseCode {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name => f.write_str($text),)+
                    Self::Unknown(code) => write!(f, "unknown reason {code}"),
                }
            }
        }
    };
}

close_codes! {
    /// The work is complete.
    Done = 0, "done";
    /// The process is stopping; reconnect later.
    ShuttingDown = 1, "shutting down";
    /// No common version.
    Version = 2, "no common protocol version";
    /// The certificate's role or name does not allow this.
    Forbidden = 3, "not allowed by certificate";
    /// The bytes violate the protocol.
    Malformed = 4, "malformed message";
    /// A newer connection of the same node replaced it.
    Superseded = 5, "superseded by a newer connection";
    /// The job or part was cancelled.
    Cancelled = 6, "cancelled";
    /// The sender of a part failed; the reason follows on the control path.
    SourceFailed = 7, "source failed";
    /// The receiver of a part failed.
    SinkFailed = 8, "sink failed";
    /// The certificate, or the process, has reached its limit of connections.
    TooMany = 9, "too many connections: close others of this certificate, or try again later";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_frozen() {
        let known: Vec<u32> = (0..10).collect();
        for code in &known {
            let reason = CloseCode::from_code(*code);
            assert!(
                !matches!(reason, CloseCode::Unknown(_)),
                "{code} lost its meaning"
            );
            assert_eq!(reason.code(), *code);
        }
        assert_eq!(CloseCode::Cancelled.code(), 6);
        assert_eq!(CloseCode::from_code(4711), CloseCode::Unknown(4711));
    }
}
