//! Weights of convolutions as they lie on the device: `shaders/conv.comp` and `shaders/conv_depthwise.comp` read what this writes.
//!
//! `[group][tile of lanes channels of the result][element of the window][channel of the image][lane]` in f32, padded with zeros: what a wave
//! multiplies an element of the image by lies side by side, so that it comes through scalar loads. Of convolutions of single channels (`lanes` 1)
//! that is the order in which files have them.

use core_tensor::op::{Conv, ConvTranspose, Op};
use core_tensor::{BackendError, DType, Graph, Node, ValueId};

use crate::weights::Extent;

/// A convolution's weight on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FilterKey {
    pub(crate) weight: ValueId,
    pub(crate) groups: usize,
    /// Whether it is of a transposed convolution: stored `[channels, outs / groups, window...]`.
    pub(crate) transposed: bool,
}

/// Its extents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) groups: usize,
    pub(crate) transposed: bool,
    /// Channels of the result that a group has.
    pub(crate) outs: usize,
    /// Channels of the image that a group has.
    pub(crate) channels: usize,
    /// The window, down the image and along it.
    pub(crate) window: [usize; 2],
    /// Channels of the result that a thread computes; 1: a kernel for single channels.
    pub(crate) lanes: usize,
}

impl FilterKey {
    /// The key of a node that convolves by a weight.
    pub(crate) fn of(graph: &Graph, node: &Node) -> Option<FilterKey> {
        let (groups, transposed) = match &node.op {
            Op::Conv(Conv { groups, .. }) => (*groups, false),
            Op::ConvTranspose(ConvTranspose { groups, .. }) => (*groups, true),
            _ => return None,
        };
        let weight = node.inputs.get(1).copied().flatten().filter(|id| graph.weight_of(*id).is_some())?;
        Some(FilterKey { weight, groups, transposed })
    }
}

impl Filter {
    /// The extents of a weight; `None` where kernels do not take it: it is no float, or has another number of spatial extents than one or two.
    pub(crate) fn of(graph: &Graph, key: FilterKey) -> Option<Filter> {
        let (dtype, shape) = graph.tensor_type(key.weight)?;
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) || key.groups == 0 {
            return None;
        }
        let shape: Vec<usize> = shape.iter().map(core_tensor::Dim::as_num).collect::<Option<_>>()?;
        let (first, second, window) = match shape[..] {
            [first, second, x] => (first, second, [1, x]),
            [first, second, y, x] => (first, second, [y, x]),
            _ => return None,
        };
        let (outs, channels) = if key.transposed { (second, first / key.groups) } else { (first / key.groups, second) };
        let lanes = match outs {
            _ if channels == 1 && key.groups > 1 && !key.transposed => 1,
            // As many as make little of the last tile idle.
            outs if outs.next_multiple_of(32) * 7 <= outs * 8 => 32,
            outs if outs.next_multiple_of(16) * 7 <= outs * 8 => 16,
            _ => 8,
        };
        Some(Filter { groups: key.groups, transposed: key.transposed, outs, channels, window, lanes })
    }

    /// Tiles of a group.
    pub(crate) fn tiles(&self) -> usize {
        self.outs.div_ceil(self.lanes)
    }

    fn taps(&self) -> usize {
        self.window[0] * self.window[1]
    }

    /// Floats of a tile.
    fn tile_len(&self) -> usize {
        self.taps() * self.channels * self.lanes
    }

    /// Bytes on the device; `None` where that overflows.
    pub(crate) fn byte_len(&self) -> Option<usize> {
        let floats = self.groups.checked_mul(self.tiles())?.checked_mul(self.tile_len())?;
        floats.checked_mul(4)
    }

    /// The tiles' bytes, one after the other.
    pub(crate) fn tiles_of<'a>(&'a self, weight: &'a [f32]) -> impl Iterator<Item = Vec<u8>> + 'a {
        (0..self.groups * self.tiles()).map(move |number| {
            let (group, tile) = (number / self.tiles(), number % self.tiles());
            let mut bytes = Vec::with_capacity(self.tile_len() * 4);
            for tap in 0..self.taps() {
                for channel in 0..self.channels {
                    for lane in 0..self.lanes {
                        let out = tile * self.lanes + lane;
                        let at = if self.transposed {
                            ((group * self.channels + channel) * self.outs + out) * self.taps() + tap
                        } else {
                            ((group * self.outs + out) * self.channels + channel) * self.taps() + tap
                        };
                        let value = if out < self.outs { weight.get(at).copied().unwrap_or(0.0) } else { 0.0 };
                        bytes.extend_from_slice(&value.to_le_bytes());
                    }
                }
            }
            bytes
        })
    }
}

/// A filter and where it lies.
#[derive(Clone, Debug)]
pub(crate) struct PlacedFilter {
    pub(crate) filter: Filter,
    pub(crate) extent: Extent,
}

impl Filter {
    /// The filter of a key that the analysis has found.
    ///
    /// # Errors
    /// When kernels do not take it.
    pub(crate) fn found(graph: &Graph, key: FilterKey) -> Result<Filter, BackendError> {
        Filter::of(graph, key).ok_or(BackendError::Mismatch("weights and convolutions"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_hold_every_weight_at_its_place_and_zeros_elsewhere() {
        let filter = Filter { groups: 2, transposed: false, outs: 3, channels: 2, window: [1, 2], lanes: 8 };
        let weight: Vec<f32> = (1..=24u8).map(f32::from).collect();
        let tiles: Vec<Vec<u8>> = filter.tiles_of(&weight).collect();
        assert_eq!(tiles.len() * tiles[0].len(), filter.byte_len().unwrap());
        for (group, bytes) in tiles.iter().enumerate() {
            let floats: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            for (i, value) in floats.into_iter().enumerate() {
                let (tap, channel, lane) = (i / 16, i / 8 % 2, i % 8);
                let expected = if lane < 3 { (((group * 3 + lane) * 2 + channel) * 2 + tap) as f32 + 1.0 } else { 0.0 };
                assert_eq!(value, expected);
            }
        }
        let turned = Filter { transposed: true, ..filter };
        let first: Vec<u8> = turned.tiles_of(&weight).next().unwrap();
        // [channels, outs, window]: the second channel's first out and tap.
        assert_eq!(first[8 * 4..9 * 4], 7.0f32.to_le_bytes());
    }
}
