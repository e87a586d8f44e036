//! Owned, aligned bytes.

use std::ops::{Deref, DerefMut};

/// One cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes that start on a cache line (64 bytes), so that every plain dtype can be read in place.
pub struct AlignedBytes {
    lines: Box<[Line]>,
    len: usize,
}

impl AlignedBytes {
    /// `len` zero bytes, or `None` if there is no memory for them.
    #[must_use]
    pub fn zeroed(len: usize) -> Option<AlignedBytes> {
        let lines = bytemuck::allocation::try_zeroed_slice_box(len.div_ceil(64)).ok()?;
        Some(AlignedBytes { lines, len })
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
