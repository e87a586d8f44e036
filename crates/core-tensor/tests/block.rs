//! The block decoders against gguf's, bit for bit, and against hostile lengths and bytes.
//!
//! `fixtures/block/make.py` made the expected values and describes the files.

use core_tensor::BlockFormat;
use core_tensor::block::{BlockError, can_decode, decode, encode_q8_0};

/// The first bytes of a fixture, taken off.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, tail) = rest.split_at(count);
    *rest = tail;
    head
}

fn take_u32(rest: &mut &[u8]) -> usize {
    u32::from_le_bytes(take(rest, 4).try_into().unwrap()) as usize
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

struct Entry {
    format: BlockFormat,
    blocks: &'static [u8],
    expected: Vec<f32>,
    hash: u64,
}

fn entries() -> Vec<Entry> {
    let mut rest: &[u8] = include_bytes!("fixtures/block/blocks.bin");
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let length = usize::from(take(&mut rest, 1)[0]);
        let name = std::str::from_utf8(take(&mut rest, length)).unwrap();
        let format = BlockFormat::ALL.into_iter().find(|f| f.name() == name).unwrap();
        let count = take_u32(&mut rest);
        let blocks = take(&mut rest, count * format.block_bytes());
        let weights = take_u32(&mut rest);
        let expected = floats(take(&mut rest, weights * 4));
        let hash = u64::from_le_bytes(take(&mut rest, 8).try_into().unwrap());
        entries.push(Entry { format, blocks, expected, hash });
    }
    entries
}

fn fnv1a(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Reproducible bytes (xorshift).
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(step).take(count).collect()
}

fn length_error(format: BlockFormat, bytes: usize, elements: usize) -> Result<(), BlockError> {
    Err(BlockError::Length { format, bytes, elements })
}

#[test]
fn every_format_decodes_to_the_bits_that_gguf_gives() {
    for Entry { format, blocks, expected, hash } in entries() {
        let mut weights = vec![f32::NAN; blocks.len() / format.block_bytes() * format.block_len()];
        decode(format, blocks, &mut weights).unwrap();
        for (i, (got, want)) in weights.iter().zip(&expected).enumerate() {
            let block = i / format.block_len();
            assert_eq!(got.to_bits(), want.to_bits(), "{format} block {block}, weight {i}: {got} is not {want}");
        }
        assert_eq!(fnv1a(&weights), hash, "{format}: {} weights, compared by hash", weights.len());
    }
}

#[test]
fn the_fixture_covers_every_format_that_decodes_with_values_and_in_bulk() {
    let entries = entries();
    for format in BlockFormat::ALL.into_iter().filter(|&f| can_decode(f)) {
        for with_values in [true, false] {
            let found = entries.iter().any(|e| e.format == format && e.expected.is_empty() != with_values);
            assert!(found, "{format} (with values: {with_values})");
        }
    }
}

#[test]
fn can_decode_says_what_decode_does() {
    for format in BlockFormat::ALL {
        let blocks = vec![0; format.block_bytes()];
        let result = decode(format, &blocks, &mut vec![0.0; format.block_len()]);
        let expected = if can_decode(format) { Ok(()) } else { Err(BlockError::Unsupported(format)) };
        assert_eq!(result, expected);
    }
}

#[test]
fn any_bytes_decode_without_a_panic_at_any_alignment() {
    for format in BlockFormat::ALL.into_iter().filter(|&f| can_decode(f)) {
        for seed in 0..64 {
            let offset = seed as usize % 8;
            let bytes = noise(seed, offset + 3 * format.block_bytes());
            decode(format, &bytes[offset..], &mut vec![0.0; 3 * format.block_len()]).unwrap();
        }
        let ones = vec![0xff; format.block_bytes()];
        decode(format, &ones, &mut vec![0.0; format.block_len()]).unwrap();
    }
}

#[test]
fn lengths_that_do_not_match_are_errors_and_write_nothing() {
    for format in BlockFormat::ALL.into_iter().filter(|&f| can_decode(f)) {
        let (len, size) = (format.block_len(), format.block_bytes());
        let cases = [
            (size, 0),
            (0, len),
            (1, 1),
            (size - 1, len),
            (size + 1, len),
            (size, len - 1),
            (size, len + 1),
            (size, 2 * len),
            (2 * size, len),
            (2 * size - 1, 2 * len),
            (2 * size, 2 * len - 1),
        ];
        for (bytes, elements) in cases {
            let mut out = vec![7.0; elements];
            let result = decode(format, &noise(1, bytes), &mut out);
            assert_eq!(result, length_error(format, bytes, elements));
            assert!(out.iter().all(|&v| v == 7.0), "{format}: {bytes} bytes, {elements} elements");
        }
        assert_eq!(decode(format, &[], &mut []), Ok(()), "no blocks are no weights");
    }
}

#[test]
fn a_length_error_names_bytes_weights_and_format() {
    let error = decode(BlockFormat::Q4_K, &[0; 143], &mut [0.0; 256]).unwrap_err();
    assert_eq!(error.to_string(), "143 bytes are not 256 weights of q4_k");
}

#[test]
fn q8_0_is_encoded_to_the_bytes_that_the_reference_gives() {
    let fixture: &[u8] = include_bytes!("fixtures/block/encode_q8_0.bin");
    let (cases, rest) = fixture.as_chunks::<162>();
    assert!(cases.len() == 16 && rest.is_empty());
    for (i, case) in cases.iter().enumerate() {
        let (values, expected) = case.split_at(128);
        let mut bytes = [0; 34];
        encode_q8_0(&floats(values), &mut bytes).unwrap();
        assert_eq!(bytes, expected, "row {i}");
    }
}

#[test]
fn q8_0_comes_back_within_half_a_step_and_the_rounding_of_the_scale() {
    let values: Vec<f32> = noise(5, 4096).iter().map(|&b| (f32::from(b) - 127.5) * 0.013).collect();
    let mut bytes = vec![0; values.len() / 32 * 34];
    encode_q8_0(&values, &mut bytes).unwrap();
    let mut back = vec![0.0; values.len()];
    decode(BlockFormat::Q8_0, &bytes, &mut back).unwrap();
    for (row, decoded) in values.chunks(32).zip(back.chunks(32)) {
        let amax = row.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let bound = amax / 254.0 + amax / 2048.0;
        for (v, w) in row.iter().zip(decoded) {
            assert!((v - w).abs() <= bound * 1.001, "{v} came back as {w}, bound {bound}");
        }
    }
}

#[test]
fn encoding_halves_rounds_away_from_zero() {
    let mut values = [0.0f32; 32];
    values[..6].copy_from_slice(&[127.0, 0.5, -0.5, 1.5, 2.5, -2.5]);
    let mut bytes = [0; 34];
    encode_q8_0(&values, &mut bytes).unwrap();
    assert_eq!(bytes[2..8].iter().map(|&b| b as i8).collect::<Vec<_>>(), [127, 1, -1, 2, 3, -3]);
}

#[test]
fn encoding_what_is_not_finite_does_not_panic_and_shows() {
    let mut bytes = [0; 34];
    let mut back = [0.0; 32];
    let mut values = [1.0f32; 32];
    values[3] = f32::NAN;
    encode_q8_0(&values, &mut bytes).unwrap();
    decode(BlockFormat::Q8_0, &bytes, &mut back).unwrap();
    assert!(back[3] == 0.0 && (back[4] - 1.0).abs() < 1e-3, "a NaN is 0 and spoils nothing else");
    values[3] = f32::NEG_INFINITY;
    encode_q8_0(&values, &mut bytes).unwrap();
    decode(BlockFormat::Q8_0, &bytes, &mut back).unwrap();
    assert!(back.iter().all(|v| v.is_nan()), "an infinity spoils its block");
    for tiny in [1e-45f32, 1e-40, f32::MIN_POSITIVE] {
        encode_q8_0(&[tiny; 32], &mut bytes).unwrap();
        decode(BlockFormat::Q8_0, &bytes, &mut back).unwrap();
        assert_eq!(back, [0.0; 32], "{tiny} is below what an f16 scale can hold");
    }
}

#[test]
fn encoding_lengths_that_do_not_match_are_errors() {
    for (elements, bytes) in [(32, 33), (32, 35), (31, 34), (33, 34), (64, 34), (32, 68), (0, 34), (32, 0)] {
        let result = encode_q8_0(&vec![1.0; elements], &mut vec![0; bytes]);
        assert_eq!(result, length_error(BlockFormat::Q8_0, bytes, elements));
    }
    assert_eq!(encode_q8_0(&[], &mut []), Ok(()));
}
