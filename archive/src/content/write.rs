//! Writes one file of unknown length; encrypts it if its name says so.

use crate::error::Error;
use crate::keys::Keys;
use crate::name::{Cipher, FileName};
use crate::place::{FileDigests, FileWriter, Place};

use super::encrypt::Encrypting;

/// A file that is being written. Dropping it removes what was written.
#[derive(Debug)]
pub(crate) struct ContentWriter {
    place: Place,
    name: FileName,
    file: FileWriter,
    encrypting: Option<Box<Encrypting>>,
    /// Encrypted and not written yet; a buffer that is used again.
    stored: Vec<u8>,
}

impl ContentWriter {
    pub(crate) async fn begin(place: &Place, name: FileName, keys: &Keys) -> Result<Self, Error> {
        let encrypting = match name.cipher() {
            Cipher::None => None,
            Cipher::Age => {
                let begun = Encrypting::begin(keys);
                Some(Box::new(begun.map_err(|e| place.encrypting(name, e))?))
            }
        };
        Ok(Self {
            place: place.clone(),
            name,
            file: place.begin(name).await?,
            encrypting,
            stored: Vec::new(),
        })
    }

    /// Appends content. Not cancel-safe: a writer whose `write` was dropped midway is only good for dropping.
    pub(crate) async fn write(&mut self, content: &[u8]) -> Result<(), Error> {
        let Some(encrypting) = &mut self.encrypting else {
            return self.file.write(content).await;
        };
        let pushed = encrypting.push(content, &mut self.stored);
        pushed.map_err(|e| self.place.encrypting(self.name, e))?;
        self.file.write(&self.stored).await?;
        self.stored.clear();
        Ok(())
    }

    /// Makes the file durable and visible under its name. The digests are of what is stored.
    pub(crate) async fn finish(mut self) -> Result<FileDigests, Error> {
        if let Some(encrypting) = self.encrypting.take() {
            let finished = encrypting.finish(&mut self.stored);
            finished.map_err(|e| self.place.encrypting(self.name, e))?;
            self.file.write(&self.stored).await?;
        }
        self.file.finish().await
    }
}
