//! Memory for packed weights and activations: cache-line aligned, in huge pages where it is large.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

/// Bytes that are written through raw pointers by several threads, each to its own part.
#[derive(Debug)]
pub(super) struct Buffer {
    data: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer is plain memory; whoever writes through `as_mut_ptr` sees to it that nobody else touches that part.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

/// Size of a huge page.
const HUGE: usize = 2 << 20;

impl Buffer {
    /// `bytes` bytes, aligned to a cache line, not initialized; `None` if there is no memory.
    pub(super) fn new(bytes: usize) -> Option<Self> {
        let align = if bytes >= 4 * HUGE { HUGE } else { 64 };
        let layout = Layout::from_size_align(bytes.max(1), align).ok()?;
        // SAFETY: the size is not zero.
        let data = NonNull::new(unsafe { alloc(layout) })?;
        #[cfg(target_os = "linux")]
        if align == HUGE {
            // SAFETY: only advises on memory that is ours. Without it the page walks cost a tenth of the bandwidth.
            unsafe { libc::madvise(data.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        Some(Self { data, layout })
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        self.data.as_ptr()
    }

    /// For writers of disjoint parts.
    pub(super) fn as_mut_ptr(&self) -> *mut u8 {
        self.data.as_ptr()
    }

    pub(super) fn len(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.data.as_ptr(), self.layout) }
    }
}
