//! Connects to an object store. Credentials, region and endpoint come from the environment, as the stores'
//! own tools read them: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`,
//! `AZURE_STORAGE_ACCOUNT_NAME` and so on, or from the machine's own role.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};

use super::http::Connector;
use crate::error::Error;
use crate::location::{Location, Scheme};

/// A request is repeated for about a minute and a half: longer outages are the caller's to wait for.
fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(15),
            base: 2.0,
        },
        max_retries: 8,
        retry_timeout: Duration::from_secs(90),
    }
}

/// The store of a bucket. Sends nothing yet.
pub(super) fn connect(location: &Location) -> Result<Arc<dyn ObjectStore>, Error> {
    let Location::Bucket { scheme, bucket, .. } = location else {
        return Err(Error::Setup {
            place: location.clone(),
            why: "it is not in a bucket".to_owned(),
        });
    };
    let built: object_store::Result<Arc<dyn ObjectStore>> = match scheme {
        Scheme::S3 => AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_retry(retry())
            .with_http_connector(Connector)
            .build()
            .map(|store| Arc::new(store) as _),
        Scheme::Gs => GoogleCloudStorageBuilder::from_env()
            .with_bucket_name(bucket)
            .with_retry(retry())
            .with_http_connector(Connector)
            .build()
            .map(|store| Arc::new(store) as _),
        Scheme::Az => MicrosoftAzureBuilder::from_env()
            .with_container_name(bucket)
            .with_retry(retry())
            .with_http_connector(Connector)
            .build()
            .map(|store| Arc::new(store) as _),
    };
    built.map_err(|e| Error::Setup {
        place: location.clone(),
        why: e.to_string(),
    })
}
