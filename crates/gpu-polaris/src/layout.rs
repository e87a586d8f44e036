//! How weights lie on the device: `shaders/weights.glsl` reads what this writes.
//!
//! A matrix `[rows, k]` is cut into tiles of 64 rows and blocks of 32 along k. Of each block the units (quants or floats) lie in pieces of 16 bytes, for each piece
//! the 64 rows of the tile side by side: a wave whose lanes are rows reads runs of 1024 bytes. Scales, fifth bits and the scales of
//! super-blocks lie in arrays of their own, in the same order. Everything that a file stores is there, nothing is rounded.

use core_tensor::block::{
    BlockIq4Nl, BlockIq4Xs, BlockMxfp4, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1,
    BlockQ5K, BlockQ6K, BlockQ8_0, BlockTq1_0, BlockTq2_0, F16Le, e8m0_half, unpack_scales_and_mins,
};
use core_tensor::{BlockFormat, DType};

/// Rows of a tile: the lanes of a wave on GCN.
pub(crate) const TILE: usize = 64;
/// Weights of a block.
pub(crate) const BLOCK: usize = 32;

/// A format that kernels read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
    Q2K,
    Q3K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
    Tq1_0,
    Tq2_0,
}

/// Bytes of a row's block in each of the four arrays: units, scales, high bits; and of a row's super-block of 8 blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) units: usize,
    pub(crate) scales: usize,
    pub(crate) high: usize,
    pub(crate) supers: usize,
}

impl Format {
    /// The format of a dtype, if kernels read it.
    pub(crate) fn of(dtype: DType) -> Option<Format> {
        Some(match dtype {
            DType::F32 => Format::F32,
            DType::F16 => Format::F16,
            DType::BF16 => Format::BF16,
            DType::Block(BlockFormat::Q8_0) => Format::Q8_0,
            DType::Block(BlockFormat::Q4_0) => Format::Q4_0,
            DType::Block(BlockFormat::Q4_1) => Format::Q4_1,
            DType::Block(BlockFormat::Q5_0) => Format::Q5_0,
            DType::Block(BlockFormat::Q5_1) => Format::Q5_1,
            DType::Block(BlockFormat::Q4_K) => Format::Q4K,
            DType::Block(BlockFormat::Q5_K) => Format::Q5K,
            DType::Block(BlockFormat::Q6_K) => Format::Q6K,
            DType::Block(BlockFormat::Q2_K) => Format::Q2K,
            DType::Block(BlockFormat::Q3_K) => Format::Q3K,
            DType::Block(BlockFormat::IQ4_NL) => Format::Iq4Nl,
            DType::Block(BlockFormat::IQ4_XS) => Format::Iq4Xs,
            DType::Block(BlockFormat::MXFP4) => Format::Mxfp4,
            DType::Block(BlockFormat::TQ1_0) => Format::Tq1_0,
            DType::Block(BlockFormat::TQ2_0) => Format::Tq2_0,
            _ => return None,
        })
    }

    /// The name in names of shaders.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::F16 => "f16",
            Format::BF16 => "bf16",
            Format::Q8_0 => "q8_0",
            Format::Q4_0 => "q4_0",
            Format::Q4_1 => "q4_1",
            Format::Q5_0 => "q5_0",
            Format::Q5_1 => "q5_1",
            Format::Q4K => "q4_k",
            Format::Q5K => "q5_k",
            Format::Q6K => "q6_k",
            Format::Q2K => "q2_k",
            Format::Q3K => "q3_k",
            Format::Iq4Nl => "iq4_nl",
            Format::Iq4Xs => "iq4_xs",
            Format::Mxfp4 => "mxfp4",
            // Five digits in a byte are no task for a kernel: both lie there as pairs of bits.
            Format::Tq1_0 | Format::Tq2_0 => "ternary",
        }
    }

    /// Least values of a block's weights: of so many equal parts of it, products need the activations' sums.
    pub(crate) fn least_values(self) -> usize {
        match self {
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K | Format::Tq1_0 | Format::Tq2_0 => 1,
            Format::Q2K => 2,
            _ => 0,
        }
    }

    pub(crate) fn parts(self) -> Parts {
        let (units, scales, high, supers) = match self {
            Format::F32 => (128, 0, 0, 0),
            Format::F16 | Format::BF16 => (64, 0, 0, 0),
            Format::Q8_0 => (32, 2, 0, 0),
            Format::Q4_0 => (16, 2, 0, 0),
            Format::Q4_1 => (16, 4, 0, 0),
            Format::Q5_0 => (16, 2, 4, 0),
            Format::Q5_1 => (16, 4, 4, 0),
            Format::Q4K => (16, 2, 0, 4),
            Format::Q5K => (16, 2, 4, 4),
            Format::Q6K => (24, 2, 0, 2),
            Format::Q2K => (8, 2, 0, 4),
            Format::Q3K => (8, 2, 4, 2),
            Format::Iq4Nl | Format::Mxfp4 => (16, 2, 0, 0),
            Format::Iq4Xs => (16, 1, 0, 2),
            Format::Tq1_0 | Format::Tq2_0 => (8, 0, 0, 2),
        };
        Parts { units, scales, high, supers }
    }

    /// Bytes of the four arrays for one tile of `blocks` blocks per row.
    pub(crate) fn tile_bytes(self, blocks: usize) -> [usize; 4] {
        let Parts { units, scales, high, supers } = self.parts();
        [units * blocks, scales * blocks, high * blocks, supers * blocks.div_ceil(8)].map(|bytes| bytes * TILE)
    }
}

/// The four arrays of one tile, zeroed.
pub(crate) struct TileMut<'a> {
    pub(crate) units: &'a mut [u8],
    pub(crate) scales: &'a mut [u8],
    pub(crate) high: &'a mut [u8],
    pub(crate) supers: &'a mut [u8],
}

impl TileMut<'_> {
    /// Writes 16-byte piece `piece` of block `b`, of `pieces` per block.
    fn piece(&mut self, b: usize, piece: usize, pieces: usize, lane: usize, bytes: &[u8]) {
        let at = ((b * pieces + piece) * TILE + lane) * 16;
        self.units[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn scale(&mut self, b: usize, lane: usize, bytes: &[u8]) {
        let at = (b * TILE + lane) * bytes.len();
        self.scales[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn high(&mut self, b: usize, lane: usize, word: u32) {
        let at = (b * TILE + lane) * 4;
        self.high[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }

    fn supers(&mut self, s: usize, lane: usize, bytes: &[u8]) {
        let at = (s * TILE + lane) * bytes.len();
        self.supers[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Nibbles in the order of the kernels: dword `j` holds weights `8j..8j+4` low and `8j+4..8j+8` high.
    fn nibbles(&mut self, b: usize, lane: usize, q: &[u8; 32]) {
        let mut out = [0u8; 16];
        for (i, byte) in out.iter_mut().enumerate() {
            let k = i / 4 * 8 + i % 4;
            *byte = (q[k] & 15) | (q[k + 4] & 15) << 4;
        }
        self.piece(b, 0, 1, lane, &out);
    }

    /// The fifth bits: bit `8i + g` is that of weight `4g + i`.
    fn fifth_bits(&mut self, b: usize, lane: usize, q: &[u8; 32]) {
        let bits = (0..32).fold(0u32, |word, k| word | u32::from(q[k] >> 4 & 1) << (8 * (k % 4) + k / 4));
        self.high(b, lane, bits);
    }

    /// Two bits a weight: weight `16w + 4g + i` has those from `2g` on of byte `i` of word `w`.
    fn pairs(&mut self, b: usize, lane: usize, q: &[u8; 32]) {
        let at = (b * TILE + lane) * 8;
        for (k, q) in q.iter().enumerate() {
            self.units[at + k / 16 * 4 + k % 4] |= (q & 3) << (k % 16 / 4 * 2);
        }
    }

    /// 256 weights that are −d, 0, d or (in TQ2_0 alone) 2 d.
    fn ternary(&mut self, s: usize, lane: usize, digits: &[u8; 256], d: F16Le) {
        self.supers(s, lane, bytemuck::bytes_of(&d));
        for (j, q) in digits.as_chunks::<32>().0.iter().enumerate() {
            self.pairs(s * 8 + j, lane, q);
        }
    }

    /// Six bits a weight: of each 16, twelve lie in the upper bits of the bytes of three words, four in what is left of them.
    fn sextets(&mut self, b: usize, lane: usize, q: &[u8; 32]) {
        for part in 0..2 {
            let q = &q[16 * part..16 * part + 16];
            let at = ((b * TILE + lane) * 2 + part) * 12;
            let out = &mut self.units[at..at + 12];
            for j in 0..12 {
                out[j] = q[j] << 2;
            }
            for i in 0..4 {
                out[i] |= q[12 + i] >> 4 & 3;
                out[4 + i] |= q[12 + i] >> 2 & 3;
                out[8 + i] |= q[12 + i] & 3;
            }
        }
    }
}

/// Writes a row of a file, `bytes`, into lane `lane` of a tile. The row is as long as its format says; a float row may end within a block.
pub(crate) fn pack_row(format: Format, bytes: &[u8], lane: usize, tile: &mut TileMut<'_>) {
    match format {
        Format::F32 => floats(bytes, 8, lane, tile),
        Format::F16 | Format::BF16 => floats(bytes, 4, lane, tile),
        Format::Q8_0 => {
            for (b, block) in blocks::<BlockQ8_0>(bytes).enumerate() {
                let quants: [u8; 32] = block.qs.map(i8::cast_unsigned);
                tile.piece(b, 0, 2, lane, &quants[..16]);
                tile.piece(b, 1, 2, lane, &quants[16..]);
                tile.scale(b, lane, bytemuck::bytes_of(&block.d));
            }
        }
        Format::Q4_0 => {
            for (b, block) in blocks::<BlockQ4_0>(bytes).enumerate() {
                // Two's complement of q − 8.
                tile.nibbles(b, lane, &halves(&block.qs).map(|q| q ^ 8));
                tile.scale(b, lane, bytemuck::bytes_of(&block.d));
            }
        }
        Format::Q4_1 => {
            for (b, block) in blocks::<BlockQ4_1>(bytes).enumerate() {
                tile.nibbles(b, lane, &halves(&block.qs));
                tile.scale(b, lane, bytemuck::bytes_of(&[block.d, block.m]));
            }
        }
        Format::Q5_0 => {
            for (b, block) in blocks::<BlockQ5_0>(bytes).enumerate() {
                let q = fives(&block.qs, u32::from_le_bytes(block.qh)).map(|q| q ^ 16);
                tile.nibbles(b, lane, &q);
                tile.fifth_bits(b, lane, &q);
                tile.scale(b, lane, bytemuck::bytes_of(&block.d));
            }
        }
        Format::Q5_1 => {
            for (b, block) in blocks::<BlockQ5_1>(bytes).enumerate() {
                let q = fives(&block.qs, u32::from_le_bytes(block.qh));
                tile.nibbles(b, lane, &q);
                tile.fifth_bits(b, lane, &q);
                tile.scale(b, lane, bytemuck::bytes_of(&[block.d, block.m]));
            }
        }
        Format::Q4K => {
            for (s, block) in blocks::<BlockQ4K>(bytes).enumerate() {
                tile.supers(s, lane, bytemuck::bytes_of(&[block.d, block.dmin]));
                let (scales, mins) = unpack_scales_and_mins(&block.scales);
                for (j, (scale, least)) in scales.into_iter().zip(mins).enumerate() {
                    let q: [u8; 32] = std::array::from_fn(|i| nibble(block.qs[j / 2 * 32 + i], j % 2));
                    tile.nibbles(s * 8 + j, lane, &q);
                    tile.scale(s * 8 + j, lane, &[scale, least]);
                }
            }
        }
        Format::Q5K => {
            for (s, block) in blocks::<BlockQ5K>(bytes).enumerate() {
                tile.supers(s, lane, bytemuck::bytes_of(&[block.d, block.dmin]));
                let (scales, mins) = unpack_scales_and_mins(&block.scales);
                for (j, (scale, least)) in scales.into_iter().zip(mins).enumerate() {
                    let q: [u8; 32] =
                        std::array::from_fn(|i| nibble(block.qs[j / 2 * 32 + i], j % 2) | (block.qh[i] >> j & 1) << 4);
                    tile.nibbles(s * 8 + j, lane, &q);
                    tile.fifth_bits(s * 8 + j, lane, &q);
                    tile.scale(s * 8 + j, lane, &[scale, least]);
                }
            }
        }
        Format::Q6K => {
            for (s, block) in blocks::<BlockQ6K>(bytes).enumerate() {
                tile.supers(s, lane, bytemuck::bytes_of(&block.d));
                for j in 0..8 {
                    // Of each half of 128: 32 weights in the low nibbles of 32 bytes, 32 in those of the next, then their high nibbles.
                    let (half, quarter) = (j / 4, j % 4);
                    let q: [u8; 32] = std::array::from_fn(|i| {
                        let low = nibble(block.ql[half * 64 + quarter % 2 * 32 + i], quarter / 2);
                        let high = block.qh[half * 32 + i] >> (2 * quarter) & 3;
                        (low | high << 4) ^ 32
                    });
                    tile.sextets(s * 8 + j, lane, &q);
                    let scales = [block.scales[2 * j], block.scales[2 * j + 1]];
                    tile.scale(s * 8 + j, lane, &scales.map(i8::cast_unsigned));
                }
            }
        }
        Format::Q2K => {
            for (s, block) in blocks::<BlockQ2K>(bytes).enumerate() {
                tile.supers(s, lane, bytemuck::bytes_of(&[block.d, block.dmin]));
                for (j, q) in block.quants().as_chunks::<32>().0.iter().enumerate() {
                    tile.pairs(s * 8 + j, lane, q);
                    tile.scale(s * 8 + j, lane, &block.scales[2 * j..2 * j + 2]);
                }
            }
        }
        Format::Q3K => {
            for (s, block) in blocks::<BlockQ3K>(bytes).enumerate() {
                tile.supers(s, lane, bytemuck::bytes_of(&block.d));
                let scales = block.scales().map(i8::cast_unsigned);
                for (j, q) in block.quants().as_chunks::<32>().0.iter().enumerate() {
                    tile.pairs(s * 8 + j, lane, q);
                    // Two's complement of q − 4; its third bit, as if it were a fifth.
                    tile.fifth_bits(s * 8 + j, lane, &q.map(|q| (q ^ 4) << 2));
                    tile.scale(s * 8 + j, lane, &scales[2 * j..2 * j + 2]);
                }
            }
        }
        Format::Iq4Nl => {
            for (b, block) in blocks::<BlockIq4Nl>(bytes).enumerate() {
                tile.nibbles(b, lane, &halves(&block.qs));
                tile.scale(b, lane, bytemuck::bytes_of(&block.d));
            }
        }
        Format::Mxfp4 => {
            for (b, block) in blocks::<BlockMxfp4>(bytes).enumerate() {
                tile.nibbles(b, lane, &halves(&block.qs));
                // A power of two is its upper half.
                tile.scale(b, lane, &e8m0_half(block.e).to_le_bytes()[2..]);
            }
        }
        Format::Iq4Xs => {
            for (s, block) in blocks::<BlockIq4Xs>(bytes).enumerate() {
                tile.supers(s, lane, bytemuck::bytes_of(&block.d));
                for (j, qs) in block.qs.as_chunks::<16>().0.iter().enumerate() {
                    tile.nibbles(s * 8 + j, lane, &halves(qs));
                }
                for (j, scales) in block.scales().as_chunks::<2>().0.iter().enumerate() {
                    tile.scale(s * 4 + j, lane, &scales.map(i8::cast_unsigned));
                }
            }
        }
        Format::Tq1_0 => {
            for (s, block) in blocks::<BlockTq1_0>(bytes).enumerate() {
                tile.ternary(s, lane, &block.digits(), block.d);
            }
        }
        Format::Tq2_0 => {
            for (s, block) in blocks::<BlockTq2_0>(bytes).enumerate() {
                tile.ternary(s, lane, &block.digits(), block.d);
            }
        }
    }
}

fn floats(bytes: &[u8], pieces: usize, lane: usize, tile: &mut TileMut<'_>) {
    for (i, piece) in bytes.chunks(16).enumerate() {
        tile.piece(i / pieces, i % pieces, pieces, lane, piece);
    }
}

/// The blocks of a row; a file's alignment is not memory's.
fn blocks<B: bytemuck::AnyBitPattern>(bytes: &[u8]) -> impl Iterator<Item = B> + '_ {
    bytes.chunks_exact(size_of::<B>()).map(bytemuck::pod_read_unaligned)
}

fn nibble(byte: u8, upper: usize) -> u8 {
    if upper == 0 { byte & 15 } else { byte >> 4 }
}

/// 32 nibbles: the low ones of 16 bytes, then the high ones.
fn halves(qs: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|k| nibble(qs[k % 16], k / 16))
}

fn fives(qs: &[u8; 16], qh: u32) -> [u8; 32] {
    std::array::from_fn(|k| nibble(qs[k % 16], k / 16) | ((qh >> k & 1) as u8) << 4)
}
