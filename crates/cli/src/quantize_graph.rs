//! `polaris quantize` for graphs: ONNX files, and encoders from safetensors.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use core_tensor::{Bindings, FileAccess, Graph, Tensor};
use models::quantize::Manifest;
use models::quantize::graph::{
    Balance, CalibrationData, GraphModel, GraphQuantizeOptions, GraphReconstructOptions, MEMORY, MOST_TEXTS,
    MOST_TRAINED_TEXTS, quantize_graph, text_runs,
};
use polaris_quant::graph::{GraphOptions, GraphType, RangeMethod};

use crate::failure::Failure;
use crate::generate::read_text;
use crate::graph::{extent, random_inputs};
use crate::interrupt::Interrupt;
use crate::model::LoadBar;
use crate::npy;

/// Share of the elements that `--calibration percentile` keeps where no other is given.
const PERCENTILE: f64 = 0.9999;

/// What holds for graphs alone.
#[derive(Debug, Args)]
pub(crate) struct GraphArguments {
    /// Data to look at the activations with: a text file, a folder of .npy files, or random:N
    ///
    /// A folder has one NAME.npy for each input, or folders that have, one for each run; of models with one input each .npy is a run. Of a text each line is
    /// one (of many, 128 at equal distances, 1024 for --reconstruct), by the tokenizer.json beside the model; a GGUF file takes a text whole, in chunks. random:N is N runs on normal random numbers, which are no data of the model's kind.
    #[arg(long, value_name = "DATA", help_heading = "Calibration")]
    pub(crate) calibrate: Option<String>,
    /// How ranges are chosen, for int8: minmax, percentile, percentile:99.99, entropy or mse [default: minmax]
    #[arg(long, value_name = "METHOD", value_parser = method, help_heading = "Graphs")]
    calibration: Option<RangeMethod>,
    /// One scale for all of an 8-bit weight, and not one for each output
    #[arg(long, help_heading = "Graphs")]
    per_tensor: bool,
    /// Calibrated activations as signed bytes around 0, without zero points, for int8
    #[arg(long, help_heading = "Graphs")]
    symmetric: bool,
    /// Embeddings and other tables stay as they are
    #[arg(long, help_heading = "Graphs")]
    keep_tables: bool,
    /// Convolutions stay as they are
    #[arg(long, help_heading = "Graphs")]
    keep_convolutions: bool,
    /// Round weights of few bits so that products with the calibration's activations change least (GPTQ)
    #[arg(long, requires = "calibrate", help_heading = "Calibration")]
    pub(crate) gptq: bool,
    /// 8-bit weights with zero points: ranges that need not lie around 0
    #[arg(long, help_heading = "Graphs")]
    asymmetric: bool,
    /// Search for scales that cut outliers where that loses less (AWQ's search for 4 bits, which needs --calibrate)
    #[arg(long, help_heading = "Graphs")]
    clip: bool,
    /// Move outliers of activations into weights (SmoothQuant), for int8 and int8-dynamic; ALPHA is how much, 0.5 if left out
    #[arg(long, value_name = "ALPHA", num_args = 0..=1, require_equals = true, default_missing_value = "0.5", value_parser = share, requires = "calibrate", help_heading = "Calibration")]
    smooth: Option<f32>,
    /// Protect weights that meet large activations (AWQ), for int4 and int8-weights: scales of inputs by a search, and clipping
    #[arg(long, requires = "calibrate", conflicts_with = "smooth", help_heading = "Calibration")]
    awq: bool,
    /// Make the channels between convolutions equally large (cross-layer equalization)
    #[arg(long, help_heading = "Graphs")]
    equalize: bool,
    /// Correct biases by what the rounding of weights takes from the mean of outputs
    #[arg(long, requires = "calibrate", help_heading = "Calibration")]
    bias_correction: bool,
    /// MiB that sums of products for GPTQ and a graph's finished weights may take at once: with less, the data run more often and weights wait on the disk [default: 1024]
    #[arg(long, value_name = "MIB", help_heading = "Calibration")]
    pub(crate) memory: Option<u64>,
    /// A node that stays as it is, by its name in `polaris inspect`; may be given more than once
    #[arg(long, value_name = "NODE", help_heading = "Graphs")]
    skip: Vec<String>,
    /// A number for an extent that the file leaves open: `--extent batch=1`
    #[arg(short = 'x', long = "extent", value_name = "NAME=N", value_parser = extent, help_heading = "Graphs")]
    extents: Vec<(String, usize)>,
    /// Write weights to a file of their own, OUT.data, however few they are; above half of --memory they are in any case
    #[arg(long, help_heading = "Graphs")]
    external_data: bool,
}

fn share(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("{text:?} is no number from 0 to 1")),
    }
}

fn method(text: &str) -> Result<RangeMethod, String> {
    match text.split_once(':') {
        Some(("percentile", share)) => match share.parse::<f64>() {
            Ok(share) if (50.0..=100.0).contains(&share) => Ok(RangeMethod::Percentile(share / 100.0)),
            _ => Err(format!("{share:?} is no percentage from 50 to 100")),
        },
        _ => match text {
            "minmax" => Ok(RangeMethod::MinMax),
            "percentile" => Ok(RangeMethod::Percentile(PERCENTILE)),
            "entropy" => Ok(RangeMethod::Entropy),
            "mse" => Ok(RangeMethod::Mse),
            _ => Err("there are minmax, percentile, percentile:SHARE, entropy and mse".to_owned()),
        },
    }
}

/// What both kinds of models have.
pub(crate) struct Common<'a> {
    pub(crate) input: &'a Path,
    pub(crate) output: &'a Path,
    pub(crate) threads: Option<u16>,
    pub(crate) access: FileAccess,
    pub(crate) hash: bool,
    pub(crate) reconstruct: Option<GraphReconstructOptions>,
    /// Of --gptq.
    pub(crate) damping: Option<f64>,
}

impl GraphArguments {
    /// An option that was given and means nothing for GGUF files.
    pub(crate) fn for_graphs_alone(&self) -> Option<&'static str> {
        let given = [
            (self.calibration.is_some(), "--calibration"),
            (self.per_tensor, "--per-tensor"),
            (self.symmetric, "--symmetric"),
            (self.asymmetric, "--asymmetric"),
            (self.keep_tables, "--keep-tables"),
            (self.keep_convolutions, "--keep-convolutions"),
            (self.clip, "--clip"),
            (self.smooth.is_some(), "--smooth"),
            (self.awq, "--awq"),
            (self.equalize, "--equalize"),
            (self.bias_correction, "--bias-correction"),
            (!self.skip.is_empty(), "--skip"),
            (!self.extents.is_empty(), "--extent"),
            (self.external_data, "--external-data"),
        ];
        given.into_iter().find(|(is, _)| *is).map(|(_, name)| name)
    }

    /// Refuses what has no meaning for a type.
    fn check(&self, ty: GraphType, reconstruct: bool) -> Result<(), Failure> {
        let four = matches!(ty, GraphType::Int4 { .. });
        let weights = four || ty == GraphType::Int8Weights;
        let looks = self.gptq || self.smooth.is_some() || self.awq || self.bias_correction || reconstruct;
        let clips = self.clip && four;
        let refused = [
            (
                self.smooth.is_some() && weights,
                "--smooth is for int8 and int8-dynamic: other activations are not rounded",
            ),
            (
                self.awq && !weights,
                "--awq is for int4 and int8-weights: --smooth is its like for int8 and int8-dynamic",
            ),
            (self.clip && four && self.calibrate.is_none(), "--clip needs --calibrate with 4 bits"),
            (
                self.calibrate.is_some() && ty != GraphType::Int8 && !looks && !clips,
                "--calibrate changes nothing here: int8 needs it, and --gptq, --smooth, --awq, --bias-correction, --reconstruct and with 4 bits --clip use it",
            ),
            (
                self.calibration.is_some() && ty != GraphType::Int8,
                "--calibration is for int8: no other type has ranges from data",
            ),
            (self.symmetric && ty != GraphType::Int8, "--symmetric is for int8: no other type has ranges from data"),
            (self.per_tensor && four, "--per-tensor is for 8 bits"),
            (self.asymmetric && four, "--asymmetric is for 8 bits"),
        ];
        let found = refused.into_iter().find(|(is, _)| *is);
        found.map_or(Ok(()), |(_, why)| Err(Failure::Usage(why.to_owned())))
    }

    /// Refuses what training does not go together with.
    fn check_reconstruct(&self, ty: GraphType) -> Result<(), Failure> {
        let refused = [
            (self.clip && matches!(ty, GraphType::Int4 { .. }), "--clip: --reconstruct trains scales of 4 bits"),
            (self.bias_correction, "--bias-correction: --reconstruct trains biases"),
            (self.per_tensor, "--per-tensor: --reconstruct trains a scale for each output"),
            (self.asymmetric, "--asymmetric: --reconstruct trains weights around 0"),
            (self.gptq, "--gptq: --reconstruct trains a graph's weights from where they are rounded to the nearest"),
        ];
        let found = refused.into_iter().find(|(is, _)| *is);
        found.map_or(Ok(()), |(_, why)| Err(Failure::Usage(why.to_owned())))
    }

    /// Quantizes.
    pub(crate) fn run(&self, ty: GraphType, common: &Common<'_>, interrupt: &Interrupt) -> Result<Manifest, Failure> {
        if !common.output.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("onnx")) {
            return Err(Failure::Usage(format!("{ty} is written as ONNX: OUT must end in .onnx")));
        }
        self.check(ty, common.reconstruct.is_some())?;
        if common.reconstruct.is_some() {
            self.check_reconstruct(ty)?;
        }
        let mut bindings = Bindings::new();
        self.extents.iter().for_each(|(name, n)| bindings.set(name, *n));
        let model = GraphModel::open(common.input, common.access, &bindings)?;
        let mut graph = GraphOptions::new(ty);
        graph.per_tensor = self.per_tensor;
        graph.symmetric = self.symmetric;
        graph.tables = !self.keep_tables;
        graph.convolutions = !self.keep_convolutions;
        graph.gptq = self.gptq;
        graph.asymmetric = self.asymmetric;
        // What AWQ finds is a scale of inputs, and then one of each group.
        graph.clip = self.clip || self.awq;
        graph.bias_correction = self.bias_correction;
        graph.method = self.calibration.unwrap_or(graph.method);
        graph.damping = common.damping.unwrap_or(graph.damping);
        graph.skip = self.skip.iter().cloned().collect();
        if let Some(threads) = common.threads {
            graph.threads = usize::from(threads);
        }
        if let Some(unknown) = self.skip.iter().find(|name| !model.graph.nodes().iter().any(|node| node.name == **name))
        {
            return Err(Failure::Usage(format!("--skip {unknown}: the simplified graph has no such node")));
        }
        let texts = if common.reconstruct.is_some() { MOST_TRAINED_TEXTS } else { MOST_TEXTS };
        let data = self.calibrate.as_deref().map(|data| calibration(data, &model, &bindings, texts)).transpose()?;
        let balance = Balance { equalize: self.equalize, smooth: self.smooth, protect: self.awq };
        let memory = self.memory.map_or(MEMORY, |mib| mib.saturating_mul(1 << 20));
        // What lies within the model is in memory twice while it is written.
        let within = loader_onnx::export::EXTERNAL_ABOVE.min(memory / 2);
        let external_above = if self.external_data { 0 } else { within };
        let options = GraphQuantizeOptions {
            graph,
            balance,
            reconstruct: common.reconstruct.clone(),
            memory,
            external_above,
            hash: common.hash,
        };
        let mut bar = LoadBar::new("quantizing");
        let manifest = quantize_graph(&model, common.output, &options, data.as_ref(), &mut |done, total, _| {
            bar.set(done, total);
            if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        bar.clear();
        Ok(manifest?)
    }
}

/// The data that `--calibrate` names; of a text so many lines at most.
pub(crate) fn calibration(
    data: &str,
    model: &GraphModel,
    bindings: &Bindings,
    texts: usize,
) -> Result<CalibrationData, Failure> {
    let runs = match data.strip_prefix("random:") {
        Some(count) => {
            let count: u64 = count.parse().ok().filter(|count| (1..=100_000).contains(count)).ok_or_else(|| {
                Failure::Usage(format!("--calibrate {data}: random:N takes a number from 1 to 100000"))
            })?;
            (0..count).map(|run| random_inputs(&model.graph, bindings, run)).collect::<Result<_, _>>()?
        }
        None if Path::new(data).is_dir() => folder(Path::new(data), &model.graph)?,
        None if data.ends_with(".npz") => {
            return Err(Failure::Usage(format!("--calibrate {data}: unpack it into a folder of .npy files")));
        }
        None if data.ends_with(".npy") => {
            let tensor = npy::read(Path::new(data))?;
            vec![one_input(&model.graph, data, tensor)?]
        }
        None => text_runs(model, &read_text(Path::new(data))?, texts)?,
    };
    if runs.is_empty() {
        return Err(Failure::Usage(format!("--calibrate {data}: there is nothing in it")));
    }
    for inputs in &runs {
        let fits = model.graph.bind_inputs(inputs);
        fits.map_err(|error| Failure::Runtime(format!("--calibrate {data}: {error}")))?;
    }
    Ok(CalibrationData { name: data.to_owned(), runs })
}

fn one_input(graph: &Graph, data: &str, tensor: Tensor) -> Result<Vec<Tensor>, Failure> {
    match graph.inputs().len() {
        1 => Ok(vec![tensor]),
        count => Err(Failure::Usage(format!(
            "--calibrate {data}: the model has {count} inputs, one file for each is needed"
        ))),
    }
}

/// The runs in a folder.
fn folder(folder: &Path, graph: &Graph) -> Result<Vec<Vec<Tensor>>, Failure> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(|error| Failure::file(folder, &error))?;
    entries.sort();
    let folders: Vec<&PathBuf> = entries.iter().filter(|path| path.is_dir()).collect();
    if !folders.is_empty() {
        return folders.into_iter().map(|folder| named(folder, graph)).collect();
    }
    if graph.inputs().len() == 1 {
        let files = entries.iter().filter(|path| path.extension().is_some_and(|ending| ending == "npy"));
        return files.map(|path| Ok(vec![npy::read(path)?])).collect();
    }
    Ok(vec![named(folder, graph)?])
}

/// One run: a file for each input, by its name.
fn named(folder: &Path, graph: &Graph) -> Result<Vec<Tensor>, Failure> {
    let safe = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let file = |name: &str| folder.join(format!("{}.npy", name.chars().map(safe).collect::<String>()));
    graph.inputs().iter().map(|id| npy::read(&file(&graph.value(*id).name))).collect()
}
