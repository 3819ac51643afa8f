//! The keys that stored snapshots are encrypted with: a key file, as `age-keygen` writes one.
//!
//! Owns all that is secret here. What leaves this module is public: recipients and what a key can do. A key's text
//! is in no error, no log and no `Debug`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use age::secrecy::{ExposeSecret, SecretString};
use age::x25519;
use jiff::Timestamp;
use steep_certs::{FileError, read_file, read_key_file, write_key_file};
use steep_protocol::encryption::{
    Encryption, IDENTITIES_MAX, KeyFacts, RECIPIENTS_MAX, Recipient, Recipients,
};

/// How the line of a secret key begins.
const SECRET: &str = "AGE-SECRET-KEY-1";

/// How lines of keys begin that age knows and this does not.
const OTHERS: [(&str, &str); 4] = [
    ("AGE-SECRET-KEY-PQ-", "a post-quantum key"),
    ("AGE-PLUGIN-", "the key of a plugin"),
    ("-----BEGIN", "an armored or SSH key"),
    ("ssh-", "an SSH key"),
];

/// The keys of this process for stored snapshots; perhaps none. Clones share them.
#[derive(Clone, Default)]
pub struct Keys(Option<Arc<KeyFile>>);

struct KeyFile {
    path: PathBuf,
    identities: Vec<x25519::Identity>,
    recipients: Vec<x25519::Recipient>,
    facts: KeyFacts,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keys").field(&self.facts()).finish()
    }
}

/// A key file that cannot be used, and why. Nothing of its content is repeated.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// One of its lines.
    #[error("line {line} of the key file {} is {why}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// What it is, and what it should be.
        why: String,
    },
    /// There is no key in it.
    #[error(
        "the key file {} has no key: steep-repl snapshot keygen or age-keygen makes one",
        path.display()
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// There are too many keys in it.
    #[error(
        "the key file {} has too many keys: {IDENTITIES_MAX} secret keys and {RECIPIENTS_MAX} recipients are allowed",
        path.display()
    )]
    TooMany {
        /// The file.
        path: PathBuf,
    },
}

/// Why what is encrypted cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyProblem {
    /// There is no key file.
    NoKey,
    /// The key file has no secret key.
    OnlyRecipients(PathBuf),
    /// It has others.
    OtherKeys(PathBuf, Vec<Recipient>),
}

impl fmt::Display for KeyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey => f.write_str("there is no key for snapshots"),
            Self::OnlyRecipients(path) => write!(
                f,
                "{} has only recipients, which encrypt and cannot read",
                path.display()
            ),
            Self::OtherKeys(path, own) => {
                let own: Vec<&str> = own.iter().map(Recipient::as_str).collect();
                write!(
                    f,
                    "{} has only the key of {}",
                    path.display(),
                    own.join(", ")
                )
            }
        }
    }
}

impl Keys {
    /// Reads a key file: `AGE-SECRET-KEY-1…` and `age1…` lines, empty ones, and comments that begin with `#`. Files are
    /// encrypted to the first secret key and to all recipients; what any of the secret keys can read is read.
    ///
    /// # Errors
    /// [`KeyFileError`]; also if it has a secret key and others than its owner can read it.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let public = Self::parse(path, read_file(path)?)?;
        if public
            .0
            .as_ref()
            .is_none_or(|file| file.identities.is_empty())
        {
            return Ok(public);
        }
        // What is used was read from a file that nobody else can read.
        Self::parse(path, read_key_file(path)?)
    }

    fn parse(path: &Path, bytes: Vec<u8>) -> Result<Self, KeyFileError> {
        let path = || path.to_owned();
        let text = String::from_utf8(bytes).map_err(|error| {
            let whole = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            KeyFileError::Line {
                path: path(),
                line: 1 + memchr::memchr_iter(b'\n', whole).count(),
                why: "not text in UTF-8".to_owned(),
            }
        })?;
        let text = SecretString::from(text);
        let (mut identities, mut further) = (Vec::new(), Vec::new());
        // Some editors begin a file with a byte order mark.
        let lines = text.expose_secret().trim_start_matches('\u{feff}').lines();
        for (at, line) in lines.enumerate() {
            match read_line(line.trim()) {
                Ok(Line::Nothing) => {}
                Ok(Line::Identity(identity)) => identities.push(identity),
                Ok(Line::Recipient(recipient)) => further.push(recipient),
                Err(why) => {
                    let (path, line) = (path(), at + 1);
                    return Err(KeyFileError::Line { path, line, why });
                }
            }
        }
        let reads: Vec<Recipient> = identities.iter().filter_map(public).collect();
        let mut named: Vec<Recipient> = reads.first().cloned().into_iter().collect();
        for recipient in further {
            if !named.contains(&recipient) {
                named.push(recipient);
            }
        }
        if named.is_empty() {
            return Err(KeyFileError::Empty { path: path() });
        }
        let too_many = || KeyFileError::TooMany { path: path() };
        if identities.len() > IDENTITIES_MAX {
            return Err(too_many());
        }
        let recipients = named.iter().filter_map(|one| one.as_str().parse().ok());
        let recipients = recipients.collect();
        let encrypts = Recipients::try_from(named).map_err(|_| too_many())?;
        Ok(Self(Some(Arc::new(KeyFile {
            path: path(),
            identities,
            recipients,
            facts: KeyFacts {
                encrypts: Encryption::age(encrypts),
                reads,
            },
        }))))
    }

    /// What can be done with them; `None` without a key.
    #[must_use]
    pub fn facts(&self) -> Option<&KeyFacts> {
        self.0.as_ref().map(|file| &file.facts)
    }

    /// Whether what is encrypted like that can be read.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self, encryption: &Encryption) -> Result<(), KeyProblem> {
        let Some(file) = &self.0 else {
            return Err(KeyProblem::NoKey);
        };
        if file.facts.can_read(encryption) {
            return Ok(());
        }
        let path = file.path.clone();
        Err(match file.facts.reads.is_empty() {
            true => KeyProblem::OnlyRecipients(path),
            false => KeyProblem::OtherKeys(path, file.facts.reads.clone()),
        })
    }

    /// For [`age::Encryptor`].
    pub(crate) fn recipients(&self) -> impl Iterator<Item = &dyn age::Recipient> {
        let all = self.0.iter().flat_map(|file| &file.recipients);
        all.map(|recipient| recipient as &dyn age::Recipient)
    }

    /// For [`age::Decryptor`].
    pub(crate) fn identities(&self) -> impl Iterator<Item = &dyn age::Identity> {
        let all = self.0.iter().flat_map(|file| &file.identities);
        all.map(|identity| identity as &dyn age::Identity)
    }
}

/// Makes a new key and writes it to a file that does not exist, with mode 0600. Returns its public half.
///
/// # Errors
/// [`KeyFileError::File`].
pub fn generate(path: &Path) -> Result<Recipient, KeyFileError> {
    let identity = x25519::Identity::generate();
    let recipient = public(&identity).ok_or_else(|| KeyFileError::Empty {
        path: path.to_owned(),
    })?;
    let secret = identity.to_string();
    let text = SecretString::from(format!(
        "# created: {:.0}\n# public key: {recipient}\n{}\n",
        Timestamp::now(),
        secret.expose_secret()
    ));
    write_key_file(path, text.expose_secret().as_bytes())?;
    Ok(recipient)
}

enum Line {
    Nothing,
    Identity(x25519::Identity),
    Recipient(Recipient),
}

fn read_line(line: &str) -> Result<Line, String> {
    if line.is_empty() || line.starts_with('#') {
        return Ok(Line::Nothing);
    }
    if let Some((_, rest)) = line
        .split_once(char::is_whitespace)
        .filter(|(key, _)| is_key(key))
    {
        return Err(match rest.trim_start().starts_with('#') {
            true => "a key with a comment behind it: write the comment on a line of its own",
            false => "a key with something else behind it: write each key on a line of its own",
        }
        .to_owned());
    }
    if line.starts_with(SECRET) {
        let identity = line.parse::<x25519::Identity>();
        let wrong = |_| "not a whole secret key: it was cut off or mistyped".to_owned();
        return identity.map(Line::Identity).map_err(wrong);
    }
    if line.starts_with("age1") {
        let checked = line.parse::<x25519::Recipient>().ok();
        let recipient = checked.and_then(|_| line.parse().ok());
        let wrong = "not a whole recipient of an X25519 key (age1 and 58 more characters); others, such as those of \
                     plugins, are not supported";
        return recipient
            .map(Line::Recipient)
            .ok_or_else(|| wrong.to_owned());
    }
    let known = OTHERS.iter().find(|(start, _)| line.starts_with(start));
    let what = match known {
        Some((_, what)) => what,
        None if line.starts_with("age-encryption.org/") => "an encrypted file",
        None => "neither a key nor a comment",
    };
    Err(format!(
        "{what}: a key is AGE-SECRET-KEY-1…, as age-keygen writes it, or age1…"
    ))
}

/// Whether a word begins like a key.
fn is_key(word: &str) -> bool {
    word.starts_with(SECRET) || word.starts_with("age1")
}

/// The public half of a key.
fn public(identity: &x25519::Identity) -> Option<Recipient> {
    identity.to_public().to_string().parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::iter;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    pub(crate) const SECRET_KEY: &str =
        "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
    const PUBLIC_KEY: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

    /// Keys of a file with that content.
    pub(crate) fn keys(content: &str) -> Keys {
        Keys::parse(Path::new("/key"), content.as_bytes().to_vec()).unwrap()
    }

    /// A new secret key, as a line.
    pub(crate) fn new_key() -> String {
        let secret = x25519::Identity::generate().to_string();
        secret.expose_secret().to_owned()
    }

    fn recipients(keys: &Keys) -> Vec<String> {
        let encrypts = &keys.facts().unwrap().encrypts;
        encrypts
            .recipients
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn the_first_secret_key_and_every_recipient_encrypt_and_all_secret_keys_read() {
        let (other, friend) = (keys(&new_key()), keys(&new_key()));
        let (other_line, friend_line) = (&recipients(&other)[0], &recipients(&friend)[0]);
        let text = format!(
            "\u{feff}# a comment\r\n\n {SECRET_KEY}\n{friend_line}\n{PUBLIC_KEY}\n{}\n",
            new_key()
        );
        let both = keys(&text);
        assert_eq!(
            recipients(&both),
            [PUBLIC_KEY.to_owned(), friend_line.clone()]
        );
        assert_eq!(both.facts().unwrap().reads.len(), 2);
        let alone = keys(friend_line);
        let encryption = |keys: &Keys| keys.facts().unwrap().encrypts.clone();
        assert_eq!(both.check(&encryption(&keys(SECRET_KEY))), Ok(()));
        assert_eq!(friend.check(&encryption(&both)), Ok(()));
        let problem = alone.check(&encryption(&alone)).unwrap_err();
        assert_eq!(problem, KeyProblem::OnlyRecipients("/key".into()));
        let problem = other.check(&encryption(&both)).unwrap_err();
        assert!(problem.to_string().contains(other_line), "{problem}");
        let problem = Keys::default().check(&encryption(&both));
        assert_eq!(problem, Err(KeyProblem::NoKey));
    }

    #[test]
    fn a_line_that_is_no_key_is_named_by_its_number_and_not_repeated() {
        for (line, part) in [
            (&SECRET_KEY[..60], "cut off"),
            (&SECRET_KEY.replace("GQ97", "GQ98"), "cut off"),
            (&PUBLIC_KEY.replace("t7rx", "t7ry"), "recipient"),
            ("age1pq1qqqqqqqqqqqqqqqqqqqqqqqq", "not supported"),
            ("AGE-SECRET-KEY-PQ-1QQQQQQQQQQQQ", "post-quantum"),
            ("AGE-PLUGIN-YUBIKEY-1QQQQQQQQQQQ", "plugin"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----", "SSH"),
            ("age-encryption.org/v1", "an encrypted file"),
            ("hunter2-hunter2-hunter2", "neither"),
            (
                &format!("{SECRET_KEY} # mine"),
                "comment on a line of its own",
            ),
            (
                &format!("{PUBLIC_KEY}\t#friend"),
                "comment on a line of its own",
            ),
            (&format!("{PUBLIC_KEY} {PUBLIC_KEY}"), "each key on a line"),
        ] {
            let text = format!("# comment\n{line}\n");
            let error = Keys::parse(Path::new("/key"), text.into_bytes()).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("line 2 of the key file /key"), "{shown}");
            assert!(shown.contains(part), "{shown}");
            assert!(
                !shown.contains(&line[..20]) || line.starts_with("age-enc"),
                "{shown}"
            );
        }
        let bytes = [PUBLIC_KEY.as_bytes(), b"\n# comment\n\xff\n"].concat();
        let error = Keys::parse(Path::new("/key"), bytes).unwrap_err();
        assert!(error.to_string().contains("line 3 of"), "{error}");
        let empty = Keys::parse(Path::new("/key"), b"# nothing\n".to_vec());
        assert!(matches!(empty, Err(KeyFileError::Empty { .. })));
        let many = iter::repeat_with(new_key).take(IDENTITIES_MAX + 1);
        let many = many.collect::<Vec<_>>().join("\n");
        let many = Keys::parse(Path::new("/key"), many.into_bytes());
        assert!(matches!(many, Err(KeyFileError::TooMany { .. })));
    }

    #[test]
    fn a_new_key_is_its_owners_alone_never_overwritten_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.key");
        let recipient = generate(&path).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        let before = fs::read(&path).unwrap();
        assert!(matches!(
            generate(&path),
            Err(KeyFileError::File(FileError::Exists { .. }))
        ));
        assert_eq!(fs::read(&path).unwrap(), before);
        let keys = Keys::load(&path).unwrap();
        assert_eq!(
            keys.facts().unwrap().reads,
            std::slice::from_ref(&recipient)
        );
        let secret = String::from_utf8(before).unwrap();
        let secret = secret
            .lines()
            .find(|line| line.starts_with(SECRET))
            .unwrap();
        assert!(!format!("{keys:?}").contains(secret), "{keys:?}");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let exposed = Keys::load(&path).unwrap_err();
        assert!(exposed.to_string().contains("chmod 600"), "{exposed}");
        // Recipients are no secret.
        fs::write(&path, format!("{recipient}\n")).unwrap();
        assert!(Keys::load(&path).is_ok());
    }
}
