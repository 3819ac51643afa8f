//! How stored snapshots are encrypted: the public half of it. No secret key has a type here, so none can travel.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Recipients of one snapshot: each adds about 150 bytes to every file.
pub const RECIPIENTS_MAX: usize = 16;

/// Secret keys in one key file.
pub const IDENTITIES_MAX: usize = 64;

/// How a recipient begins.
const PREFIX: &str = "age1";

/// The characters after the prefix: Bech32's.
const CHARACTERS: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";

/// Characters of a recipient, an X25519 key in Bech32.
const LENGTH: usize = 62;

/// A public key that files are encrypted to: `age1…`. Its checksum is checked where it is used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Recipient(String);

/// Text that is no recipient. The text is not repeated: it could be a secret key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a recipient is age1 and 58 more characters, in lower case")]
pub struct InvalidRecipient;

impl Recipient {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Recipient {
    type Err = InvalidRecipient;

    fn from_str(text: &str) -> Result<Self, InvalidRecipient> {
        let rest = text.strip_prefix(PREFIX).ok_or(InvalidRecipient)?;
        let valid = text.len() == LENGTH && rest.chars().all(|c| CHARACTERS.contains(c));
        valid.then(|| Self(text.to_owned())).ok_or(InvalidRecipient)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Recipient {
    type Error = InvalidRecipient;
    fn try_from(text: String) -> Result<Self, InvalidRecipient> {
        text.parse()
    }
}

impl From<Recipient> for String {
    fn from(recipient: Recipient) -> Self {
        recipient.0
    }
}

/// One to [`RECIPIENTS_MAX`] recipients, each once: the secret key of any of them reads what is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<Recipient>", into = "Vec<Recipient>")]
pub struct Recipients(Vec<Recipient>);

/// Too many recipients, none, or one twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("1 to {RECIPIENTS_MAX} recipients are allowed, each once")]
pub struct InvalidRecipients;

impl Recipients {
    /// All of them, in the order of the key file.
    pub fn iter(&self) -> impl Iterator<Item = &Recipient> {
        self.0.iter()
    }

    /// Whether one of them is that one.
    #[must_use]
    pub fn contains(&self, recipient: &Recipient) -> bool {
        self.0.contains(recipient)
    }
}

impl TryFrom<Vec<Recipient>> for Recipients {
    type Error = InvalidRecipients;
    fn try_from(all: Vec<Recipient>) -> Result<Self, InvalidRecipients> {
        let distinct: std::collections::HashSet<&Recipient> = all.iter().collect();
        if distinct.len() == all.len() && (1..=RECIPIENTS_MAX).contains(&all.len()) {
            Ok(Self(all))
        } else {
            Err(InvalidRecipients)
        }
    }
}

impl From<Recipients> for Vec<Recipient> {
    fn from(recipients: Recipients) -> Self {
        recipients.0
    }
}

impl fmt::Display for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, recipient) in self.0.iter().enumerate() {
            let joint = if at == 0 { "" } else { ", " };
            write!(f, "{joint}{recipient}")?;
        }
        Ok(())
    }
}

/// The format of encrypted files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncryptionFormat {
    /// <https://age-encryption.org/v1>.
    Age,
}

impl fmt::Display for EncryptionFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Age => f.write_str("age"),
        }
    }
}

/// How the files of one snapshot are encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encryption {
    /// The format.
    pub format: EncryptionFormat,
    /// Who can read them.
    pub recipients: Recipients,
}

impl Encryption {
    /// Age files for those recipients.
    #[must_use]
    pub fn age(recipients: Recipients) -> Self {
        Self {
            format: EncryptionFormat::Age,
            recipients,
        }
    }
}

/// Whether a snapshot's files are encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encrypt {
    /// They are not.
    #[default]
    No,
    /// To the key of the source's agent, whichever that is. So operators ask for it.
    ToAgentsKey,
    /// Like this: the key of the source's agent when the snapshot was begun. An agent with another key refuses.
    Like(Encryption),
}

impl Encrypt {
    /// How, once that is known.
    #[must_use]
    pub fn encryption(&self) -> Option<&Encryption> {
        match self {
            Self::Like(encryption) => Some(encryption),
            Self::No | Self::ToAgentsKey => None,
        }
    }
}

/// What an agent can do with its snapshot key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFacts {
    /// To whom it encrypts.
    pub encrypts: Encryption,
    /// What it can read: whatever is encrypted to one of these; at most [`IDENTITIES_MAX`].
    pub reads: Vec<Recipient>,
}

impl KeyFacts {
    /// Whether it can read what is encrypted like that.
    #[must_use]
    pub fn can_read(&self, encryption: &Encryption) -> bool {
        let wanted = &encryption.recipients;
        self.reads.iter().any(|own| wanted.contains(own))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

    #[test]
    fn recipients_are_some_and_each_once() {
        let one: Recipient = ONE.parse().unwrap();
        assert!(Recipients::try_from(vec![one.clone()]).is_ok());
        for bad in [vec![], vec![one.clone(), one]] {
            assert_eq!(Recipients::try_from(bad), Err(InvalidRecipients));
        }
        let json = format!(r#"{{"format":"age","recipients":["{ONE}"]}}"#);
        let encryption: Encryption = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&encryption).unwrap(), json);
        assert!(serde_json::from_str::<Encryption>(r#"{"format":"age","recipients":[]}"#).is_err());
    }

    #[test]
    fn a_secret_key_is_no_recipient_and_is_not_repeated() {
        let secret = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
        let error = secret.parse::<Recipient>().unwrap_err().to_string();
        assert!(!error.contains("GQ9778"), "{error}");
    }

    proptest! {
        #[test]
        fn a_recipient_reads_back_or_is_refused(text in "age1[a-z0-9]{50,70}|.{0,70}") {
            if let Ok(recipient) = text.parse::<Recipient>() {
                prop_assert_eq!(recipient.to_string(), text);
            }
        }
    }
}
