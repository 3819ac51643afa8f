//! Unpacks chunks after their digests have been checked.

use std::fmt;

use flate2::Decompress;
use steep_protocol::frame::Packing;
use zstd::bulk::Decompressor;

use super::{PackError, gzip, lz4, room};

/// How chunks of one stream are unpacked. Buffers and contexts are reused.
#[derive(Default)]
pub struct Unpacker {
    raw: Vec<u8>,
    zstd: Option<Decompressor<'static>>,
    inflate: Option<Decompress>,
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacker").finish_non_exhaustive()
    }
}

impl Unpacker {
    /// The raw bytes of a chunk's payload, after its digest and then its length have been checked. Never
    /// writes more than `raw_length` bytes, whatever the payload would unpack to.
    ///
    /// # Errors
    /// [`PackError`] where the payload is not what the head says.
    pub fn unpack<'a>(
        &'a mut self,
        packing: Packing,
        raw_length: u32,
        digest: &[u8; 32],
        payload: &'a [u8],
    ) -> Result<&'a [u8], PackError> {
        if blake3::hash(payload) != blake3::Hash::from_bytes(*digest) {
            return Err(PackError::Digest);
        }
        self.unpack_digested(packing, raw_length, payload)
    }

    /// The same for a payload whose digest has been checked.
    ///
    /// # Errors
    /// [`PackError::Unpack`] where the payload is not what the head says.
    pub(crate) fn unpack_digested<'a>(
        &'a mut self,
        packing: Packing,
        raw_length: u32,
        payload: &'a [u8],
    ) -> Result<&'a [u8], PackError> {
        let length = raw_length as usize;
        let raw = match packing {
            Packing::Raw => payload,
            Packing::Lz4 => lz4::unpack(payload, room(&mut self.raw, length))?,
            Packing::Gzip => {
                let inflate = self.inflate.get_or_insert_with(|| Decompress::new(false));
                gzip::unpack(payload, room(&mut self.raw, length), inflate)?
            }
            Packing::Zstd => {
                let raw = room(&mut self.raw, length);
                let got = self
                    .zstd
                    .get_or_insert_default()
                    .decompress_to_buffer(payload, raw)
                    .map_err(|e| PackError::Unpack(e.to_string()))?;
                &raw[..got]
            }
        };
        if raw.len() != length {
            return Err(PackError::Unpack(format!(
                "{} bytes where {length} were said",
                raw.len()
            )));
        }
        Ok(raw)
    }
}
