//! What was taken out of which tensor, and what that cost.

use std::collections::BTreeMap;

use polaris_quant::plot::{Bar, Chart};
use serde::{Deserialize, Serialize};

use super::{Extents, PruneOptions, PrunePlan, PrunedShape, WeightPruning, What};

/// What pruning did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruneReport {
    /// How it was asked for.
    pub settings: PruneSettings,
    /// Weights of the source.
    pub parameters_before: u64,
    /// Weights that the result stores.
    pub parameters_after: u64,
    /// Weights of the result that are no zeros, as far as pruning knows (zeros that were there before in tensors that were left alone count).
    pub nonzero_after: u64,
    /// What each layer had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers_before: Vec<Extents>,
    /// What each layer has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers_after: Vec<Extents>,
    /// Each step.
    pub steps: Vec<PruneStep>,
}

/// The options that decide what goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruneSettings {
    /// Where zeros may lie, and how many there are ("50%", "2:4").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<String>,
    /// How weights were chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The share of neurons that was to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neurons: Option<f64>,
    /// The share of heads of keys and values that was to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<f64>,
    /// The share of each group's query heads that was to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_heads: Option<f64>,
    /// The share of channels that was to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<f64>,
    /// Whether what is left makes up for what is gone.
    pub reconstruct: bool,
    /// Steps.
    pub steps: usize,
    /// Added to the diagonal of the inputs' products, relative to its mean.
    pub damping: f64,
    /// The file of the importances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imatrix: Option<String>,
    /// The data for calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// Tokens of a chunk of its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_context: Option<usize>,
    /// Chunks of the text at most, or runs of a graph.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_chunks: Option<usize>,
    /// What neurons and channels that remain were to be a multiple of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiple: Option<usize>,
    /// The patterns of names that were left out by demand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<String>,
}

impl PruneSettings {
    pub(super) fn new(steps: usize, damping: f64) -> PruneSettings {
        PruneSettings {
            sparsity: None,
            method: None,
            neurons: None,
            heads: None,
            query_heads: None,
            channels: None,
            reconstruct: false,
            steps,
            damping,
            imatrix: None,
            calibration: None,
            calibration_context: None,
            calibration_chunks: None,
            multiple: None,
            skip: Vec::new(),
        }
    }

    pub(super) fn weights(&mut self, weights: &WeightPruning) {
        self.sparsity = Some(weights.pattern.to_string());
        self.method = Some(weights.method.name().to_owned());
        self.reconstruct = weights.needs_feedback();
    }
}

/// A step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruneStep {
    /// From 1.
    pub number: usize,
    /// What was taken out of each tensor, in the file's order.
    pub tensors: Vec<PrunedTensor>,
    /// The query heads that remain of each layer, by their numbers in the source, where heads went.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub heads: BTreeMap<usize, Vec<usize>>,
}

/// What was taken out of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrunedTensor {
    /// Its name.
    pub name: String,
    /// The extents that it had.
    pub before: Vec<usize>,
    /// The extents that it has.
    pub after: Vec<usize>,
    /// The share of its weights that are zeros or no longer there.
    pub gone: f64,
    /// The root of the squared error of the weights relative to that of their squares (what is cut counts as zeros).
    pub weight_error: f64,
    /// The same of its outputs, against the source's weights with the same inputs; where a text calibrated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
}

impl PrunedTensor {
    /// Of one that only lost rows.
    pub(super) fn cut(tensor: &PrunedShape) -> PrunedTensor {
        let count = |shape: &[usize]| shape.iter().product::<usize>().max(1) as f64;
        PrunedTensor {
            name: tensor.planned.name.clone(),
            before: tensor.before.clone(),
            after: tensor.planned.shape.clone(),
            gone: 1.0 - count(&tensor.planned.shape) / count(&tensor.before),
            weight_error: 0.0,
            output_error: None,
        }
    }

    fn weights(&self) -> f64 {
        self.before.iter().product::<usize>() as f64
    }
}

impl PruneReport {
    pub(super) fn new(options: &PruneOptions, plan: &PrunePlan, steps: Vec<PruneStep>) -> PruneReport {
        let some = |share: f64| (share > 0.0).then_some(share);
        let mut settings = PruneSettings::new(options.steps, options.damping);
        settings.imatrix = options.importances.as_ref().map(|(_, file)| file.clone());
        if let Some(text) = &options.calibration {
            settings.calibration = Some(text.dataset.clone());
            settings.calibration_context = Some(text.context);
            settings.calibration_chunks = text.chunks;
        }
        settings.skip = options.skip.iter().map(|pattern| pattern.pattern().to_owned()).collect();
        match options.what {
            What::Weights(weights) => settings.weights(&weights),
            What::Structure(cut) => {
                (settings.neurons, settings.heads) = (some(cut.neurons), some(cut.heads));
                settings.query_heads = some(cut.query_heads);
                settings.multiple = Some(cut.multiple);
                settings.reconstruct = cut.reconstruct;
            }
        }
        let count = |shape: &[usize]| shape.iter().product::<usize>() as u64;
        let before = plan.tensors.iter().map(|tensor| count(&tensor.before)).sum();
        let after = plan.tensors.iter().map(|tensor| count(&tensor.planned.shape)).sum();
        let mut report = PruneReport::of(settings, [before, after], steps);
        if plan.before != plan.after {
            report.layers_before.clone_from(&plan.before);
            report.layers_after.clone_from(&plan.after);
        }
        report
    }

    /// Of the weights before and after.
    pub(super) fn of(settings: PruneSettings, [before, after]: [u64; 2], steps: Vec<PruneStep>) -> PruneReport {
        let gone = |tensor: &PrunedTensor| (tensor.gone * tensor.weights()).round() as u64;
        let all_gone: u64 = steps.last().map_or(0, |step| step.tensors.iter().map(gone).sum());
        PruneReport {
            settings,
            parameters_before: before,
            parameters_after: after,
            nonzero_after: before.saturating_sub(all_gone),
            layers_before: Vec::new(),
            layers_after: Vec::new(),
            steps,
        }
    }

    /// What the last step left: each tensor that lost something.
    #[must_use]
    pub fn tensors(&self) -> &[PrunedTensor] {
        self.steps.last().map_or(&[], |step| &step.tensors)
    }

    /// The share of the source's weights that are zeros or no longer there.
    #[must_use]
    pub fn gone(&self) -> f64 {
        1.0 - self.nonzero_after as f64 / self.parameters_before.max(1) as f64
    }

    /// Bars of what is gone of each tensor.
    #[must_use]
    pub fn sparsity_chart(&self) -> Chart {
        self.chart("What is gone of each tensor", "share of the weights", false, |tensor| Some(tensor.gone))
    }

    /// Bars of the errors of outputs; none where no text calibrated.
    #[must_use]
    pub fn error_chart(&self) -> Option<Chart> {
        let chart =
            self.chart("What it cost each tensor", "relative error of outputs", true, |tensor| tensor.output_error);
        (!chart.bars.is_empty()).then_some(chart)
    }

    fn chart(&self, title: &str, axis: &str, logarithmic: bool, value: fn(&PrunedTensor) -> Option<f64>) -> Chart {
        let bar = |tensor: &PrunedTensor| {
            // What tensors of all layers have in common: "blk.7.ffn_up.weight" is one of ffn_up.
            let group =
                tensor.name.split('.').find(|part| part.len() > 3 && !part.contains(|c: char| c.is_ascii_digit()));
            let group = group.unwrap_or("others").to_owned();
            Some(Bar { label: tensor.name.clone(), value: value(tensor)?, group })
        };
        let bars = self.tensors().iter().filter_map(bar).collect();
        Chart { title: title.to_owned(), axis: axis.to_owned(), logarithmic, bars }
    }
}
