//! Making certificates: the cluster's own CA, and a leaf for each process. The only user of rcgen.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::file::{self, CERTIFICATE_MODE, FileError, KEY_MODE};
use crate::identity::{DOMAIN, Identity, IdentityError, Role, any_coordinator, short};

/// The CA's certificate in its directory.
pub const CA_CERTIFICATE: &str = "ca.pem";

/// The CA's private key in its directory. Only `certs issue` reads it; no process of the cluster
/// needs it.
pub const CA_KEY: &str = "ca.key";

/// Ten years: a CA that ends before the cluster does is an outage nobody planned.
const CA_DAYS: i64 = 3650;

/// 825 days, the longest that TLS clients of any kind accept of a leaf.
const LEAF_DAYS: i64 = 825;

/// Clocks that are up to five minutes behind take a new certificate at once.
const BACKDATE: SignedDuration = SignedDuration::from_secs(300);

/// The most names and addresses a user may add to one certificate.
const SANS_MAX: usize = 64;

/// A certificate that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file of it.
    #[error(transparent)]
    File(#[from] FileError),
    /// Whom it should be for.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no CA in the directory.
    #[error("there is no CA in {dir}: run `steep-repl certs init --dir {dir}` first", dir = .0.display())]
    NoAuthority(PathBuf),
    /// The CA's certificate is none, or not of a CA.
    #[error("{} is not a CA certificate made by `steep-repl certs init`", .0.display())]
    NotAnAuthority(PathBuf),
    /// The CA's key is none, or another CA's.
    #[error("{} is not the private key of the CA beside it", .0.display())]
    WrongKey(PathBuf),
    /// The CA's validity is over.
    #[error("the CA expired on {0}: make a new one in another directory and issue from it")]
    Expired(Timestamp),
    /// A name that the CA's own files have.
    #[error("the name {0:?} is taken by the CA's own files: choose another")]
    Reserved(String),
    /// Not a host name or address, or one of ours.
    #[error("{0:?} cannot be added to a certificate: give a host name or an IP address")]
    San(String),
    /// Names under our own domain are given by role and name alone.
    #[error("{0:?} lies under steep-repl.internal, whose names follow from --role and --name")]
    OwnDomain(String),
    /// More names than a certificate should carry.
    #[error("{0} names and addresses were given; a certificate carries at most {SANS_MAX}")]
    TooMany(usize),
    /// `--out` belongs to another cluster.
    #[error("{} is another CA's certificate: choose another output directory", .0.display())]
    OtherAuthority(PathBuf),
    /// Key generation or signing failed.
    #[error("the certificate could not be made: {0}")]
    Generate(#[from] rcgen::Error),
}

/// From when to when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub not_before: Timestamp,
    /// The last moment.
    pub not_after: Timestamp,
}

impl Validity {
    /// From a little before now, for that many days of 24 hours.
    #[must_use]
    pub fn days_from_now(days: i64) -> Self {
        let now = Timestamp::now();
        let length = SignedDuration::from_hours(days.saturating_mul(24));
        Self {
            not_before: now.saturating_sub(BACKDATE).unwrap_or(now),
            not_after: now.saturating_add(length).unwrap_or(Timestamp::MAX),
        }
    }

    fn leaf_default() -> Self {
        Self::days_from_now(LEAF_DAYS)
    }
}

/// What a leaf certificate should say.
#[derive(Debug, Clone)]
pub struct LeafRequest {
    /// Whom it is for.
    pub identity: Identity,
    /// Host names and IP addresses beside our own names.
    pub sans: Vec<String>,
    /// When it holds; cut off where the CA's own validity ends. 825 days where `None`.
    pub validity: Option<Validity>,
}

/// Where the files of a certificate are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedFiles {
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key, mode 0600.
    pub key: PathBuf,
}

/// Makes a cluster's CA in `dir`, which is created where needed: `ca.pem` and `ca.key`.
///
/// # Errors
/// [`AuthorityError::File`] where a file is there already or cannot be written.
pub fn init_ca(dir: &Path) -> Result<IssuedFiles, AuthorityError> {
    let files = IssuedFiles {
        ca: dir.join(CA_CERTIFICATE),
        certificate: dir.join(CA_CERTIFICATE),
        key: dir.join(CA_KEY),
    };
    file::refuse_existing(&[&files.certificate, &files.key])?;

    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    // Each CA has a subject of its own, so that a leaf of another one is refused as of an unknown
    // issuer and not as badly signed.
    let tag: String = params
        .key_identifier(&key)
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    params.distinguished_name = subject(&format!("steep-repl cluster CA {tag}"), None);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, Validity::days_from_now(CA_DAYS));
    let certificate = params.self_signed(&key)?;

    file::make_directory(dir)?;
    write_pair(&files, &certificate.pem(), &key)?;
    Ok(files)
}

/// Issues a certificate of the CA in `dir`, valid for 825 days, as `NAME.pem` and `NAME.key` in
/// `out` (in `dir` where `None`). `sans` are host names and IP addresses to add.
///
/// # Errors
/// See [`issue_with`].
pub fn issue(
    dir: &Path,
    role: Role,
    name: &str,
    sans: &[String],
    out: Option<&Path>,
) -> Result<IssuedFiles, AuthorityError> {
    let request = LeafRequest {
        identity: Identity::new(role, name)?,
        sans: sans.to_vec(),
        validity: None,
    };
    issue_with(dir, &request, out)
}

/// Issues the certificate `request` describes. An `out` other than `dir` gets a copy of `ca.pem`
/// too, so that it holds all a process needs.
///
/// # Errors
/// [`AuthorityError`] where there is no usable CA in `dir`, the request cannot be a certificate, or
/// a file is there already or cannot be written. Nothing is left behind then.
pub fn issue_with(
    dir: &Path,
    request: &LeafRequest,
    out: Option<&Path>,
) -> Result<IssuedFiles, AuthorityError> {
    // Its fields are public, so the name may never have been checked.
    let identity = Identity::new(request.identity.role, &request.identity.name)?;
    if identity.name == "ca" {
        return Err(AuthorityError::Reserved(identity.name));
    }
    let names = alternative_names(&identity, &request.sans)?;
    let authority = Authority::load(dir)?;

    let out = out.unwrap_or(dir);
    let files = IssuedFiles {
        ca: out.join(CA_CERTIFICATE),
        certificate: out.join(format!("{}.pem", identity.name)),
        key: out.join(format!("{}.key", identity.name)),
    };
    file::refuse_existing(&[&files.certificate, &files.key])?;

    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&identity.name, Some(identity.role));
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Both ends of a connection show one, and an agent is both.
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let mut validity = request.validity.unwrap_or_else(Validity::leaf_default);
    validity.not_after = validity.not_after.min(authority.not_after);
    set_validity(&mut params, validity);
    let certificate = params.signed_by(&key, &authority.issuer)?;

    file::make_directory(out)?;
    authority.publish(&files.ca)?;
    write_pair(&files, &certificate.pem(), &key)?;
    Ok(files)
}

/// A CA, read from its directory.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: Vec<u8>,
    not_after: Timestamp,
}

impl Authority {
    fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let (certificate_path, key_path) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
        if !certificate_path.exists() && !key_path.exists() {
            return Err(AuthorityError::NoAuthority(dir.to_owned()));
        }
        let pem = file::read(&certificate_path)?;
        let key_pem = file::read_key(&key_path)?;

        let not_ca = || AuthorityError::NotAnAuthority(certificate_path.clone());
        let der = CertificateDer::from_pem_slice(&pem).map_err(|_| not_ca())?;
        let not_after = {
            let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| not_ca())?;
            if !parsed.is_ca() {
                return Err(not_ca());
            }
            Timestamp::from_second(parsed.validity().not_after.timestamp()).map_err(|_| not_ca())?
        };
        if not_after < Timestamp::now() {
            return Err(AuthorityError::Expired(not_after));
        }

        let wrong_key = || AuthorityError::WrongKey(key_path.clone());
        let key_text = std::str::from_utf8(&key_pem).map_err(|_| wrong_key())?;
        let key = KeyPair::from_pem(key_text).map_err(|_| wrong_key())?;
        {
            let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| not_ca())?;
            let public = &parsed.public_key().subject_public_key.data;
            if public.as_ref() != key.public_key_raw() {
                return Err(wrong_key());
            }
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|_| not_ca())?;
        Ok(Self {
            issuer,
            der,
            pem,
            not_after,
        })
    }

    /// Puts the CA's certificate there, unless it is there.
    fn publish(&self, path: &Path) -> Result<(), AuthorityError> {
        if !path.exists() {
            return Ok(file::write_new(path, &self.pem, CERTIFICATE_MODE)?);
        }
        let there = CertificateDer::from_pem_slice(&file::read(path)?);
        if there.is_ok_and(|there| there == self.der) {
            Ok(())
        } else {
            Err(AuthorityError::OtherAuthority(path.to_owned()))
        }
    }
}

/// Identity, our own server names, then what the user adds.
fn alternative_names(identity: &Identity, sans: &[String]) -> Result<Vec<SanType>, AuthorityError> {
    if sans.len() > SANS_MAX {
        return Err(AuthorityError::TooMany(sans.len()));
    }
    let own = |text: &str| Ia5String::try_from(text).map_err(AuthorityError::Generate);
    let mut names = vec![
        SanType::URI(own(&identity.to_string())?),
        SanType::DnsName(own(&identity.server_name().to_str())?),
    ];
    if identity.role == Role::Coordinator {
        names.push(SanType::DnsName(own(&any_coordinator().to_str())?));
    }
    for san in sans {
        let added = if let Ok(address) = san.parse::<IpAddr>() {
            SanType::IpAddress(address)
        } else {
            let bad = || AuthorityError::San(short(san));
            let name = DnsName::try_from(san.as_str()).map_err(|_| bad())?;
            let name = name.to_lowercase_owned();
            let text = name.as_ref().trim_end_matches('.');
            if text == DOMAIN || text.ends_with(&format!(".{DOMAIN}")) {
                return Err(AuthorityError::OwnDomain(short(san)));
            }
            SanType::DnsName(Ia5String::try_from(text).map_err(|_| bad())?)
        };
        if !names.contains(&added) {
            names.push(added);
        }
    }
    Ok(names)
}

fn subject(name: &str, role: Option<Role>) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "steep-repl");
    if let Some(role) = role {
        subject.push(DnType::OrganizationalUnitName, role.as_str());
    }
    subject.push(DnType::CommonName, name);
    subject
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // Certificates of ours begin and end after 1970; an earlier moment becomes 1970.
    let since = |at: Timestamp| Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0));
    params.not_before = epoch + since(validity.not_before);
    params.not_after = epoch + since(validity.not_after);
}

/// Writes key and certificate, or neither.
fn write_pair(files: &IssuedFiles, pem: &str, key: &KeyPair) -> Result<(), FileError> {
    file::write_new(&files.key, key.serialize_pem().as_bytes(), KEY_MODE)?;
    file::write_new(&files.certificate, pem.as_bytes(), CERTIFICATE_MODE)
        .inspect_err(|_| file::take_back(&files.key))
}
