//! The committed SPIR-V.

include!("../spirv/table.rs");

/// The words of a shader's SPIR-V.
pub(crate) fn words(name: &str) -> Option<Vec<u32>> {
    let index = SHADERS.binary_search_by_key(&name, |(name, _)| name).ok()?;
    let bytes = SHADERS[index].1;
    Some(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
}
