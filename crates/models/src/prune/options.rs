//! What is to go, and by what it is chosen.

use core_tensor::FileAccess;
use fancy_regex::Regex;
use polaris_quant::Importances;
pub use polaris_quant::prune::{Method, WeightPruning};

use crate::Error;
use crate::backends::BackendOptions;
use crate::llama::Hold;
use crate::quantize::{QuantizeOptions, Settings};

/// What goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum What {
    /// Weights of the layers' matrices become zeros.
    Weights(WeightPruning),
    /// Tensors become smaller.
    Structure(StructurePruning),
}

/// What is cut. Shares are from 0 (nothing) to below 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StructurePruning {
    /// The share of each feed-forward network's neurons.
    pub neurons: f64,
    /// The share of each layer's heads of keys and values, which go with all query heads that they serve.
    pub heads: f64,
    /// The share of the query heads that each head of keys and values serves.
    pub query_heads: f64,
    /// Neurons that remain are a multiple of this (or of its greatest divisor that those of the source are a multiple of), so that rows are whole blocks of quantized
    /// formats.
    pub multiple: usize,
    /// Whether what is left makes up for what is gone.
    pub reconstruct: bool,
}

/// A regular expression that is searched in names.
#[derive(Clone, Debug)]
pub struct NamePattern(Regex);

impl NamePattern {
    /// From its text.
    ///
    /// # Errors
    /// When it is no regular expression.
    pub fn parse(text: &str) -> Result<NamePattern, String> {
        Regex::new(text).map(NamePattern).map_err(|error| error.to_string())
    }

    /// The pattern as it was given.
    #[must_use]
    pub fn pattern(&self) -> &str {
        self.0.as_str()
    }

    pub(super) fn is_in(&self, name: &str) -> bool {
        self.0.is_match(name).unwrap_or(false)
    }
}

/// A text that runs through the model.
#[derive(Clone, Debug)]
pub struct CalibrationText {
    /// The text.
    pub text: String,
    /// What the manifest calls it (a path).
    pub dataset: String,
    /// Tokens of a chunk.
    pub context: usize,
    /// Chunks at most; `None` takes all of the text.
    pub chunks: Option<usize>,
    /// Bytes of products that are held at once. The text runs as often as all of them need.
    pub memory: u64,
    /// What runs the model.
    pub backend: BackendOptions,
}

impl CalibrationText {
    /// 128 chunks of 512 tokens, 1 GiB of products.
    #[must_use]
    pub fn new(text: String, dataset: String) -> CalibrationText {
        let backend = BackendOptions::default();
        CalibrationText { text, dataset, context: 512, chunks: Some(128), memory: 1 << 30, backend }
    }
}

/// How a model is pruned.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// What goes.
    pub what: What,
    /// Steps, at least one: with more of them, the text runs through the model as it is pruned so far before each.
    pub steps: usize,
    /// What says how inputs go together.
    pub calibration: Option<CalibrationText>,
    /// Mean squares of inputs, and the name of the file that they are from. Where there are both, these choose and the text reconstructs.
    pub importances: Option<(Importances, String)>,
    /// Matrices whose name one of these is found in stay as they are.
    pub skip: Vec<NamePattern>,
    /// Added to the diagonal of the inputs' products, relative to its mean: the smaller, the more is trusted to the text.
    pub damping: f64,
    /// How the result is quantized.
    pub quantize: Option<QuantizeOptions>,
    /// Threads; at least one.
    pub threads: usize,
    /// Whether sha256 are taken for the manifest.
    pub hash: bool,
    /// Mapped or read.
    pub access: FileAccess,
}

impl PruneOptions {
    /// In one step, without data, on all threads.
    #[must_use]
    pub fn new(what: What) -> PruneOptions {
        PruneOptions {
            what,
            steps: 1,
            calibration: None,
            importances: None,
            skip: Vec::new(),
            damping: 0.01,
            quantize: None,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            hash: true,
            access: FileAccess::default(),
        }
    }

    /// Whether the options fit each other.
    pub(super) fn check(&self) -> Result<(), Error> {
        let refused = |name: &'static str, reason: &str| Err(Error::Option { name, reason: reason.to_owned() });
        if !(1..=100).contains(&self.steps) {
            return refused("steps", "there are 1 to 100");
        }
        if !(self.damping > 0.0 && self.damping.is_finite()) {
            return refused("damping", "it is a number above 0");
        }
        let text = self.calibration.is_some();
        if self.steps > 1 && !text {
            return refused("steps", "between steps a text runs through the model: it needs one for calibration");
        }
        match self.what {
            What::Weights(WeightPruning { method: Method::SparseGpt, .. }) if !text => {
                refused("method", "sparsegpt needs a text for calibration")
            }
            What::Weights(WeightPruning { method: Method::Wanda, .. }) if !text && self.importances.is_none() => {
                refused("method", "wanda needs importances or a text for calibration")
            }
            What::Weights(WeightPruning { reconstruct: true, .. })
            | What::Structure(StructurePruning { reconstruct: true, .. })
                if !text =>
            {
                refused("reconstruct", "it needs a text for calibration")
            }
            What::Structure(cut) => cut.check(),
            What::Weights(_) => Ok(()),
        }
    }

    /// What a calibration holds.
    pub(super) fn hold(&self) -> Hold {
        match self.what {
            What::Weights(weights) if weights.needs_feedback() => Hold::Both,
            _ => Hold::Products,
        }
    }

    /// What the manifest says beside its report.
    pub(super) fn settings(&self) -> Settings {
        let mut settings = Settings::named("pruned");
        settings.imatrix = self.importances.as_ref().map(|(_, file)| file.clone());
        settings.calibration = self.calibration.as_ref().map(|text| text.dataset.clone());
        settings
    }
}

impl StructurePruning {
    fn check(&self) -> Result<(), Error> {
        let shares = [("neurons", self.neurons), ("heads", self.heads), ("query_heads", self.query_heads)];
        if let Some((name, share)) = shares.into_iter().find(|(_, share)| !(0.0..1.0).contains(share)) {
            return Err(Error::Option { name, reason: format!("{share} is no share from 0 to below 1") });
        }
        let refused = |name, reason: &str| Err(Error::Option { name, reason: reason.to_owned() });
        if self.heads > 0.0 && self.query_heads > 0.0 {
            return refused("query_heads", "either whole groups of heads go or some heads of each group");
        }
        if shares.iter().all(|(_, share)| *share == 0.0) {
            return refused("neurons", "nothing is to go");
        }
        if self.multiple == 0 {
            return refused("multiple", "it is at least 1");
        }
        Ok(())
    }
}
