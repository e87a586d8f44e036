//! The manifest: what a quantized file was made from, how, and what it lost; and its verification.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Calibration, MixedReport, Planned, QuantizeOptions, ReconstructReport};
use crate::Error;
use crate::prune::PruneReport;

/// Bytes of a manifest at most: some hundred times what a model of thousands of tensors has.
const LONGEST: u64 = 256 << 20;

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Where it lay when the manifest was written, as it was named.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Its sha256 in hexadecimal digits; none where it was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl FileRecord {
    /// Of a file; reads all of it if `hash`, until `stopped`.
    ///
    /// # Errors
    /// When it cannot be read, and [`Error::Cancelled`] when it was stopped.
    pub(crate) fn of(path: &Path, hash: bool, stopped: &dyn Fn() -> bool) -> Result<FileRecord, Error> {
        let failed = |error: std::io::Error| Error::Unusable { path: path.to_owned(), reason: error.to_string() };
        let mut file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        if !hash {
            return Ok(FileRecord { path: path.to_owned(), bytes, sha256: None });
        }
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            if stopped() {
                return Err(Error::Cancelled);
            }
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => digest.update(&buffer[..count]),
            }
        }
        let sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(FileRecord { path: path.to_owned(), bytes, sha256: Some(sha256) })
    }
}

/// What became of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Its name.
    pub name: String,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// The type that it had.
    pub from: String,
    /// The type that it has.
    pub to: String,
    /// Bytes that it takes.
    pub bytes: u64,
    /// The root of the squared error relative to that of the squares; 0 where nothing changed.
    pub relative_error: f64,
    /// The same as a ratio of power to noise, in decibels; none where there is no noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqnr_decibels: Option<f64>,
}

impl TensorRecord {
    /// Of sums over its elements.
    pub(crate) fn of_sums(name: &str, shape: &[usize], types: [String; 2], bytes: u64, noise: f64, power: f64) -> Self {
        let lost = noise > 0.0 && power > 0.0;
        let [from, to] = types;
        TensorRecord {
            name: name.to_owned(),
            shape: shape.to_vec(),
            from,
            to,
            bytes,
            relative_error: if lost { (noise / power).sqrt() } else { 0.0 },
            sqnr_decibels: lost.then(|| 10.0 * (power / noise).log10()),
        }
    }

    pub(crate) fn new(planned: &Planned, noise: f64, power: f64) -> TensorRecord {
        let types = [planned.from.to_string(), planned.to.to_string()];
        TensorRecord::of_sums(&planned.name, &planned.shape, types, planned.bytes(), noise, power)
    }
}

/// The options that decide what is in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The mixture's name.
    pub mixture: String,
    /// Whether all matrices got its main type.
    pub pure: bool,
    /// The type that the output matrix was to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_type: Option<String>,
    /// The type that the token embeddings were to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_type: Option<String>,
    /// Demands, as `PATTERN=TYPE`.
    pub tensor_types: Vec<String>,
    /// The file of the importances.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imatrix: Option<String>,
    /// The text that errors were made up for with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// Whether the output matrix stayed as it was by demand.
    #[serde(default)]
    pub leave_output: bool,
    /// Whether tensors that were quantized already could be quantized again.
    #[serde(default)]
    pub allow_requantize: bool,
    /// How rounding followed the text (GPTQ), where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gptq: Option<FeedbackSettings>,
    /// What there is to say of graphs alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<GraphSettings>,
}

/// How much of a text rounding followed, and how closely.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeedbackSettings {
    /// Added to the products' diagonal, relative to its mean.
    pub damping: f64,
    /// Tokens of a chunk.
    pub context: usize,
    /// Chunks that ran.
    pub chunks: usize,
}

/// The options that decide what becomes of a graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GraphSettings {
    /// Whether 8-bit weights have one scale, and not one for each output.
    pub per_tensor: bool,
    /// Whether calibrated activations are signed around 0.
    pub symmetric: bool,
    /// Whether embeddings are quantized, too.
    pub tables: bool,
    /// Whether rounding followed the activations (GPTQ).
    pub gptq: bool,
    /// Whether 8-bit weights have zero points.
    #[serde(default)]
    pub asymmetric: bool,
    /// Whether scales were searched for that cut outliers.
    #[serde(default)]
    pub clip: bool,
    /// Whether biases make up for what rounding takes from means.
    #[serde(default)]
    pub bias_correction: bool,
    /// Whether channels between convolutions were made equally large.
    #[serde(default)]
    pub equalize: bool,
    /// How much of activations' outliers went to the weights (SmoothQuant's alpha).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smooth: Option<String>,
    /// Whether weights that meet large activations were protected (AWQ).
    #[serde(default)]
    pub awq: bool,
    /// Values of which factors were moved.
    #[serde(default)]
    pub balanced: usize,
    /// Where the data for calibration were from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// How often the model ran on them.
    pub runs: usize,
    /// How ranges were chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Nodes that were left out by demand.
    pub skipped: Vec<String>,
    /// Whether convolutions are quantized, too.
    #[serde(default = "yes")]
    pub convolutions: bool,
    /// What was added to the diagonal of the products, relative to its mean, where rounding followed the activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
}

/// What held before there was an option.
fn yes() -> bool {
    true
}

impl Settings {
    /// Nothing but a name for what was done.
    pub(crate) fn named(name: &str) -> Settings {
        Settings {
            mixture: name.to_owned(),
            pure: false,
            output_type: None,
            embedding_type: None,
            tensor_types: Vec::new(),
            imatrix: None,
            calibration: None,
            leave_output: false,
            allow_requantize: false,
            gptq: None,
            graph: None,
        }
    }

    pub(super) fn of(options: &QuantizeOptions, calibration: Option<&dyn Calibration>) -> Settings {
        Settings {
            mixture: options.mixture.name().to_owned(),
            pure: options.assign.pure,
            output_type: options.assign.output.map(|dtype| dtype.to_string()),
            embedding_type: options.assign.embedding.map(|dtype| dtype.to_string()),
            tensor_types: options.tensor_types.iter().map(|t| format!("{}={}", t.pattern(), t.dtype)).collect(),
            imatrix: options.importances.as_ref().map(|(_, file)| file.clone()).filter(|file| !file.is_empty()),
            calibration: calibration.map(|calibration| calibration.dataset().to_owned()),
            leave_output: options.assign.leave_output,
            allow_requantize: options.allow_requantize,
            gptq: calibration.and_then(|calibration| calibration.feedback_settings()),
            graph: None,
        }
    }
}

/// What a quantized file was made from, how, and what it lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of Polaris that made it.
    pub polaris: String,
    /// The files that it was made from.
    pub source: Vec<FileRecord>,
    /// The file.
    pub result: FileRecord,
    /// Files that belong to it: weights that lie beside an ONNX model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<FileRecord>,
    /// How.
    pub settings: Settings,
    /// What became of each tensor, in the file's order.
    pub tensors: Vec<TensorRecord>,
    /// Why each tensor has its type, where that was chosen tensor by tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixed: Option<MixedReport>,
    /// What was taken out of which tensor, where something was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<PruneReport>,
    /// How weights were trained, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconstruction: Option<ReconstructReport>,
    /// Seconds that it took.
    pub seconds: f64,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// When the file cannot be read or is no manifest.
    pub fn read(path: &Path) -> Result<Manifest, Error> {
        let unusable = |reason: String| Error::Unusable { path: path.to_owned(), reason };
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut text));
        read.map_err(|error| unusable(error.to_string()))?;
        if text.len() as u64 > LONGEST {
            return Err(unusable(format!("a manifest has no more than {} MiB", LONGEST >> 20)));
        }
        serde_json::from_slice(&text).map_err(|error| unusable(format!("this is no manifest: {error}")))
    }

    /// The manifest as JSON, for people to read as well.
    #[must_use]
    pub fn to_json(&self) -> String {
        // All numbers are finite and all keys are strings: nothing in here fails.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The tensor that lost most, by its own relative error; none where there are no tensors.
    #[must_use]
    pub fn worst(&self) -> Option<&TensorRecord> {
        self.tensors.iter().max_by(|a, b| a.relative_error.total_cmp(&b.relative_error))
    }
}
