//! Where a snapshot is stored: an absolute path, or a URL of an object store. Never a credential.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// The longest location, in bytes: PostgreSQL hosts allow paths of 4,096, buckets keys of 1,024.
const LENGTH_MAX: usize = 4096;

/// The object stores that can hold a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Amazon S3 and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Az,
}

impl Scheme {
    /// The scheme in URLs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
        }
    }
}

/// A place for one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// A directory on the agent's host, by absolute path.
    Directory(PathBuf),
    /// A prefix in a bucket (Azure: a container).
    Bucket {
        /// The store.
        scheme: Scheme,
        /// The bucket's name.
        bucket: String,
        /// The keys' prefix without slashes at its ends; not empty.
        prefix: String,
    },
}

/// Text that is no location. Says nothing of the text where it may contain a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLocation {
    /// A relative path.
    #[error(
        "{0:?} is not an absolute path: write it from the root on, or as a URL (s3://, gs://, az://, file:///)"
    )]
    Relative(String),
    /// A path with `..`, or the root itself.
    #[error("{0:?} cannot hold a snapshot: name a directory of its own, without \"..\"")]
    Path(String),
    /// An unknown scheme.
    #[error(
        "{0:?} is not a store that is supported: use s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, file:///PATH or an absolute path"
    )]
    Scheme(String),
    /// A user, password or query in the URL.
    #[error(
        "a store's URL cannot contain a user, a password or a query: credentials come from the agent's environment or from a file that it names"
    )]
    Credentials,
    /// The bucket or its prefix.
    #[error("{given:?} does not name a place in a bucket: {rule}")]
    Bucket {
        /// The URL.
        given: String,
        /// The rule.
        rule: &'static str,
    },
    /// Longer than any place's name.
    #[error("a location is at most {LENGTH_MAX} bytes long")]
    Length,
}

impl Location {
    /// Reads an absolute path or a URL.
    ///
    /// # Errors
    /// [`InvalidLocation`] says what is allowed.
    pub fn parse(text: &str) -> Result<Self, InvalidLocation> {
        if text.len() > LENGTH_MAX {
            return Err(InvalidLocation::Length);
        }
        match text.split_once("://") {
            // A scheme contains no slash, so "/a://b" is a path.
            Some((scheme, rest)) if !scheme.contains('/') => Self::url(text, scheme, rest),
            _ => directory(text),
        }
    }

    fn url(text: &str, scheme: &str, rest: &str) -> Result<Self, InvalidLocation> {
        let scheme = match scheme {
            "file" if rest.starts_with('/') => return directory(rest),
            "file" => return Err(InvalidLocation::Relative(shown(text))),
            "s3" => Scheme::S3,
            "gs" => Scheme::Gs,
            "az" => Scheme::Az,
            other => return Err(InvalidLocation::Scheme(format!("{}://", shown(other)))),
        };
        if rest.contains(['@', '?', '#']) {
            return Err(InvalidLocation::Credentials);
        }
        let bad = |rule| InvalidLocation::Bucket {
            given: shown(text),
            rule,
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let in_bucket = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
        if !(3..=222).contains(&bucket.len()) || !bucket.bytes().all(in_bucket) {
            return Err(bad("a bucket's name is 3 to 222 of a-z, 0-9, - . and _"));
        }
        if prefix.is_empty() {
            return Err(bad("a prefix of its own is needed after the bucket"));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._=+".contains(c);
        let segment = |s: &str| !matches!(s, "" | "." | "..") && s.chars().all(plain);
        if prefix.len() > 900 || !prefix.split('/').all(segment) {
            return Err(bad(
                "a prefix is at most 900 of A-Z, a-z, 0-9 and - . _ = + between single slashes",
            ));
        }
        Ok(Self::Bucket {
            scheme,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

fn directory(text: &str) -> Result<Location, InvalidLocation> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(InvalidLocation::Relative(shown(text)));
    }
    let mut names = 0;
    for component in path.components() {
        match component {
            Component::Normal(_) => names += 1,
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(InvalidLocation::Path(shown(text)));
            }
        }
    }
    if names == 0 || text.contains('\0') {
        return Err(InvalidLocation::Path(shown(text)));
    }
    Ok(Location::Directory(path.components().collect()))
}

/// Short enough for one line.
fn shown(text: &str) -> String {
    text.chars().take(160).collect()
}

impl FromStr for Location {
    type Err = InvalidLocation;
    fn from_str(text: &str) -> Result<Self, InvalidLocation> {
        Self::parse(text)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Bucket {
                scheme,
                bucket,
                prefix,
            } => write!(f, "{}://{bucket}/{prefix}", scheme.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn locations_are_absolute_paths_or_urls_of_known_stores() {
        for (given, shown) in [
            ("/backup/a", "/backup/a"),
            ("file:///backup/./a/", "/backup/a"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("gs://bucket/a", "gs://bucket/a"),
            ("az://container/a", "az://container/a"),
            ("/a://b", "/a:/b"),
        ] {
            assert_eq!(Location::parse(given).unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "a/b",
            "./a",
            "/",
            "/a/../b",
            "file://host/a",
            "s3://bucket",
            "s3://bucket/",
            "s3:///a",
            "s3://bucket/a//b",
            "s3://bucket/../a",
            "s3://Bu/a",
            "S3://bucket/a",
            "https://bucket.s3.amazonaws.com/a",
            "s3://bucket/a b",
        ] {
            assert!(Location::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_url_with_a_credential_is_refused_without_repeating_it() {
        for given in [
            "s3://KEY:hunter2@bucket/a",
            "az://container/a?sig=hunter2",
            "s3://bucket/a?aws_secret_access_key=hunter2",
            "gs://bucket/a#hunter2",
        ] {
            let error = Location::parse(given).unwrap_err();
            assert_eq!(error, InvalidLocation::Credentials);
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_location_that_reads_back_or_an_error(text in "(/|s3://|gs://|file:///)?[a-z0-9./@?-]{0,20}") {
            if let Ok(location) = Location::parse(&text) {
                prop_assert_eq!(Location::parse(&location.to_string()).unwrap(), location);
            }
        }
    }
}
