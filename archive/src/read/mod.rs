//! Reads a complete snapshot. Nothing in it is believed: the manifest is checked against its checksum and
//! its own rules, an index against the manifest, each payload against its index.

mod identify;
mod part;
mod presence;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use steep_protocol::message::peer::SequenceValue;
use steep_protocol::{ByteCount, PartNo};

use crate::blocking::{blocking, offload};
use crate::error::{Error, Problem, ProblemKind};
use crate::location::Location;
use crate::manifest::{MANIFEST_MAX, Manifest, StoredPart, StoredTable, Sum};
use crate::name::FileName;
use crate::place::{Digests, Place, Purpose};
use crate::schema::{self, SCHEMA_MAX, Schema};
use crate::sequences::{self, SEQUENCES_MAX};
use crate::write::{Identity, Writing};

pub use part::StoredReader;
pub(crate) use presence::problem;

/// A complete snapshot in a place. Clones share it.
#[derive(Debug, Clone)]
pub struct Archive {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    place: Place,
    manifest: Manifest,
    /// Places in the manifest: table, part.
    parts: HashMap<PartNo, (usize, usize)>,
}

impl Archive {
    /// Begins to write a snapshot, or goes on with the same one after its writer was killed. A directory is
    /// locked, for this process's readers too, until everything that writes to it is dropped.
    ///
    /// # Errors
    /// [`Error::Complete`] or [`Error::Occupied`] if something else is there, [`Error::Locked`],
    /// [`Error::Unsafe`], [`Error::Full`], or the place's own error.
    pub async fn create(location: &Location, identity: Identity) -> Result<Writing, Error> {
        Writing::create(location, identity).await
    }

    /// Opens a complete snapshot: reads its manifest.
    ///
    /// # Errors
    /// [`Error::Incomplete`] if there is none, [`Error::Problem`] if its manifest is damaged or another
    /// snapshot's, [`Error::Locked`] while it is written or deleted, or the place's own error.
    pub async fn open(location: &Location) -> Result<Self, Error> {
        Self::open_in(Place::open(location, Purpose::Read).await?).await
    }

    pub(crate) async fn open_in(place: Place) -> Result<Self, Error> {
        let incomplete = || Error::Incomplete {
            place: place.location().clone(),
        };
        let bytes = place.read(FileName::Manifest, MANIFEST_MAX).await?;
        let bytes = bytes.ok_or_else(incomplete)?;
        let manifest = blocking(move || Manifest::decode(&bytes)).await;
        let manifest = manifest
            .map_err(|why| Problem::damaged(FileName::Manifest, why).at(place.location()))?;
        if let Some(claim) = crate::write::claim(&place).await?
            && claim.snapshot_id != manifest.snapshot_id
        {
            let why = format!(
                "it is of {}, the pieces here are of {}",
                manifest.snapshot_id, claim.snapshot_id
            );
            let kind = ProblemKind::Foreign(why);
            return Err(Problem::new(FileName::Manifest, kind).at(place.location()));
        }
        Ok(Self::of(place, manifest))
    }

    pub(crate) fn of(place: Place, manifest: Manifest) -> Self {
        let mut parts = HashMap::new();
        for (table, stored) in manifest.tables.iter().enumerate() {
            let numbers = stored.parts.iter().enumerate();
            parts.extend(numbers.map(|(at, part)| (part.no, (table, at))));
        }
        Self {
            shared: Arc::new(Shared {
                place,
                manifest,
                parts,
            }),
        }
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.shared.manifest
    }

    /// Where it is.
    #[must_use]
    pub fn location(&self) -> &Location {
        self.place().location()
    }

    /// A part and its table, as the manifest describes them.
    #[must_use]
    pub fn find(&self, no: PartNo) -> Option<(&StoredTable, &StoredPart)> {
        let &(table, part) = self.shared.parts.get(&no)?;
        let table = &self.manifest().tables[table];
        Some((table, &table.parts[part]))
    }

    fn place(&self) -> &Place {
        &self.shared.place
    }

    fn data_name(&self, no: PartNo) -> FileName {
        FileName::Data(no, self.manifest().codec.packing().into())
    }

    /// Opens a part: checks its index as a whole, and that its data has the right length.
    ///
    /// # Errors
    /// [`Error::NoSuchPart`], [`Error::Problem`], or the place's own error.
    pub async fn part(&self, no: PartNo) -> Result<StoredReader, Error> {
        StoredReader::open(self, no).await
    }

    /// The schema's sections, checked.
    ///
    /// # Errors
    /// [`Error::Problem`] or the place's own error.
    pub async fn schema(&self) -> Result<Schema, Error> {
        let record = self.manifest().schema;
        let file = self
            .checked(
                FileName::Schema,
                SCHEMA_MAX,
                record.bytes,
                record.sha256,
                record.blake3,
            )
            .await?;
        schema::split(&file, &record)
            .map_err(|why| Problem::damaged(FileName::Schema, why).at(self.location()))
    }

    /// The sequences' positions, checked.
    ///
    /// # Errors
    /// [`Error::Problem`] or the place's own error.
    pub async fn sequences(&self) -> Result<Vec<SequenceValue>, Error> {
        let record = self.manifest().sequences;
        let (bytes, sha256, blake3) = (record.bytes, record.sha256, record.blake3);
        let file = self
            .checked(FileName::Sequences, SEQUENCES_MAX, bytes, sha256, blake3)
            .await?;
        let values =
            sequences::decode(&file).and_then(|values| match values.len() as u64 == record.count {
                true => Ok(values),
                false => Err(format!("it has {} sequences", values.len())),
            });
        values.map_err(|why| Problem::damaged(FileName::Sequences, why).at(self.location()))
    }

    /// A whole file with both of its digests checked.
    async fn checked(
        &self,
        name: FileName,
        limit: u64,
        expected: ByteCount,
        sha256: Sum,
        blake3: Sum,
    ) -> Result<Bytes, Error> {
        let problem = |kind| Problem::new(name, kind).at(self.location());
        let file = self.place().read(name, limit).await?;
        let file = file.ok_or_else(|| problem(ProblemKind::Missing))?;
        let length = file.len() as u64;
        if length < expected.0 {
            let expected = expected.0;
            return Err(problem(ProblemKind::Truncated { length, expected }));
        }
        let (mut digests, bytes) = (Digests::default(), file.clone());
        offload(&mut digests, move |digests: &mut Digests| {
            digests.update(&bytes);
        })
        .await;
        let digests = digests.finish();
        if (digests.sha256, digests.blake3) != (sha256, blake3) {
            let why = "its digests are not those of the manifest".to_owned();
            return Err(problem(ProblemKind::Damaged(why)));
        }
        Ok(file)
    }
}
