//! Weights that wait for being written, outside of memory.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use core_tensor::{FileAccess, FileBytes, PartialFile, Tensor};
use polaris_quant::graph::HostError;

/// Tensors of fewer bytes stay in memory.
const SMALL: usize = 1 << 16;

/// Takes tensors in, in memory as far as there is room and then in files without a name for others, which vanish with it.
#[derive(Debug)]
pub(super) struct Spill {
    beside: PathBuf,
    room: u64,
    files: Vec<PartialFile>,
}

impl Spill {
    /// For a result at this path; so many bytes stay in memory.
    pub(super) fn new(beside: &Path, room: u64) -> Spill {
        Spill { beside: beside.to_owned(), room, files: Vec::new() }
    }

    /// The same tensor, mapped from a file where there is no room.
    pub(super) fn keep(&mut self, tensor: Tensor) -> Result<Tensor, HostError> {
        let bytes = tensor.bytes().len();
        if bytes < SMALL || bytes as u64 <= self.room {
            self.room = self.room.saturating_sub(bytes as u64);
            return Ok(tensor);
        }
        let mut file = PartialFile::create(&self.beside)?;
        file.write_all(tensor.bytes())?;
        let mapped: Arc<FileBytes> = FileBytes::open(file.path(), FileAccess::Map)?;
        self.files.push(file);
        Ok(Tensor::from_file(tensor.dtype(), tensor.shape(), mapped, 0..bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_that_do_not_fit_come_back_from_files_that_vanish() {
        let folder = std::env::temp_dir().join(format!("polaris-spill-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let count = || std::fs::read_dir(&folder).unwrap().count();
        let numbers: Vec<u8> = (0..3 * SMALL).map(|i| i as u8).collect();
        let tensor = Tensor::from_slice(&[3, SMALL], &numbers).unwrap();
        let mut spill = Spill::new(&folder.join("model.onnx"), 4 * SMALL as u64);
        assert!(spill.keep(tensor.clone()).unwrap().file().is_none());
        assert_eq!(count(), 0);
        let kept = spill.keep(tensor.clone()).unwrap();
        assert_eq!((kept.bytes(), kept.shape(), count()), (tensor.bytes(), tensor.shape(), 1));
        assert!(kept.file().is_some());
        drop((spill, kept));
        assert_eq!(count(), 0);
        std::fs::remove_dir(&folder).unwrap();
    }
}
