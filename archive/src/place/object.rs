//! A prefix of a bucket with a snapshot.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::{Existing, Listing};
use crate::error::{Error, Passing, Problem, ProblemKind};
use crate::location::Location;
use crate::name::FileName;

/// A bucket and the prefix of a snapshot's keys.
#[derive(Debug)]
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Uploads of dropped writers that are being aborted.
    aborts: Mutex<JoinSet<()>>,
}

impl Objects {
    /// `prefix` as in a [`Location`].
    pub(super) fn new(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self {
            store,
            prefix: Path::from(prefix),
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
        self.store.get_range(&self.key(name), range).await
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
        let options = PutOptions::from(mode);
        match self
            .store
            .put_opts(&key, bytes.clone().into(), options)
            .await
        {
            // A store without conditional writes.
            Err(error) if existing == Existing::Refuse && is_unsupported(&error) => {
                self.store.put(&key, bytes.into()).await.map(drop)
            }
            put => put.map(drop),
        }
    }

    pub(super) async fn begin(
        &self,
        name: FileName,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart(&self.key(name)).await
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
                // Best effort: a bucket's lifecycle rule removes what is left.
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
        let keys: Vec<_> = names.into_iter().map(|name| Ok(self.key(name))).collect();
        self.store
            .delete_stream(stream::iter(keys).boxed())
            .try_for_each(|_| async { Ok(()) })
            .await
            .or_else(|e| match e {
                object_store::Error::NotFound { .. } => Ok(()),
                e => Err((first, e)),
            })
    }

    pub(super) async fn list(&self) -> object_store::Result<Listing> {
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

/// The error of a store.
pub(super) fn error(
    place: &Location,
    doing: &'static str,
    file: String,
    source: object_store::Error,
) -> Error {
    if matches!(source, object_store::Error::NotFound { .. }) && !file.is_empty() && doing == "read"
    {
        return Problem::new(file, ProblemKind::Missing).at(place);
    }
    Error::Store {
        doing,
        file,
        place: place.clone(),
        passing: passing(&source),
        source: Box::new(source),
    }
}

/// The crate's own retries have been used up by then. It keeps its request error private, so a status is
/// known from its text alone.
fn passing(error: &object_store::Error) -> Passing {
    let object_store::Error::Generic { source, .. } = error else {
        return Passing::Stays;
    };
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&**source);
    while let Some(error) = cause {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return match http.kind() {
                HttpErrorKind::Decode | HttpErrorKind::Unknown => Passing::Stays,
                _ => Passing::MayPass,
            };
        }
        if error.is::<std::io::Error>() {
            return Passing::MayPass;
        }
        cause = error.source();
    }
    let text = error.to_string();
    match status(&text) {
        Some(408 | 429 | 500 | 502..=599) => Passing::MayPass,
        Some(_) => Passing::Stays,
        None if text.contains("SlowDown") || text.contains("InternalError") => Passing::MayPass,
        None => Passing::Stays,
    }
}

fn is_unsupported(error: &object_store::Error) -> bool {
    match error {
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
            true
        }
        error => status(&error.to_string()) == Some(501),
    }
}

/// The status that an error's text names.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> object_store::Error {
        object_store::Error::Generic {
            store: "S3",
            source: source.into(),
        }
    }

    #[test]
    fn throttling_timeouts_and_broken_connections_may_pass() {
        let timeout = HttpError::new(HttpErrorKind::Timeout, std::io::Error::other("slow"));
        let scheme = HttpError::new(HttpErrorKind::Unknown, std::io::Error::other("not https"));
        for (error, expected) in [
            (generic(timeout), Passing::MayPass),
            (generic(scheme), Passing::Stays),
            (
                generic("Server returned non-2xx status code: 503 Service Unavailable: "),
                Passing::MayPass,
            ),
            (
                generic("Server returned non-2xx status code: 429 Too Many Requests: "),
                Passing::MayPass,
            ),
            (
                generic("Server returned non-2xx status code: 400 Bad Request: "),
                Passing::Stays,
            ),
            (
                generic("Server returned error response: <Code>SlowDown</Code>"),
                Passing::MayPass,
            ),
            (generic("no region"), Passing::Stays),
            (
                object_store::Error::PermissionDenied {
                    path: "a".to_owned(),
                    source: "status code: 503".into(),
                },
                Passing::Stays,
            ),
        ] {
            assert_eq!(passing(&error), expected, "{error}");
        }
    }
}
