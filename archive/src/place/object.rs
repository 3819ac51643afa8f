//! A prefix of a bucket with a snapshot.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::connect::Connected;
use super::uploads::Uploads;
use super::{Existing, Listing, answer};
use crate::name::FileName;

/// A bucket and the prefix of a snapshot's keys.
#[derive(Debug)]
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    uploads: Option<Uploads>,
    /// Uploads of dropped writers that are being aborted.
    aborts: Mutex<JoinSet<()>>,
}

impl Objects {
    /// `prefix` as in a [`Location`].
    pub(super) fn new(connected: Connected, prefix: &str) -> Self {
        Self {
            store: connected.store,
            prefix: Path::from(prefix),
            uploads: connected.uploads,
            aborts: Mutex::default(),
        }
    }

    fn key(&self, name: FileName) -> Path {
        Path::from(format!("{}/{name}", self.prefix))
    }

    pub(super) async fn length(&self, name: FileName) -> object_store::Result<Option<u64>> {
        match self.store.head(&self.key(name)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) async fn read_range(
        &self,
        name: FileName,
        range: Range<u64>,
    ) -> object_store::Result<Bytes> {
        let key = self.key(name);
        again(|| self.store.get_range(&key, range.clone())).await
    }

    pub(super) async fn write(
        &self,
        name: FileName,
        bytes: Bytes,
        existing: Existing,
    ) -> object_store::Result<()> {
        let key = self.key(name);
        let mode = match existing {
            Existing::Refuse => PutMode::Create,
            Existing::Replace => PutMode::Overwrite,
        };
        let put = |mode: &PutMode| {
            let options = PutOptions::from(mode.clone());
            self.store.put_opts(&key, bytes.clone().into(), options)
        };
        match again(|| put(&mode)).await {
            // A store without conditional writes.
            Err(error) if existing == Existing::Refuse && answer::is_unsupported(&error) => {
                again(|| put(&PutMode::Overwrite)).await.map(drop)
            }
            written => written.map(drop),
        }
    }

    pub(super) async fn begin(
        &self,
        name: FileName,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let key = self.key(name);
        // One that was begun although the answer was lost is removed with the unfinished ones.
        again(|| self.store.put_multipart(&key)).await
    }

    /// Completes an upload of that length.
    pub(super) async fn complete(
        &self,
        name: FileName,
        upload: &mut dyn MultipartUpload,
        length: u64,
    ) -> object_store::Result<()> {
        let Err(error) = upload.complete().await else {
            return Ok(());
        };
        // Where the answer was lost, the upload may be gone because it is complete. An object of an earlier
        // attempt would have the same content; digests tell whoever reads it.
        let is_gone = matches!(error, object_store::Error::NotFound { .. });
        if (is_gone || answer::is_lost(&error)) && self.length(name).await? == Some(length) {
            return Ok(());
        }
        Err(error)
    }

    /// Aborts the uploads that an earlier process, or a lost answer, has left.
    pub(super) async fn remove_unfinished(&self) -> object_store::Result<()> {
        match &self.uploads {
            Some(uploads) => uploads.abort_below(&self.prefix).await,
            None => Ok(()),
        }
    }

    /// Aborts an upload whose writer was dropped, on the runtime if there is one.
    pub(super) fn abort(&self, mut upload: Box<dyn MultipartUpload>) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut aborts = self.aborts.lock().unwrap_or_else(PoisonError::into_inner);
        while aborts.try_join_next().is_some() {}
        aborts.spawn_on(
            async move {
                // Best effort: what is left is removed with the unfinished ones.
                let _ = upload.abort().await;
            },
            &runtime,
        );
    }

    pub(super) async fn remove(
        &self,
        names: Vec<FileName>,
    ) -> Result<(), (FileName, object_store::Error)> {
        let Some(&first) = names.first() else {
            return Ok(());
        };
        let keys: Vec<_> = names.into_iter().map(|name| self.key(name)).collect();
        let removed = again(|| {
            let keys: Vec<_> = keys.iter().cloned().map(Ok).collect();
            let deleting = self.store.delete_stream(stream::iter(keys).boxed());
            deleting.try_for_each(|_| async { Ok(()) })
        });
        removed.await.or_else(|e| match e {
            object_store::Error::NotFound { .. } => Ok(()),
            e => Err((first, e)),
        })
    }

    pub(super) async fn list(&self) -> object_store::Result<Listing> {
        again(|| self.list_once()).await
    }

    async fn list_once(&self) -> object_store::Result<Listing> {
        let mut listing = Listing::default();
        let mut objects = self.store.list(Some(&self.prefix));
        while let Some(object) = objects.try_next().await? {
            let key = object.location.as_ref();
            let path = key
                .strip_prefix(self.prefix.as_ref())
                .and_then(|path| path.strip_prefix('/'));
            listing.add(path.unwrap_or(key).to_owned(), object.size);
        }
        Ok(listing)
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        // Aborts that still run end by themselves.
        let aborts = self
            .aborts
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        aborts.detach_all();
    }
}

/// Sends a request again whose answer was lost: the crate repeats it after a refused connection or a status,
/// but an answer that ends too early only where it is an object's content. Each request here may be repeated.
async fn again<T, R>(request: impl FnMut() -> R) -> object_store::Result<T>
where
    R: Future<Output = object_store::Result<T>>,
{
    let pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_times(3)
        .with_jitter();
    request.retry(pauses).when(answer::is_lost_at_once).await
}
