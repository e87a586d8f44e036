//! Options of the commands that run any graph, and loading it.

use std::ops::ControlFlow;
use std::path::Path;
use std::path::PathBuf;

use clap::Args;
use core_tensor::{Bindings, DType, Dim, FileAccess, Graph, Tensor};
use models::backends::{self, BackendOptions, Device};
use models::graph_file::{self, GraphFile, GraphOptions};
use polaris_runtime::{Executable, ExecutableOptions};

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::model::LoadBar;
use crate::npy;
use crate::output;

/// How a graph's inputs get their values.
#[derive(Debug, Args)]
pub(crate) struct Inputs {
    /// An input's value: an .npy file, or `random`, `zeros`, `ones`; without NAME= it is that of all inputs not named
    ///
    /// Random floats are normal, random integers and booleans 0 or 1; the same in every run.
    #[arg(short, long = "input", value_name = "[NAME=]FILE|random|zeros|ones", help_heading = "Inputs")]
    inputs: Vec<String>,
    /// A number for an extent that the file leaves open: `--extent batch=1`
    #[arg(short = 'x', long = "extent", value_name = "NAME=N", value_parser = extent, help_heading = "Inputs")]
    extents: Vec<(String, usize)>,
}

/// Where a graph that says itself how it computes runs.
#[derive(Debug, Args)]
pub(crate) struct GraphDevice {
    /// What runs it: auto, cpu, vulkan, vulkan:N, or the (very slow) reference
    ///
    /// What a device lacks runs on the processor.
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Computing")]
    pub(crate) device: Device,
    /// Threads of the processor [default: all that the process may use]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Computing")]
    threads: Option<u16>,
    /// Activations that meet quantized weights: f32 (as the file says) or rounded to 8 bits (fast)
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = crate::model::activations(), help_heading = "Computing")]
    activations: backends::Activations,
}

impl GraphDevice {
    pub(crate) fn backend(&self) -> BackendOptions {
        let threads = self.threads.map(usize::from);
        BackendOptions { device: self.device, threads, activations: self.activations, profile: false }
    }
}

/// What runs a graph, and from which file.
#[derive(Debug, Args)]
pub(crate) struct GraphCompute {
    #[command(flatten)]
    device: GraphDevice,
    /// Run the graph as it is in the file, without the optimizer's passes
    #[arg(long, help_heading = "Computing")]
    no_optimize: bool,
    /// Read the file instead of mapping it into memory
    #[arg(long)]
    no_mmap: bool,
}

/// Parses NAME=N.
pub(crate) fn extent(text: &str) -> Result<(String, usize), String> {
    let (name, number) = text.rsplit_once('=').ok_or("NAME=N is expected")?;
    let number = number.parse().map_err(|_| format!("{number:?} is no extent"))?;
    Ok((name.to_owned(), number))
}

impl GraphCompute {
    /// The file's graph.
    pub(crate) fn open(&self, path: &Path, extents: &Bindings) -> Result<GraphFile, Failure> {
        Ok(graph_file::open(path, &GraphOptions { access: self.access(), extents: extents.clone() })?)
    }

    /// Whether the graph is to run as it is in the file.
    pub(crate) fn unoptimized(&self) -> bool {
        self.no_optimize
    }

    /// Mapped or read.
    pub(crate) fn access(&self) -> FileAccess {
        if self.no_mmap { FileAccess::Read } else { FileAccess::Map }
    }

    /// What computes, and how.
    pub(crate) fn backend(&self) -> BackendOptions {
        self.device.backend()
    }

    /// The graph, ready to run, on another device if one is given. The processor stands behind every other device, for what that one lacks.
    pub(crate) fn load(
        &self,
        graph: Graph,
        other_device: Option<Device>,
        profile: bool,
        interrupt: &Interrupt,
    ) -> Result<Executable, Failure> {
        let device = other_device.unwrap_or(self.device.device);
        let options = BackendOptions { device, profile, ..self.device.backend() };
        let mut opened = backends::open(&options)?;
        if let Some(note) = &opened.note {
            output::note(&format!("no graphics device: {note}"));
        }
        if matches!(device, Device::Vulkan(_)) {
            opened.backends.extend(backends::open(&BackendOptions { device: Device::Cpu, ..options })?.backends);
        }
        let mut bar = LoadBar::new("loading");
        let executable = Executable::load(
            &opened.backends,
            graph,
            ExecutableOptions { optimize: !self.no_optimize },
            &mut |done, total| {
                bar.set(done, total);
                if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        );
        bar.clear();
        Ok(executable.map_err(models::Error::from)?)
    }
}

/// Where an input's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Random,
    Zeros,
    Ones,
}

impl Source {
    fn of(text: &str) -> Source {
        match text {
            "random" => Source::Random,
            "zeros" => Source::Zeros,
            "ones" => Source::Ones,
            path => Source::File(path.into()),
        }
    }
}

impl Inputs {
    /// An option that is given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let given = [("--input", !self.inputs.is_empty()), ("--extent", !self.extents.is_empty())];
        given.into_iter().find_map(|(name, given)| given.then_some(name))
    }

    /// Numbers for extents.
    pub(crate) fn extents(&self) -> Bindings {
        let mut bindings = Bindings::new();
        self.extents.iter().for_each(|(name, n)| bindings.set(name, *n));
        bindings
    }

    /// A tensor for each of the graph's inputs, in order.
    pub(crate) fn tensors(&self, graph: &Graph) -> Result<Vec<Tensor>, Failure> {
        let names: Vec<&str> = graph.inputs().iter().map(|id| graph.value(*id).name.as_str()).collect();
        let mut sources: Vec<Option<Source>> = vec![None; names.len()];
        let mut others = None;
        for text in &self.inputs {
            // A path may hold '=': what stands before it must then be an input's name.
            match text.split_once('=') {
                Some((name, source)) => match names.iter().position(|known| *known == name) {
                    Some(i) => sources[i] = Some(Source::of(source)),
                    None => {
                        let known = names.join(", ");
                        return Err(Failure::Usage(format!("there is no input {name:?}; there are: {known}")));
                    }
                },
                None => others = Some(Source::of(text)),
            }
        }
        let sources: Vec<Source> = sources
            .into_iter()
            .zip(&names)
            .map(|(source, name)| {
                source.or_else(|| others.clone()).ok_or_else(|| {
                    let types: Vec<String> = graph
                        .inputs()
                        .iter()
                        .map(|id| format!("  --input {}=FILE.npy  ({})", graph.value(*id).name, graph.value(*id).ty))
                        .collect();
                    Failure::Usage(format!(
                        "input {name:?} has no value; give a file for each, or --input random for all:\n{}",
                        types.join("\n")
                    ))
                })
            })
            .collect::<Result<_, _>>()?;
        let mut bindings = self.extents();
        let mut tensors: Vec<Option<Tensor>> = Vec::new();
        for (source, id) in sources.iter().zip(graph.inputs()) {
            tensors.push(match source {
                Source::File(path) => {
                    let tensor = npy::read(path)?;
                    if let Some((_, shape)) = graph.tensor_type(*id) {
                        bindings.bind_shape(shape, tensor.shape());
                    }
                    Some(tensor)
                }
                _ => None,
            });
        }
        let mut assumed = Vec::new();
        let mut all = Vec::with_capacity(tensors.len());
        for (i, (tensor, id)) in tensors.into_iter().zip(graph.inputs()).enumerate() {
            if let Some(tensor) = tensor {
                all.push(tensor);
                continue;
            }
            let Some((dtype, shape)) = graph.tensor_type(*id) else {
                return Err(Failure::Runtime(format!("input {:?} is no tensor", names[i])));
            };
            for dim in shape {
                dim.symbols(&mut |symbol| {
                    if bindings.get(symbol).is_none() && !assumed.contains(symbol) {
                        assumed.push(symbol.clone());
                    }
                });
            }
            assumed.iter().for_each(|symbol| {
                if bindings.get(symbol).is_none() {
                    bindings.set(symbol, 1);
                }
            });
            let value = made(&sources[i], dtype, shape, &bindings, i as u64);
            all.push(value.map_err(|reason| Failure::Runtime(format!("input {:?}: {reason}", names[i])))?);
        }
        if !assumed.is_empty() {
            let list: Vec<String> = assumed.iter().map(|symbol| format!("{symbol}=1")).collect();
            output::note(&format!("extents without a value: {} is assumed (--extent NAME=N)", list.join(", ")));
        }
        Ok(all)
    }
}

/// Random inputs of a graph: the same for the same run. Extents that are open and have no number are 1.
pub(crate) fn random_inputs(graph: &Graph, extents: &Bindings, run: u64) -> Result<Vec<Tensor>, Failure> {
    let mut bindings = extents.clone();
    let mut all = Vec::with_capacity(graph.inputs().len());
    for (i, id) in graph.inputs().iter().enumerate() {
        let value = graph.value(*id);
        let failed = |reason: &str| Failure::Runtime(format!("input {:?}: {reason}", value.name));
        let (dtype, shape) = value.ty.as_tensor().ok_or_else(|| failed("it is no tensor"))?;
        let mut open = Vec::new();
        shape.iter().for_each(|dim| dim.symbols(&mut |symbol| open.push(symbol.clone())));
        for symbol in open {
            if bindings.get(&symbol).is_none() {
                bindings.set(&symbol, 1);
            }
        }
        let seed = run.wrapping_mul(0x1_0001).wrapping_add(i as u64);
        all.push(made(&Source::Random, dtype, shape, &bindings, seed).map_err(|reason| failed(&reason))?);
    }
    Ok(all)
}

/// A tensor that no file holds, or why there is none.
fn made(source: &Source, dtype: DType, shape: &[Dim], bindings: &Bindings, seed: u64) -> Result<Tensor, String> {
    let shape = core_tensor::eval_shape(shape, bindings).map_err(|error| error.to_string())?;
    let mut zeros = Tensor::zeroed(dtype, &shape).map_err(|error| error.to_string())?;
    if *source == Source::Zeros {
        return Ok(zeros);
    }
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let size = dtype.packing().1;
    let one = |random: &mut Random| -> Vec<u8> {
        let float = if *source == Source::Ones { 1.0 } else { random.normal() };
        let int = if *source == Source::Ones { 1 } else { (random.next() >> 40 & 1) as u8 };
        match dtype {
            DType::F64 => float.to_le_bytes().to_vec(),
            DType::F32 => (float as f32).to_le_bytes().to_vec(),
            DType::F16 => half::f16::from_f64(float).to_le_bytes().to_vec(),
            DType::BF16 => half::bf16::from_f64(float).to_le_bytes().to_vec(),
            _ => {
                let mut bytes = vec![0; size];
                bytes[0] = int;
                bytes
            }
        }
    };
    if let Some(bytes) = zeros.bytes_mut() {
        bytes.chunks_exact_mut(size).for_each(|out| out.copy_from_slice(&one(&mut random)));
    }
    Ok(zeros)
}

/// SplitMix64 (Steele, Lea, Flood 2014): inputs need no better.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// By the method of Box and Muller.
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}
