//! Owned, aligned bytes.

use std::ops::{Deref, DerefMut};

/// What the system's allocator aligns to of its own accord. A larger alignment would make it write the zeros itself, and so touch every page.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(16))]
struct Chunk([u8; 16]);

/// Alignment of the first byte: a cache line.
const ALIGNMENT: usize = 64;

/// Bytes that start on a cache line (64 bytes), so that every plain dtype can be read in place. Pages that are never written take no memory.
pub struct AlignedBytes {
    chunks: Box<[Chunk]>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    /// `len` zero bytes, or `None` if there is no memory for them.
    #[must_use]
    pub fn zeroed(len: usize) -> Option<AlignedBytes> {
        let count = len.checked_add(ALIGNMENT)?.div_ceil(size_of::<Chunk>());
        let chunks: Box<[Chunk]> = bytemuck::allocation::try_zeroed_slice_box(count).ok()?;
        let address = chunks.as_ptr().addr();
        Some(AlignedBytes { start: address.next_multiple_of(ALIGNMENT) - address, chunks, len })
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.chunks)[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.chunks)[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_start_on_a_cache_line_and_are_zero() {
        for len in [0, 1, 63, 64, 65, 1 << 20] {
            let mut bytes = AlignedBytes::zeroed(len).unwrap();
            assert_eq!((bytes.len(), bytes.as_ptr().addr() % ALIGNMENT), (len, 0));
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(1);
            assert!(bytes.iter().all(|byte| *byte == 1));
        }
        assert!(AlignedBytes::zeroed(usize::MAX).is_none());
    }
}
