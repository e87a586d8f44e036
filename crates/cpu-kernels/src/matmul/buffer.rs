//! Memory for packed weights and activations: cache-line aligned, in huge pages where it is large.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes that are written through raw pointers by several threads, each to its own part.
#[derive(Debug)]
pub(super) struct Buffer {
    data: NonNull<u8>,
    len: usize,
    /// What the bytes are a part of.
    _region: Arc<Region>,
}

// SAFETY: the buffer is plain memory; whoever writes through `as_mut_ptr` sees to it that nobody else touches that part.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

#[derive(Debug)]
struct Region {
    data: NonNull<u8>,
    layout: Layout,
}

// SAFETY: nobody reaches the memory through the region.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// Size of a huge page.
const HUGE: usize = 2 << 20;

/// Size of a cache line.
const LINE: usize = 64;

impl Region {
    fn new(bytes: usize) -> Option<Region> {
        let align = if bytes >= 4 * HUGE { HUGE } else { LINE };
        let layout = Layout::from_size_align(bytes.max(1), align).ok()?;
        // SAFETY: the size is not zero.
        let data = NonNull::new(unsafe { alloc(layout) })?;
        #[cfg(target_os = "linux")]
        if align == HUGE {
            // SAFETY: only advises on memory that is ours. Without it the page walks cost a tenth of the bandwidth.
            unsafe { libc::madvise(data.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        Some(Region { data, layout })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.data.as_ptr(), self.layout) }
    }
}

impl Buffer {
    /// `bytes` bytes, aligned to a cache line, not initialized; `None` if there is no memory.
    pub(super) fn new(bytes: usize) -> Option<Buffer> {
        Buffer::several(&[bytes])?.pop()
    }

    /// One buffer after the other, in huge pages if all together are large; `None` if there is no memory.
    pub(super) fn several(lengths: &[usize]) -> Option<Vec<Buffer>> {
        let mut starts = Vec::with_capacity(lengths.len());
        let mut end = 0usize;
        for len in lengths {
            starts.push(end);
            end = end.checked_add(len.checked_next_multiple_of(LINE)?)?;
        }
        let region = Arc::new(Region::new(end)?);
        let buffer = |(start, len): (usize, &usize)| {
            // SAFETY: `start` is inside the region, or its end if this is empty.
            let data = unsafe { region.data.add(start) };
            Buffer { data, len: *len, _region: region.clone() }
        };
        Some(starts.into_iter().zip(lengths).map(buffer).collect())
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        self.data.as_ptr()
    }

    /// For writers of disjoint parts.
    pub(super) fn as_mut_ptr(&self) -> *mut u8 {
        self.data.as_ptr()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}
