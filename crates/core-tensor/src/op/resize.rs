//! Resampling of images.

use super::conv::Window;
use super::{Evaluation, Inference, OpError, Operator};
use crate::{Dim, ValueType};

/// How samples between elements are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeMode {
    /// The nearest, by this rounding.
    Nearest(NearestMode),
    /// Linear in each extent.
    Linear,
    /// Cubic convolution with this coefficient (usually -0.75).
    Cubic(super::Scalar),
}

/// Rounding of a coordinate to an element (ONNX nearest_mode).
#[allow(missing_docs)] // the names are ONNX's
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NearestMode {
    RoundPreferFloor,
    RoundPreferCeil,
    Floor,
    Ceil,
}

/// Where an element of the result lies in the input (ONNX coordinate_transformation_mode).
#[allow(missing_docs)] // the names are ONNX's
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoordinateMode {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    /// With the region of interest's start and end for each extent.
    TfCropAndResize,
}

/// Resampling (ONNX Resize).
///
/// Input: f32 (Nearest: any plain dtype); with TfCropAndResize a second input, the roi, f32 `[2 · rank]`. Output: the shape given.
#[derive(Clone, Debug, PartialEq)]
pub struct Resize {
    /// The mode.
    pub mode: ResizeMode,
    /// Where elements lie.
    pub coordinates: CoordinateMode,
    /// The result's shape.
    pub shape: Vec<Dim>,
    /// Factor of each extent, where the file gives factors: they are used as given and not recomputed from the shapes.
    pub scales: Option<Vec<f32>>,
    /// Whether a filter is stretched when an extent shrinks.
    pub antialias: bool,
    /// Whether weights outside of the image are left out (and the others scaled up).
    pub exclude_outside: bool,
    /// What lies outside with TfCropAndResize.
    pub extrapolation_value: f32,
}

/// Samples an image at given places (ONNX GridSample).
///
/// Inputs: x f32 `[batch, channels, spatial...]`; grid f32 `[batch, out..., 2 or 3]` in -1..=1. Output: f32 `[batch, channels, out...]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridSample {
    /// How samples between elements are made.
    pub mode: GridMode,
    /// What lies outside.
    pub padding: GridPadding,
    /// Whether -1 and 1 are the centers of the corner elements, and not their edges.
    pub align_corners: bool,
}

/// ONNX GridSample's mode.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GridMode {
    Linear,
    Nearest,
    Cubic,
}

/// ONNX GridSample's padding_mode.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GridPadding {
    Zeros,
    Border,
    Reflection,
}

/// Adds overlapping blocks of columns up to an image (ONNX Col2Im): the inverse of what a convolution reads.
///
/// Input: f32 `[batch, channels · Π block, L]`. Output: f32 `[batch, channels, image...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Col2Im {
    /// Extents of the image.
    pub image: Vec<usize>,
    /// Extents of a block.
    pub block: Vec<usize>,
    /// Where blocks stand.
    pub window: Window,
}

super::pending!(Resize, "Resize", [shape]);
super::pending!(GridSample, "GridSample");
super::pending!(Col2Im, "Col2Im");
