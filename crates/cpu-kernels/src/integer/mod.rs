//! Quantized graphs: products of bytes with what stands around them, and conversions between floats and bytes.

pub(crate) mod conv;
pub(crate) mod depthwise;
pub(crate) mod image;
pub(crate) mod linear;
pub(crate) mod product;
pub(crate) mod quantize;
