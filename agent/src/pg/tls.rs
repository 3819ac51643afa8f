//! TLS to PostgreSQL, following `sslmode`.
//!
//! TLS 1.2 is allowed here, and only here: supported PostgreSQL servers may be built on an OpenSSL without
//! 1.3.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::conninfo::{Roots, SslMode, TlsSettings};

/// Fit to be shown.
pub(super) type Reason = String;

/// Reads the files that `settings` name.
pub(super) fn client_config(settings: &TlsSettings) -> Result<ClientConfig, Reason> {
    let provider = Arc::new(ring::default_provider());
    let check = match (settings.mode, &settings.roots) {
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer, _) | (_, None) => None,
        (SslMode::Require | SslMode::VerifyCa, Some(roots)) => Some((roots, NameCheck::Skip)),
        (SslMode::VerifyFull, Some(roots)) => Some((roots, NameCheck::Demand)),
    };
    let verifier: Arc<dyn ServerCertVerifier> = match check {
        None => Arc::new(AcceptAny {
            provider: Arc::clone(&provider),
        }),
        Some((roots, name_check)) => Arc::new(Verifier::new(roots, name_check, &provider)?),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let Some((cert, key)) = &settings.client else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(cert)?;
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| format!("the key {} cannot be used: {error}", key.display()))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| error.to_string())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Reason> {
    let unusable = |error: &dyn std::fmt::Display| {
        format!(
            "the certificate file {} cannot be used: {error}",
            path.display()
        )
    };
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(&error))?;
    if found.is_empty() {
        Err(unusable(&"it holds no certificate"))
    } else {
        Ok(found)
    }
}

/// Whether the certificate must be for the requested host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NameCheck {
    Skip,
    Demand,
}

/// `verify-ca` and `verify-full`.
#[derive(Debug)]
struct Verifier {
    /// Trusted as they are: a server's own certificate may serve as root, as in OpenSSL.
    pinned: Vec<CertificateDer<'static>>,
    chain: Arc<WebPkiServerVerifier>,
    name_check: NameCheck,
}

impl Verifier {
    fn new(
        roots: &Roots,
        name_check: NameCheck,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Reason> {
        let (pinned, trusted) = match roots {
            Roots::File(path) => {
                let trusted = certificates(path)?;
                (trusted.clone(), trusted)
            }
            Roots::System => (Vec::new(), rustls_native_certs::load_native_certs().certs),
        };
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(trusted);
        if added == 0 {
            return Err("no usable root certificate was found".to_owned());
        }
        let chain =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
                .build()
                .map_err(|error| error.to_string())?;
        Ok(Self {
            pinned,
            chain,
            name_check,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self
            .pinned
            .iter()
            .any(|pinned| pinned.as_ref() == end_entity.as_ref())
        {
            if self.name_check == NameCheck::Demand {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&parsed, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let verdict = self.chain.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        // The name is checked last, so a wrong name means that everything else is right.
        match verdict {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.name_check == NameCheck::Skip => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// `require` and below: encryption without authentication, as these modes promise.
#[derive(Debug)]
struct AcceptAny {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
