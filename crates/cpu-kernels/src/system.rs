//! What depends on the operating system.

/// Bytes of memory that the machine has, or that the process is limited to; `u64::MAX` where that cannot be told.
pub(crate) fn memory_bytes() -> u64 {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: sysconf only reads; its argument is a constant it knows.
        let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        if let (Ok(pages), Ok(size)) = (u64::try_from(pages), u64::try_from(size)) {
            let limit =
                std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
            return pages.saturating_mul(size).min(limit.unwrap_or(u64::MAX));
        }
    }
    u64::MAX
}
