//! llama.cpp, built from a source distribution of the Python index that carries it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use crate::cache::{self, Scratch};
use crate::command;
use crate::package::{self, Archive, Package};
use crate::tools::{self, PYTHON};

const PACKAGE: &str = "llama-cpp-python";
pub(crate) const VERSION: &str = "0.3.36";
const SHA256: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";
const FOLDER: &str = "llama_cpp_python-0.3.36/vendor/llama.cpp";
/// Fetched where the system has no cmake.
const CMAKE_VERSION: &str = "4.1.2";
const PROGRAMS: &[&str] = &["llama-bench", "llama-completion", "llama-quantize"];
/// Of a build for Vulkan only what is measured.
const VULKAN_PROGRAMS: &[&str] = &["llama-bench"];
/// Where the Vulkan backend names a type that headers before 1.3.268 lack, and what it then does without.
const LAYER_SETTINGS: [&str; 2] = ["    VkBool32 enable_best_practice = layer_settings;\n", "&layer_setting_info);\n"];
const WITHOUT_LAYER_SETTINGS: &str =
    "    vk::InstanceCreateInfo instance_create_info(vk::InstanceCreateFlags{}, &app_info, layers, extensions);\n";

/// Only the command-line programs, for this machine's own processor, without what needs a network.
const CONFIGURATION: &[&str] = &[
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
];

/// llama.cpp's programs.
#[derive(Clone, Debug)]
pub(crate) struct LlamaCpp {
    folder: PathBuf,
}

impl LlamaCpp {
    /// A command for one of [`PROGRAMS`].
    pub(crate) fn command(&self, program: &str) -> Command {
        Command::new(self.folder.join(program))
    }

    /// Writes a model's weights anew in another type (llama.cpp's name of it).
    pub(crate) fn quantize(&self, from: &Path, to: &Path, kind: &str) -> Result<(), String> {
        let mut quantize = self.command("llama-quantize");
        quantize.arg("--allow-requantize").arg(from).arg(to).arg(kind);
        eprintln!("$ {}", command::shown(&quantize));
        command::output(&mut quantize).map(drop)
    }
}

/// Builds llama.cpp in the cache, unless it is there.
pub(crate) fn build() -> Result<LlamaCpp, String> {
    build_as("build", "complete", &[], PROGRAMS)
}

/// The same with its Vulkan backend.
pub(crate) fn build_vulkan() -> Result<LlamaCpp, String> {
    let built = build_as("build-vulkan", "complete-vulkan", &["-DGGML_VULKAN=ON"], VULKAN_PROGRAMS);
    built.map_err(|error| {
        format!("{error}\nllama.cpp with Vulkan needs glslc, Vulkan's and SPIR-V's headers (Debian: glslc libvulkan-dev spirv-headers)")
    })
}

fn build_as(folder: &str, mark: &str, options: &[&str], programs: &[&str]) -> Result<LlamaCpp, String> {
    let root = cache::directory()?.join("llama.cpp").join(VERSION);
    let (source, build) = (root.join("source"), root.join(folder));
    // Written last: without it the build was cut short and goes on where it stopped.
    let complete = root.join(mark);
    let llama_cpp = LlamaCpp { folder: build.join("bin") };
    if complete.exists() {
        return Ok(llama_cpp);
    }
    tools::require(&[PYTHON, "pip", "c++", "make"])?;
    let cmake = cmake()?;
    eprintln!("building llama.cpp {VERSION} once, in {}: some minutes", build.display());
    if !source.exists() {
        fetch_source(&root, &source)?;
    }
    guard_layer_settings(&source)?;
    let mut configure = Command::new(&cmake);
    configure.arg("-S").arg(&source).arg("-B").arg(&build).args(CONFIGURATION).args(options);
    command::output(&mut configure)?;
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let mut compile = Command::new(&cmake);
    compile.arg("--build").arg(&build).args(["--parallel", &jobs.to_string(), "--target"]);
    command::output(compile.args(programs))?;
    fs::write(&complete, "").map_err(|error| format!("cannot write {}: {error}", complete.display()))?;
    Ok(llama_cpp)
}

/// Lets the Vulkan backend be built with headers that lack `VK_EXT_layer_settings`, which it uses for validation only.
fn guard_layer_settings(source: &Path) -> Result<(), String> {
    let path = source.join("ggml/src/ggml-vulkan/ggml-vulkan.cpp");
    let text = fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let Some(guarded) = with_guard(&text) else { return Ok(()) };
    fs::write(&path, guarded).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// The source with a guard round the use of layer settings; `None` if it has one or there is no such use.
fn with_guard(text: &str) -> Option<String> {
    const GUARD: &str = "#ifdef VK_EXT_LAYER_SETTINGS_EXTENSION_NAME\n";
    let [first, last] = LAYER_SETTINGS;
    let start = text.find(first)?;
    let end = start + text[start..].find(last)? + last.len();
    if text[..start].ends_with(GUARD) {
        return None;
    }
    let (before, used, after) = (&text[..start], &text[start..end], &text[end..]);
    Some(format!("{before}{GUARD}{used}#else\n{WITHOUT_LAYER_SETTINGS}#endif\n{after}"))
}

/// The system's cmake or, where there is none, the one that the Python index carries, in the cache.
fn cmake() -> Result<PathBuf, String> {
    if tools::require(&["cmake"]).is_ok() {
        return Ok(PathBuf::from("cmake"));
    }
    let root = cache::directory()?.join("cmake");
    let folder = root.join(CMAKE_VERSION);
    let program = folder.join("cmake").join("data").join("bin").join(format!("cmake{}", env::consts::EXE_SUFFIX));
    if !program.exists() {
        let release = format!("cmake=={CMAKE_VERSION}");
        eprintln!("fetching {release} with pip, since there is no cmake here");
        fs::create_dir_all(&root).map_err(|error| format!("cannot create {}: {error}", root.display()))?;
        let scratch = Scratch::beside(&root)?;
        let partial = scratch.path().join(CMAKE_VERSION);
        let mut pip = Command::new(PYTHON);
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]);
        command::output(pip.args(["--only-binary", ":all:"]).arg("--target").arg(&partial).arg(&release))?;
        cache::install(&partial, &folder)?;
    }
    Ok(program)
}

fn fetch_source(root: &Path, source: &Path) -> Result<(), String> {
    fs::create_dir_all(root).map_err(|error| format!("cannot create {}: {error}", root.display()))?;
    let scratch = Scratch::beside(root)?;
    let package = Package { name: PACKAGE.into(), version: VERSION.into(), archive: Archive::Sdist };
    let archive = package.download(&scratch.path().join("package"))?;
    package::check_sha256(&archive, SHA256)?;
    let tree = scratch.path().join("source");
    fs::create_dir(&tree).map_err(|error| format!("cannot create {}: {error}", tree.display()))?;
    package::extract_folder(&archive, FOLDER, &tree)?;
    // The file points to a git directory that the distribution does not carry; git, asked by cmake, stumbles over it.
    let _ = fs::remove_file(tree.join(".git"));
    cache::install(&tree, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_is_put_once() {
        let text = format!("a\n{}    more\n    x({}b\n", LAYER_SETTINGS[0], LAYER_SETTINGS[1]);
        let guarded = with_guard(&text).unwrap();
        assert_eq!(guarded.matches("#ifdef").count(), 1);
        assert!(guarded.starts_with("a\n#ifdef") && guarded.ends_with("#endif\nb\n"), "{guarded}");
        assert_eq!(with_guard(&guarded), None);
        assert_eq!(with_guard("nothing"), None);
    }
}
