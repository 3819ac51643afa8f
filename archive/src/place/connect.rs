//! Connects to an object store. Credentials, region and endpoint come from the environment, as the stores'
//! own tools read them: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`,
//! `AZURE_STORAGE_ACCOUNT_NAME` and so on, or from the machine's own role.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::HttpConnector as _;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};

use super::http::{Connector, SILENCE, is_set};
use super::uploads::Uploads;
use crate::error::Error;
use crate::location::{Location, Scheme};

/// How often a request is repeated.
pub(super) const RETRIES_MAX: usize = 8;

/// A request that fails at once is repeated for about 40 s: longer outages are the caller's to wait for. One
/// that stalls is repeated twice; the third must begin while its signature, which is five minutes old then,
/// and the credentials are valid.
fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(15),
            base: 2.0,
        },
        max_retries: RETRIES_MAX,
        retry_timeout: SILENCE
            .saturating_mul(2)
            .saturating_add(Duration::from_secs(30)),
    }
}

/// A bucket.
pub(super) struct Connected {
    pub(super) store: Arc<dyn ObjectStore>,
    /// Where it tells of its unfinished uploads.
    pub(super) uploads: Option<Uploads>,
}

/// The store of a bucket. Sends nothing yet.
pub(super) fn connect(location: &Location) -> Result<Connected, Error> {
    let Location::Bucket { scheme, bucket, .. } = location else {
        return Err(Error::Setup {
            place: location.clone(),
            why: "it is not in a bucket".to_owned(),
        });
    };
    let built = match scheme {
        Scheme::S3 => s3(bucket),
        Scheme::Gs => GoogleCloudStorageBuilder::from_env()
            .with_bucket_name(bucket)
            .with_retry(retry())
            .with_http_connector(Connector)
            .build()
            .map(only),
        Scheme::Az => MicrosoftAzureBuilder::from_env()
            .with_container_name(bucket)
            .with_retry(retry())
            .with_http_connector(Connector)
            .build()
            .map(only),
    };
    built.map_err(|e| Error::Setup {
        place: location.clone(),
        why: e.to_string(),
    })
}

fn s3(bucket: &str) -> object_store::Result<Connected> {
    let builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_retry(retry())
        .with_http_connector(Connector);
    let region = builder.get_config_value(&AmazonS3ConfigKey::Region);
    let is_signed = !is_set(builder.get_config_value(&AmazonS3ConfigKey::SkipSignature));
    let mut options = ClientOptions::new();
    for key in [ClientConfigKey::AllowHttp, ClientConfigKey::ReadTimeout] {
        if let Some(value) = builder.get_config_value(&AmazonS3ConfigKey::Client(key)) {
            options = options.with_config(key, value);
        }
    }
    let store = builder.build()?;
    let client = Connector.connect(&options)?;
    // The region that `object_store` takes where none is set.
    let region = region.unwrap_or_else(|| "us-east-1".to_owned());
    Ok(Connected {
        // Without credentials there is nothing to sign the list with.
        uploads: is_signed.then(|| Uploads::new(store.clone(), client, region)),
        store: Arc::new(store),
    })
}

fn only(store: impl ObjectStore) -> Connected {
    Connected {
        store: Arc::new(store),
        uploads: None,
    }
}
