//! Graphs pruned: ONNX files and encoders from safetensors to ONNX files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use core_tensor::{Graph, ValueId};
use polaris_quant::gptq::Feedback;
use polaris_quant::graph::{Matrix, observed};
use polaris_quant::prune::graph::{Axis, NewWeight, Observed, Region, Site, rebuild, regions, sites};
use polaris_quant::prune::{
    Products, PruneError, WeightPruning, keep_best, least_squares, select_columns, share_at, unit_scores, zeros,
};
use polaris_runtime::{Executable, ExecutableOptions};

use super::{NamePattern, PruneReport, PruneSettings, PruneStep, PrunedTensor};
use crate::Error;
use crate::backends::{self, BackendOptions};
use crate::quantize::graph::{CalibrationData, GraphModel, initializers};
use crate::quantize::{FileRecord, Manifest, QuantizeProgress, Settings};
use polaris_quant::differences;

/// What goes of a graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GraphWhat {
    /// Weights of products and convolutions become zeros.
    Weights(WeightPruning),
    /// Channels and neurons go, wherever that is sound. Shares are from 0 (nothing) to below 1.
    Structure {
        /// The share of each region's channels.
        channels: f64,
        /// The share of each region's neurons.
        neurons: f64,
        /// What remains is a multiple of this (or of its greatest divisor that the source's number is a multiple of).
        multiple: usize,
        /// Whether what is left makes up for what is gone.
        reconstruct: bool,
    },
}

/// How a graph is pruned.
#[derive(Clone, Debug)]
pub struct GraphPruneOptions {
    /// What goes.
    pub what: GraphWhat,
    /// Steps, at least one.
    pub steps: usize,
    /// Weights with fewer elements keep them all.
    pub minimum: usize,
    /// Nodes and weights whose name one of these is found in stay as they are.
    pub skip: Vec<NamePattern>,
    /// Added to the diagonal of the inputs' products, relative to its mean.
    pub damping: f64,
    /// Bytes of products that are held at once. The data run as often as all of them need.
    pub memory: u64,
    /// Threads; at least one.
    pub threads: usize,
    /// Weights of more bytes go to a file beside the model's.
    pub external_above: u64,
    /// Whether sha256 are taken for the manifest.
    pub hash: bool,
}

impl GraphPruneOptions {
    /// In one step, on all threads, 1 GiB of products; weights below 1024 elements keep them all.
    #[must_use]
    pub fn new(what: GraphWhat) -> GraphPruneOptions {
        GraphPruneOptions {
            what,
            steps: 1,
            minimum: 1024,
            skip: Vec::new(),
            damping: 0.01,
            memory: 1 << 30,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            external_above: loader_onnx::export::EXTERNAL_ABOVE,
            hash: true,
        }
    }
}

/// Prunes a graph into an ONNX file, which appears when it is complete and not before. The whole graph is in memory, beside what is held of its inputs.
///
/// # Errors
/// When the options need data that are not there or do not fit, nothing would go, a weight is no finite number, the graph cannot be run or written, or `progress` cancels.
pub fn prune_graph(
    model: &GraphModel,
    output: &Path,
    options: &GraphPruneOptions,
    data: Option<&CalibrationData>,
    progress: &mut QuantizeProgress<'_>,
) -> Result<Manifest, Error> {
    let start = Instant::now();
    let data_file = model.check_output(output)?;
    let data = data.filter(|data| !data.runs.is_empty());
    let work = Work::new(model, options, data)?;
    let mut steps = Vec::new();
    let mut so_far = model.graph.clone();
    for number in 1..=options.steps {
        let (graph, tensors) = work.step(&so_far, number, progress)?;
        steps.push(PruneStep { number, tensors, heads: BTreeMap::new() });
        so_far = graph;
    }
    let report = work.report(steps, &so_far);
    let written = loader_onnx::export::write_with(&so_far, output, options.external_above);
    written.map_err(|error| Error::Unusable { path: output.to_owned(), reason: error.to_string() })?;
    // What is done is done: it is too late to cancel.
    let _ = progress(1, 1, "weights");
    let tensors = initializers(output)?;
    let record = |path: &Path| FileRecord::of(path, options.hash, &|| false);
    let beside = tensors.iter().any(|tensor| tensor.external).then(|| record(&data_file));
    let mut settings = Settings::named("pruned");
    settings.calibration = data.map(|data| data.name.clone());
    Ok(Manifest {
        polaris: env!("CARGO_PKG_VERSION").to_owned(),
        source: model.source_records(options.hash)?,
        result: record(output)?,
        beside: beside.transpose()?.into_iter().collect(),
        settings,
        tensors: tensors.iter().map(|tensor| tensor.record(&[])).collect(),
        mixed: None,
        pruned: Some(report),
        reconstruction: None,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// What all steps share.
struct Work<'a> {
    model: &'a GraphModel,
    options: &'a GraphPruneOptions,
    data: Option<&'a CalibrationData>,
    sites: Vec<Site>,
    /// Those of which something goes.
    regions: Vec<(Region, usize)>,
    /// Nodes whose weights are looked at.
    chosen: BTreeSet<usize>,
}

impl<'a> Work<'a> {
    fn new(
        model: &'a GraphModel,
        options: &'a GraphPruneOptions,
        data: Option<&'a CalibrationData>,
    ) -> Result<Work<'a>, Error> {
        let refused = |name: &'static str, reason: &str| Err(Error::Option { name, reason: reason.to_owned() });
        if !(1..=100).contains(&options.steps) {
            return refused("steps", "there are 1 to 100");
        }
        if !(options.damping > 0.0 && options.damping.is_finite()) {
            return refused("damping", "it is a number above 0");
        }
        if options.steps > 1 && data.is_none() {
            return refused("steps", "between steps data run through the model: it needs some for calibration");
        }
        let sites = sites(&model.graph);
        let mut work = Work { model, options, data, sites, regions: Vec::new(), chosen: BTreeSet::new() };
        match options.what {
            GraphWhat::Weights(weights) => {
                if (weights.needs_feedback() || weights.method.needs_inputs()) && data.is_none() {
                    let reason = format!("{} needs data for calibration", weights.method.name());
                    return Err(Error::Option { name: "method", reason });
                }
                let large = |site: &&Site| site.rows * site.columns >= options.minimum && !work.skipped(site.node);
                work.chosen = work.sites.iter().filter(large).map(|site| site.node).collect();
            }
            GraphWhat::Structure { channels, neurons, multiple, reconstruct } => {
                for (name, share) in [("channels", channels), ("neurons", neurons)] {
                    if !(0.0..1.0).contains(&share) {
                        return Err(Error::Option { name, reason: format!("{share} is no share from 0 to below 1") });
                    }
                }
                if reconstruct && data.is_none() {
                    return refused("reconstruct", "it needs data for calibration");
                }
                for region in regions(&model.graph, &work.sites) {
                    let share = if region.axis == Axis::Channels { channels } else { neurons };
                    let keep = remaining(region.width, share, multiple);
                    let nodes = region.producers.iter().chain(&region.consumers);
                    if keep < region.width && !nodes.clone().any(|node| work.skipped(*node)) {
                        work.chosen.extend(&region.consumers);
                        work.regions.push((region, keep));
                    }
                }
            }
        }
        if work.chosen.is_empty() {
            let reason = match options.what {
                GraphWhat::Weights(_) => format!("no product or convolution has {} weights or more", options.minimum),
                GraphWhat::Structure { .. } => {
                    "there are no channels or neurons that could go: all are read by something else than products, convolutions and what lies between them, or too few".to_owned()
                }
            };
            return Err(Error::Unusable { path: model.path.clone(), reason });
        }
        Ok(work)
    }

    fn skipped(&self, node: usize) -> bool {
        let node = &self.model.graph.nodes()[node];
        let weight = node.inputs.get(1).copied().flatten().map_or("", |id| &self.model.graph.value(id).name);
        self.options.skip.iter().any(|pattern| pattern.is_in(&node.name) || pattern.is_in(weight))
    }

    fn name(&self, site: &Site) -> String {
        self.model.graph.value(site.weight).name.clone()
    }

    fn failed(&self, site: &Site, error: impl ToString) -> Error {
        let path = self.model.path.clone();
        Error::Tensor { path, name: self.name(site), reason: error.to_string() }
    }

    fn unusable(&self, error: impl ToString) -> Error {
        Error::Unusable { path: self.model.path.clone(), reason: error.to_string() }
    }

    /// One step: the graph as it is afterwards, and what went of each weight.
    fn step(
        &self,
        so_far: &Graph,
        number: usize,
        progress: &mut QuantizeProgress<'_>,
    ) -> Result<(Graph, Vec<PrunedTensor>), Error> {
        let last = number == self.options.steps;
        let kept = self.kept(so_far, number, progress)?;
        let chosen: Vec<&Site> = self.sites.iter().filter(|site| self.chosen.contains(&site.node)).collect();
        let (mut weights, mut pruned) = (HashMap::new(), Vec::new());
        let mut at = 0;
        while at < chosen.len() {
            // As many as there is memory for: products as f64, as f32, and their factor.
            let mut room = self.options.memory;
            let mut count = 0;
            for site in &chosen[at..] {
                let bytes = (site.columns as u64).pow(2) * 16;
                if bytes > room && count > 0 {
                    break;
                }
                room = room.saturating_sub(bytes);
                count += 1;
            }
            let batch = &chosen[at..at + count];
            let seen = self.observe(so_far, batch, true, progress)?;
            for site in batch {
                let observed = seen.get(&site.node);
                let (new, tensor) = self.weight(site, observed, &kept, number)?;
                weights.insert(site.node, NewWeight { matrix: new });
                pruned.push(tensor);
            }
            at += count;
        }
        let cuts: Vec<(&Region, Vec<usize>)> = match last {
            true => self.regions.iter().map(|(region, _)| region).zip(kept).collect(),
            false => Vec::new(),
        };
        let graph = rebuild(&self.model.graph, &self.sites, &weights, &cuts).map_err(|error| self.unusable(error))?;
        if last {
            self.tell_cuts(&graph, &mut pruned);
        }
        Ok((graph, pruned))
    }

    /// The channels and neurons that remain of each region after a step.
    fn kept(
        &self,
        so_far: &Graph,
        number: usize,
        progress: &mut QuantizeProgress<'_>,
    ) -> Result<Vec<Vec<usize>>, Error> {
        if self.regions.is_empty() {
            return Ok(Vec::new());
        }
        let consumers: Vec<&Site> = self.sites.iter().filter(|site| self.chosen.contains(&site.node)).collect();
        let seen = self.observe(so_far, &consumers, false, progress)?;
        let mut all = Vec::new();
        for (region, keep) in &self.regions {
            let mut scores = vec![0.0; region.width];
            for site in consumers.iter().filter(|site| region.consumers.contains(&site.node)) {
                let matrix = site.matrix(&self.model.graph).map_err(|error| self.unusable(error))?;
                let squares = seen.get(&site.node).and_then(Observed::mean_squares);
                let squares = squares.unwrap_or_else(|| vec![1.0; site.columns]);
                let of_site = unit_scores(&matrix.values, site.columns, &squares, site.unit());
                let of_site = of_site.map_err(|error| self.failed(site, error))?;
                scores.iter_mut().zip(of_site).for_each(|(sum, score)| *sum += score);
            }
            let gone = share_at((region.width - keep) as f64, number, self.options.steps).round() as usize;
            all.push(keep_best(&scores, region.width - gone));
        }
        Ok(all)
    }

    /// Runs the data and looks at what meets some sites; nothing without data.
    fn observe(
        &self,
        graph: &Graph,
        sites: &[&Site],
        products: bool,
        progress: &mut QuantizeProgress<'_>,
    ) -> Result<HashMap<usize, Observed>, Error> {
        let Some(data) = self.data else { return Ok(HashMap::new()) };
        // The nodes of both graphs are the same ones, their values are not.
        let input = |site: &Site| graph.nodes().get(site.node).and_then(|node| node.inputs.first().copied().flatten());
        let inputs: BTreeSet<ValueId> = sites.iter().filter_map(|site| input(site)).collect();
        let inputs: Vec<ValueId> = inputs.into_iter().collect();
        let mut seen: HashMap<usize, Observed> =
            sites.iter().map(|site| (site.node, Observed::new(site, products))).collect();
        let opened = backends::open(&BackendOptions::exact(self.options.threads))?;
        let executable =
            Executable::load(&opened.backends, observed(graph, &inputs), ExecutableOptions::default(), &mut |_, _| {
                ControlFlow::Continue(())
            })?;
        let total = data.runs.len() as u64;
        for (done, run) in data.runs.iter().enumerate() {
            if progress(done as u64, total, "calibration") == ControlFlow::Break(()) {
                return Err(Error::Cancelled);
            }
            let outputs = executable.run(run)?;
            let given = outputs.iter().skip(graph.outputs().len());
            let given: HashMap<ValueId, _> = inputs.iter().copied().zip(given).collect();
            for site in sites {
                let tensor = input(site).and_then(|id| given.get(&id));
                if let (Some(tensor), Some(seen)) = (tensor, seen.get_mut(&site.node)) {
                    seen.observe(tensor.shape(), &tensor.elements::<f32>()?);
                }
            }
        }
        Ok(seen)
    }

    /// The new weight of a site.
    fn weight(
        &self,
        site: &Site,
        seen: Option<&Observed>,
        kept: &[Vec<usize>],
        number: usize,
    ) -> Result<(Matrix, PrunedTensor), Error> {
        let (options, columns) = (self.options, site.columns);
        let failed = |error: PruneError| self.failed(site, error);
        let mut matrix = site.matrix(&self.model.graph).map_err(|error| self.unusable(error))?;
        let products = seen.and_then(Observed::products).map(|values| Products::new(values, columns)).transpose();
        let products = products.map_err(|error| self.failed(site, error))?;
        let mut changed = matrix.values.clone();
        let mut left = None;
        match options.what {
            GraphWhat::Weights(weights) => {
                let weights = WeightPruning { pattern: weights.pattern.at(number, options.steps), ..weights };
                let feedback = match (&products, weights.needs_feedback()) {
                    (Some(products), true) => {
                        let made = Feedback::new(products.values(), columns, options.damping);
                        Some(made.map_err(|error| self.failed(site, error))?)
                    }
                    _ => None,
                };
                let squares = seen.and_then(Observed::mean_squares);
                let pruned =
                    weights.apply(&mut changed, columns, squares.as_deref(), feedback.as_ref(), options.threads);
                pruned.map_err(failed)?;
            }
            GraphWhat::Structure { reconstruct, .. } => {
                let of = self.regions.iter().zip(kept).find(|((region, _), _)| region.consumers.contains(&site.node));
                let Some((_, kept)) = of else { return Err(self.failed(site, "it is of no region")) };
                let unit = site.unit();
                let kept: Vec<usize> = kept.iter().flat_map(|channel| channel * unit..(channel + 1) * unit).collect();
                let values = match products.as_ref().filter(|_| reconstruct) {
                    Some(products) => least_squares(&changed, products, &kept, options.damping, options.threads),
                    None => Ok(select_columns(&changed, columns, &kept)),
                };
                let values = values.map_err(failed)?;
                changed = super::scattered(&values, columns, &kept);
                if number == options.steps {
                    left = Some(Matrix { rows: matrix.rows, columns: kept.len(), values });
                }
            }
        }
        let output_error = products.map(|products| products.output_error(&matrix.values, &changed));
        let (noise, power) = differences(&matrix.values, &changed);
        let shape = self.model.graph.weight_of(site.weight).map(|weight| weight.shape().to_vec()).unwrap_or_default();
        let tensor = PrunedTensor {
            name: self.name(site),
            before: shape.clone(),
            after: shape,
            gone: zeros(&changed) as f64 / changed.len().max(1) as f64,
            weight_error: if power > 0.0 { (noise / power).sqrt() } else { 0.0 },
            output_error,
        };
        if left.is_none() {
            matrix.values = changed;
        }
        Ok((left.unwrap_or(matrix), tensor))
    }

    /// Says what shapes weights have after a cut, and which others lost outputs.
    fn tell_cuts(&self, graph: &Graph, pruned: &mut Vec<PrunedTensor>) {
        if self.regions.is_empty() {
            return;
        }
        for (old, new) in self.model.graph.nodes().iter().zip(graph.nodes()) {
            for (old, new) in old.inputs.iter().zip(&new.inputs) {
                let (Some(old), Some(new)) = (*old, *new) else { continue };
                let (Some(before), Some(after)) = (self.model.graph.weight_of(old), graph.weight_of(new)) else {
                    continue;
                };
                let name = &self.model.graph.value(old).name;
                match pruned.iter_mut().find(|tensor| tensor.name == *name) {
                    Some(tensor) => tensor.after = after.shape().to_vec(),
                    None if before.shape() != after.shape() => {
                        let count = |shape: &[usize]| shape.iter().product::<usize>().max(1) as f64;
                        pruned.push(PrunedTensor {
                            name: name.clone(),
                            before: before.shape().to_vec(),
                            after: after.shape().to_vec(),
                            gone: 1.0 - count(after.shape()) / count(before.shape()),
                            weight_error: 0.0,
                            output_error: None,
                        });
                    }
                    None => {}
                }
            }
        }
        for tensor in pruned {
            let count = |shape: &[usize]| shape.iter().product::<usize>().max(1) as f64;
            // What lost inputs and outputs has lost both.
            if tensor.before != tensor.after {
                tensor.gone = 1.0 - count(&tensor.after) / count(&tensor.before);
            }
        }
    }

    fn report(&self, steps: Vec<PruneStep>, result: &Graph) -> PruneReport {
        let count =
            |graph: &Graph| graph.weights().map(|(_, weight)| weight.shape().iter().product::<usize>() as u64).sum();
        let mut settings = PruneSettings::new(self.options.steps, self.options.damping);
        settings.calibration = self.data.map(|data| data.name.clone());
        settings.calibration_chunks = self.data.map(|data| data.runs.len());
        settings.skip = self.options.skip.iter().map(|pattern| pattern.pattern().to_owned()).collect();
        match self.options.what {
            GraphWhat::Weights(weights) => settings.weights(&weights),
            GraphWhat::Structure { channels, neurons, multiple, reconstruct } => {
                settings.multiple = Some(multiple);
                let some = |share: f64| (share > 0.0).then_some(share);
                (settings.channels, settings.neurons) = (some(channels), some(neurons));
                settings.reconstruct = reconstruct;
            }
        }
        PruneReport::of(settings, [count(&self.model.graph), count(result)], steps)
    }
}

/// What remains of so many.
fn remaining(width: usize, share: f64, multiple: usize) -> usize {
    let multiple = super::plan::common_divisor(width, multiple.max(1));
    let left = width as f64 * (1.0 - share) / multiple as f64;
    ((left.round() as usize).max(1) * multiple).min(width)
}
