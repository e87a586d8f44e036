//! Quantized graphs: products of bytes with what stands around them, and conversions between floats and bytes.

pub(crate) mod linear;
pub(crate) mod product;
pub(crate) mod quantize;
