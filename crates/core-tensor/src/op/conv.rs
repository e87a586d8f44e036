//! Convolutions.

use super::{Evaluation, Inference, OpError, Operator};
use crate::ValueType;

/// Where a window stands on the spatial extents of an image, one entry per spatial extent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Step from one place to the next.
    pub strides: Vec<usize>,
    /// Distance between the window's elements.
    pub dilations: Vec<usize>,
    /// What is added before each extent. (May be negative in transposed convolutions by lowering to a slice; here it is not.)
    pub pads_begin: Vec<usize>,
    /// What is added after each extent.
    pub pads_end: Vec<usize>,
}

/// Convolution (ONNX Conv) over 1 to 3 (any number of) spatial extents.
///
/// Inputs: x f32 `[batch, channels, spatial...]`; w f32 (weights of any float dtype) `[out, channels / groups, kernel...]`; optionally bias f32
/// `[out]`. Output: f32 `[batch, out, spatial'...]` with `spatial' = (spatial + pads - dilation·(kernel - 1) - 1) / stride + 1`.
/// (auto_pad is resolved by the importer, or, where extents are symbols, by a Pad in front.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv {
    /// The window.
    pub window: Window,
    /// Groups of channels.
    pub groups: usize,
}

/// Convolution of integers (ONNX ConvInteger): exact, i32.
///
/// Inputs: x u8 or i8; w u8 or i8; optionally x's zero point, a scalar of x's dtype; optionally w's zero point, scalar or `[out]`, of w's dtype.
/// Output: i32. Padding counts as x's zero point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvInteger {
    /// The window.
    pub window: Window,
    /// Groups of channels.
    pub groups: usize,
}

/// Transposed convolution (ONNX ConvTranspose).
///
/// Inputs: x f32 `[batch, channels, spatial...]`; w f32 `[channels, out / groups, kernel...]`; optionally bias f32 `[out]`. Output: f32 with
/// `spatial' = stride·(spatial - 1) + output_padding + dilation·(kernel - 1) + 1 - pads`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvTranspose {
    /// The window; pads are cut away from the result.
    pub window: Window,
    /// Groups of channels.
    pub groups: usize,
    /// What is added after each extent of the result.
    pub output_padding: Vec<usize>,
}

/// Deformable convolution, 2-D (ONNX DeformConv).
///
/// Inputs: x f32; w f32; offset f32 `[batch, 2·offset_groups·kh·kw, oh, ow]`; optionally bias; optionally mask `[batch, offset_groups·kh·kw, oh, ow]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeformConv {
    /// The window.
    pub window: Window,
    /// Groups of channels.
    pub groups: usize,
    /// Groups of offsets.
    pub offset_groups: usize,
}

super::pending!(Conv, "Conv");
super::pending!(ConvInteger, "ConvInteger");
super::pending!(ConvTranspose, "ConvTranspose");
super::pending!(DeformConv, "DeformConv");
