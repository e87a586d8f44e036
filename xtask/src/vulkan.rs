//! What is installed of Vulkan: the loader, drivers and layers, by the files that describe them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Mesa's driver that computes on the processor: what tests run on.
pub(crate) const SOFTWARE: &str = "lvp_icd";

/// The description of a driver for this machine's loader, by the beginning of its name.
pub(crate) fn driver(prefix: &str) -> Option<PathBuf> {
    description("icd.d", prefix)
}

/// The description of a layer, by the beginning of its name.
pub(crate) fn layer(prefix: &str) -> Option<PathBuf> {
    description("explicit_layer.d", prefix)
}

/// The loader's library.
pub(crate) fn loader() -> Option<PathBuf> {
    let mut folders = paths("LD_LIBRARY_PATH", "");
    for base in ["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/lib"] {
        folders.push(base.into());
        // Debian has a folder for each architecture.
        folders.extend(entries(Path::new(base)).filter(|path| path.to_string_lossy().contains("-linux-")));
    }
    let names = ["libvulkan.so.1", "libvulkan.1.dylib"];
    folders.iter().flat_map(|folder| names.map(|name| folder.join(name))).find(|file| file.exists())
}

/// Environment variables by which a program uses one driver alone: older loaders read the one, newer the other.
pub(crate) fn only(driver: &Path) -> [(&'static str, &Path); 2] {
    [("VK_ICD_FILENAMES", driver), ("VK_DRIVER_FILES", driver)]
}

/// Whether the user has chosen drivers.
pub(crate) fn is_chosen() -> bool {
    ["VK_ICD_FILENAMES", "VK_DRIVER_FILES"].iter().any(|name| env::var_os(name).is_some_and(|value| !value.is_empty()))
}

fn description(kind: &str, prefix: &str) -> Option<PathBuf> {
    let home = env::home_dir().unwrap_or_default().join(".local/share");
    let mut bases = paths("XDG_DATA_HOME", &home.to_string_lossy());
    bases.extend(paths("XDG_DATA_DIRS", "/usr/local/share:/usr/share"));
    bases.extend(["/etc".into(), "/usr/local/share".into(), "/usr/share".into()]);
    let named = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(prefix) && name.ends_with(".json")
    };
    let folders = bases.iter().map(|base| base.join("vulkan").join(kind));
    let mut found: Vec<PathBuf> =
        folders.flat_map(|folder| entries(&folder).collect::<Vec<_>>()).filter(named).collect();
    // Where several architectures are installed, this program's.
    found.sort_by_key(|path| !path.to_string_lossy().contains(env::consts::ARCH));
    found.into_iter().next()
}

/// The folders of an environment variable, or the default ones.
fn paths(name: &str, default: &str) -> Vec<PathBuf> {
    let value = env::var_os(name).filter(|value| !value.is_empty()).unwrap_or_else(|| default.into());
    env::split_paths(&value).filter(|path| !path.as_os_str().is_empty()).collect()
}

/// What is in a folder; nothing if there is no folder.
fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}
