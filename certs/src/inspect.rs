//! What a certificate file says, for people.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::Validity;
use crate::file::{self, FileError};
use crate::identity::{Identity, IdentityError};

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Whom it is for; `None` for a CA.
    pub identity: Option<Identity>,
    /// Whether it is a CA's.
    pub is_ca: bool,
    /// Its subject, as RFC 4514 text.
    pub subject: String,
    /// Its issuer, as RFC 4514 text.
    pub issuer: String,
    /// Its serial number, hexadecimal bytes with colons.
    pub serial: String,
    /// Host names in it, our own first.
    pub dns_names: Vec<String>,
    /// Addresses in it.
    pub addresses: Vec<IpAddr>,
    /// When it holds.
    pub validity: Validity,
}

impl CertificateInfo {
    /// Whether it holds at that moment.
    #[must_use]
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        (self.validity.not_before..=self.validity.not_after).contains(&now)
    }
}

/// A file that cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Holds no certificate.
    #[error("{} holds no certificate in PEM form{}", path.display(), if *key { ": it is a private key" } else { "" })]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// Whether it is a private key instead.
        key: bool,
    },
    /// Holds one, but not of ours.
    #[error("{}: {source}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IdentityError,
    },
}

/// Reads the first certificate of a PEM file.
///
/// # Errors
/// [`InspectError`] where the file holds none, or one that is neither a CA's nor carries an
/// identity.
pub fn show(path: &Path) -> Result<CertificateInfo, InspectError> {
    let bytes = file::read(path)?;
    let der = CertificateDer::from_pem_slice(&bytes).map_err(|_| InspectError::NoCertificate {
        path: path.to_owned(),
        key: rustls_pki_types::PrivateKeyDer::from_pem_slice(&bytes).is_ok(),
    })?;
    describe(&der).map_err(|source| InspectError::Identity {
        path: path.to_owned(),
        source,
    })
}

fn describe(der: &CertificateDer<'_>) -> Result<CertificateInfo, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(|_| IdentityError::NotACertificate)?;
    let is_ca = parsed.is_ca();
    let identity = match Identity::from_parsed(&parsed) {
        Ok(identity) => Some(identity),
        Err(IdentityError::None) if is_ca => None,
        Err(error) => return Err(error),
    };
    let (mut dns_names, mut addresses) = (Vec::new(), Vec::new());
    for extension in parsed.extensions() {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            continue;
        };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
    }
    let moment = |at: x509_parser::time::ASN1Time| {
        Timestamp::from_second(at.timestamp()).map_err(|_| IdentityError::NotACertificate)
    };
    Ok(CertificateInfo {
        identity,
        is_ca,
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        serial: parsed.raw_serial_as_string(),
        dns_names,
        addresses,
        validity: Validity {
            not_before: moment(parsed.validity().not_before)?,
            not_after: moment(parsed.validity().not_after)?,
        },
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// Whether a certificate is a CA's; not for what is no certificate.
pub(crate) fn is_ca(der: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, parsed)| parsed.is_ca())
}
