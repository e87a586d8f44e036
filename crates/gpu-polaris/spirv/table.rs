// Made by `cargo xtask shaders`. Do not edit.

/// The SPIR-V of every variant, sorted by name.
#[rustfmt::skip]
pub(crate) const SHADERS: &[(&str, &[u8])] = &[
];
