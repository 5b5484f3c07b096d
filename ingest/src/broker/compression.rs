//! Undoes what producers compressed, with an end to it.
//!
//! The engine could do it, but it reads only the first block of what Java and Python call snappy, and it has no limit
//! for how much a small batch may turn into.

use std::io::Read;

use bytes::Bytes;
use tansu_sans_io::ErrorCode;

/// The most bytes that one batch may turn into.
const PLAIN_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bits of the attributes, of a batch and of an old message, that name the compression.
pub(super) const CODEC: i16 = 0b111;

/// In front of the blocks of snappy as Java writes it: a name, two version numbers.
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEAD_BYTES: usize = 16;

/// The plain bytes.
pub(super) fn inflate(attributes: i16, packed: Bytes) -> Result<Bytes, ErrorCode> {
    match attributes & CODEC {
        0 => Ok(packed),
        1 => read(flate2::read::MultiGzDecoder::new(&packed[..])),
        2 => snappy(&packed),
        3 => read(lz4::Decoder::new(&packed[..]).map_err(|_| ErrorCode::CorruptMessage)?),
        4 => read(zstd::Decoder::with_buffer(&packed[..]).map_err(|_| ErrorCode::CorruptMessage)?),
        _ => Err(ErrorCode::UnsupportedCompressionType),
    }
}

fn read(decoder: impl Read) -> Result<Bytes, ErrorCode> {
    let mut plain = Vec::new();
    // One byte more than allowed, to tell the end of the data from the end of the patience.
    let read = decoder.take(PLAIN_BYTES_MAX as u64 + 1).read_to_end(&mut plain);
    read.map_err(|_| ErrorCode::CorruptMessage)?;
    if plain.len() > PLAIN_BYTES_MAX {
        return Err(ErrorCode::MessageTooLarge);
    }
    Ok(plain.into())
}

fn snappy(packed: &[u8]) -> Result<Bytes, ErrorCode> {
    if !packed.starts_with(XERIAL_MAGIC) {
        return Ok(snappy_block(packed, PLAIN_BYTES_MAX)?.into());
    }
    let mut rest = packed.get(XERIAL_HEAD_BYTES..).ok_or(ErrorCode::CorruptMessage)?;
    let mut plain = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let (block, next) = behind.split_at_checked(length).ok_or(ErrorCode::CorruptMessage)?;
        plain.extend(snappy_block(block, PLAIN_BYTES_MAX - plain.len())?);
        rest = next;
    }
    if rest.is_empty() { Ok(plain.into()) } else { Err(ErrorCode::CorruptMessage) }
}

fn snappy_block(block: &[u8], bytes_max: usize) -> Result<Vec<u8>, ErrorCode> {
    let length = snap::raw::decompress_len(block).map_err(|_| ErrorCode::CorruptMessage)?;
    if length > bytes_max {
        return Err(ErrorCode::MessageTooLarge);
    }
    snap::raw::Decoder::new().decompress_vec(block).map_err(|_| ErrorCode::CorruptMessage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snappy_in_blocks_is_read_to_its_end() {
        let block = |bytes: &[u8]| snap::raw::Encoder::new().compress_vec(bytes).expect("packed");
        let mut packed = XERIAL_MAGIC.to_vec();
        packed.extend([0, 0, 0, 1, 0, 0, 0, 1]);
        for text in [&b"one "[..], b"two"] {
            let block = block(text);
            packed.extend(u32::try_from(block.len()).expect("short").to_be_bytes());
            packed.extend(block);
        }
        assert_eq!(inflate(2, packed.clone().into()).expect("plain"), "one two");
        assert_eq!(inflate(2, block(b"bare").into()).expect("plain"), "bare");
        packed.pop();
        assert_eq!(inflate(2, packed.into()), Err(ErrorCode::CorruptMessage));
    }

    #[test]
    fn a_bomb_is_refused() {
        let packed = zstd::encode_all(&vec![0; PLAIN_BYTES_MAX + 1][..], 1).expect("packed");
        assert!(packed.len() < 10_000);
        assert_eq!(inflate(4, packed.into()), Err(ErrorCode::MessageTooLarge));
    }
}
