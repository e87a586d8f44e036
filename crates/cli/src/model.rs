//! Options that say which model runs and how, and opening it.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;
use core_tensor::FileAccess;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use models::backends::{Activations, BackendOptions, Device};
use models::llama::{KvDType, Llama, LlamaOptions};

use crate::failure::Failure;
use crate::interrupt::Interrupt;

/// The model's file.
#[derive(Debug, Args)]
pub(crate) struct ModelFile {
    /// GGUF file; of a model split over several files, any of them
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: PathBuf,
    /// Read the file instead of mapping it into memory
    ///
    /// A mapped file loads faster and shares its memory with other processes, but when it is cut while it is in use, the process is killed.
    #[arg(long)]
    pub(crate) no_mmap: bool,
}

impl ModelFile {
    pub(crate) fn access(&self) -> FileAccess {
        if self.no_mmap { FileAccess::Read } else { FileAccess::Map }
    }
}

/// What computes, and how.
#[derive(Debug, Args)]
pub(crate) struct Compute {
    /// What runs the model: auto, cpu, vulkan, vulkan:N, or the (very slow) reference
    ///
    /// auto takes the best graphics device that Vulkan offers, else the processor. `polaris devices` lists what there is; vulkan:N takes the one with that
    /// number, also a software driver.
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Computing")]
    pub(crate) device: Device,
    /// Threads of the processor [default: all that the process may use]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Computing")]
    pub(crate) threads: Option<u16>,
    /// Activations that meet quantized weights: rounded to 8 bits (fast) or f32 (exact)
    #[arg(long, value_name = "TYPE", default_value = "q8", value_parser = activations(), help_heading = "Computing")]
    activations: Activations,
    /// Element type of the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_dtype(), help_heading = "Computing")]
    pub(crate) kv_dtype: KvDType,
}

impl Compute {
    pub(crate) fn backend(&self) -> BackendOptions {
        let threads = self.threads.map(usize::from);
        BackendOptions { device: self.device, threads, activations: self.activations, profile: false }
    }
}

fn named<T: Copy + Send + Sync + 'static>(all: &'static [(&'static str, T)]) -> impl TypedValueParser<Value = T> {
    let names = PossibleValuesParser::new(all.iter().map(|(name, _)| *name));
    names.try_map(move |name| all.iter().find(|(n, _)| *n == name).map(|(_, value)| *value).ok_or("no such value"))
}

pub(crate) fn kv_dtype() -> impl TypedValueParser<Value = KvDType> {
    named(&KvDType::ALL)
}

pub(crate) fn activations() -> impl TypedValueParser<Value = Activations> {
    named(&[("q8", Activations::Q8), ("f32", Activations::F32)])
}

/// Opens a model and loads it, with a progress bar if that takes a while and somebody looks.
pub(crate) fn open(
    file: &ModelFile,
    compute: &Compute,
    context: Option<u32>,
    interrupt: &Interrupt,
) -> Result<Llama, Failure> {
    let options = LlamaOptions {
        access: file.access(),
        backend: compute.backend(),
        kv_dtype: compute.kv_dtype,
        context: context.map(|context| context as usize),
        slots: 1,
    };
    let _busy = interrupt.busy();
    let mut bar = LoadBar::new("loading");
    let model = Llama::open(&file.model, &options, &mut |done, total| {
        bar.set(done, total);
        if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.clear();
    Ok(model?)
}

/// A progress bar on standard error, drawn only on a terminal and only if loading takes long enough to wonder.
pub(crate) struct LoadBar {
    what: &'static str,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl LoadBar {
    /// `what` is going on, for people.
    pub(crate) fn new(what: &'static str) -> LoadBar {
        LoadBar { what, start: Instant::now(), bar: None }
    }

    pub(crate) fn set(&mut self, done: u64, total: u64) {
        if self.bar.is_none() && self.start.elapsed() > Duration::from_millis(300) {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}") {
                bar.set_style(style);
            }
            bar.set_message(self.what);
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
