//! The models that are measured, and how each file comes to be.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{self, Scratch};
use crate::fetch;

use super::llama_cpp::LlamaCpp;
use super::random_llama::{self, WeightType};

/// A model to measure, with the number of tokens of each phase.
#[derive(Debug)]
pub(crate) struct BenchModel {
    pub(crate) name: &'static str,
    origin: Origin,
    pub(crate) prefill: usize,
    pub(crate) decode: usize,
}

#[derive(Debug)]
enum Origin {
    /// The small model as it is fetched.
    Fetched,
    /// The small model in another type, by llama.cpp's name of it.
    Requantized(&'static str),
    /// Random weights in the shape of TinyLlama-1.1B.
    Random(WeightType),
}

pub(crate) const ALL: &[BenchModel] = &[
    BenchModel { name: "smollm2-q4_1", origin: Origin::Fetched, prefill: 512, decode: 128 },
    BenchModel { name: "smollm2-q4_0", origin: Origin::Requantized("Q4_0"), prefill: 512, decode: 128 },
    BenchModel { name: "smollm2-q8_0", origin: Origin::Requantized("Q8_0"), prefill: 512, decode: 128 },
    BenchModel { name: "smollm2-f16", origin: Origin::Requantized("F16"), prefill: 512, decode: 128 },
    BenchModel { name: "tinyllama-q4_0", origin: Origin::Random(WeightType::Q4_0), prefill: 128, decode: 32 },
    BenchModel { name: "tinyllama-q4_k", origin: Origin::Random(WeightType::Q4K), prefill: 128, decode: 32 },
];

/// The models of a comma-separated list; without one, all.
pub(crate) fn named(list: Option<&str>) -> Result<Vec<&'static BenchModel>, String> {
    let Some(list) = list else {
        return Ok(ALL.iter().collect());
    };
    list.split(',')
        .map(|name| {
            ALL.iter().find(|model| model.name == name).ok_or_else(|| {
                let known: Vec<&str> = ALL.iter().map(|model| model.name).collect();
                format!("no model {name}; there is {}", known.join(", "))
            })
        })
        .collect()
}

impl BenchModel {
    /// Whether llama.cpp's quantizer makes the file.
    pub(crate) fn needs_llama_cpp(&self) -> bool {
        matches!(self.origin, Origin::Requantized(_))
    }

    /// Makes the model's file in the cache unless it is there, and returns its path.
    pub(crate) fn prepare(&self, llama_cpp: Option<&LlamaCpp>) -> Result<PathBuf, String> {
        let folder = cache::directory()?.join("bench");
        match self.origin {
            Origin::Fetched => fetch::model(fetch::SMALL_MODEL),
            Origin::Requantized(kind) => {
                let llama_cpp = llama_cpp.ok_or("requantizing needs llama.cpp")?;
                make(&folder, &format!("SmolLM2-135M-Instruct.from-Q4_1.{kind}.gguf"), |path| {
                    llama_cpp.quantize(&fetch::model(fetch::SMALL_MODEL)?, path, kind)
                })
            }
            Origin::Random(weights) => make(&folder, &random_llama::file_name(weights), |path| {
                eprintln!("writing random weights in the shape of TinyLlama-1.1B: {}", path.display());
                random_llama::write(&random_llama::TINYLLAMA, weights, path)
            }),
        }
    }
}

/// Makes a file under a temporary name and puts it in its place when it is complete.
fn make(folder: &Path, name: &str, write: impl FnOnce(&Path) -> Result<(), String>) -> Result<PathBuf, String> {
    let path = folder.join(name);
    if !path.exists() {
        fs::create_dir_all(folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        let scratch = Scratch::beside(folder)?;
        let partial = scratch.path().join(name);
        write(&partial)?;
        cache::install(&partial, &path)?;
    }
    Ok(path)
}
