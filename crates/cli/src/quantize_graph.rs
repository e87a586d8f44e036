//! `polaris quantize` for graphs: ONNX files, and encoders from safetensors.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use core_tensor::{Bindings, FileAccess, Graph, Tensor};
use models::quantize::Manifest;
use models::quantize::graph::{CalibrationData, GraphModel, GraphQuantizeOptions, quantize_graph, text_runs};
use polaris_quant::graph::{GraphOptions, GraphType, RangeMethod};

use crate::failure::Failure;
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
    /// one (of many, 128 at equal distances), by the tokenizer.json beside the model; a GGUF file takes a text whole, in chunks of 512 tokens, 128 at most. random:N is N runs on normal random numbers, which are no data of the model's kind.
    #[arg(long, value_name = "DATA", help_heading = "Calibration")]
    pub(crate) calibrate: Option<String>,
    /// How ranges are chosen: minmax, percentile, percentile:99.99, entropy or mse
    #[arg(long, value_name = "METHOD", default_value = "minmax", value_parser = method, help_heading = "Graphs")]
    calibration: RangeMethod,
    /// One scale for all of an 8-bit weight, and not one for each output
    #[arg(long, help_heading = "Graphs")]
    per_tensor: bool,
    /// Calibrated activations as signed bytes around 0, without zero points
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
    /// A node that stays as it is, by its name in `polaris inspect`; may be given more than once
    #[arg(long, value_name = "NODE", help_heading = "Graphs")]
    skip: Vec<String>,
    /// A number for an extent that the file leaves open: `--extent batch=1`
    #[arg(short = 'x', long = "extent", value_name = "NAME=N", value_parser = extent, help_heading = "Graphs")]
    extents: Vec<(String, usize)>,
    /// Write weights to a file of their own, OUT.data, however few they are; above 1 GiB they are in any case
    #[arg(long, help_heading = "Graphs")]
    external_data: bool,
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
}

impl GraphArguments {
    /// Quantizes.
    pub(crate) fn run(&self, ty: GraphType, common: &Common<'_>, interrupt: &Interrupt) -> Result<Manifest, Failure> {
        if !common.output.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("onnx")) {
            return Err(Failure::Usage(format!("{ty} is written as ONNX: OUT must end in .onnx")));
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
        graph.method = self.calibration;
        graph.skip = self.skip.iter().cloned().collect();
        if let Some(threads) = common.threads {
            graph.threads = usize::from(threads);
        }
        if let Some(unknown) = self.skip.iter().find(|name| !model.graph.nodes().iter().any(|node| node.name == **name))
        {
            return Err(Failure::Usage(format!("--skip {unknown}: the simplified graph has no such node")));
        }
        let data = self.calibrate.as_deref().map(|data| calibration(data, &model, &bindings)).transpose()?;
        let external_above = if self.external_data { 0 } else { loader_onnx::export::EXTERNAL_ABOVE };
        let options = GraphQuantizeOptions { graph, external_above, hash: common.hash };
        let mut bar = LoadBar::new("quantizing");
        let manifest = quantize_graph(&model, common.output, &options, data.as_ref(), &mut |done, total, _| {
            bar.set(done, total);
            if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        bar.clear();
        Ok(manifest?)
    }
}

/// The data that `--calibrate` names.
pub(crate) fn calibration(data: &str, model: &GraphModel, bindings: &Bindings) -> Result<CalibrationData, Failure> {
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
        None => {
            let path = Path::new(data);
            let text = fs::read_to_string(path).map_err(|error| Failure::file(path, &error))?;
            text_runs(model, &text)?
        }
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
