//! What `cargo xtask shaders` compiles and what it leaves: the variants of the shader sources and the manifest of the SPIR-V.
//!
//! The compiler itself is in the program of this package, behind the feature `compiler`: it is C++, and only who compiles
//! shaders needs it.

pub mod manifest;
#[path = "../../../crates/gpu-polaris/tests/variants/mod.rs"]
pub mod variants;

use std::path::{Path, PathBuf};

/// The folder of the GLSL sources.
pub fn sources() -> PathBuf {
    gpu_polaris().join("shaders")
}

/// The folder of the committed SPIR-V, with `manifest.json` and `table.rs`.
pub fn spirv() -> PathBuf {
    gpu_polaris().join("spirv")
}

/// The folder of the crate that the shaders belong to.
pub fn gpu_polaris() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).join("crates/gpu-polaris")
}
