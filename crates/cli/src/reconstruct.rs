//! `polaris quantize --reconstruct`: weights trained so that each layer gives what it gave.

use std::ops::ControlFlow;
use std::path::Path;

use clap::Args;
use models::quantize::graph::GraphReconstructOptions;
use models::quantize::{
    Calibration, QuantizeOptions, ReconstructOptions, ReconstructProgress, ReconstructReport, Reconstruction,
    reconstruct,
};
use polaris_quant::graph::GraphType;

use crate::failure::{Failure, option};
use crate::generate::read_text;
use crate::interrupt::Interrupt;
use crate::output;

/// Steps between two lines of progress.
const TOLD: usize = 25;

/// How weights are trained while they are quantized.
#[derive(Debug, Args)]
#[command(next_help_heading = "Reconstruction")]
pub(crate) struct Reconstruct {
    /// Train weights, scales, norms and biases on --calibrate DATA: each layer of a GGUF model so that it gives what it gave (BRECQ), a graph as a whole
    #[arg(long, requires = "calibrate")]
    reconstruct: bool,
    /// Steps of the optimizer, for each layer of a GGUF model [default: 100; graphs 200]
    #[arg(long, value_name = "N", requires = "reconstruct", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// How far a weight moves in the first step, in codes of its type; it falls to 0 [default: 0.02; graphs 0.01 with 4 bits, 0.004 with 8]
    #[arg(long, value_name = "R", requires = "reconstruct")]
    rate: Option<f32>,
    /// The same for the logarithms of scales [default: 0.002; graphs 3e-4, 3e-5]
    #[arg(long, value_name = "R", requires = "reconstruct")]
    scale_rate: Option<f32>,
    /// The same for norms and biases, relative to their size [default: 0.002; graphs 5e-4, 1e-4]
    #[arg(long, value_name = "R", requires = "reconstruct")]
    norm_rate: Option<f32>,
    /// Chunks (runs of a graph) of a step [default: 1; graphs 8]
    #[arg(long, value_name = "N", requires = "reconstruct", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Steps in which all layers are trained together on the float model's predictions, behind the last layer [default: 0]
    #[arg(long, value_name = "N", requires = "reconstruct")]
    distill_steps: Option<u32>,
    /// What all rates are multiplied with in these steps [default: 0.05]
    #[arg(long, value_name = "R", requires = "distill_steps")]
    distill_rate: Option<f32>,
    /// Seed of the order of chunks [default: 1]
    #[arg(long, value_name = "N", requires = "reconstruct")]
    order_seed: Option<u64>,
}

/// A text, and how it is cut.
#[derive(Clone, Copy)]
pub(crate) struct CalibrationText<'a> {
    pub(crate) path: &'a Path,
    pub(crate) context: usize,
    pub(crate) chunks: Option<u32>,
}

impl Reconstruct {
    /// Whether weights are to be trained.
    pub(crate) fn asked(&self) -> bool {
        self.reconstruct
    }

    /// How a graph's weights are to be trained, if they are.
    pub(crate) fn for_graph(&self, ty: GraphType) -> Result<Option<GraphReconstructOptions>, Failure> {
        if !self.reconstruct {
            return Ok(None);
        }
        if self.distill_steps.is_some() {
            return Err(Failure::Usage("--distill-steps is for GGUF files: a graph is trained as a whole".into()));
        }
        let standard = GraphReconstructOptions::new(ty);
        Ok(Some(GraphReconstructOptions {
            steps: self.steps.map_or(standard.steps, |steps| steps as usize),
            batch: self.batch.map_or(standard.batch, |batch| batch as usize),
            rate: self.rate.unwrap_or(standard.rate),
            scale_rate: self.scale_rate.unwrap_or(standard.scale_rate),
            vector_rate: self.norm_rate.unwrap_or(standard.vector_rate),
            seed: self.order_seed.unwrap_or(standard.seed),
        }))
    }

    /// Trains, if that is asked for: from what `start` makes of the weights, if there is one.
    pub(crate) fn run(
        &self,
        input: &Path,
        text: Option<CalibrationText<'_>>,
        quantize: &mut QuantizeOptions,
        start: Option<&dyn Calibration>,
        interrupt: &Interrupt,
    ) -> Result<Option<Reconstruction>, Failure> {
        let Some(text) = text.filter(|_| self.reconstruct) else { return Ok(None) };
        let mut options = ReconstructOptions { threads: quantize.threads, ..ReconstructOptions::default() };
        let counts = [
            (&mut options.steps, self.steps),
            (&mut options.chunks, text.chunks),
            (&mut options.batch, self.batch),
            (&mut options.distill_steps, self.distill_steps),
        ];
        for (option, given) in counts {
            *option = given.map_or(*option, |given| given as usize);
        }
        let rates = [
            (&mut options.rate, self.rate),
            (&mut options.scale_rate, self.scale_rate),
            (&mut options.vector_rate, self.norm_rate),
            (&mut options.distill_rate, self.distill_rate),
        ];
        for (option, given) in rates {
            *option = given.unwrap_or(*option);
        }
        options.context = text.context;
        options.seed = self.order_seed.unwrap_or(options.seed);
        let content = read_text(text.path)?;
        let dataset = text.path.display().to_string();
        let mut tell = |progress: ReconstructProgress| {
            match progress {
                ReconstructProgress::Importances(done, all) => {
                    output::note(&format!("importances: chunk {done} of {all}"));
                }
                ReconstructProgress::Layer { layer, layers, step, steps, loss }
                    if step % TOLD == 0 || step == steps =>
                {
                    output::note(&format!("layer {} of {layers}: step {step} of {steps}, loss {loss:.3e}", layer + 1));
                }
                ReconstructProgress::Layer { .. } | ReconstructProgress::Inputs => {}
                ReconstructProgress::Distillation { step, steps, divergence } => {
                    output::note(&format!("predictions: step {step} of {steps}, KL divergence {divergence:.4}"));
                }
                ReconstructProgress::Done(layer) => output::note(&format!(
                    "layer {}: error {:.3e} -> {:.3e} ({:.0} %)",
                    layer.layer + 1,
                    layer.before,
                    layer.after,
                    100.0 * layer.after / layer.before.max(f64::MIN_POSITIVE)
                )),
            }
            if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        reconstruct(input, quantize, &content, &dataset, &options, start, &mut tell).map(Some).map_err(of_calibration)
    }
}

/// What is wrong with how a text is cut, by the names that the options have here.
pub(crate) fn of_calibration(error: models::Error) -> Failure {
    match error {
        models::Error::Option { name: name @ ("context" | "chunks"), reason } => {
            Failure::Runtime(option(&format!("calibration-{name}"), &reason))
        }
        error => error.into(),
    }
}

/// What training brought, in a line or two.
pub(crate) fn as_text(report: &ReconstructReport) -> String {
    let count = report.layers.len().max(1) as f64;
    let mean = |of: &dyn Fn(&models::quantize::LayerReport) -> f64| report.layers.iter().map(of).sum::<f64>() / count;
    // A graph is trained as a whole.
    let (what, of) = match report.context {
        0 => ("the graph's", String::new()),
        _ => ("the layers'", format!(" (means over {} layers)", report.layers.len())),
    };
    let mut text = format!(
        "{what} outputs were off by {:.3e} of their power, and are by {:.3e}{of}\n",
        mean(&|layer| layer.before),
        mean(&|layer| layer.after)
    );
    if let (Some(first), Some(last)) = (report.distillation.first(), report.distillation.last()) {
        text += &format!("the predictions' divergence was {first:.4}, and {last:.4} in the last step\n");
    }
    text
}
