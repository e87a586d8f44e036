//! The models that are measured, where their files come from, and their inputs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{self, Scratch};
use crate::{command, fetch};

use super::python::{self, Python};

/// A model at one size of its inputs.
#[derive(Debug)]
pub(super) struct BenchModel {
    pub(super) name: &'static str,
    origin: Origin,
    pub(super) family: Family,
    /// Whether the weights are 8-bit integers: activations may be, too, if asked for.
    pub(super) int8: bool,
    /// For `inputs.py`: name, filling, extents.
    inputs: &'static [&'static str],
}

#[derive(Debug)]
enum Origin {
    /// By its name in the table of `cargo xtask fetch`.
    Fetched(&'static str),
    /// By its name in `generate.py`, with random weights.
    Random(&'static str),
    /// The same, with the weights of MiniLM.
    MiniLm(&'static str),
}

/// What the optimizer is expected to gain depends on this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Transformer,
    ConvNet,
    Other,
}

const ONE: &[&str] = &["input_ids:tokens:1x128", "attention_mask:ones:1x128", "token_type_ids:zeros:1x128"];
const EIGHT: &[&str] = &["input_ids:tokens:8x128", "attention_mask:ones:8x128", "token_type_ids:zeros:8x128"];
const IMAGE: &[&str] = &["input:image:1x3x224x224"];
const FRAME: &[&str] = &["input:audio:1x576", "state:zeros_f32:2x1x128", "sr:rate:"];

const fn model(name: &'static str, origin: Origin, family: Family, inputs: &'static [&'static str]) -> BenchModel {
    BenchModel { name, origin, family, int8: false, inputs }
}

const fn int8(name: &'static str, inputs: &'static [&'static str]) -> BenchModel {
    BenchModel {
        name,
        origin: Origin::Fetched("all-minilm-l6-v2-int8"),
        family: Family::Transformer,
        int8: true,
        inputs,
    }
}

pub(super) const ALL: &[BenchModel] = &[
    model("minilm-f32-b1", Origin::MiniLm("minilm"), Family::Transformer, ONE),
    model("minilm-f32-b8", Origin::MiniLm("minilm"), Family::Transformer, EIGHT),
    model("minilm-opset13", Origin::MiniLm("minilm-opset13"), Family::Transformer, ONE),
    int8("minilm-int8-b1", ONE),
    int8("minilm-int8-b8", EIGHT),
    model("bert-base", Origin::Random("bert-base"), Family::Transformer, ONE),
    model("resnet50", Origin::Random("resnet50"), Family::ConvNet, IMAGE),
    model("resnet50-bn", Origin::Random("resnet50-bn"), Family::ConvNet, IMAGE),
    model("mobilenetv2", Origin::Random("mobilenetv2"), Family::ConvNet, IMAGE),
    model("mobilenetv2-bn", Origin::Random("mobilenetv2-bn"), Family::ConvNet, IMAGE),
    model("silero-vad", Origin::Fetched("silero-vad"), Family::Other, FRAME),
    model("silero-vad-16k", Origin::Fetched("silero-vad-16k"), Family::Other, FRAME),
    model("magika", Origin::Fetched("magika"), Family::Other, &["bytes:bytes:1x2048"]),
    model("ocr-det", Origin::Fetched("pp-ocrv4-det"), Family::ConvNet, &["x:image:1x3x480x640"]),
    model("ocr-rec", Origin::Fetched("pp-ocrv4-rec"), Family::Other, &["x:image:1x3x48x320"]),
    model("ocr-cls", Origin::Fetched("pp-ocr-cls"), Family::ConvNet, &["x:image:1x3x48x192"]),
];

/// The models of a comma-separated list, in which `minilm-f32`, being the name of none, means all that begin with `minilm-f32-`; without one, all.
pub(super) fn named(list: Option<&str>) -> Result<Vec<&'static BenchModel>, String> {
    let Some(list) = list else {
        return Ok(ALL.iter().collect());
    };
    let mut found: Vec<&BenchModel> = Vec::new();
    for name in list.split(',') {
        let exact = ALL.iter().any(|model| model.name == name);
        let meant = |model: &BenchModel| match model.name.strip_prefix(name) {
            Some(rest) => rest.is_empty() || (!exact && rest.starts_with('-')),
            None => false,
        };
        let before = found.len();
        found.extend(ALL.iter().filter(|model| meant(model)));
        if found.len() == before {
            let known: Vec<&str> = ALL.iter().map(|model| model.name).collect();
            return Err(format!("no model {name}; there is {}", known.join(", ")));
        }
    }
    // One may be named by itself and among others.
    let mut seen: Vec<&str> = Vec::new();
    found.retain(|model| {
        !seen.contains(&model.name) && {
            seen.push(model.name);
            true
        }
    });
    Ok(found)
}

/// A model's file with the files of its inputs.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) file: PathBuf,
    /// Names and .npy files.
    pub(super) inputs: Vec<(&'static str, PathBuf)>,
}

impl BenchModel {
    /// Fetches or makes the model's file in the cache unless it is there, and writes its inputs to a folder.
    pub(super) fn prepare(&self, python: &Python, inputs: &Path) -> Result<Prepared, String> {
        let file = match self.origin {
            Origin::Fetched(name) => fetch::model(name)?,
            Origin::Random(kind) => generated(python, kind, &[])?,
            Origin::MiniLm(kind) => {
                let weights = fetch::model("all-minilm-l6-v2")?;
                generated(python, kind, &[weights.with_file_name("config.json"), weights])?
            }
        };
        command::output(python.script("inputs.py").arg(inputs).args(self.inputs))?;
        let names = self.inputs.iter().filter_map(|input| input.split(':').next());
        Ok(Prepared { file, inputs: names.map(|name| (name, inputs.join(format!("{name}.npy")))).collect() })
    }
}

/// A file that `generate.py` makes; its folder has the script's version in its name.
fn generated(python: &Python, kind: &str, arguments: &[PathBuf]) -> Result<PathBuf, String> {
    let folder = cache::directory()?.join("bench").join(format!("onnx-{}", python::script_version("generate.py")?));
    let path = folder.join(format!("{kind}.onnx"));
    if !path.exists() {
        eprintln!("making {}", path.display());
        fs::create_dir_all(&folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        let scratch = Scratch::beside(&folder)?;
        let partial = scratch.path().join("model.onnx");
        command::output(python.script("generate.py").arg(kind).arg(&partial).args(arguments))?;
        cache::install(&partial, &path)?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_itself_or_for_its_variants_and_none_is_taken_twice() {
        let names = |list| named(Some(list)).map(|models| models.iter().map(|model| model.name).collect::<Vec<_>>());
        assert_eq!(names("minilm-f32").unwrap(), ["minilm-f32-b1", "minilm-f32-b8"]);
        assert_eq!(names("resnet50-bn,resnet50").unwrap(), ["resnet50-bn", "resnet50"]);
        assert_eq!(names("minilm-f32-b8,minilm-f32").unwrap(), ["minilm-f32-b8", "minilm-f32-b1"]);
        assert_eq!(names("silero-vad").unwrap(), ["silero-vad"]);
        assert!(names("mini").unwrap_err().contains("no model mini; there is minilm-f32-b1"));
        assert_eq!(named(None).unwrap().len(), ALL.len());
    }

    #[test]
    fn every_input_has_a_name_a_filling_and_extents() {
        for input in ALL.iter().flat_map(|model| model.inputs) {
            assert_eq!(input.split(':').count(), 3, "{input}");
        }
    }
}
