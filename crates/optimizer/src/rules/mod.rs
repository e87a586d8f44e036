//! The built-in rules, one family per file.

pub(crate) mod activations;
pub(crate) mod algebra;
pub(crate) mod attention;
pub(crate) mod casts;
pub(crate) mod convolution;
pub(crate) mod gated_activations;
pub(crate) mod linear;
pub(crate) mod movement;
pub(crate) mod normalization;
pub(crate) mod quantization;
pub(crate) mod rotary;
pub(crate) mod softmax;
