//! A part's index: the wire's frame heads, one for each chunk and then the end's. Pure.

use steep_protocol::frame::{FrameHead, HEAD_LENGTH, Packing};
use steep_protocol::{ByteCount, RowCount};

/// Bytes of an index for that many chunks.
pub(crate) fn index_bytes(chunks: u64) -> u64 {
    chunks.saturating_add(1).saturating_mul(HEAD_LENGTH as u64)
}

/// Sums over the heads of an index, and the rules of their order.
#[derive(Debug, Clone)]
pub(crate) struct IndexSums {
    packing: Packing,
    pub(crate) chunks: u64,
    pub(crate) bytes: ByteCount,
    pub(crate) stored_bytes: ByteCount,
    /// Known once the end was seen.
    pub(crate) rows: Option<RowCount>,
}

impl IndexSums {
    pub(crate) fn new(packing: Packing) -> Self {
        Self {
            packing,
            chunks: 0,
            bytes: ByteCount(0),
            stored_bytes: ByteCount(0),
            rows: None,
        }
    }

    /// Decodes and counts the next head.
    ///
    /// # Errors
    /// A sentence, if it is not a head or cannot follow.
    pub(crate) fn decode(&mut self, head: &[u8]) -> Result<FrameHead, String> {
        let head: &[u8; HEAD_LENGTH] = head
            .try_into()
            .map_err(|_| "it ends in the middle of a head".to_owned())?;
        let head = FrameHead::from_bytes(head).map_err(|e| e.to_string())?;
        self.push(&head)?;
        Ok(head)
    }

    /// Counts the next head.
    ///
    /// # Errors
    /// A sentence, if it cannot follow.
    pub(crate) fn push(&mut self, head: &FrameHead) -> Result<(), String> {
        if self.rows.is_some() {
            return Err("something follows its end".to_owned());
        }
        match *head {
            FrameHead::Chunk {
                packing, raw, wire, ..
            } => {
                if packing != self.packing || (packing == Packing::Raw && raw != wire) {
                    return Err("a chunk is not packed as the snapshot says".to_owned());
                }
                self.chunks += 1;
                self.bytes += ByteCount(raw.into());
                self.stored_bytes += ByteCount(wire.into());
                Ok(())
            }
            FrameHead::End { chunks, raw, rows } => {
                if (chunks, raw) != (self.chunks, self.bytes) {
                    return Err("its end does not match its chunks".to_owned());
                }
                self.rows = Some(rows);
                Ok(())
            }
            FrameHead::Fault { .. } => Err("it contains a fault".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sums(packing: Packing, index: &[u8]) -> Result<IndexSums, String> {
        let mut sums = IndexSums::new(packing);
        for head in index.chunks(HEAD_LENGTH) {
            sums.decode(head)?;
        }
        Ok(sums)
    }

    #[test]
    fn an_index_that_does_not_add_up_is_refused() {
        let chunk = |packing, raw, wire| FrameHead::Chunk {
            packing,
            raw,
            wire,
            digest: [0; 32],
        };
        let end = |chunks, raw| FrameHead::End {
            chunks,
            raw: ByteCount(raw),
            rows: RowCount(1),
        };
        let fault = FrameHead::Fault { length: 1 };
        let index = |heads: &[FrameHead]| {
            let bytes: Vec<u8> = heads.iter().flat_map(|head| head.to_bytes()).collect();
            sums(Packing::Lz4, &bytes)
        };
        let good = chunk(Packing::Lz4, 10, 5);
        assert_eq!(index(&[good, end(1, 10)]).unwrap().rows, Some(RowCount(1)));
        for bad in [
            vec![good, end(2, 10)],
            vec![good, end(1, 11)],
            vec![end(0, 0), good],
            vec![end(0, 0), end(0, 0)],
            vec![chunk(Packing::Raw, 10, 10), end(1, 10)],
            vec![fault],
        ] {
            assert!(index(&bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_index_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = sums(Packing::Zstd, &bytes);
        }
    }
}
