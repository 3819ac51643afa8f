//! Stored snapshots that were carried to where this agent can read them: as a target it loads from them
//! itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steep_archive::Archive;
use steep_protocol::message::snapshot::{FoundSnapshot, StoredPlace};
use steep_protocol::{Fault, FaultKind, JobId};

use super::{Reader, fault, locate, open};
use crate::mutex::lock;
use crate::snapshot::stored::StoredSnapshot;

/// Those of this agent's jobs, open until the job ends.
#[derive(Debug, Default)]
pub(crate) struct Carried(Mutex<HashMap<JobId, Arc<StoredSnapshot>>>);

impl Carried {
    /// The job's snapshot: opened and looked through, unless this process has.
    pub(crate) async fn open(
        &self,
        job: JobId,
        place: &StoredPlace,
        reader: &Reader,
    ) -> Result<Arc<StoredSnapshot>, Fault> {
        if let Some(open) = self.get(job) {
            return Ok(open);
        }
        // This node alone reads it.
        let opened = Arc::new(open(reader, place, 1).await?);
        if place.verify {
            opened.check(&reader.node).await?;
        }
        lock(&self.0).insert(job, Arc::clone(&opened));
        Ok(opened)
    }

    pub(crate) fn get(&self, job: JobId) -> Option<Arc<StoredSnapshot>> {
        lock(&self.0).get(&job).cloned()
    }

    /// Idempotent.
    pub(crate) fn forget(&self, job: JobId) {
        lock(&self.0).remove(&job);
    }
}

/// How long a look at a place may take: a bucket without credentials asks for them at length.
const LOOK: Duration = Duration::from_secs(10);

/// Which snapshot is at a place, according to its manifest, and whether it can be read.
pub(crate) async fn find(reader: &Reader, location: &str) -> Result<FoundSnapshot, Fault> {
    let Reader { node, keys } = reader;
    let place = locate(location, node)?;
    let Ok(archive) = tokio::time::timeout(LOOK, Archive::open(&place, keys)).await else {
        let text = format!("{location} does not answer within {} s", LOOK.as_secs());
        return Err(Fault::new(FaultKind::Failed, text).on(node));
    };
    let archive = archive.map_err(|error| fault(&error, node))?;
    let unreadable = archive.check_keys().err();
    Ok(FoundSnapshot {
        snapshot: archive.manifest().snapshot_id,
        unreadable: unreadable.map(|error| Box::new(fault(&error, node))),
    })
}

#[cfg(test)]
mod tests {
    use steep_archive::{Contents, Finished, Identity, Keys, Location, Source, generate_key};
    use steep_protocol::stored::StoredCodec;
    use steep_protocol::{Identifier, Lsn, NodeId, SnapshotId};

    use super::*;

    /// A stored snapshot without tables, encrypted with those keys.
    async fn stored(location: &Location, keys: &Keys) -> StoredPlace {
        let node = NodeId::parse("a").unwrap();
        let name = |text| Identifier::parse(text).unwrap();
        let identity = Identity {
            snapshot_id: SnapshotId(5),
            node_id: node.clone(),
            lsn: Lsn(7),
            codec: StoredCodec::None,
            encryption: keys.facts().map(|facts| facts.encrypts.clone()),
        };
        let finished = Finished::default();
        let creating = Archive::create(location, identity, keys, &finished);
        let writing = creating.await.unwrap();
        writing.schema(b"", b"").await.unwrap();
        writing.sequences(&[]).await.unwrap();
        let contents = Contents {
            created_at: "2026-11-29T12:00:00Z".parse().unwrap(),
            source: Source {
                node_id: node,
                system_identifier: "1".to_owned(),
                server_version: 170_000,
                database: name("app"),
                encoding: "UTF8".to_owned(),
            },
            slot_name: name("slot"),
            publication: name("publication"),
            include_schemas: Vec::new(),
            exclude_tables: Vec::new(),
            tables: Vec::new(),
        };
        let manifest = writing.finish(contents).await.unwrap();
        StoredPlace {
            snapshot: manifest.snapshot_id,
            location: location.to_string(),
            manifest: manifest.checksum.unwrap(),
            verify: true,
        }
    }

    #[tokio::test]
    async fn an_encrypted_snapshot_is_found_without_its_key_and_opened_only_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let recipient = generate_key(&path("a.key")).unwrap();
        generate_key(&path("b.key")).unwrap();
        let keys = |name| Keys::load(&path(name)).unwrap();
        let location = Location::parse(path("stored").to_str().unwrap()).unwrap();
        let place = stored(&location, &keys("a.key")).await;
        let reader = |keys| Reader {
            node: NodeId::parse("b").unwrap(),
            keys,
        };
        let (carried, job) = (Carried::default(), JobId(3));
        for other in [Keys::default(), keys("b.key")] {
            let reader = reader(other);
            let found = find(&reader, &place.location).await.unwrap();
            assert_eq!(found.snapshot, SnapshotId(5));
            let unreadable = *found.unreadable.unwrap();
            let refused = carried.open(job, &place, &reader).await.unwrap_err();
            assert_eq!(refused, unreadable);
            assert_eq!(refused.kind, FaultKind::KeyMissing);
            assert_eq!(refused.node, Some(reader.node));
            let text = refused.to_string();
            assert!(text.contains(recipient.as_str()), "{text}");
            assert!(refused.hint.contains("--snapshot-key"), "{refused:?}");
            assert!(carried.get(job).is_none());
        }
        let reader = reader(keys("a.key"));
        let found = find(&reader, &place.location).await.unwrap();
        assert_eq!(found.unreadable, None);
        carried.open(job, &place, &reader).await.unwrap();
    }
}
