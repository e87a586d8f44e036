//! `polaris quantize`: a model made smaller.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use core_tensor::{DType, FileAccess};
use loader_gguf::Gguf;
use models::backends::BackendOptions;
use models::llama::{CalibrationOptions, FeedbackOptions, LlamaConfig, LlamaOptions, Picked, TextCalibration};
use models::quantize::{
    Calibration, Manifest, Planned, QuantizeOptions, TensorType, check_output, plan, quantize_calibrated,
    read_importances, sources, tensor_dtype,
};
use polaris_quant::graph::GraphType;
use polaris_quant::{AssignOptions, Mixture, UnknownMixture};
use serde_json::json;

use crate::failure::{Failure, option};
use crate::generate::read_text;
use crate::interrupt::Interrupt;
use crate::manifest::{self, manifest_path, write_whole};
use crate::mixed::{self, Mixed};
use crate::model::LoadBar;
use crate::output;
use crate::quantize_graph::{Common, GraphArguments};
use crate::reconstruct::{CalibrationText, Reconstruct, of_calibration};

/// Tokens of a chunk of a text that calibrates.
const CALIBRATION_CONTEXT: usize = 512;
/// Chunks of it at most.
const CALIBRATION_CHUNKS: usize = 128;

const EXAMPLES: &str = "\
Examples:
  polaris quantize model-f16.gguf model-q4.gguf --type Q4_K_M
  polaris quantize model-f16.gguf model-q2.gguf --type Q2_K --imatrix imatrix.gguf
  polaris quantize model-f16.gguf model.gguf --type Q5_K_M --tensor-type 'ffn_down=q6_k' --tensor-type 'blk\\.0\\.=q8_0'
  polaris quantize model-f16.gguf model.gguf --type IQ4_XS --dry-run
  polaris quantize model-f16.gguf model-q4.gguf --type Q4_0 --gptq --calibrate text.txt
  polaris quantize model-f16.gguf model-q3.gguf --type Q3_K_S --gptq --reconstruct --calibrate text.txt
  polaris quantize model.onnx model-int8.onnx --type int8-dynamic
  polaris quantize model.onnx model-int8.onnx --type int8 --calibrate folder-of-npy --calibration entropy
  polaris quantize all-MiniLM-L6-v2 minilm-int4.onnx --type int4-g32 --gptq --calibrate text.txt
  polaris quantize all-MiniLM-L6-v2 minilm-int4.onnx --type int4-g32 --awq --bias-correction --calibrate text.txt
  polaris quantize model.onnx model-int8.onnx --type int8 --per-tensor --equalize --bias-correction --calibrate folder-of-npy
  polaris quantize model-f16.gguf model.gguf --type mixed --target-size 3.5GiB --data text.txt --imatrix imatrix.gguf
  polaris quantize model-f16.gguf model.gguf --type mixed --max-kl 0.02 --data text.txt
  polaris quantize model-f16.gguf model.gguf --type mixed --vram 8GiB --context 4096 --data text.txt

Types of GGUF files: F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS MXFP4 MXFP4_MOE Q3_K_L Q3_K_M Q3_K_S Q2_K Q2_K_S TQ2_0 TQ1_0.
A name means the same type for each tensor as in llama.cpp; scales are searched for the least squared error. mixed is a type
for each tensor by what its errors cost, measured on --data, so that a budget is met; what is quantized already or demanded of a tensor counts, too; charts lie beside the result.
Types of graphs (.onnx, or an encoder's safetensors; written as .onnx): int8 (i8 weights, activations with ranges from calibration), int8-dynamic (ranges at
each run), int8-weights (f32 activations), int4-g32 int4-g64 int4-g128 (4-bit weights, one scale for so many). onnxruntime runs them, too. The result appears when it is
complete, with OUT.manifest.json beside it: sha256 of source and result, settings, the error of each tensor. `polaris verify` checks it.";

/// Make a model smaller: GGUF to GGUF, ONNX or safetensors to ONNX
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// GGUF file (of a model split over several files, any of them), ONNX file, or an encoder's safetensors or folder
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The file to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// What most tensors become, and by which rules others become something else
    #[arg(long = "type", value_name = "TYPE")]
    target: Target,
    /// Importances of columns (`polaris imatrix`, or llama.cpp's; GGUF or .dat): errors count by them
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// A type for tensors whose name a regular expression is found in; the first that is found counts
    #[arg(long = "tensor-type", value_name = "PATTERN=TYPE", value_parser = TensorType::parse)]
    tensor_types: Vec<TensorType>,
    /// The type of the output matrix
    #[arg(long, value_name = "TYPE", value_parser = tensor_dtype)]
    output_type: Option<DType>,
    /// The type of the token embeddings
    #[arg(long, value_name = "TYPE", value_parser = tensor_dtype)]
    embedding_type: Option<DType>,
    /// All matrices get the main type
    #[arg(long)]
    pure: bool,
    /// The output matrix stays as it is
    #[arg(long)]
    leave_output: bool,
    /// Quantize tensors again that are quantized already, which loses more than quantizing the original
    #[arg(long)]
    allow_requantize: bool,
    /// How little --gptq trusts the text to be like others: added to the products' diagonal, relative to its mean [default: 0.1; graphs 0.01]
    #[arg(long, value_name = "X", requires = "gptq", value_parser = mixed::above_zero)]
    damping: Option<f64>,
    /// Tokens of a chunk of a GGUF file's text [default: 512]
    #[arg(long, value_name = "N", requires = "calibrate", help_heading = "Calibration", value_parser = clap::value_parser!(u32).range(1..))]
    calibration_context: Option<u32>,
    /// Chunks of it at most, at equal distances [default: 128; --reconstruct 64]
    #[arg(long, value_name = "N", requires = "calibrate", help_heading = "Calibration", value_parser = clap::value_parser!(u32).range(1..))]
    calibration_chunks: Option<u32>,
    /// Threads [default: all that the process may use]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Read the file instead of mapping it into memory
    #[arg(long)]
    no_mmap: bool,
    /// Write no manifest, and compute no sha256
    #[arg(long)]
    no_manifest: bool,
    /// Tell what would become of each tensor and how large the file would be, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    graph: GraphArguments,
    #[command(flatten)]
    mixed: Mixed,
    #[command(flatten)]
    reconstruct: Reconstruct,
}

/// What a model becomes.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// GGUF's tensors, by the rules of a mixture.
    Blocks(Mixture),
    /// A graph.
    Graph(GraphType),
    /// GGUF's tensors, by what errors of each cost.
    Mixed,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> Result<Target, String> {
        if name.eq_ignore_ascii_case("mixed") {
            return Ok(Target::Mixed);
        }
        let unknown = match name.parse() {
            Ok(mixture) => return Ok(Target::Blocks(mixture)),
            Err(UnknownMixture(name)) => name,
        };
        let blocks = Mixture::ALL.map(Mixture::name).join(", ");
        let graphs = GraphType::ALL.map(|ty| ty.to_string()).join(", ");
        let unknown = |_| format!("{unknown:?} is no type; GGUF files have {blocks}, mixed; graphs {graphs}");
        name.parse().map(Target::Graph).map_err(unknown)
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    let gguf = arguments.input.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    let mixture = match arguments.target {
        Target::Blocks(mixture) if gguf || !is_graph(&arguments.input) => mixture,
        Target::Blocks(mixture) => {
            let name = mixture.name();
            return Err(Failure::Usage(format!(
                "{name} is a type of GGUF files, and {} is none: graphs become int8, int8-dynamic, int8-weights, int4-g32, int4-g64 or int4-g128",
                arguments.input.display()
            )));
        }
        Target::Mixed if is_graph(&arguments.input) => {
            return Err(Failure::Usage("mixed is for GGUF files".into()));
        }
        // Until types are chosen.
        Target::Mixed => Mixture::Q8_0,
        Target::Graph(ty) if gguf => {
            return Err(Failure::Usage(format!(
                "{ty} is a type of graphs; a GGUF file becomes Q8_0, Q4_K_M and so on"
            )));
        }
        Target::Graph(ty) => return run_graph(ty, arguments, &interrupt),
    };
    if let Some(name) = arguments.graph.for_graphs_alone() {
        return Err(Failure::Usage(format!("{name} is for graphs, and {} is a GGUF file", arguments.input.display())));
    }
    check_use(arguments)?;
    let mut options = options(arguments, mixture)?;
    let _busy = interrupt.busy();
    if !arguments.dry_run {
        check_output(&arguments.output, &sources(&Gguf::open(&arguments.input, options.access)?))?;
    }
    let mixed = match (arguments.target, arguments.mixed.given()) {
        (Target::Mixed, _) => Some(arguments.mixed.choose(&arguments.input, &mut options, &interrupt)?),
        (_, Some(name)) => return Err(Failure::Usage(format!("{name} is for --type mixed"))),
        (_, None) => None,
    };
    if arguments.dry_run {
        if let Some(report) = &mixed {
            return if arguments.json { output::write_json(report) } else { output::write(&mixed::as_text(report)) };
        }
        return manifest::show_plan(&planned(arguments, &options)?, arguments.json);
    }
    // What cannot be done is told before a text runs for hours.
    planned(arguments, &options)?;
    let context = calibration_context(arguments, &options)?;
    let feedback = calibration(arguments, context, &options, &interrupt)?;
    let feedback = feedback.as_ref().map(|feedback| feedback as &dyn Calibration);
    let text = arguments.graph.calibrate.as_deref().map(|path| CalibrationText {
        path: Path::new(path),
        context,
        chunks: arguments.calibration_chunks,
    });
    let trained = arguments.reconstruct.run(&arguments.input, text, &mut options, feedback, &interrupt)?;
    let calibration = trained.as_ref().map(|trained| trained as &dyn Calibration).or(feedback);
    let mut bar = LoadBar::new("quantizing");
    let manifest =
        quantize_calibrated(&arguments.input, &arguments.output, &options, calibration, &mut |done, total, _| {
            bar.set(done, total);
            if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    bar.clear();
    let mut manifest = manifest?;
    if mixed.is_some() {
        "mixed".clone_into(&mut manifest.settings.mixture);
        manifest.mixed = mixed;
    }
    finish(manifest, arguments)
}

/// Refuses options of GGUF files that nothing would come of.
fn check_use(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { graph, reconstruct, .. } = arguments;
    let refused = [
        (
            graph.calibrate.is_some() && !graph.gptq && !reconstruct.asked(),
            "a calibration of a GGUF file is for --gptq or --reconstruct; ranges of activations are not stored there, importances come by --imatrix",
        ),
        (graph.memory.is_some() && !graph.gptq, "--memory is for --gptq where a GGUF file is quantized"),
        (
            arguments.pure && matches!(arguments.target, Target::Mixed),
            "--pure gives all matrices one type, and --type mixed chooses one for each",
        ),
    ];
    let found = refused.into_iter().find(|(is, _)| *is);
    found.map_or(Ok(()), |(_, why)| Err(Failure::Usage(why.to_owned())))
}

/// What becomes of each tensor, if that can be done as it is asked for.
fn planned(arguments: &Arguments, options: &QuantizeOptions) -> Result<Vec<Planned>, Failure> {
    let planned = plan(&Gguf::open(&arguments.input, options.access)?, options)?;
    if arguments.graph.gptq && !planned.iter().any(Planned::takes_feedback) {
        let reason = "--gptq: no tensor becomes a type that it rounds: Q8_0 and floats are so fine that errors need no making up for";
        return Err(Failure::Usage(reason.into()));
    }
    Ok(planned)
}

/// Whether a path is that of a format with graphs.
pub(crate) fn is_graph(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_lowercase);
    path.is_dir() || matches!(ending.as_deref(), Some("onnx" | "safetensors"))
}

fn run_graph(ty: GraphType, arguments: &Arguments, interrupt: &Interrupt) -> Result<(), Failure> {
    let other = [
        ("--imatrix", arguments.imatrix.is_some()),
        ("--tensor-type", !arguments.tensor_types.is_empty()),
        ("--output-type", arguments.output_type.is_some()),
        ("--embedding-type", arguments.embedding_type.is_some()),
        ("--pure", arguments.pure),
        ("--leave-output", arguments.leave_output),
        ("--allow-requantize", arguments.allow_requantize),
        ("--dry-run", arguments.dry_run),
        ("--calibration-context", arguments.calibration_context.is_some()),
        ("--calibration-chunks", arguments.calibration_chunks.is_some()),
    ];
    let other = other.iter().find(|(_, given)| *given).map(|(name, _)| *name).or_else(|| arguments.mixed.given());
    if let Some(name) = other {
        return Err(Failure::Usage(format!("{name} is for GGUF files, and {ty} is a type of graphs")));
    }
    let _busy = interrupt.busy();
    let common = Common {
        input: &arguments.input,
        output: &arguments.output,
        threads: arguments.threads,
        access: if arguments.no_mmap { FileAccess::Read } else { FileAccess::Map },
        hash: !arguments.no_manifest,
        reconstruct: arguments.reconstruct.for_graph(ty)?,
        damping: arguments.damping,
    };
    finish(arguments.graph.run(ty, &common, interrupt)?, arguments)
}

/// Writes the manifest, and tells what became of the model.
fn finish(manifest: Manifest, arguments: &Arguments) -> Result<(), Failure> {
    let path = (!arguments.no_manifest).then(|| manifest_path(&arguments.output));
    if let Some(path) = &path {
        write_whole(path, &manifest.to_json())?;
    }
    let charts = match &manifest.mixed {
        Some(report) => mixed::write_charts(report, &arguments.output)?,
        None => Vec::new(),
    };
    if arguments.json {
        let mut value = json!(manifest);
        value["manifest"] = json!(path);
        value["charts"] = json!(charts);
        return output::write_json(&value);
    }
    output::write(&(manifest.mixed.as_ref().map_or(String::new(), mixed::as_text) + &manifest::as_text(&manifest)))
}

/// Tokens of a chunk of the text: no more than the model was trained with.
fn calibration_context(arguments: &Arguments, options: &QuantizeOptions) -> Result<usize, Failure> {
    if arguments.graph.calibrate.is_none() {
        return Ok(CALIBRATION_CONTEXT);
    }
    let known = LlamaConfig::from_gguf(&Gguf::open(&arguments.input, options.access)?)?.trained_context;
    match arguments.calibration_context.map(|n| n as usize) {
        Some(context) if context > known => {
            let reason = format!("{context} tokens, and the model knows {known}");
            Err(Failure::Runtime(option("calibration-context", &reason)))
        }
        Some(context) => Ok(context),
        None => Ok(CALIBRATION_CONTEXT.min(known)),
    }
}

/// The model with the text that is to run through it.
fn calibration(
    arguments: &Arguments,
    context: usize,
    options: &QuantizeOptions,
    interrupt: &Interrupt,
) -> Result<Option<TextCalibration>, Failure> {
    let Some(path) = arguments.graph.calibrate.as_ref().filter(|_| arguments.graph.gptq) else { return Ok(None) };
    let path = Path::new(path);
    let text = read_text(path)?;
    let mut bar = LoadBar::new("loading");
    let backend = BackendOptions { threads: Some(options.threads), ..BackendOptions::default() };
    let llama = LlamaOptions { access: options.access, backend, ..LlamaOptions::default() };
    let collect = CalibrationOptions {
        context,
        chunks: Some(arguments.calibration_chunks.map_or(CALIBRATION_CHUNKS, |n| n as usize)),
        picked: Picked::Spread,
        dataset: path.display().to_string(),
    };
    let standard = FeedbackOptions::default();
    let feedback = FeedbackOptions {
        damping: arguments.damping.unwrap_or(standard.damping),
        memory: arguments.graph.memory.map_or(standard.memory, |mib| mib.saturating_mul(1 << 20)),
        threads: options.threads,
        ..standard
    };
    let on_chunk = |done: usize, total: usize| output::note(&format!("chunk {done} of {total}"));
    let opened = TextCalibration::open(
        &arguments.input,
        &llama,
        &text,
        &collect,
        feedback,
        &mut |done, total| {
            bar.set(done, total);
            if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
        on_chunk,
    );
    bar.clear();
    opened.map(Some).map_err(of_calibration)
}

fn options(arguments: &Arguments, mixture: Mixture) -> Result<QuantizeOptions, Failure> {
    let importances = match &arguments.imatrix {
        Some(path) => Some((read_importances(path)?, path.display().to_string())),
        None => None,
    };
    let mut options = QuantizeOptions::new(mixture);
    options.assign = AssignOptions {
        importance: importances.is_some(),
        pure: arguments.pure,
        output: arguments.output_type,
        embedding: arguments.embedding_type,
        leave_output: arguments.leave_output,
    };
    options.tensor_types.clone_from(&arguments.tensor_types);
    options.importances = importances;
    options.allow_requantize = arguments.allow_requantize;
    options.hash = !arguments.no_manifest;
    if let Some(threads) = arguments.threads {
        options.threads = usize::from(threads);
    }
    if arguments.no_mmap {
        options.access = FileAccess::Read;
    }
    Ok(options)
}
