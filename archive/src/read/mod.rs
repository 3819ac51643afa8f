//! Reads a complete snapshot. Nothing in it is believed: the manifest is checked against its checksum and
//! its own rules, an index against the manifest, each payload against its index. Without a key, an encrypted one is
//! checked as it is stored, and not read.

mod identify;
mod part;
mod presence;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use steep_protocol::encryption::Encryption;
use steep_protocol::message::peer::SequenceValue;
use steep_protocol::{ByteCount, PartNo};

use crate::blocking::blocking;
use crate::content::{ContentReader, Digesting, stored_max};
use crate::error::{Error, Problem, ProblemKind};
use crate::keys::Keys;
use crate::location::Location;
use crate::manifest::{MANIFEST_MAX, Manifest, StoredPart, StoredTable, Sum};
use crate::name::FileName;
use crate::place::{FileDigests, Place, Purpose};
use crate::schema::{self, SCHEMA_MAX, Schema};
use crate::sequences::{self, SEQUENCES_MAX};
use crate::write::{Finished, Identity, Writing};

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
    keys: Keys,
    /// Places in the manifest: table, part.
    parts: HashMap<PartNo, (usize, usize)>,
}

impl Archive {
    /// Begins to write a snapshot, or goes on with the same one, of which `finished` is what has been written. A
    /// directory is locked, for this process's readers too, until everything that writes to it is dropped. An encrypted
    /// one is encrypted with `keys`.
    ///
    /// # Errors
    /// [`Error::Complete`] or [`Error::Occupied`] if something else is there, [`Error::Locked`],
    /// [`Error::Unsafe`], [`Error::Full`], [`Error::Misuse`] for other keys than the identity names, or the place's own
    /// error.
    pub async fn create(
        location: &Location,
        identity: Identity,
        keys: &Keys,
        finished: &Finished,
    ) -> Result<Writing, Error> {
        Writing::create(location, identity, keys, finished).await
    }

    /// Whether a snapshot can be begun there, as far as that shows without writing a file: a directory is made where there
    /// is none.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn check_vacant(location: &Location) -> Result<(), Error> {
        let place = Place::open(location, Purpose::Write).await?;
        crate::write::check_vacant(&place).await
    }

    /// Opens a complete snapshot: reads its manifest. `keys` are for one that is encrypted; whether they fit is checked
    /// by [`Self::check_keys`], and by everything that needs them.
    ///
    /// # Errors
    /// [`Error::Incomplete`] if there is none, [`Error::Problem`] if its manifest is damaged or another
    /// snapshot's, or the claim says something else, [`Error::Locked`] while it is written or deleted, or the place's own error.
    pub async fn open(location: &Location, keys: &Keys) -> Result<Self, Error> {
        let place = Place::open(location, Purpose::Read).await?;
        Self::open_in(place, keys).await
    }

    pub(crate) async fn open_in(place: Place, keys: &Keys) -> Result<Self, Error> {
        let incomplete = || Error::Incomplete {
            place: place.location().clone(),
        };
        let bytes = place.read(FileName::Manifest, MANIFEST_MAX).await?;
        let bytes = bytes.ok_or_else(incomplete)?;
        let manifest = blocking(move || Manifest::decode(&bytes)).await;
        let manifest = manifest
            .map_err(|why| Problem::damaged(FileName::Manifest, why).at(place.location()))?;
        if let Some(claim) = crate::write::claim(&place).await? {
            compare(&claim, &manifest).map_err(|problem| problem.at(place.location()))?;
        }
        Ok(Self::of(place, manifest, keys.clone()))
    }

    pub(crate) fn of(place: Place, manifest: Manifest, keys: Keys) -> Self {
        let mut parts = HashMap::new();
        for (table, stored) in manifest.tables.iter().enumerate() {
            let numbers = stored.parts.iter().enumerate();
            parts.extend(numbers.map(|(at, part)| (part.no, (table, at))));
        }
        Self {
            shared: Arc::new(Shared {
                place,
                manifest,
                keys,
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

    fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    fn data_name(&self, no: PartNo) -> FileName {
        self.manifest().names().data(no)
    }

    /// Whether it can be read: it is not encrypted, or the keys fit.
    ///
    /// # Errors
    /// [`Error::Key`], which says what is missing.
    pub fn check_keys(&self) -> Result<(), Error> {
        let Some(encryption) = &self.manifest().encryption else {
            return Ok(());
        };
        let fits = self.keys().check(encryption);
        fits.map_err(|why| Error::Key {
            place: self.location().clone(),
            recipients: encryption.recipients.clone(),
            why: Box::new(why),
        })
    }

    /// Opens a part: checks its index as a whole, and that its data has the right length.
    ///
    /// # Errors
    /// [`Error::NoSuchPart`], [`Error::Problem`], [`Error::Key`], or the place's own error.
    pub async fn part(&self, no: PartNo) -> Result<StoredReader, Error> {
        StoredReader::open(self, no, Digesting::No).await
    }

    /// The schema's sections, checked.
    ///
    /// # Errors
    /// [`Error::Problem`], [`Error::Key`] or the place's own error.
    pub async fn schema(&self) -> Result<Schema, Error> {
        let (name, record) = (self.manifest().names().schema(), self.manifest().schema);
        let file = self.content(&self.schema_file()).await?;
        schema::split(&file, &record).map_err(|why| Problem::damaged(name, why).at(self.location()))
    }

    /// The sequences' positions, checked.
    ///
    /// # Errors
    /// [`Error::Problem`], [`Error::Key`] or the place's own error.
    pub async fn sequences(&self) -> Result<Vec<SequenceValue>, Error> {
        let name = self.manifest().names().sequences();
        let count = self.manifest().sequences.count;
        let file = self.content(&self.sequences_file()).await?;
        let values =
            sequences::decode(&file).and_then(|values| match values.len() as u64 == count {
                true => Ok(values),
                false => Err(format!("it has {} sequences", values.len())),
            });
        values.map_err(|why| Problem::damaged(name, why).at(self.location()))
    }

    fn schema_file(&self) -> Recorded {
        let record = self.manifest().schema;
        Recorded {
            name: self.manifest().names().schema(),
            content_max: SCHEMA_MAX,
            bytes: record.bytes,
            digests: (record.sha256, record.blake3),
        }
    }

    fn sequences_file(&self) -> Recorded {
        let record = self.manifest().sequences;
        Recorded {
            name: self.manifest().names().sequences(),
            content_max: SEQUENCES_MAX,
            bytes: record.bytes,
            digests: (record.sha256, record.blake3),
        }
    }

    /// A file's content, with both digests of what is stored checked.
    async fn content(&self, file: &Recorded) -> Result<Bytes, Error> {
        self.check_keys()?;
        let length = self.check_recorded_length(file).await?;
        let how = (self.keys(), Digesting::Yes);
        let mut reader = ContentReader::new(self.place(), file.name, length, how);
        let expected = usize::try_from(length).unwrap_or(0);
        let content = reader.take_all(expected).await?;
        self.check_digests(file, reader.digests())?;
        Ok(content)
    }

    /// Checks a file as it is stored.
    async fn check_stored(&self, file: &Recorded) -> Result<(), Error> {
        let length = self.check_recorded_length(file).await?;
        let digests = self.place().digests(file.name, length).await?;
        self.check_digests(file, Some(digests))
    }

    /// The file's length, if it is what it should be: a longer file is not read, or it would fill the memory.
    async fn check_recorded_length(&self, file: &Recorded) -> Result<u64, Error> {
        let problem = |kind| Err(Problem::new(file.name, kind).at(self.location()));
        let limit = stored_max(file.content_max, file.name.cipher());
        match self.place().length(file.name).await? {
            None => problem(ProblemKind::Missing),
            Some(length) if length > limit => problem(ProblemKind::Damaged(format!(
                "it has {length} bytes; at most {limit} are allowed"
            ))),
            Some(length) if length < file.bytes.0 => problem(ProblemKind::Truncated {
                length,
                expected: file.bytes.0,
            }),
            Some(length) if length > file.bytes.0 => problem(ProblemKind::Damaged(format!(
                "it has {length} bytes, and the manifest says {}",
                file.bytes.0
            ))),
            Some(length) => Ok(length),
        }
    }

    fn check_digests(&self, file: &Recorded, digests: Option<FileDigests>) -> Result<(), Error> {
        if digests.map(|found| (found.sha256, found.blake3)) == Some(file.digests) {
            return Ok(());
        }
        let why = "its digests are not those of the manifest";
        Err(Problem::damaged(file.name, why).at(self.location()))
    }
}

/// Compares what the claim and the manifest both say.
fn compare(claim: &Identity, manifest: &Manifest) -> Result<(), Problem> {
    if claim.snapshot_id != manifest.snapshot_id {
        let why = format!(
            "it is of {}, the pieces here are of {}",
            manifest.snapshot_id, claim.snapshot_id
        );
        let kind = ProblemKind::Foreign(why);
        return Err(Problem::new(FileName::Manifest, kind));
    }
    let encryption = |encryption: &Option<Encryption>| match encryption {
        Some(encryption) => format!("encrypted to {}", encryption.recipients),
        None => "not encrypted".to_owned(),
    };
    let differs = if claim.codec != manifest.codec {
        (claim.codec.to_string(), manifest.codec.to_string())
    } else if claim.encryption != manifest.encryption {
        (
            encryption(&claim.encryption),
            encryption(&manifest.encryption),
        )
    } else if (&claim.node_id, claim.lsn) != (&manifest.source.node_id, manifest.lsn) {
        (
            format!("of {} at {}", claim.node_id, claim.lsn),
            format!("of {} at {}", manifest.source.node_id, manifest.lsn),
        )
    } else {
        return Ok(());
    };
    let why = format!(
        "it says that the files are {}, and manifest.json that they are {}",
        differs.0, differs.1
    );
    Err(Problem::damaged(FileName::Claim, why))
}

/// What the manifest says of a file that is read as a whole.
struct Recorded {
    name: FileName,
    content_max: u64,
    bytes: ByteCount,
    digests: (Sum, Sum),
}
