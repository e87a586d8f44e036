//! An encoder with its tokenizer: texts to the outputs of a graph.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use core_tensor::{Backend, BackendError, Bindings, DType, Dim, Graph, Tensor};
use loader_torch::SafeTensors;
use polaris_runtime::{Executable, ExecutableOptions, Model, ModelOptions, RuntimeError};

use super::batches::batches;
use super::config::{BertConfig, pad_token};
use super::files::{Format, Json, ModelFiles, unusable};
use super::graph::{build, name};
use super::labels::Labels;
use super::options::{BertOptions, TextProgress};
use super::pooling::Modules;
use super::tokens::{Text, TextTokenizer, Tokens};
use crate::backends::{BackendOptions, Device};
use crate::llama::LoadProgress;
use crate::{Error, backends};

/// Bounds of the tokens of a batch that programs are compiled for, as far as the model takes so many.
const TOKEN_BUCKETS: [usize; 8] = [8, 16, 32, 64, 128, 256, 512, 1024];
/// The same for texts side by side.
const BATCH_BUCKETS: [usize; 4] = [1, 4, 16, 64];
/// Token rows that the memory check counts with.
const ESTIMATED_ROWS: usize = 4096;
/// Where programs are compiled for exact extents, tokens are filled up to a multiple of this, so that few are.
const COLUMNS: usize = 8;

/// What an input of the graph is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feed {
    Ids,
    Mask,
    Types,
    Positions,
}

impl Feed {
    const NAMES: [(&'static str, Feed); 4] = [
        (name::INPUT_IDS, Feed::Ids),
        (name::ATTENTION_MASK, Feed::Mask),
        (name::TOKEN_TYPE_IDS, Feed::Types),
        ("position_ids", Feed::Positions),
    ];
}

/// An output of the graph.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// Its name.
    pub(crate) name: String,
    /// How many extents it has.
    pub(crate) rank: usize,
    /// Which one it is.
    number: usize,
}

/// Given a text's number, its values of an output, and the output's last extent.
type EachText<'a> = dyn FnMut(usize, &[f32], usize) -> Result<(), Error> + 'a;

/// What runs the graph.
enum Runner {
    /// All of it on one backend, in programs for bounds of the extents.
    Whole(Box<Model>),
    /// On several, for exact extents: what has control flow, or operators that the device lacks.
    Split(Executable),
}

/// An encoder, ready to run, from safetensors or ONNX.
///
/// The pipelines ([`TextEmbedder`](super::TextEmbedder), [`Classifier`](super::Classifier), [`FillMask`](super::FillMask)) are made of it.
pub struct Encoder {
    path: PathBuf,
    runner: Runner,
    tokenizer: TextTokenizer,
    feeds: Vec<(Feed, DType)>,
    outputs: Vec<Output>,
    labels: Labels,
    modules: Modules,
    config: Option<BertConfig>,
    batch: usize,
    /// Whether there is a mask, so that padding does no harm.
    masked: bool,
    /// Extents that the graph has as numbers: every batch is filled up to them.
    fixed: (Option<usize>, Option<usize>),
    load_seconds: f64,
    device_note: Option<String>,
}

impl Encoder {
    /// Opens a model: `.safetensors` (or the index of a sharded model), `.onnx`, or a folder with one of them. `tokenizer.json` and, for
    /// safetensors, `config.json` are found beside it.
    ///
    /// # Errors
    /// When a file is missing, malformed or not supported, the device cannot be used, there is not enough memory, or `progress` cancels.
    pub fn open(
        path: impl AsRef<Path>,
        options: &BertOptions,
        progress: &mut LoadProgress<'_>,
    ) -> Result<Encoder, Error> {
        let start = Instant::now();
        let mut opened = backends::open(&options.backend)?;
        if matches!(options.backend.device, Device::Vulkan(_)) {
            // For what the device lacks or cannot hold.
            let processor = BackendOptions { device: Device::Cpu, ..options.backend };
            opened.backends.extend(backends::open(&processor)?.backends);
        }
        let mut encoder = Encoder::open_on(path, &opened.backends, options, progress)?;
        encoder.load_seconds = start.elapsed().as_secs_f64();
        encoder.device_note = opened.note.or(encoder.device_note);
        Ok(encoder)
    }

    /// The same on backends of the caller's choice (`options.backend` is then not looked at).
    ///
    /// # Errors
    /// As [`Encoder::open`].
    pub fn open_on(
        path: impl AsRef<Path>,
        backends: &[Arc<dyn Backend>],
        options: &BertOptions,
        progress: &mut LoadProgress<'_>,
    ) -> Result<Encoder, Error> {
        let start = Instant::now();
        if options.batch == 0 {
            return Err(Error::Option { name: "batch", reason: "no text at all cannot be evaluated".into() });
        }
        let files = ModelFiles::find(path.as_ref())?;
        let json = match &options.config {
            Some(path) => Some(Json::read(path)?),
            None => files.json("config.json")?,
        };
        let (graph, config) = match files.format {
            Format::SafeTensors => {
                let missing = || unusable(&files.weights, "there is no config.json beside it".into());
                let config = BertConfig::from_json(json.as_ref().ok_or_else(missing)?)?;
                let source = SafeTensors::open(&files.weights, options.access)?;
                (build(&config, &source)?, Some(config))
            }
            Format::Onnx => (super::import::graph(&files.weights, options.access)?, None),
        };
        let wrong = |reason: String| unusable(&files.weights, reason);
        let interface = Interface::of(&graph).map_err(wrong)?;
        let (labels, pad) = match (&config, &json) {
            (Some(config), _) => (config.labels.clone(), config.pad_token),
            (None, Some(json)) => (Labels::from_json(json)?, pad_token(json)?),
            (None, None) => (Labels::default(), None),
        };
        let limit = match (&config, interface.fixed.1) {
            (Some(config), _) => Some(config.max_tokens()),
            (None, Some(fixed)) => Some(fixed),
            (None, None) => json.as_ref().and_then(positions),
        };
        let tokenizer = TextTokenizer::open(&files, options.tokenizer.as_deref(), limit, options.max_tokens, pad)?;
        let modules = Modules::find(&files)?;
        // Without a mask, padding would be taken for text.
        let masked = interface.feeds.iter().any(|(feed, _)| *feed == Feed::Mask);
        let batch = interface.fixed.0.unwrap_or(if masked { options.batch } else { 1 });
        let runtime = runtime_options(&interface, batch, tokenizer.max_tokens());
        let Interface { feeds, outputs, fixed, .. } = interface;
        let (runner, passed_over) = Runner::load(backends, graph, runtime, progress).map_err(|error| match error {
            RuntimeError::Backend { source: BackendError::Cancelled, .. } => Error::Cancelled,
            error => error.into(),
        })?;
        Ok(Encoder {
            device_note: (!passed_over.is_empty()).then(|| passed_over.join("; ")),
            path: files.weights.clone(),
            runner,
            tokenizer,
            feeds,
            outputs,
            labels,
            modules,
            config,
            batch,
            masked,
            fixed,
            load_seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// The configuration; `None` for ONNX files, whose graph says all.
    #[must_use]
    pub fn config(&self) -> Option<&BertConfig> {
        self.config.as_ref()
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The labels that the configuration names.
    #[must_use]
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The names of the graph's outputs.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().map(|output| output.name.as_str())
    }

    /// The file with the weights.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The graph after the optimizer's passes.
    #[must_use]
    pub fn graph(&self) -> &Arc<Graph> {
        match &self.runner {
            Runner::Whole(model) => model.graph(),
            Runner::Split(executable) => executable.graph(),
        }
    }

    /// Bytes of the weights as the backends hold them.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        match &self.runner {
            Runner::Whole(model) => model.weight_bytes(),
            Runner::Split(executable) => executable.weight_bytes(),
        }
    }

    /// What runs the model, for people; and why it is not the device that would have been the first choice.
    #[must_use]
    pub fn device(&self) -> String {
        let description = match &self.runner {
            Runner::Whole(model) => model.backend().description(),
            Runner::Split(executable) => {
                let mut names: Vec<String> = executable.pieces().into_iter().map(|(name, _)| name).collect();
                names.sort_unstable();
                names.dedup();
                names.join(" and ")
            }
        };
        match &self.device_note {
            Some(note) => format!("{description} ({note})"),
            None => description,
        }
    }

    /// Seconds that opening and loading took.
    #[must_use]
    pub fn load_seconds(&self) -> f64 {
        self.load_seconds
    }

    /// What follows the encoder in a sentence-transformers model.
    pub(crate) fn modules(&self) -> Modules {
        self.modules
    }

    /// The first of these outputs that the graph has.
    pub(crate) fn output(&self, names: &[&str]) -> Option<&Output> {
        names.iter().find_map(|name| self.outputs.iter().find(|output| output.name == *name))
    }

    /// An error for a graph that lacks the outputs of a pipeline.
    pub(crate) fn lacks(&self, wanted: &str) -> Error {
        let found: Vec<&str> = self.outputs().collect();
        unusable(&self.path, format!("the model has no output {wanted}; it has {}", found.join(", ")))
    }

    /// The tokens of texts.
    ///
    /// # Errors
    /// When the tokenizer refuses one, or gives a token that the model does not have.
    pub fn tokenize(&self, texts: &[Text<'_>]) -> Result<Vec<Tokens>, Error> {
        let all = self.tokenizer.encode(texts)?;
        if let Some(config) = &self.config {
            let outside = |token: &&u32| **token as usize >= config.vocabulary;
            if let Some(token) = all.iter().flat_map(|tokens| &tokens.ids).find(outside) {
                return Err(Error::Token { token: *token, vocabulary: config.vocabulary });
            }
        }
        Ok(all)
    }

    /// Evaluates texts in batches of similar length. `each` is given a text's number, its values of the output and the last extent;
    /// of outputs with a row per token, those of the text's own tokens.
    ///
    /// # Errors
    /// When the backend fails, the output is not as it should be, or `progress` breaks.
    pub(crate) fn run(
        &self,
        texts: &[Tokens],
        output: &Output,
        progress: &mut TextProgress<'_>,
        each: &mut EachText<'_>,
    ) -> Result<(), Error> {
        let lengths: Vec<usize> = texts.iter().map(|tokens| tokens.ids.len()).collect();
        let mut session = match &self.runner {
            Runner::Whole(model) => Some(model.session(1, &Bindings::new())?),
            Runner::Split(_) => None,
        };
        let mut done = 0;
        for batch in batches(&lengths, self.batch) {
            let chosen: Vec<&Tokens> = batch.iter().filter_map(|text| texts.get(*text)).collect();
            // A text without any token is fed as one of padding.
            let mut longest = chosen.iter().map(|tokens| tokens.ids.len()).max().unwrap_or(0).max(1);
            if session.is_none() && self.masked {
                longest = longest.next_multiple_of(COLUMNS).min(self.tokenizer.max_tokens().max(longest));
            }
            let (rows, columns) = (self.fixed.0.unwrap_or(chosen.len()), self.fixed.1.unwrap_or(longest));
            let inputs: Result<Vec<Tensor>, Error> =
                self.feeds.iter().map(|(feed, dtype)| self.feed(*feed, *dtype, &chosen, rows, columns)).collect();
            let outputs = match (&self.runner, &mut session) {
                (Runner::Whole(model), Some(session)) => model.step_for(session, &inputs?, &[output.number])?,
                (Runner::Split(executable), _) => executable.run(&inputs?)?.into_iter().skip(output.number).collect(),
                (Runner::Whole(_), None) => Vec::new(),
            };
            let Some(values) = outputs.first() else { return Err(self.lacks(&output.name)) };
            let shape = values.shape();
            let (width, per_text) = match (shape, output.rank) {
                ([found, width], 2) if *found == rows => (*width, *width),
                ([found, tokens, width], 3) if *found == rows && *tokens == columns => (*width, tokens * width),
                _ => {
                    let reason =
                        format!("output {} is {shape:?} for a batch of {rows} × {columns} tokens", output.name);
                    return Err(unusable(&self.path, reason));
                }
            };
            let values = values.to_f32()?;
            for ((text, tokens), values) in batch.iter().zip(&chosen).zip(values.chunks(per_text.max(1))) {
                let own = if output.rank == 3 { tokens.ids.len() * width } else { width };
                each(*text, values.get(..own).unwrap_or(values), width)?;
            }
            done += batch.len();
            if progress(done, texts.len()) == ControlFlow::Break(()) {
                return Err(Error::Cancelled);
            }
        }
        Ok(())
    }

    /// An input of a batch: `[rows, columns]`. Rows that are there only because the graph wants them repeat the first text.
    fn feed(&self, feed: Feed, dtype: DType, texts: &[&Tokens], rows: usize, columns: usize) -> Result<Tensor, Error> {
        let mut values: Vec<i64> = Vec::with_capacity(rows.saturating_mul(columns));
        let shown = texts.iter().chain(std::iter::repeat_with(|| &texts[0])).take(rows);
        for tokens in shown {
            let length = tokens.ids.len();
            for column in 0..columns {
                let inside = column < length;
                values.push(match feed {
                    Feed::Ids if inside => tokens.ids.get(column).copied().unwrap_or(0).into(),
                    Feed::Ids => self.tokenizer.pad().into(),
                    Feed::Mask => inside.into(),
                    Feed::Types => tokens.types.get(column).copied().unwrap_or(0).into(),
                    Feed::Positions => column as i64,
                });
            }
        }
        let shape = [rows, columns];
        Ok(match dtype {
            DType::I32 => {
                let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
                Tensor::from_slice(&shape, &values)?
            }
            _ => Tensor::from_slice(&shape, &values)?,
        })
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("path", &self.path).field("feeds", &self.feeds).finish_non_exhaustive()
    }
}

impl Runner {
    /// All of the graph on the first backend, if that can; else on another that has room for it, or split over all of them.
    fn load(
        backends: &[Arc<dyn Backend>],
        graph: Graph,
        options: ModelOptions,
        progress: &mut LoadProgress<'_>,
    ) -> Result<(Runner, Vec<String>), RuntimeError> {
        let mut passed_over = Vec::new();
        for (number, backend) in backends.iter().enumerate() {
            match Model::load(std::slice::from_ref(backend), graph.clone(), options.clone(), progress) {
                Ok(model) => return Ok((Runner::Whole(Box::new(model)), passed_over)),
                Err(error @ RuntimeError::NoMemory { .. }) if number + 1 < backends.len() => {
                    passed_over.push(error.to_string());
                }
                Err(error @ RuntimeError::NoMemory { .. }) => return Err(error),
                Err(error) if error.is_cancelled() => return Err(error),
                // It lacks an operator, or the graph has control flow or extents that depend on data.
                Err(error) => {
                    tracing::debug!(%error, "the graph is split");
                    break;
                }
            }
        }
        let executable = Executable::load(backends, graph, ExecutableOptions::default(), progress)?;
        if executable.pieces().iter().any(|(name, _)| backends.first().is_none_or(|first| first.name() != name)) {
            passed_over.extend(executable.passed_over().iter().cloned());
        }
        Ok((Runner::Split(executable), passed_over))
    }
}

/// What a graph takes and gives.
struct Interface {
    feeds: Vec<(Feed, DType)>,
    outputs: Vec<Output>,
    /// Texts and tokens, where the graph has them as numbers.
    fixed: (Option<usize>, Option<usize>),
    /// Symbols of the texts and of the tokens.
    symbols: (Vec<String>, Vec<String>),
}

impl Interface {
    /// Matches a graph's inputs with what an encoder is fed.
    fn of(graph: &Graph) -> Result<Interface, String> {
        let mut interface = Interface {
            feeds: Vec::new(),
            outputs: Vec::new(),
            fixed: (None, None),
            symbols: (Vec::new(), Vec::new()),
        };
        for id in graph.inputs() {
            let name = &graph.value(*id).name;
            let Some((_, feed)) = Feed::NAMES.into_iter().find(|(known, _)| known == name) else {
                let known: Vec<&str> = Feed::NAMES.iter().map(|(name, _)| *name).collect();
                return Err(format!("input {name:?} is none of {}: not a text encoder", known.join(", ")));
            };
            let Some((dtype @ (DType::I64 | DType::I32), [rows, columns])) = graph.tensor_type(*id) else {
                return Err(format!("input {name} is {}, i64 [batch, tokens] is expected", graph.value(*id).ty));
            };
            extent(rows, &mut interface.fixed.0, &mut interface.symbols.0, name)?;
            extent(columns, &mut interface.fixed.1, &mut interface.symbols.1, name)?;
            interface.feeds.push((feed, dtype));
        }
        if !interface.feeds.iter().any(|(feed, _)| *feed == Feed::Ids) {
            return Err(format!("there is no input {}: not a text encoder", name::INPUT_IDS));
        }
        for (number, id) in graph.outputs().iter().enumerate() {
            let rank = graph.tensor_type(*id).map_or(0, |(_, shape)| shape.len());
            interface.outputs.push(Output { name: graph.value(*id).name.clone(), rank, number });
        }
        Ok(interface)
    }
}

fn extent(dim: &Dim, fixed: &mut Option<usize>, symbols: &mut Vec<String>, input: &str) -> Result<(), String> {
    match dim {
        Dim::Num(extent) if *extent > 0 && fixed.is_none_or(|known| known == *extent) => *fixed = Some(*extent),
        Dim::Sym(symbol) => {
            if !symbols.iter().any(|known| known == &**symbol) {
                symbols.push(symbol.to_string());
            }
        }
        other => return Err(format!("input {input} has an extent of {other}, which does not fit the other inputs")),
    }
    Ok(())
}

/// What the configuration beside a safetensors model calls it, and whether it can be run.
pub(crate) fn check(model: &SafeTensors) -> (Option<String>, Result<(), Error>) {
    let json = ModelFiles::find(model.path()).and_then(|files| {
        let json = files.json("config.json")?;
        json.ok_or_else(|| unusable(model.path(), "there is no config.json beside it".into()))
    });
    let json = match json {
        Ok(json) => json,
        Err(error) => return (None, Err(error)),
    };
    let name = json.text("model_type").ok().flatten().map(str::to_owned);
    let built = BertConfig::from_json(&json).and_then(|config| build(&config, model));
    (name, built.map(drop))
}

/// The positions that a configuration names, for a graph that does not say.
pub(super) fn positions(json: &Json) -> Option<usize> {
    let rows = json.optional_count("max_position_embeddings", 1 << 24).ok()??;
    let first = match json.text("model_type").ok()?? {
        "roberta" | "xlm-roberta" | "camembert" => pad_token(json).ok()?.unwrap_or(1) as usize + 1,
        _ => 0,
    };
    rows.checked_sub(first).filter(|rows| *rows > 0)
}

fn runtime_options(interface: &Interface, batch: usize, max_tokens: usize) -> ModelOptions {
    let buckets = |all: &[usize], most: usize| -> Vec<usize> {
        all.iter().copied().filter(|bound| *bound < most).chain([most.max(1)]).collect()
    };
    let (batches, tokens) = (buckets(&BATCH_BUCKETS, batch), buckets(&TOKEN_BUCKETS, max_tokens));
    let mut options = ModelOptions { buckets: Vec::new(), ..ModelOptions::default() };
    for symbol in &interface.symbols.0 {
        options.buckets.push((symbol.clone(), batches.clone()));
        options.estimated.set(symbol, (ESTIMATED_ROWS / max_tokens.max(1)).clamp(1, batch));
    }
    for symbol in &interface.symbols.1 {
        options.buckets.push((symbol.clone(), tokens.clone()));
    }
    options
}
