//! Files that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A file that is being written under a temporary name beside its target: a reader never sees half of it, and the file that it replaces may be
/// read from until then. Dropped before [`PartialFile::finish`], it is removed.
#[derive(Debug)]
pub struct PartialFile {
    file: File,
    target: PathBuf,
    /// The temporary name; none as soon as the file has its own.
    path: Option<PathBuf>,
}

impl PartialFile {
    /// Creates the temporary file, in the folder of `target`, so that it can be renamed. No other file is touched.
    ///
    /// # Errors
    /// When the path names no file, or the system refuses.
    pub fn create(target: &Path) -> io::Result<PartialFile> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = target.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
        loop {
            let mut own = OsString::from(".");
            own.push(name);
            own.push(format!(".{}-{}.partial", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
            let path = target.with_file_name(own);
            match File::create_new(&path) {
                Ok(file) => return Ok(PartialFile { file, target: target.to_owned(), path: Some(path) }),
                // Left behind by a process of the same number that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where the file lies now.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(&self.target)
    }

    /// Gives the file its name, when all of it is on the disk.
    ///
    /// # Errors
    /// When the system refuses; the temporary file is removed then.
    pub fn finish(mut self) -> io::Result<()> {
        // Without this a crash of the machine could leave the new name on an empty file.
        self.file.sync_all()?;
        if let Some(path) = &self.path {
            fs::rename(path, &self.target)?;
        }
        self.path = None;
        Ok(())
    }
}

impl Write for PartialFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Best effort: the error that led here is the one to report.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_when_it_is_finished_and_leaves_nothing_before() {
        let folder = std::env::temp_dir().join(format!("polaris-partial-file-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let target = folder.join("model");
        fs::write(&target, "old").expect("a file");
        let entries = || fs::read_dir(&folder).expect("it is read").count();

        let mut dropped = PartialFile::create(&target).expect("a file");
        dropped.write_all(b"half").expect("it is written");
        assert_eq!(entries(), 2);
        drop(dropped);
        assert_eq!((entries(), fs::read(&target).expect("the old file")), (1, b"old".to_vec()));

        let (mut one, mut other) =
            (PartialFile::create(&target).expect("a file"), PartialFile::create(&target).expect("a file"));
        one.write_all(b"one").expect("it is written");
        other.write_all(b"other").expect("it is written");
        one.finish().expect("it gets its name");
        other.finish().expect("it gets its name");
        assert_eq!((entries(), fs::read(&target).expect("the new file")), (1, b"other".to_vec()));
        assert!(PartialFile::create(Path::new("..")).is_err());
        fs::remove_dir_all(&folder).expect("the folder goes");
    }
}
