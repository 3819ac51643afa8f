//! Writes a snapshot: parts in any order and at once, then schema and sequences, last the manifest.
//!
//! Nothing that is incomplete looks complete: without a manifest there is no snapshot. What an attempt has finished is
//! kept by the next one if it still has the digests that [`Finished`] remembers; nothing that merely lies there is.

mod claim;
mod finished;
mod kept;
mod part;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use steep_protocol::limits::PARTS_MAX;
use steep_protocol::message::peer::SequenceValue;
use steep_protocol::stored::StoredCodec;
use steep_protocol::{Identifier, PartNo, TableName};

use crate::content::{ContentWriter, Digesting, cipher_memory, encrypt};
use crate::error::Error;
use crate::keys::Keys;
use crate::location::Location;
use crate::manifest::{
    CopyFormat, MANIFEST_MAX, Manifest, Source, StoredPart, StoredSchema, StoredSequences,
    StoredTable, Totals, format_version,
};
use crate::name::{Cipher, FileName, Names};
use crate::place::{Digests, Existing, Place, Purpose};
use crate::read::{Archive, StoredReader};
use crate::schema::{self, SCHEMA_MAX};
use crate::sequences;

pub use claim::Identity;
pub(crate) use claim::read as claim;
pub use finished::Finished;
pub use part::PartFile;

/// A snapshot that is being written. Clones write the same one.
#[derive(Debug, Clone)]
pub struct Writing {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    place: Place,
    identity: Identity,
    keys: Keys,
    finished: Finished,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    parts: BTreeMap<PartNo, StoredPart>,
    schema: Option<StoredSchema>,
    sequences: Option<StoredSequences>,
}

/// What the manifest says besides what [`Writing`] knows itself.
#[derive(Debug, Clone)]
pub struct Contents {
    /// When the snapshot's consistent point was taken.
    pub created_at: Timestamp,
    /// The database.
    pub source: Source,
    /// The slot that keeps the changes since.
    pub slot_name: Identifier,
    /// The publication.
    pub publication: Identifier,
    /// Only tables of these schemas, if any are named.
    pub include_schemas: Vec<Identifier>,
    /// Without these tables.
    pub exclude_tables: Vec<TableName>,
    /// The tables; every part of theirs must be finished.
    pub tables: Vec<PlannedTable>,
}

/// A table and the numbers of its parts.
#[derive(Debug, Clone)]
pub struct PlannedTable {
    /// Its name.
    pub name: TableName,
    /// The columns in the rows, in order.
    pub columns: Vec<Identifier>,
    /// Its parts.
    pub parts: Vec<PartNo>,
}

impl Writing {
    /// Begins a snapshot, or goes on with the same one, of which `finished` is what was written.
    ///
    /// # Errors
    /// [`Error::Complete`] or [`Error::Occupied`] if something else is there, [`Error::Locked`] while
    /// another process writes there, [`Error::Misuse`] if `keys` do not encrypt as the identity says, or the place's
    /// own error.
    pub(crate) async fn create(
        location: &Location,
        identity: Identity,
        keys: &Keys,
        finished: &Finished,
    ) -> Result<Self, Error> {
        let place = Place::open(location, Purpose::Write).await?;
        Self::create_in(place, identity, keys, finished).await
    }

    pub(crate) async fn create_in(
        place: Place,
        identity: Identity,
        keys: &Keys,
        finished: &Finished,
    ) -> Result<Self, Error> {
        let own = keys.facts().map(|facts| &facts.encrypts);
        if identity.encryption.is_some() && identity.encryption.as_ref() != own {
            return Err(Error::Misuse {
                place: place.location().clone(),
                why: "the key is not the one that it is encrypted with".to_owned(),
            });
        }
        match found(&place).await? {
            Found::Nothing => {}
            found => return Err(found.complete(&place)),
        }
        claim::take(&place, &identity).await?;
        place.remove_unfinished().await?;
        Ok(Self {
            shared: Arc::new(Shared {
                place,
                identity,
                keys: keys.clone(),
                finished: finished.clone(),
                state: Mutex::default(),
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> &Place {
        &self.shared.place
    }

    /// How parts are compressed.
    #[must_use]
    pub fn codec(&self) -> StoredCodec {
        self.shared.identity.codec
    }

    fn names(&self) -> Names {
        Names {
            packing: self.codec().packing(),
            cipher: self.shared.identity.encryption.as_ref().into(),
        }
    }

    async fn begin(&self, name: FileName) -> Result<ContentWriter, Error> {
        ContentWriter::begin(self.place(), name, &self.shared.keys).await
    }

    /// Bytes of memory that a [`PartFile`] holds at most.
    #[must_use]
    pub fn part_memory(&self) -> usize {
        let pieces = self.place().pieces();
        // The index has pieces of its own, but fills one only in a part of over 6 GB.
        pieces.bytes * (pieces.held + 1) + 2 * cipher_memory(self.names().cipher)
    }

    /// The parts that an earlier attempt finished: each is read again and compared with what is remembered of it, at
    /// most `parallel` at once. They need not be written again. All other files of parts are removed.
    ///
    /// # Errors
    /// The place's own error. A part that is broken or another one is no error.
    pub async fn kept(&self, parallel: usize) -> Result<Vec<StoredPart>, Error> {
        let finished = &self.shared.finished;
        let kept = kept::find(self.place(), self.names(), finished.parts(), parallel).await?;
        finished.replace(&kept);
        let mut state = self.state();
        state.parts.extend(kept.iter().map(|part| (part.no, *part)));
        Ok(kept)
    }

    /// Begins a part; one of that number is replaced.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Misuse`] for a number over the limit, or the place's own error.
    pub async fn part(&self, no: PartNo) -> Result<PartFile, Error> {
        if no.0 >= PARTS_MAX {
            return Err(self.misuse(format!("part number {no} is over the limit of {PARTS_MAX}")));
        }
        // An index that stays would describe other data.
        self.shared.finished.remove(no);
        let replaced = self.state().parts.remove(&no).is_some();
        if replaced {
            self.place().remove(vec![self.names().index(no)]).await?;
        }
        PartFile::begin(self.clone(), no).await
    }

    /// Whether a part is finished.
    #[must_use]
    pub fn has(&self, no: PartNo) -> bool {
        self.state().parts.contains_key(&no)
    }

    /// Reads a part that is finished; `None` for another one.
    #[must_use]
    pub fn reader(&self, no: PartNo) -> Option<StoredReader> {
        let part = *self.state().parts.get(&no)?;
        let how = (&self.shared.keys, Digesting::No);
        let place = self.place().clone();
        Some(StoredReader::of(place, self.names(), part, how))
    }

    /// Stores the sections of the schema's dump.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Misuse`] if it is over a gigabyte, or the place's own error.
    pub async fn schema(&self, pre_data: &[u8], post_data: &[u8]) -> Result<(), Error> {
        if (pre_data.len() + post_data.len()) as u64 > SCHEMA_MAX - 1024 {
            return Err(self.misuse(format!("its schema is over {SCHEMA_MAX} bytes")));
        }
        let mut file = self.begin(self.names().schema()).await?;
        for piece in schema::pieces(pre_data, post_data) {
            file.write(piece).await?;
        }
        let digests = file.finish().await?;
        self.state().schema = Some(schema::record(pre_data, post_data, digests));
        Ok(())
    }

    /// Stores the sequences' positions.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Misuse`] if there are too many, or the place's own error.
    pub async fn sequences(&self, values: &[SequenceValue]) -> Result<(), Error> {
        let mut bytes = sequences::encode(values).map_err(|why| self.misuse(why))?;
        let name = self.names().sequences();
        if name.cipher() == Cipher::Age {
            let encrypted = encrypt(&bytes, &self.shared.keys);
            bytes = encrypted.map_err(|error| self.place().encrypting(name, error))?;
        }
        let mut digests = Digests::default();
        digests.update(&bytes);
        let digests = digests.finish();
        self.place()
            .write(name, Bytes::from(bytes), Existing::Replace)
            .await?;
        self.state().sequences = Some(StoredSequences {
            count: values.len() as u64,
            bytes: steep_protocol::ByteCount(digests.bytes),
            sha256: digests.sha256,
            blake3: digests.blake3,
        });
        Ok(())
    }

    /// Writes the manifest: from then on the snapshot is complete. Parts that no table names are removed.
    ///
    /// # Errors
    /// [`Error::Misuse`] if something is missing or breaks a rule of manifests, [`Error::Complete`] if
    /// another process was faster, [`Error::Full`], or the place's own error.
    pub async fn finish(&self, contents: Contents) -> Result<Manifest, Error> {
        let mut manifest = self.compose(contents)?;
        let bytes = manifest.encode().map_err(|why| self.misuse(why))?;
        self.remove_unplanned(&manifest).await?;
        self.place().remove_unfinished().await?;
        self.shared.finished.sealing(&manifest);
        let written = self
            .place()
            .write(FileName::Manifest, Bytes::from(bytes), Existing::Refuse)
            .await;
        match written {
            Ok(()) => Ok(manifest),
            // A request that was repeated after its answer was lost finds its own object.
            Err(error) => match found(self.place()).await? {
                Found::Nothing => Err(error),
                Found::Manifest(found) if *found == manifest => Ok(manifest),
                found => Err(found.complete(self.place())),
            },
        }
    }

    /// The complete snapshot, after [`Self::finish`]. Others may read it from now on, and nobody may write.
    ///
    /// # Errors
    /// The place's own error.
    pub fn sealed(&self, manifest: Manifest) -> Result<Archive, Error> {
        self.place().share()?;
        let keys = self.shared.keys.clone();
        Ok(Archive::of(self.place().clone(), manifest, keys))
    }

    fn add(&self, part: StoredPart) {
        self.shared.finished.add(part);
        self.state().parts.insert(part.no, part);
    }

    fn compose(&self, contents: Contents) -> Result<Manifest, Error> {
        let state = self.state();
        let identity = &self.shared.identity;
        let missing = |what: String| self.misuse(format!("{what} was not written"));
        if contents.source.node_id != identity.node_id {
            return Err(self.misuse("its source is another node than it was begun for".to_owned()));
        }
        let mut totals = Totals::default();
        let mut tables = Vec::with_capacity(contents.tables.len());
        for table in contents.tables {
            totals.tables += 1;
            let mut parts = Vec::with_capacity(table.parts.len());
            for no in table.parts {
                let part = state.parts.get(&no);
                let part = part.ok_or_else(|| missing(format!("part {no} of {}", table.name)))?;
                totals.parts += 1;
                totals.rows += part.rows;
                totals.bytes += part.bytes;
                totals.stored_bytes += part.stored_bytes;
                parts.push(*part);
            }
            tables.push(StoredTable {
                schema: table.name.schema,
                table: table.name.table,
                columns: table.columns,
                parts,
            });
        }
        Ok(Manifest {
            format_version: format_version(identity.encryption.as_ref()),
            snapshot_id: identity.snapshot_id,
            created_at: contents.created_at,
            source: contents.source,
            lsn: identity.lsn,
            slot_name: contents.slot_name,
            publication: contents.publication,
            include_schemas: contents.include_schemas,
            exclude_tables: contents.exclude_tables,
            codec: identity.codec,
            encryption: identity.encryption.clone(),
            copy_format: CopyFormat::Text,
            tables,
            schema: state
                .schema
                .ok_or_else(|| missing("schema.sql".to_owned()))?,
            sequences: state
                .sequences
                .ok_or_else(|| missing("sequences.json".to_owned()))?,
            totals,
            checksum: None,
        })
    }

    async fn remove_unplanned(&self, manifest: &Manifest) -> Result<(), Error> {
        let planned: std::collections::HashSet<_> = manifest.parts().map(|part| part.no).collect();
        let listing = self.place().list().await?;
        let unplanned = listing.files.into_iter().map(|(name, _)| name);
        let names = self.names();
        let unplanned = unplanned.filter(|name| match name {
            FileName::Data(no, ..) => !planned.contains(no) || *name != names.data(*no),
            FileName::Index(no, _) => !planned.contains(no) || *name != names.index(*no),
            FileName::Schema(_) => *name != names.schema(),
            FileName::Sequences(_) => *name != names.sequences(),
            FileName::Claim | FileName::Manifest => false,
        });
        self.place().remove(unplanned.collect()).await
    }

    fn misuse(&self, why: String) -> Error {
        Error::Misuse {
            place: self.place().location().clone(),
            why,
        }
    }
}

/// Whether nothing of any snapshot is in a place.
pub(crate) async fn check_vacant(place: &Place) -> Result<(), Error> {
    match found(place).await? {
        Found::Nothing => claim::check_vacant(place).await,
        found => Err(found.complete(place)),
    }
}

/// What stands where the manifest belongs.
enum Found {
    Nothing,
    Manifest(Box<Manifest>),
    Unreadable,
}

impl Found {
    fn complete(&self, place: &Place) -> Error {
        Error::Complete {
            place: place.location().clone(),
            found: match self {
                Self::Manifest(manifest) => Some(manifest.snapshot_id),
                Self::Nothing | Self::Unreadable => None,
            },
        }
    }
}

async fn found(place: &Place) -> Result<Found, Error> {
    match place.read(FileName::Manifest, MANIFEST_MAX).await {
        Ok(None) => Ok(Found::Nothing),
        Ok(Some(bytes)) => Ok(
            Manifest::decode(&bytes).map_or(Found::Unreadable, |manifest| {
                Found::Manifest(Box::new(manifest))
            }),
        ),
        Err(Error::Problem { .. }) => Ok(Found::Unreadable),
        Err(error) => Err(error),
    }
}
