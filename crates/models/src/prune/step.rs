//! One step: every tensor of the source, pruned as far as the step goes, into a file.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use core_tensor::decode_f32;
use loader_gguf::{ArrayBuf, GgmlType, Gguf, GgufWriter, ValueType};
use polaris_quant::block::encode_with_threads;
use polaris_quant::prune::{Products, PruneError, least_squares, select_columns, share_at, zeros};

use super::layers::{Choice, Heads, Scored, neurons};
use super::plan::{Action, Extents, Unit};
use super::{PruneOptions, PrunePlan, PruneStep, PrunedShape, PrunedTensor, StructurePruning, WeightPruning, What};
use crate::Error;
use crate::llama::{MatrixInputs, TextCalibration};
use crate::quantize::tensors::{Job, release};
use crate::quantize::{QuantizeProgress, SPLIT, TensorRecord};
use polaris_quant::differences;

/// What a step works on.
pub(super) struct Setup<'a> {
    /// The source.
    pub(super) model: &'a Gguf,
    pub(super) plan: &'a PrunePlan,
    pub(super) options: &'a PruneOptions,
    /// From 1.
    pub(super) number: usize,
    /// On the model as it is so far.
    pub(super) calibration: Option<&'a TextCalibration>,
}

/// What a step made.
pub(super) struct Made {
    pub(super) step: PruneStep,
    pub(super) tensors: Vec<TensorRecord>,
}

/// Writes the model as the step leaves it.
pub(super) fn run(setup: &Setup<'_>, path: &Path, progress: &mut QuantizeProgress<'_>) -> Result<Made, Error> {
    let Setup { model, plan, options, .. } = setup;
    let total = model.tensors().iter().map(|info| info.byte_len() as u64).sum();
    let step = Step {
        setup,
        job: Job::new(options.threads, total, progress),
        demands: plan
            .tensors
            .iter()
            .filter(|tensor| matches!(tensor.action, Action::Zeros | Action::Columns(_)))
            .map(|tensor| tensor.planned.name.as_str())
            .collect(),
        choices: Mutex::default(),
        made: Mutex::default(),
    };
    let mut writer = GgufWriter::new();
    metadata(&mut writer, setup)?;
    for tensor in &plan.tensors {
        let ggml_type = GgmlType::from_dtype(tensor.planned.to).ok_or_else(|| Error::Tensor {
            path: path.to_owned(),
            name: tensor.planned.name.clone(),
            reason: format!("{} has no number in GGUF files", tensor.planned.to),
        })?;
        let step = &step;
        writer.stream(&tensor.planned.name, ggml_type, step.shape(tensor), move |out| {
            let (record, pruned) = step.tensor(tensor, out)?;
            let mut made = step.made.lock().unwrap_or_else(PoisonError::into_inner);
            made.0.push(record);
            made.1.extend(pruned);
            Ok(())
        })?;
    }
    if let Err(error) = writer.write(path) {
        // What a tensor failed with comes through the writer as an error of writing.
        return Err(step.job.failure().unwrap_or_else(|| error.into()));
    }
    let choices = step.choices.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (tensors, pruned) = step.made.into_inner().unwrap_or_else(PoisonError::into_inner);
    let heads = choices.into_iter().filter_map(|(layer, choice)| Some((layer, choice.heads?.query))).collect();
    Ok(Made { step: PruneStep { number: setup.number, tensors: pruned, heads }, tensors })
}

impl Setup<'_> {
    fn last(&self) -> bool {
        self.number == self.options.steps
    }
}

/// The source's metadata with what the cut changes.
fn metadata(writer: &mut GgufWriter<'_>, setup: &Setup<'_>) -> Result<(), Error> {
    let Setup { model, plan, .. } = setup;
    let prefix = plan.config.architecture.name();
    if setup.last() && plan.before != plan.after {
        type Extent = fn(&Extents) -> usize;
        let keys: [(&str, Extent); 3] = [
            ("feed_forward_length", |layer| layer.neurons),
            ("attention.head_count", |layer| layer.heads),
            ("attention.head_count_kv", |layer| layer.kv_heads),
        ];
        for (key, extent) in keys {
            let all: Vec<u32> = plan.after.iter().map(|layer| extent(layer) as u32).collect();
            let key = format!("{prefix}.{key}");
            match all.iter().all(|value| all.first() == Some(value)) {
                true => writer.set(&key, all.first().copied().unwrap_or(0))?,
                false => {
                    let mut array = ArrayBuf::new(ValueType::U32);
                    for value in all {
                        let fits = array.push(value);
                        fits.map_err(|fault| Error::Metadata {
                            path: model.path().to_owned(),
                            key: key.clone(),
                            reason: fault.to_string(),
                        })?;
                    }
                    writer.set(&key, &array)?
                }
            };
        }
        // Readers that divide the width by the heads would find other lengths than before.
        let rotated = plan.config.layers.first().map_or(0, |layer| layer.rope.dims);
        let lengths = [
            ("attention.key_length", plan.config.key_length),
            ("attention.value_length", plan.config.value_length),
            ("rope.dimension_count", rotated),
        ];
        for (key, length) in lengths {
            writer.set(&format!("{prefix}.{key}"), length as u32)?;
        }
    }
    let changed: Vec<String> = if setup.last() && plan.before != plan.after {
        let keys = ["feed_forward_length", "attention.head_count", "attention.head_count_kv"];
        let lengths = ["attention.key_length", "attention.value_length", "rope.dimension_count"];
        keys.iter().chain(&lengths).map(|key| format!("{prefix}.{key}")).collect()
    } else {
        Vec::new()
    };
    for (key, value) in model.metadata() {
        if !SPLIT.contains(&key) && !changed.iter().any(|changed| changed == key) {
            writer.set(key, value)?;
        }
    }
    Ok(())
}

/// What is known of the inputs of a matrix.
struct Known {
    mean_squares: Option<Vec<f32>>,
    inputs: Option<Arc<MatrixInputs>>,
}

impl Known {
    fn products(&self) -> Option<&Products> {
        self.inputs.as_ref()?.products.as_ref()
    }
}

struct Step<'a> {
    setup: &'a Setup<'a>,
    job: Job<'a>,
    /// The matrices whose inputs are asked for, in the order in which that happens.
    demands: Vec<&'a str>,
    /// By layer.
    choices: Mutex<BTreeMap<usize, Choice>>,
    made: Mutex<(Vec<TensorRecord>, Vec<PrunedTensor>)>,
}

impl Step<'_> {
    /// The shape after this step.
    fn shape<'t>(&self, tensor: &'t PrunedShape) -> &'t [usize] {
        if self.setup.last() { &tensor.planned.shape } else { &tensor.before }
    }

    fn fault(&self, name: &str, reason: impl ToString) -> Error {
        let path = self.setup.model.path().to_owned();
        Error::Tensor { path, name: name.to_owned(), reason: reason.to_string() }
    }

    fn tensor(&self, tensor: &PrunedShape, out: &mut dyn Write) -> io::Result<(TensorRecord, Option<PrunedTensor>)> {
        let last = self.setup.last();
        match tensor.action {
            Action::Rows(unit) if last => self.rows(tensor, unit, out).map(|(record, pruned)| (record, Some(pruned))),
            Action::Keep | Action::Rows(_) => {
                let mut planned = tensor.planned.clone();
                planned.shape.clone_from(&tensor.before);
                Ok((self.job.tensor(self.setup.model, &planned, None, None, out)?, None))
            }
            Action::Zeros | Action::Columns(_) => {
                let made = self.matrix(tensor).map_err(|error| self.job.fail(error))?;
                out.write_all(&made.bytes)?;
                let length = self.setup.model.tensor_info(&tensor.planned.name).map_or(0, |info| info.byte_len());
                self.job.advance(length, &tensor.planned.name)?;
                Ok((made.record, Some(made.pruned)))
            }
        }
    }

    /// Writes the rows that remain, as they are.
    fn rows(&self, tensor: &PrunedShape, unit: Unit, out: &mut dyn Write) -> io::Result<(TensorRecord, PrunedTensor)> {
        let name = &tensor.planned.name;
        let fail = |error: Error| self.job.fail(error);
        let layer = tensor.layer.unwrap_or(0);
        let choice = self.choice(layer).map_err(fail)?;
        let missing = || fail(self.fault(name, "nothing says what remains of its rows"));
        let places = choice.places(unit, self.setup.plan.before[layer]).ok_or_else(missing)?;
        let source = self.setup.model.tensor(name).map_err(|error| fail(error.into()))?;
        let length = source.bytes().len() / tensor.before.first().copied().unwrap_or(1).max(1);
        for row in places {
            let bytes = source.bytes().get(row * length..(row + 1) * length);
            out.write_all(bytes.ok_or_else(|| fail(self.fault(name, "its bytes end early")))?)?;
        }
        release(&source, 0..source.bytes().len());
        self.job.advance(source.bytes().len(), name)?;
        let record = TensorRecord::new(&tensor.planned, 0.0, 0.0);
        let pruned = PrunedTensor::cut(tensor);
        Ok((record, pruned))
    }

    /// The weights of a matrix, and its columns.
    fn weights(&self, name: &str) -> Result<(Vec<f32>, usize), Error> {
        let tensor = self.setup.model.tensor(name)?;
        let columns = tensor.shape().last().copied().unwrap_or(1).max(1);
        let weights = decode_f32(tensor.dtype(), tensor.bytes(), tensor.len());
        let weights = weights.map_err(|error| self.fault(name, error))?;
        release(&tensor, 0..tensor.bytes().len());
        Ok((weights, columns))
    }

    /// What is known of the inputs of a matrix.
    fn known(&self, name: &str, columns: usize) -> Result<Known, Error> {
        let stopped = || self.job.stopped() || self.job.advance(0, name).is_err();
        let inputs = match self.setup.calibration {
            Some(calibration) => {
                let at = self.demands.iter().position(|demand| *demand == name).unwrap_or(0);
                let (before, after) = self.demands.split_at(at);
                let upcoming: Vec<&str> = after.iter().chain(before).copied().collect();
                calibration.inputs(&upcoming, &stopped)?
            }
            None => None,
        };
        let mean_squares = match &self.setup.options.importances {
            Some((importances, file)) => {
                let wrong = |reason: String| Error::Unusable { path: file.into(), reason };
                let entry = importances.entries.get(name);
                let means = entry.ok_or_else(|| wrong(format!("it has no importances of tensor '{name}'")))?.means();
                if means.len() != columns {
                    let reason = format!("{} importances for {columns} columns of tensor '{name}'", means.len());
                    return Err(wrong(reason));
                }
                Some(means)
            }
            None => inputs.as_ref().and_then(|inputs| Some(inputs.products.as_ref()?.squares())),
        };
        if let Some(products) = inputs.as_ref().and_then(|inputs| inputs.products.as_ref())
            && products.columns() != columns
        {
            return Err(self.fault(name, format!("its inputs have {} columns, it has {columns}", products.columns())));
        }
        Ok(Known { mean_squares, inputs })
    }

    /// What remains of a layer.
    fn choice(&self, layer: usize) -> Result<Choice, Error> {
        let mut choices = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(choice) = choices.get(&layer) {
            return Ok(choice.clone());
        }
        let (before, after) = self.extents(layer);
        let mut choice = Choice::default();
        let of_layer = self.setup.plan.tensors.iter().filter(|tensor| tensor.layer == Some(layer));
        for tensor in of_layer {
            let Action::Columns(unit) = tensor.action else { continue };
            let name = &tensor.planned.name;
            let (weights, columns) = self.weights(name)?;
            let ones = || vec![1.0; columns];
            let mean_squares = self.known(name, columns)?.mean_squares.unwrap_or_else(ones);
            let scored = Scored { weights: &weights, columns, mean_squares: &mean_squares };
            let failed = |error: PruneError| self.fault(name, error);
            match unit {
                Unit::Neurons => choice.neurons = Some(neurons(&scored, after.neurons).map_err(failed)?),
                _ => choice.heads = Some(Heads::best(&scored, before, after).map_err(failed)?),
            }
        }
        choices.insert(layer, choice.clone());
        Ok(choice)
    }

    /// What a layer has, and what is left of it after this step.
    fn extents(&self, layer: usize) -> (Extents, Extents) {
        let (before, after) = (self.setup.plan.before[layer], self.setup.plan.after[layer]);
        let now = |before: usize, after: usize| {
            let gone = share_at((before - after.min(before)) as f64, self.setup.number, self.setup.options.steps);
            before - gone.round() as usize
        };
        let kv_heads = now(before.kv_heads, after.kv_heads);
        // As many of each group.
        let per_group = |layer: Extents| layer.heads / layer.kv_heads.max(1);
        let heads = kv_heads * now(per_group(before), per_group(after));
        (before, Extents { neurons: now(before.neurons, after.neurons), heads, kv_heads })
    }

    /// A matrix that is changed weight by weight.
    fn matrix(&self, tensor: &PrunedShape) -> Result<Pruned, Error> {
        let name = &tensor.planned.name;
        let failed = |error: PruneError| self.fault(name, error);
        let (original, columns) = self.weights(name)?;
        let known = self.known(name, columns)?;
        // As long as the original, with zeros where something is gone.
        let mut changed = original.clone();
        let mut stored = None;
        match (tensor.action, self.setup.options.what) {
            (Action::Columns(unit), What::Structure(cut)) => {
                let kept = self.kept_columns(tensor, unit)?;
                let columns_left = self.columns_left(&original, columns, &kept, &known, &cut).map_err(failed)?;
                changed = super::scattered(&columns_left, columns, &kept);
                stored = self.setup.last().then_some(columns_left);
            }
            (_, What::Weights(weights)) => {
                let pattern = weights.pattern.at(self.setup.number, self.setup.options.steps);
                let weights = WeightPruning { pattern, ..weights };
                let feedback = known.inputs.as_ref().and_then(|inputs| inputs.feedback.as_deref());
                let (squares, threads) = (known.mean_squares.as_deref(), self.setup.options.threads);
                weights.apply(&mut changed, columns, squares, feedback, threads).map_err(failed)?;
            }
            _ => {}
        }
        let output_error = known.products().map(|products| products.output_error(&original, &changed));
        let (noise, power) = differences(&original, &changed);
        let gone = zeros(&changed) as f64 / changed.len().max(1) as f64;
        let stored = stored.unwrap_or(changed);
        let mut planned = tensor.planned.clone();
        planned.shape = self.shape(tensor).to_vec();
        let width = planned.shape.last().copied().unwrap_or(1);
        let row_bytes = planned.to.row_bytes(width).unwrap_or(0);
        let mut bytes = vec![0; stored.len() / width.max(1) * row_bytes];
        let threads = self.setup.options.threads;
        encode_with_threads(planned.to, &stored, width, None, threads, &mut bytes)
            .map_err(|error| self.fault(name, error))?;
        let record = TensorRecord::new(&planned, noise, power);
        let pruned = PrunedTensor {
            name: name.clone(),
            before: tensor.before.clone(),
            after: planned.shape,
            gone,
            weight_error: record.relative_error,
            output_error,
        };
        Ok(Pruned { record, pruned, bytes })
    }

    fn kept_columns(&self, tensor: &PrunedShape, unit: Unit) -> Result<Vec<usize>, Error> {
        let layer = tensor.layer.unwrap_or(0);
        let places = self.choice(layer)?.places(unit, self.setup.plan.before[layer]);
        places.ok_or_else(|| self.fault(&tensor.planned.name, "nothing says what remains of its columns"))
    }

    fn columns_left(
        &self,
        original: &[f32],
        columns: usize,
        kept: &[usize],
        known: &Known,
        cut: &StructurePruning,
    ) -> Result<Vec<f32>, PruneError> {
        let options = self.setup.options;
        match known.products().filter(|_| cut.reconstruct) {
            Some(products) => least_squares(original, products, kept, options.damping, options.threads),
            None => Ok(select_columns(original, columns, kept)),
        }
    }
}

/// A matrix as it is written.
struct Pruned {
    record: TensorRecord,
    pruned: PrunedTensor,
    bytes: Vec<u8>,
}
