//! Files beside the model that hold data of tensors.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use core_tensor::{FileAccess, FileBytes};

use crate::error::Fault;

/// The files with external data, each opened once.
#[derive(Debug)]
pub(crate) struct ExternalFiles {
    /// The folders that files may lie in, resolved: that of the path given and, where that is a link, that of the model itself.
    folders: Vec<PathBuf>,
    /// The folder that locations are relative to; none for models from memory.
    base: Option<PathBuf>,
    access: FileAccess,
    open: Mutex<HashMap<String, Arc<FileBytes>>>,
}

impl ExternalFiles {
    /// For a model from memory: there are none.
    pub(crate) fn none() -> ExternalFiles {
        ExternalFiles { folders: Vec::new(), base: None, access: FileAccess::Read, open: Mutex::default() }
    }

    /// For a model at a path.
    pub(crate) fn beside(model: &Path, access: FileAccess) -> ExternalFiles {
        let base = match model.parent() {
            Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
            Some(folder) => folder.to_owned(),
            None => PathBuf::from("."),
        };
        let real = model.canonicalize().ok().and_then(|model| model.parent().map(Path::to_owned));
        let folders = base.canonicalize().ok().into_iter().chain(real).collect();
        ExternalFiles { folders, base: Some(base), access, open: Mutex::default() }
    }

    /// The file of this location.
    pub(crate) fn get(&self, location: &str) -> Result<Arc<FileBytes>, Fault> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(location) {
            return Ok(file.clone());
        }
        let refuse = |why: &str| Fault::External(format!("location '{}' {why}", location.escape_debug()));
        let Some(base) = &self.base else {
            return Err(refuse("names a file, but the model was read from memory"));
        };
        let relative = Path::new(location);
        if location.is_empty() || location.contains('\0') {
            return Err(refuse("is no path"));
        }
        // Backslashes separate folders on Windows, where the model may have to load, too.
        let leaves = |path: &str| path.split(['/', '\\']).any(|part| part == "..");
        if leaves(location) || !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
            return Err(refuse("leaves the folder of the model"));
        }
        let path = base.join(relative);
        if let Ok(real) = path.canonicalize()
            && !self.folders.iter().any(|folder| real.starts_with(folder))
        {
            return Err(refuse("is a link that leaves the folder of the model"));
        }
        let file = FileBytes::open(&path, self.access)?;
        open.insert(location.to_owned(), file.clone());
        Ok(file)
    }
}
