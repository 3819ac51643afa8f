//! What a process shows to its peers and checks them by: the CA, its own certificate and key.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use crate::file::{self, FileError};
use crate::identity::{Identity, IdentityError};
use crate::inspect;

/// Files that do not make credentials, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read, or the key is exposed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that should hold certificates holds none that can be read.
    #[error("{} holds no certificate in PEM form: {why}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        why: String,
    },
    /// A file that should hold a key holds none that can be read.
    #[error("{} holds no usable private key in PEM form", .0.display())]
    NoKey(PathBuf),
    /// The CA file holds something that cannot be trusted as a root.
    #[error("{} is not a CA certificate: {why}", path.display())]
    NotAnAuthority {
        /// The file.
        path: PathBuf,
        /// What rustls says.
        why: String,
    },
    /// The certificate says nothing about whom it is for.
    #[error("{}: {source}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IdentityError,
    },
    /// Key and certificate are of different pairs.
    #[error("the private key {} does not belong to the certificate {}", key.display(), certificate.display())]
    WrongKey {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// Signed by somebody else.
    #[error(
        "the certificate {} was not issued by the CA in {}: use the ca.pem it was issued with, or issue it anew",
        certificate.display(), ca.display()
    )]
    OtherAuthority {
        /// The certificate's file.
        certificate: PathBuf,
        /// The CA's file.
        ca: PathBuf,
    },
    /// Its time is over.
    #[error("the certificate {} expired on {at}: issue a new one with `steep-repl certs issue`", path.display())]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// Its last moment.
        at: Timestamp,
    },
    /// Its time has not come.
    #[error("the certificate {} is not valid before {at}: is this machine's clock right?", path.display())]
    NotYetValid {
        /// The certificate's file.
        path: PathBuf,
        /// Its first moment.
        at: Timestamp,
    },
    /// Anything else that TLS objects to.
    #[error("the certificate {} cannot be used: {why}", path.display())]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// What rustls says.
        why: String,
    },
    /// rustls refuses the configuration.
    #[error("no TLS configuration can be made: {0}")]
    Tls(String),
}

/// The CA's roots, and this process's own certificate and key: read, and checked against each
/// other. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    identity: Identity,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads and checks the three files: PEM, at most 64 KiB each.
    ///
    /// # Errors
    /// [`CredentialsError`] where a file is missing, unreadable or not what it should be, the key
    /// can be read by others or belongs to another certificate, or the certificate is not the CA's
    /// or not valid now.
    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Self, CredentialsError> {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(read_roots(ca)?);
        let chain = read_certificates(cert)?;
        let private = PrivateKeyDer::from_pem_slice(&file::read_key(key)?)
            .map_err(|_| CredentialsError::NoKey(key.to_owned()))?;

        let leaf = chain.first().expect("read_certificates gives at least one");
        let identity =
            Identity::from_certificate(leaf).map_err(|source| CredentialsError::Identity {
                path: cert.to_owned(),
                source,
            })?;

        let signing = provider
            .key_provider
            .load_private_key(private.clone_key())
            .map_err(|_| CredentialsError::NoKey(key.to_owned()))?;
        CertifiedKey::new(chain.clone(), signing)
            .keys_match()
            .map_err(|_| CredentialsError::WrongKey {
                key: key.to_owned(),
                certificate: cert.to_owned(),
            })?;

        // Checked as a peer will check it, so that what is wrong is said here and not by the peer.
        verifier(&roots, &provider)?
            .verify_client_cert(leaf, &chain[1..], UnixTime::now())
            .map_err(|error| refused(error, ca, cert))?;

        Ok(Self {
            identity,
            roots,
            chain,
            key: Arc::new(private),
            provider,
        })
    }

    /// Who this process is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// TLS for the listening end: TLS 1.3, the client must show a certificate of the same CA; no
    /// session tickets and no early data, so every connection is a full handshake.
    ///
    /// # Errors
    /// [`CredentialsError::Tls`] where rustls refuses.
    pub fn server_config(&self, alpn: &[u8]) -> Result<ServerConfig, CredentialsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(verifier(&self.roots, &self.provider)?)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(tls)?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// TLS for the dialling end: TLS 1.3, the server must show a certificate of the same CA that
    /// carries the [`crate::server_name`] dialled; ours is shown; no resumption, no early data.
    ///
    /// # Errors
    /// [`CredentialsError::Tls`] where rustls refuses.
    pub fn client_config(&self, alpn: &[u8]) -> Result<ClientConfig, CredentialsError> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(tls)?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(tls)?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(config)
    }
}

fn tls(error: impl fmt::Display) -> CredentialsError {
    CredentialsError::Tls(error.to_string())
}

fn verifier(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, CredentialsError> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .build()
        .map_err(tls)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let bytes = file::read(path)?;
    let no_certificate = |why: String| CredentialsError::NoCertificate {
        path: path.to_owned(),
        why,
    };
    let certificates = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| no_certificate(error.to_string()))?;
    if certificates.is_empty() {
        return Err(no_certificate("nothing of that kind in it".to_owned()));
    }
    Ok(certificates)
}

fn read_roots(path: &Path) -> Result<RootCertStore, CredentialsError> {
    let not_ca = |why: String| CredentialsError::NotAnAuthority {
        path: path.to_owned(),
        why,
    };
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        if !inspect::is_ca(&certificate) {
            return Err(not_ca("it may not sign certificates".to_owned()));
        }
        roots
            .add(certificate)
            .map_err(|error| not_ca(error.to_string()))?;
    }
    Ok(roots)
}

/// What a refused certificate of our own means, and what to do.
fn refused(error: rustls::Error, ca: &Path, cert: &Path) -> CredentialsError {
    let path = cert.to_owned();
    let why = error.to_string();
    let validity = inspect::show(cert).ok().map(|info| info.validity);
    match (error, validity) {
        (
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ),
            Some(validity),
        ) => CredentialsError::Expired {
            path,
            at: validity.not_after,
        },
        (
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ),
            Some(validity),
        ) => CredentialsError::NotYetValid {
            path,
            at: validity.not_before,
        },
        (
            rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ),
            _,
        ) => CredentialsError::OtherAuthority {
            certificate: path,
            ca: ca.to_owned(),
        },
        _ => CredentialsError::Unusable { path, why },
    }
}
