//! Weights of convolutions in the layouts of their kernels.

use core_tensor::{AlignedBytes, ValueId};

use super::geometry::Geometry;
use super::image::BLOCK;

/// Which kernel a convolution runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// Register tiles over activations packed in blocks of channels.
    Tiles,
    /// Register tiles over activations packed from a plain image of few channels.
    Rows,
    /// Pixels across the lanes, from a plain image to a plain one of few channels.
    Planar,
    /// One channel each.
    Depthwise,
    /// Winograd's transformation with tiles of 4 × 4 results, F(4 × 4, 3 × 3).
    Winograd,
}

/// A weight as a convolution uses it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConvId {
    pub(crate) weight: ValueId,
    pub(crate) geometry: Geometry,
    pub(crate) form: Form,
}

/// Packed weights.
pub(crate) struct PackedConv {
    /// Channels of the result and of the input.
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    /// For each block of output channels.
    pub(crate) blocks: Vec<OutputBlock>,
    data: AlignedBytes,
    /// The first of the data.
    first: *const f32,
}

// SAFETY: the pointer leads into the data, which is only read.
unsafe impl Send for PackedConv {}
// SAFETY: as above.
unsafe impl Sync for PackedConv {}

/// Where the weights of sixteen output channels lie, and which input channels they meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutputBlock {
    /// The first of its elements.
    at: usize,
    /// The first input channel, a multiple of 16 (`Tiles`).
    pub(crate) first: usize,
    /// How many input channels from there on.
    pub(crate) count: usize,
}

impl PackedConv {
    /// Weights of an output block.
    #[inline(always)]
    pub(crate) fn block(&self, block: usize) -> *const f32 {
        self.first.wrapping_add(self.blocks[block].at)
    }

    /// Elements from one output block to the next one.
    pub(crate) fn apart(&self, block: usize) -> usize {
        self.blocks.get(block + 1).map_or(0, |next| next.at - self.blocks[block].at)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Packs weights of this shape (`[out, in / groups, kernel...]`, or transposed `[in, out / groups, kernel...]`); `None` when there is no memory.
    pub(crate) fn pack(weights: &[f32], shape: &[usize], geometry: &Geometry, form: Form) -> Option<PackedConv> {
        let (groups, taps) = (geometry.groups, geometry.plane.taps());
        let (outputs, inputs) =
            if geometry.transposed { (shape[1] * groups, shape[0]) } else { (shape[0], shape[1] * groups) };
        let (out_group, in_group) = (outputs / groups, inputs / groups);
        let element = |o: usize, c: usize, tap: usize| {
            if geometry.transposed {
                weights[(c * out_group + o % out_group) * taps + tap]
            } else {
                weights[(o * in_group + c % in_group) * taps + tap]
            }
        };
        let mut blocks = Vec::new();
        let mut at = 0;
        for first in (0..outputs).step_by(BLOCK) {
            let last = (first + BLOCK).min(outputs) - 1;
            let (from, to) = match form {
                Form::Depthwise => (first, first + 1),
                _ => (first / out_group * in_group / BLOCK * BLOCK, (last / out_group + 1) * in_group),
            };
            blocks.push(OutputBlock { at, first: from, count: to - from });
            let per_channel = if form == Form::Winograd { super::winograd::POSITIONS } else { taps };
            at += (to - from) * per_channel * BLOCK;
        }
        let mut data = AlignedBytes::zeroed(at.checked_mul(4)?)?;
        // SAFETY: the buffer is aligned, `at` f32 long and just made.
        let packed = unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast::<f32>(), at) };
        let order = geometry.order();
        for (i, block) in blocks.iter().enumerate() {
            let outputs = i * BLOCK..((i + 1) * BLOCK).min(outputs);
            for (lane, o) in outputs.enumerate() {
                let group = o / out_group;
                // The part of the block's channels that this output sees; the others' weights stay 0.
                let seen = group * in_group..(group + 1) * in_group;
                match form {
                    Form::Depthwise => {
                        (0..taps).for_each(|tap| packed[block.at + tap * BLOCK + lane] = element(o, o, tap));
                    }
                    Form::Rows | Form::Planar => {
                        for c in seen {
                            for tap in 0..taps {
                                packed[block.at + (c * taps + tap) * BLOCK + lane] = element(o, c, tap);
                            }
                        }
                    }
                    Form::Tiles => {
                        for (place, tap) in order.iter().enumerate() {
                            for c in seen.clone() {
                                let row = place * block.count + (c - block.first);
                                packed[block.at + row * BLOCK + lane] = element(o, c, *tap);
                            }
                        }
                    }
                    Form::Winograd => {
                        for c in seen {
                            let kernel: [f32; 9] = std::array::from_fn(|tap| element(o, c, tap));
                            let transformed = super::winograd::transform_kernel(&kernel);
                            for (position, value) in transformed.into_iter().enumerate() {
                                packed[block.at + (position * block.count + c) * BLOCK + lane] = value;
                            }
                        }
                    }
                }
            }
        }
        let first = data.as_ptr().cast();
        Some(PackedConv { outputs, inputs, blocks, data, first })
    }
}
