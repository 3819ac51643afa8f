//! Uploads in S3 that nobody will finish. No list of objects shows them, their pieces cost as much as objects,
//! and they stay until somebody aborts them: those of an agent that was killed are aborted by the next one
//! that writes or deletes the same snapshot. Google's are the same in this, but `object_store` cannot sign a
//! request that lists them: there, and where listing is not permitted, the bucket's lifecycle rule removes
//! them. Azure's go by themselves.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
use object_store::multipart::MultipartStore as _;
use object_store::path::Path;
use object_store::signer::Signer as _;
use serde::Deserialize;

use super::answer;
use crate::error::Passing;
use crate::name::FileName;

/// How long a signed URL would be valid; none is used.
const VALID: Duration = Duration::from_secs(60);

/// Where a list goes on.
type Marker = (String, String);

/// A bucket whose unfinished uploads can be listed.
#[derive(Debug)]
pub(super) struct Uploads {
    store: AmazonS3,
    client: HttpClient,
    region: String,
}

/// An answer to `ListMultipartUploads`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Page {
    upload: Vec<Upload>,
    is_truncated: bool,
    next_key_marker: String,
    next_upload_id_marker: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
}

impl Uploads {
    pub(super) fn new(store: AmazonS3, client: HttpClient, region: String) -> Self {
        Self {
            store,
            client,
            region,
        }
    }

    /// Aborts those of a snapshot's files below that prefix. Where the store refuses to list them or cannot,
    /// they stay: that is no reason not to write.
    pub(super) async fn abort_below(&self, prefix: &Path) -> object_store::Result<()> {
        let mut marker: Option<Marker> = None;
        loop {
            let list = || self.page(prefix, marker.as_ref());
            let page = list
                .retry(
                    ExponentialBuilder::default()
                        .with_max_times(5)
                        .with_jitter(),
                )
                .when(|error| answer::passing(error) == Passing::MayPass)
                .await;
            let page = match page {
                Ok(page) => page,
                Err(error) if answer::passing(&error) == Passing::Stays => return Ok(()),
                Err(error) => return Err(error),
            };
            for upload in &page.upload {
                self.abort(prefix, upload).await?;
            }
            let next = (page.next_key_marker, page.next_upload_id_marker);
            if !page.is_truncated || next.0.is_empty() || marker.as_ref() == Some(&next) {
                return Ok(());
            }
            marker = Some(next);
        }
    }

    async fn abort(&self, prefix: &Path, upload: &Upload) -> object_store::Result<()> {
        let name = upload
            .key
            .strip_prefix(prefix.as_ref())
            .and_then(|path| path.strip_prefix('/'));
        // Somebody else's in the same bucket.
        if name.and_then(FileName::parse).is_none() {
            return Ok(());
        }
        let key = Path::from(&*upload.key);
        match self.store.abort_multipart(&key, &upload.upload_id).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) if answer::passing(&error) == Passing::Stays => Ok(()),
            aborted => aborted,
        }
    }

    async fn page(&self, prefix: &Path, marker: Option<&Marker>) -> object_store::Result<Page> {
        // The bucket's address, however the endpoint is set: only signing a URL tells.
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        let (method, root) = (request.method().clone(), Path::default());
        let signed = self.store.signed_url(method, &root, VALID);
        let mut url = signed.await?;
        url.query_pairs_mut()
            .clear()
            .append_pair("prefix", &format!("{prefix}/"))
            .append_pair("uploads", "");
        if let Some((key, upload)) = marker {
            url.query_pairs_mut()
                .append_pair("key-marker", key)
                .append_pair("upload-id-marker", upload);
        }
        *request.uri_mut() = url.as_str().parse().map_err(generic)?;
        let credential = self.store.credentials().get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).try_authorize(&mut request, None)?;
        let answer = self.client.execute(request).await.map_err(generic)?;
        let status = answer.status();
        let body = answer.into_body().bytes().await.map_err(generic)?;
        if !status.is_success() {
            let body = String::from_utf8_lossy(&body);
            return Err(object_store::Error::Generic {
                store: "S3",
                source: format!("non-2xx status code: {status}: {body}").into(),
            });
        }
        quick_xml::de::from_reader(&*body).map_err(generic)
    }
}

fn generic(error: impl std::error::Error + Send + Sync + 'static) -> object_store::Error {
    object_store::Error::Generic {
        store: "S3",
        source: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_in_any_order_of_elements() {
        let text = "<?xml version=\"1.0\"?><ListMultipartUploadsResult><Bucket>b</Bucket>\
            <Upload><Key>a/b/parts/0000001.copy</Key><UploadId>x&amp;y</UploadId></Upload>\
            <IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker>\
            <Upload><UploadId>z</UploadId><Key>a/c</Key><Owner><ID>1</ID></Owner></Upload>\
            <NextUploadIdMarker>u</NextUploadIdMarker></ListMultipartUploadsResult>";
        let page: Page = quick_xml::de::from_str(text).unwrap();
        let found: Vec<_> = page
            .upload
            .iter()
            .map(|u| (&*u.key, &*u.upload_id))
            .collect();
        assert_eq!(found, [("a/b/parts/0000001.copy", "x&y"), ("a/c", "z")]);
        assert!(page.is_truncated);
        assert_eq!(page.next_key_marker, "k");
        let empty: Page = quick_xml::de::from_str("<ListMultipartUploadsResult/>").unwrap();
        assert!(empty.upload.is_empty() && !empty.is_truncated);
    }
}
