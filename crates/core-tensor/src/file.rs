//! Bytes of a file: mapped (the default) or read into memory.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::AlignedBytes;

/// How a file's bytes are brought in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileAccess {
    /// Map the file. Nothing is copied and a model may be larger than memory; a file that another program
    /// shortens while it is mapped ends the process with SIGBUS.
    #[default]
    Map,
    /// Read the file into memory (`--no-mmap`).
    Read,
}

/// Why a file's bytes could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The path names no regular file.
    #[error("{path}: not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file does not fit into memory.
    #[error("{path}: no memory for its {bytes} bytes")]
    NoMemory {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
}

enum Bytes {
    Mapped(memmap2::Mmap),
    Read(AlignedBytes),
}

/// The bytes of one file, shared by every tensor that lies in it. Dereferences to `[u8]`.
pub struct FileBytes {
    path: PathBuf,
    bytes: Bytes,
}

impl FileBytes {
    /// Opens a file.
    ///
    /// # Errors
    /// When the path cannot be opened, is no regular file, or (with [`FileAccess::Read`]) does not fit into memory.
    pub fn open(path: &Path, access: FileAccess) -> Result<Arc<FileBytes>, FileError> {
        let io = |source| FileError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(FileError::NotAFile { path: path.to_owned() });
        }
        let len = meta.len();
        let no_memory = || FileError::NoMemory { path: path.to_owned(), bytes: len };
        // An empty file cannot be mapped on every system, and needs no map.
        let bytes = if access == FileAccess::Read || len == 0 {
            let mut bytes = usize::try_from(len).ok().and_then(AlignedBytes::zeroed).ok_or_else(no_memory)?;
            std::io::Read::read_exact(&mut file, &mut bytes).map_err(io)?;
            Bytes::Read(bytes)
        } else {
            // SAFETY: the map is read-only and private. That no other process cuts or rewrites the file while it is mapped
            // cannot be had from the system; it is documented on `FileAccess::Map`, and `FileAccess::Read` is the way round it.
            Bytes::Mapped(unsafe { memmap2::Mmap::map(&file) }.map_err(io)?)
        };
        Ok(Arc::new(FileBytes { path: path.to_owned(), bytes }))
    }

    /// Wraps bytes that are in memory already, under a name for error messages.
    ///
    /// # Errors
    /// When there is no memory for the copy.
    pub fn from_slice(name: &str, bytes: &[u8]) -> Result<Arc<FileBytes>, FileError> {
        let path = PathBuf::from(name);
        let Some(mut own) = AlignedBytes::zeroed(bytes.len()) else {
            return Err(FileError::NoMemory { path, bytes: bytes.len() as u64 });
        };
        own.copy_from_slice(bytes);
        Ok(Arc::new(FileBytes { path, bytes: Bytes::Read(own) }))
    }

    /// The file's path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the system that a range will not be read again soon, so that its pages stop counting as this process's
    /// memory. The bytes stay readable (they come from the file again). Does nothing for files that were read.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &self.bytes {
            let end = range.end.min(map.len());
            let start = range.start.min(end);
            // SAFETY: the map is read-only and backed by a file, so that dropped pages are read from the file again: no
            // byte that a reference sees changes.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Tells the system that a range will be read soon, in order.
    pub fn will_need(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &self.bytes {
            let end = range.end.min(map.len());
            let start = range.start.min(end);
            let _ = map.advise_range(memmap2::Advice::WillNeed, start, end - start);
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Read(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileBytes({}, {} bytes)", self.path.display(), self.len())
    }
}
