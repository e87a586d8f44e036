//! What constants of the model hold: computed while it is written, so that no more than a part of it is in memory.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use core_tensor::{BlockFormat, DType, Weight, WeightError};
use half::f16;

/// Weights of a block.
pub(super) const BLOCK: usize = 32;

/// What a constant holds.
pub(super) enum Content {
    /// A weight as it is.
    Weight(Arc<Weight>),
    /// A part of a weight in blocks.
    Blocks(Blocks),
}

impl Content {
    pub(super) fn dtype(&self) -> DType {
        match self {
            Content::Weight(weight) => weight.dtype(),
            Content::Blocks(blocks) if blocks.scales => DType::F16,
            Content::Blocks(_) => DType::U8,
        }
    }

    pub(super) fn shape(&self) -> &[usize] {
        match self {
            Content::Weight(weight) => weight.shape(),
            Content::Blocks(blocks) => &blocks.shape,
        }
    }

    /// Rows, and the bytes of each.
    pub(super) fn rows(&self) -> (usize, usize) {
        match self {
            Content::Weight(weight) => (weight.row_count(), weight.row_bytes()),
            Content::Blocks(blocks) => (blocks.weight.row_count(), blocks.row_bytes()),
        }
    }

    /// Bytes in all.
    pub(super) fn byte_len(&self) -> usize {
        let (rows, bytes) = self.rows();
        rows * bytes
    }

    /// The bytes of some rows.
    pub(super) fn bytes(&self, rows: Range<usize>) -> Result<Cow<'_, [u8]>, WeightError> {
        match self {
            Content::Weight(weight) => weight.rows(rows),
            Content::Blocks(blocks) => blocks.bytes(rows).map(Cow::Owned),
        }
    }

    /// Tells the system that these rows will not be read again soon.
    pub(super) fn release(&self, rows: Range<usize>) {
        match self {
            Content::Weight(weight) | Content::Blocks(Blocks { weight, .. }) => weight.release_rows(rows),
        }
    }
}

/// The numbers of a weight in blocks (`Q4_0`, `Q8_0`; two extents), or their scales.
pub(super) struct Blocks {
    weight: Arc<Weight>,
    shape: Vec<usize>,
    /// Scales, as f16; else numbers: unsigned around the middle, low bits first, those of a row side by side.
    scales: bool,
    /// Neighbours that have one scale.
    group: usize,
}

impl Blocks {
    /// The numbers, in a shape with as many bytes.
    pub(super) fn numbers(weight: &Arc<Weight>, shape: &[usize]) -> Blocks {
        Blocks { weight: weight.clone(), shape: shape.to_vec(), scales: false, group: BLOCK }
    }

    /// The scales, `[rows, columns / group]`.
    pub(super) fn scales(weight: &Arc<Weight>, group: usize) -> Blocks {
        let shape = vec![weight.row_count(), weight.row_len() / group];
        Blocks { weight: weight.clone(), shape, scales: true, group }
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn row_bytes(&self) -> usize {
        let columns = self.weight.row_len();
        match self.scales {
            true => columns / self.group * 2,
            false => columns * bits(self.weight.dtype()) / 8,
        }
    }

    fn bytes(&self, rows: Range<usize>) -> Result<Vec<u8>, WeightError> {
        let bits = bits(self.weight.dtype());
        let mut out = Vec::with_capacity(rows.len() * self.row_bytes());
        let stored = self.weight.rows(rows)?;
        let blocks = stored.chunks_exact(2 + BLOCK * bits / 8);
        if self.scales {
            blocks.step_by(self.group / BLOCK).for_each(|block| out.extend_from_slice(&block[..2]));
            return Ok(out);
        }
        for block in blocks {
            let codes = &block[2..];
            if bits == 4 {
                // Halves of a block share bytes here, neighbours there.
                let code = |i: usize| if i < 16 { codes[i] & 15 } else { codes[i - 16] >> 4 };
                out.extend((0..16).map(|i| code(2 * i) | code(2 * i + 1) << 4));
            } else {
                out.extend(codes.iter().map(|code| code.wrapping_add(128)));
            }
        }
        Ok(out)
    }
}

/// Bits of a number of a block.
pub(super) fn bits(dtype: DType) -> usize {
    if dtype == DType::Block(BlockFormat::Q8_0) { 8 } else { 4 }
}

/// Most weights that share a scale in the file, where blocks have the same one.
const GROUPS: [usize; 3] = [128, 64, 32];

/// Rows that are looked at at once.
const ROWS: usize = 64;

/// The largest group of neighbours that have one scale everywhere.
pub(super) fn group_of(weight: &Weight) -> Result<usize, WeightError> {
    let (columns, bytes) = (weight.row_len(), 2 + BLOCK * bits(weight.dtype()) / 8);
    let fits = |group: &usize| columns.is_multiple_of(*group);
    let mut group = GROUPS.into_iter().find(fits).unwrap_or(BLOCK);
    for first in (0..weight.row_count()).step_by(ROWS) {
        let rows = first..(first + ROWS).min(weight.row_count());
        let stored = weight.rows(rows.clone())?;
        let halves = |block: &[u8]| f16::from_le_bytes([block[0], block[1]]).to_bits();
        while group > BLOCK {
            let same = |blocks: &[u8]| blocks.chunks_exact(bytes).all(|block| halves(block) == halves(blocks));
            if stored.chunks(group / BLOCK * bytes).all(same) {
                break;
            }
            group /= 2;
        }
        drop(stored);
        weight.release_rows(rows);
        if group == BLOCK {
            break;
        }
    }
    Ok(group)
}
