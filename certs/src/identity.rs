//! Who a process is, as its certificate says it, and the names servers are verified by.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::{CertificateDer, DnsName, ServerName};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The scheme of the URI that carries an identity.
const SCHEME: &str = "steep-repl://";

/// The domain of every name servers are verified by. `internal` is reserved for private use and
/// never resolves in public DNS.
pub(crate) const DOMAIN: &str = "steep-repl.internal";

/// The longest name, so that it fits a DNS label.
const NAME_MAX: usize = 63;

/// What a process is for; what it may do follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Runs beside one PostgreSQL server.
    Agent,
    /// Holds the state of the cluster.
    Coordinator,
    /// A person, or a script of theirs.
    Operator,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Agent, Self::Coordinator, Self::Operator];

    /// The role in certificates and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Coordinator => "coordinator",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| IdentityError::Role(short(text)))
    }
}

/// A role and the name of who has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// What it is for.
    pub role: Role,
    /// Which one: the node's name for an agent. 1 to 63 of `a-z 0-9 _ -`, beginning with a letter.
    pub name: String,
}

/// A certificate that does not say who it is for, or a name or role that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not an X.509 certificate.
    #[error("this is not an X.509 certificate")]
    NotACertificate,
    /// No URI of ours in it: made by something else than `steep-repl certs issue`.
    #[error("the certificate carries no steep-repl identity (a URI steep-repl://ROLE/NAME)")]
    None,
    /// Several identities; which one holds would be a guess.
    #[error("the certificate carries more than one steep-repl identity")]
    Several,
    /// A URI of ours that is not of the form.
    #[error("{0:?} is not of the form steep-repl://ROLE/NAME")]
    Malformed(String),
    /// Not a role.
    #[error("{0:?} is not a role: use agent, coordinator or operator")]
    Role(String),
    /// Not a name.
    #[error(
        "{0:?} is not a name: use 1 to 63 of a-z, 0-9, underscore and hyphen, beginning with a letter"
    )]
    Name(String),
}

impl Identity {
    /// An identity, its name checked.
    ///
    /// # Errors
    /// [`IdentityError::Name`] where the name breaks the rule.
    pub fn new(role: Role, name: &str) -> Result<Self, IdentityError> {
        if is_name(name) {
            let name = name.to_owned();
            Ok(Self { role, name })
        } else {
            Err(IdentityError::Name(short(name)))
        }
    }

    /// The identity that certificate carries. Says nothing about whether to believe it: that is the
    /// handshake's work.
    ///
    /// # Errors
    /// [`IdentityError`] where it carries none, several or a malformed one.
    pub fn from_certificate(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| IdentityError::NotACertificate)?;
        Self::from_parsed(&certificate)
    }

    /// That certificate's serial number as `steep-repl certs show` prints it: of two certificates for
    /// one name, which one it is.
    ///
    /// # Errors
    /// [`IdentityError::NotACertificate`].
    pub fn serial(der: &CertificateDer<'_>) -> Result<String, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| IdentityError::NotACertificate)?;
        Ok(certificate.raw_serial_as_string())
    }

    pub(crate) fn from_parsed(certificate: &X509Certificate<'_>) -> Result<Self, IdentityError> {
        let mut found = None;
        for extension in certificate.extensions() {
            let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension()
            else {
                continue;
            };
            for name in &names.general_names {
                let GeneralName::URI(uri) = name else {
                    continue;
                };
                if !uri.starts_with(SCHEME) {
                    continue;
                }
                if found.replace(uri.parse()?).is_some() {
                    return Err(IdentityError::Several);
                }
            }
        }
        found.ok_or(IdentityError::None)
    }

    /// The name a client verifies this one by.
    #[must_use]
    pub fn server_name(&self) -> ServerName<'static> {
        server_name(self.role, &self.name)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let (role, name) = text
            .strip_prefix(SCHEME)
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(|| IdentityError::Malformed(short(text)))?;
        Self::new(role.parse()?, name)
    }
}

/// The name by which a client verifies the server with that role and name:
/// `<name>.<role>.steep-repl.internal`. A text that is no valid name gives one that no certificate
/// carries, so that dialling it fails instead of reaching somebody else.
#[must_use]
pub fn server_name(role: Role, name: &str) -> ServerName<'static> {
    ServerName::DnsName(if is_name(name) {
        dns(format!("{}.{role}.{DOMAIN}", label(name)))
    } else {
        dns(format!("invalid.{DOMAIN}"))
    })
}

/// The name every coordinator's certificate carries beside its own: whoever dials a coordinator
/// knows its address and not its name.
#[must_use]
pub fn any_coordinator() -> ServerName<'static> {
    ServerName::DnsName(dns(format!("coordinator.{DOMAIN}")))
}

/// A DNS label must not end in a hyphen, and a node name may. Such a name is written without its
/// final hyphens and with a second label that counts them, which no other name produces.
fn label(name: &str) -> String {
    let trimmed = name.trim_end_matches('-');
    match name.len() - trimmed.len() {
        0 => name.to_owned(),
        hyphens => format!("{trimmed}.h{hyphens}"),
    }
}

fn dns(name: String) -> DnsName<'static> {
    DnsName::try_from(name).expect("built of checked labels only")
}

fn is_name(text: &str) -> bool {
    text.len() <= NAME_MAX
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

/// As much of a text from outside as an error should show.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_files_urls_or_dns_would_misread_are_refused() {
        for bad in [
            "",
            "A",
            "1a",
            "-a",
            "_a",
            "a.b",
            "a/b",
            "../a",
            "a b",
            "a\0",
            "é",
            "a\n",
            &"x".repeat(64),
        ] {
            let refused = Identity::new(Role::Agent, bad);
            assert!(
                matches!(refused, Err(IdentityError::Name(_))),
                "{bad:?} was taken"
            );
        }
    }

    #[test]
    fn a_uri_with_more_or_less_in_it_is_refused() {
        for bad in [
            "",
            "steep-repl://",
            "steep-repl://agent",
            "steep-repl://agent/",
            "steep-repl://agent/a/b",
            "steep-repl://Agent/a",
            "steep-repl://root/a",
            "spiffe://agent/a",
            "steep-repl://agent/a?x",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_invalid_name_is_verified_by_a_name_nobody_has() {
        assert_eq!(
            server_name(Role::Agent, "a.b").to_str(),
            "invalid.steep-repl.internal"
        );
    }

    proptest! {
        #[test]
        fn every_name_has_a_server_name_of_its_own(
            a in "[a-z][a-z0-9_-]{0,62}", b in "[a-z][a-z0-9_-]{0,62}", tail in "-{0,3}"
        ) {
            let (a, b) = (a + &tail, b);
            prop_assume!(a.len() <= 63 && a != b);
            prop_assert_ne!(server_name(Role::Agent, &a), server_name(Role::Agent, &b));
            prop_assert_ne!(server_name(Role::Agent, &a), server_name(Role::Coordinator, &a));
        }

        #[test]
        fn identities_round_trip(name in "[a-z][a-z0-9_-]{0,62}") {
            for role in Role::ALL {
                let identity = Identity::new(role, &name).unwrap();
                prop_assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
            }
        }

        #[test]
        fn any_text_is_an_identity_or_an_error(text: String) {
            let _ = (text.parse::<Identity>(), server_name(Role::Operator, &text));
        }

        #[test]
        fn any_bytes_are_a_certificate_or_an_error(bytes: Vec<u8>) {
            prop_assert!(Identity::from_certificate(&CertificateDer::from(bytes)).is_err());
        }
    }
}
