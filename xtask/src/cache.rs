//! The cache: a folder outside the repository for models and for peers that were built.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

/// The cache folder: `$POLARIS_CACHE`, `$XDG_CACHE_HOME/polaris` or `~/.cache/polaris`.
pub(crate) fn directory() -> Result<PathBuf, String> {
    directory_from(|name| env::var_os(name))
}

fn directory_from(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, String> {
    let path = |name| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(cache) = path("POLARIS_CACHE") {
        return std::path::absolute(&cache).map_err(|error| format!("POLARIS_CACHE={}: {error}", cache.display()));
    }
    // The XDG base directory specification: a relative path there is to be ignored.
    if let Some(cache) = path("XDG_CACHE_HOME").filter(|path| path.is_absolute()) {
        return Ok(cache.join("polaris"));
    }
    if let Some(cache) = path("LOCALAPPDATA").filter(|_| cfg!(windows)) {
        return Ok(cache.join("polaris"));
    }
    match path("HOME") {
        Some(home) => Ok(home.join(".cache").join("polaris")),
        None => Err("neither POLARIS_CACHE nor HOME is set: set POLARIS_CACHE to a folder".into()),
    }
}

/// The folder in which models lie under their own file names.
pub(crate) fn models() -> Result<PathBuf, String> {
    Ok(directory()?.join("models"))
}

/// A folder of this process alone, beside its destination, so that what is finished in it can be
/// renamed into place in one step. It is removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(crate) fn beside(folder: &Path) -> Result<Self, String> {
        let path = folder.join(format!(".partial-{}", process::id()));
        // A process of the same number may have died here.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).map_err(|error| format!("cannot create {}: {error}", path.display()))?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Puts a finished file or folder in its place, atomically.
pub(crate) fn install(from: &Path, to: &Path) -> Result<(), String> {
    fs::rename(from, to).map_err(|error| format!("cannot create {}: {error}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<PathBuf, String> {
        directory_from(|name| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_cache_is_where_the_first_variable_that_is_set_says() {
        let home = ("HOME", "/home/x");
        let xdg = ("XDG_CACHE_HOME", "/c");
        let own = ("POLARIS_CACHE", "/p");
        assert_eq!(from(&[home]), Ok("/home/x/.cache/polaris".into()));
        assert_eq!(from(&[home, xdg]), Ok("/c/polaris".into()));
        assert_eq!(from(&[home, xdg, own]), Ok("/p".into()));
        assert_eq!(from(&[home, ("XDG_CACHE_HOME", "c")]), Ok("/home/x/.cache/polaris".into()));
        assert!(from(&[]).is_err());
    }

    #[test]
    fn a_scratch_folder_goes_with_its_value() {
        let here = env::temp_dir().join(format!("polaris-scratch-{}", process::id()));
        let scratch = Scratch::beside(&here).unwrap();
        let path = scratch.path().to_owned();
        fs::write(path.join("x"), "y").unwrap();
        install(&path.join("x"), &here.join("x")).unwrap();
        drop(scratch);
        assert!(!path.exists());
        assert_eq!(fs::read_to_string(here.join("x")).unwrap(), "y");
        fs::remove_dir_all(here).unwrap();
    }
}
