//! A chunk as one LZ4 frame (the LZ4 Frame Format's document, version 1.6.4).
//!
//! ```text
//! header  04 22 4D 18  60 50 FB    magic, independent blocks of at most 256 KiB, no checksums
//! block   length:u32               its highest bit is set if the block is stored uncompressed
//! end     00 00 00 00
//! ```
//! Numbers are little-endian. Written by hand around the block, because the library's frame encoder
//! allocates its buffers for each frame. BLAKE3 takes the place of the frame's own checksums.

use lz4_flex::block::{self, CompressTable};

use super::{PackError, room};

const HEADER: [u8; 7] = [0x04, 0x22, 0x4D, 0x18, 0x60, 0x50, 0xFB];
const BLOCK: usize = HEADER.len() + 4;
const END: [u8; 4] = [0; 4];
const STORED: u32 = 1 << 31;

/// What a block does where it does not shrink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// The frame holds it as it is.
    Allowed,
    /// It is left compressed; the caller sends it raw.
    Never,
}

/// Writes the frame to the start of `into` and returns its length.
pub(super) fn pack(
    raw: &[u8],
    into: &mut Vec<u8>,
    table: &mut CompressTable,
    stored: Stored,
) -> Result<usize, PackError> {
    let bound = block::get_maximum_output_size(raw.len());
    let frame = room(into, BLOCK + bound + END.len());
    let (header, rest) = frame.split_at_mut(BLOCK);
    header[..HEADER.len()].copy_from_slice(&HEADER);
    let mut length = block::compress_into_with_table(raw, &mut rest[..bound], table)
        .map_err(|e| PackError::Compress(e.to_string()))?;
    let mut flag = 0;
    if length >= raw.len() && stored == Stored::Allowed {
        rest[..raw.len()].copy_from_slice(raw);
        (length, flag) = (raw.len(), STORED);
    }
    let word = u32::try_from(length).expect("a chunk is at most 256 KiB") | flag;
    header[HEADER.len()..].copy_from_slice(&word.to_le_bytes());
    rest[length..length + END.len()].copy_from_slice(&END);
    Ok(BLOCK + length + END.len())
}

/// The content of exactly such a frame, in `into` or in the frame itself.
pub(super) fn unpack<'a>(frame: &'a [u8], into: &'a mut [u8]) -> Result<&'a [u8], PackError> {
    let shape = || PackError::Unpack("it is not an LZ4 frame of one block".to_owned());
    let rest = frame.strip_prefix(&HEADER).ok_or_else(shape)?;
    let (word, rest) = rest.split_first_chunk::<4>().ok_or_else(shape)?;
    let block = rest.strip_suffix(&END).ok_or_else(shape)?;
    let word = u32::from_le_bytes(*word);
    if (word & !STORED) as usize != block.len() || block.is_empty() {
        return Err(shape());
    }
    if word & STORED != 0 {
        return Ok(block);
    }
    let length =
        block::decompress_into(block, into).map_err(|e| PackError::Unpack(e.to_string()))?;
    Ok(&into[..length])
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
    use proptest::prelude::*;

    use super::*;

    fn frame(raw: &[u8], stored: Stored) -> Vec<u8> {
        let mut packed = Vec::new();
        let length = pack(raw, &mut packed, &mut CompressTable::large(), stored).unwrap();
        packed.truncate(length);
        packed
    }

    proptest! {
        #[test]
        fn the_library_opens_our_frames_and_concatenations_of_them(
            chunks in proptest::collection::vec(proptest::collection::vec(0u8..=9, 1..4_000), 1..4),
        ) {
            let mut file = Vec::new();
            for raw in &chunks {
                file.extend(frame(raw, Stored::Allowed));
            }
            let (mut decoder, mut got) = (FrameDecoder::new(file.as_slice()), Vec::new());
            // The decoder stops after each frame.
            while decoder.read_to_end(&mut got).unwrap() > 0 {}
            prop_assert_eq!(got, chunks.concat());
        }

        #[test]
        fn we_open_the_librarys_frames_of_that_shape(raw in proptest::collection::vec(0u8..4, 1..9_000)) {
            let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max256KB);
            let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
            encoder.write_all(&raw).unwrap();
            let packed = encoder.finish().unwrap();
            let mut into = vec![0; raw.len()];
            prop_assert_eq!(unpack(&packed, &mut into).unwrap(), raw);
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes: Vec<u8>, length in 0usize..100) {
            let _ = unpack(&bytes, &mut vec![0; length]);
            let framed = [&HEADER[..], &(bytes.len() as u32).to_le_bytes(), &bytes, &END].concat();
            let _ = unpack(&framed, &mut vec![0; length]);
        }
    }
}
