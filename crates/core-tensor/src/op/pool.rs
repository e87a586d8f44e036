//! Pooling.

use super::conv::Window;
use super::{Evaluation, Inference, OpError, Operator};
use crate::ValueType;

/// What a window is reduced to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolKind {
    /// The largest.
    Max,
    /// The mean; whether padding counts as elements.
    Average {
        /// ONNX count_include_pad.
        count_include_pad: bool,
    },
    /// `(Σ|x|^p)^(1/p)`
    Lp {
        /// The exponent.
        p: u32,
    },
}

/// Pooling over windows (ONNX MaxPool, AveragePool, LpPool). Global pooling is a Reduce.
///
/// Input: `[batch, channels, spatial...]`, f32 (Max: also i8, u8, f64). Output: same dtype, spatial extents as for Conv, rounded up if `ceil_mode`
/// (windows that would begin in the padding after the end are left out). With `indices` (Max only) a second output, i64: places of the maxima in
/// the flattened input, column-major over the spatial extents if `column_major`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// What a window is reduced to.
    pub kind: PoolKind,
    /// Extents of the window.
    pub kernel: Vec<usize>,
    /// Where it stands.
    pub window: Window,
    /// Whether a last, incomplete window counts.
    pub ceil_mode: bool,
    /// Whether places are given, too.
    pub indices: bool,
    /// How the places count (ONNX storage_order = 1).
    pub column_major: bool,
}

/// Pooling over regions of interest by bilinear samples (ONNX RoiAlign).
///
/// Inputs: x f32 `[batch, channels, h, w]`; rois f32 `[n, 4]` (x1, y1, x2, y2); batch_indices i64 `[n]`. Output: f32 `[n, channels, height, width]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoiAlign {
    /// Rows of the output.
    pub output_height: usize,
    /// Columns of the output.
    pub output_width: usize,
    /// Samples per bin and direction; 0: as many as the bin is long.
    pub sampling_ratio: usize,
    /// What coordinates are multiplied with.
    pub spatial_scale: f32,
    /// Whether half a pixel is taken off (coordinate_transformation_mode = half_pixel).
    pub half_pixel: bool,
    /// The largest sample of a bin, and not the mean.
    pub max: bool,
}

super::pending!(Pool, "Pool");
super::pending!(RoiAlign, "RoiAlign");
