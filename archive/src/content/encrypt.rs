//! From content to the bytes of an age file. Pure, apart from the system's random numbers.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use age::stream::StreamWriter;

use crate::keys::Keys;

/// A file that is being encrypted.
pub(super) struct Encrypting {
    stream: StreamWriter<Outlet>,
    outlet: Outlet,
}

/// Where the stream leaves what is encrypted: it cannot be asked for its writer before its end.
#[derive(Clone, Default)]
struct Outlet(Arc<Mutex<Vec<u8>>>);

impl fmt::Debug for Encrypting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encrypting")
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|buffer| buffer.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Outlet {
    fn with<T>(&self, what: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Encrypting {
    /// Begins a file with a key of its own, which the recipients of `keys` can recover.
    pub(super) fn begin(keys: &Keys) -> io::Result<Self> {
        let outlet = Outlet::default();
        let encryptor = age::Encryptor::with_recipients(keys.recipients());
        let encryptor = encryptor.map_err(io::Error::other)?;
        let stream = encryptor.wrap_output(outlet.clone())?;
        Ok(Self { stream, outlet })
    }

    /// Encrypts more content. What is complete is added to `stored`.
    pub(super) fn push(&mut self, content: &[u8], stored: &mut Vec<u8>) -> io::Result<()> {
        self.stream.write_all(content)?;
        self.outlet.with(|buffer| stored.append(buffer));
        Ok(())
    }

    /// Encrypts the rest.
    pub(super) fn finish(self, stored: &mut Vec<u8>) -> io::Result<()> {
        self.stream.finish()?;
        self.outlet.with(|buffer| stored.append(buffer));
        Ok(())
    }
}

/// A whole file.
pub(crate) fn encrypt(content: &[u8], keys: &Keys) -> io::Result<Vec<u8>> {
    let mut stored = Vec::new();
    let mut encrypting = Encrypting::begin(keys)?;
    encrypting.push(content, &mut stored)?;
    encrypting.finish(&mut stored)?;
    Ok(stored)
}
