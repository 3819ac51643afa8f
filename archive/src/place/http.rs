//! The HTTP client for object stores, with this project's TLS: rustls on ring and the system's roots.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use object_store::client::{HttpClient, HttpConnector};
use object_store::{ClientConfigKey, ClientOptions};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

/// To connect, TLS included, where nothing is set.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Without a byte from the store, where nothing is set. It runs while a piece of 8 MiB is sent, too: such a
/// link carries half a megabit per second at least.
pub(super) const SILENCE: Duration = Duration::from_secs(120);

/// For one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);

/// Builds the client that a store uses.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let duration = |key, default| {
            options
                .get_config_value(&key)
                .and_then(|value| value.parse::<SignedDuration>().ok())
                .and_then(|value| Duration::try_from(value).ok())
                .unwrap_or(default)
        };
        let allow_http = is_set(options.get_config_value(&ClientConfigKey::AllowHttp));
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls()?)
            .https_only(!allow_http)
            // A redirect could lead to a host that must not see the credentials.
            .redirect(reqwest::redirect::Policy::none())
            // A machine's own role is asked for with a shorter one.
            .connect_timeout(duration(ClientConfigKey::ConnectTimeout, CONNECT_TIMEOUT))
            // `AWS_READ_TIMEOUT=30s`.
            .read_timeout(duration(ClientConfigKey::ReadTimeout, SILENCE))
            .timeout(REQUEST_TIMEOUT)
            .user_agent(concat!("steep-repl/", env!("CARGO_PKG_VERSION")));
        if let Some(headers) = options.get_default_headers() {
            builder = builder.default_headers(headers.clone());
        }
        builder.build().map(HttpClient::new).map_err(failed)
    }
}

/// Reads a switch as stores' own tools do: `AWS_ALLOW_HTTP=1`.
pub(super) fn is_set(value: Option<String>) -> bool {
    let value = value.map(|value| value.to_ascii_lowercase());
    value.is_some_and(|value| matches!(&*value, "1" | "true" | "on" | "yes" | "y"))
}

fn tls() -> object_store::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    // A broken certificate among the system's roots does not matter; without any, connecting says so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> object_store::Error {
    object_store::Error::Generic {
        store: "HTTP client",
        source: Box::new(error),
    }
}
