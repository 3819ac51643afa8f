//! A cheap look at everything: before anything is changed on a target.

use std::collections::HashMap;

use futures_util::{StreamExt, stream};

use super::Archive;
use crate::error::{Error, Problem};
use crate::manifest::StoredPart;
use crate::name::FileName;

/// Indexes read at once.
const PARALLEL: usize = 16;

impl Archive {
    /// Checks that every file is there with the right length, and reads schema, sequences and every index:
    /// about 200 bytes for each MiB of rows. Data of the right length is not read. Without a key, what is encrypted is
    /// compared with the manifest as it is stored.
    ///
    /// Returns all problems, in the order of the manifest; none if all is well.
    ///
    /// # Errors
    /// The place's own error, for example an unreachable store.
    pub async fn check_presence(&self) -> Result<Vec<Problem>, Error> {
        let listing = self.place().list().await?;
        let lengths: HashMap<FileName, u64> = listing.files.into_iter().collect();
        let mut problems = Vec::new();
        problems.extend(self.check_whole_files().await?);
        let parts: Vec<StoredPart> = self.manifest().parts().copied().collect();
        let checks = parts.into_iter().map(|part| {
            let length = lengths.get(&self.data_name(part.no)).copied();
            check(self.clone(), part, length)
        });
        let mut checked = stream::iter(checks).buffered(PARALLEL);
        while let Some(found) = checked.next().await {
            problems.extend(found?);
        }
        Ok(problems)
    }

    /// Checks schema and sequences.
    pub(crate) async fn check_whole_files(&self) -> Result<Vec<Problem>, Error> {
        let (schema, sequences) = match self.check_keys() {
            Ok(()) => (
                self.schema().await.map(drop),
                self.sequences().await.map(drop),
            ),
            Err(_) => (
                self.check_stored(&self.schema_file()).await,
                self.check_stored(&self.sequences_file()).await,
            ),
        };
        let found = [problem(schema)?, problem(sequences)?];
        Ok(found.into_iter().flatten().collect())
    }
}

async fn check(
    archive: Archive,
    part: StoredPart,
    length: Option<u64>,
) -> Result<Vec<Problem>, Error> {
    let mut problems = Vec::new();
    let length = match length {
        Some(length) => Some(length),
        // What is not a regular file is not listed; this says so.
        None => match archive.place().length(archive.data_name(part.no)).await {
            Ok(length) => length,
            Err(error) => return Ok(problem(Err(error))?.into_iter().collect()),
        },
    };
    problems.extend(problem(archive.check_length(&part, length).await)?);
    problems.extend(problem(archive.check_index(&part).await)?);
    Ok(problems)
}

/// A file's problem, apart from errors of the place.
pub(crate) fn problem(result: Result<(), Error>) -> Result<Option<Problem>, Error> {
    match result {
        Ok(()) => Ok(None),
        Err(Error::Problem { problem, .. }) => Ok(Some(problem)),
        Err(error) => Err(error),
    }
}
