//! Data that a graph runs on so that its activations are seen.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use core_tensor::{DType, Graph, Tensor, ValueId};
use polaris_quant::graph::{Calibration, Demand, Hessian, Host, HostError, Trained, observed};
use polaris_runtime::{Executable, ExecutableOptions};

use super::GraphModel;
use super::spill::Spill;
use crate::Error;
use crate::backends::{self, BackendOptions};
use crate::bert::{self, Text, Tokens, name};
use crate::quantize::QuantizeProgress;

/// Tokens of a text at most: more say little more of activations, and take long.
pub const MOST_TOKENS: usize = 128;

/// Texts of which activations are observed: of more, as many are taken at equal distances.
pub const MOST_TEXTS: usize = 128;

/// The same where weights are trained on them.
pub const MOST_TRAINED_TEXTS: usize = 1024;

/// Inputs for a number of runs.
#[derive(Clone, Debug, Default)]
pub struct CalibrationData {
    /// Where they are from, for the manifest.
    pub name: String,
    /// For each run a tensor for each of the graph's inputs, in order.
    pub runs: Vec<Vec<Tensor>>,
}

/// Demands of one run over the data: all that take little memory at first, and products as far as the memory goes, what it takes to factor one of them included.
pub(super) fn passes(demands: &[(ValueId, Demand)], memory: u64) -> Vec<Vec<(ValueId, Demand)>> {
    let large = |demand: &Demand| matches!(demand, Demand::Hessian { .. });
    let (products, light): (Vec<_>, Vec<_>) = demands.iter().copied().partition(|(_, demand)| large(demand));
    let mut held: u64 = light.iter().map(|(_, demand)| demand.bytes()).sum();
    let mut work = 0;
    let mut all = vec![light];
    for (id, demand) in products {
        let first = all.last().is_none_or(|pass| !pass.iter().any(|(_, demand)| large(demand)));
        let needs = held.saturating_add(demand.bytes()).saturating_add(demand.work().max(work));
        if needs > memory && !first {
            all.push(Vec::new());
            (held, work) = (0, 0);
        }
        held = held.saturating_add(demand.bytes());
        work = demand.work().max(work);
        if let Some(pass) = all.last_mut() {
            pass.push((id, demand));
        }
    }
    all.retain(|pass| !pass.is_empty());
    all
}

/// How far it all is.
pub(super) struct Steps<'a> {
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) progress: &'a mut QuantizeProgress<'a>,
}

impl Steps<'_> {
    /// A step more.
    pub(super) fn next(&mut self, what: &str) -> Result<(), Error> {
        let told = (self.progress)(self.done, self.total.max(self.done), what);
        self.done += 1;
        if told == ControlFlow::Break(()) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Runs the graph on the data and looks at what is demanded.
pub(super) fn observe(
    graph: &Graph,
    demands: &[(ValueId, Demand)],
    data: &CalibrationData,
    threads: usize,
    steps: &mut Steps<'_>,
) -> Result<Calibration, Error> {
    let mut calibration = Calibration::new(demands);
    let mut values: Vec<ValueId> = demands.iter().map(|(id, _)| *id).collect();
    values.sort_unstable();
    values.dedup();
    let outputs = graph.outputs().len();
    let opened = backends::open(&BackendOptions::exact(threads))?;
    let executable =
        Executable::load(&opened.backends, observed(graph, &values), ExecutableOptions::default(), &mut |_, _| {
            ControlFlow::Continue(())
        })?;
    for inputs in &data.runs {
        steps.next("calibration")?;
        let seen = executable.run(inputs)?;
        for (id, tensor) in values.iter().zip(seen.iter().skip(outputs)) {
            calibration.observe(*id, tensor.shape(), &tensor.elements::<f32>()?);
        }
    }
    Ok(calibration)
}

/// What quantization asks for: sums of products, for which the data run through the model as often as the memory makes necessary, and places for weights.
pub(super) struct GraphHost<'a, 'b> {
    pub(super) graph: &'a Graph,
    pub(super) data: Option<&'a CalibrationData>,
    pub(super) threads: usize,
    /// Demands of the passes that are still to come.
    pub(super) passes: VecDeque<Vec<(ValueId, Demand)>>,
    /// What the last pass showed.
    pub(super) held: Calibration,
    pub(super) spill: Spill,
    /// Integers that were trained, by the graph's weights.
    pub(super) trained: BTreeMap<ValueId, Trained>,
    pub(super) steps: &'a mut Steps<'b>,
}

impl Host for GraphHost<'_, '_> {
    fn hessian(&mut self, upcoming: &[ValueId]) -> Result<Option<Arc<Hessian>>, HostError> {
        let Some(id) = upcoming.first() else { return Ok(None) };
        if self.held.hessian(*id).is_none()
            && let Some(data) = self.data
            && let Some(at) = self.passes.iter().position(|pass| pass.iter().any(|(known, _)| known == id))
        {
            // What is not taken now is asked for later, or never again: it is looked at once more where it is asked for.
            let later = |id: &ValueId| upcoming.contains(id);
            let lost: Vec<(ValueId, Demand)> = upcoming
                .iter()
                .filter_map(|id| Some((*id, Demand::Hessian { columns: self.held.hessian(*id)?.columns })))
                .collect();
            // Before the next ones take their place.
            self.held = Calibration::default();
            let mut before: Vec<Vec<(ValueId, Demand)>> = self.passes.drain(..=at).collect();
            if let Some(pass) = before.pop() {
                self.held = observe(self.graph, &pass, data, self.threads, self.steps)?;
            }
            before.push(lost);
            for mut pass in before.into_iter().rev() {
                pass.retain(|(id, _)| later(id));
                if !pass.is_empty() {
                    self.passes.push_front(pass);
                }
            }
        }
        Ok(self.held.hessian(*id))
    }

    fn trained(&mut self, weight: ValueId) -> Option<Trained> {
        self.trained.get(&weight).cloned()
    }

    fn keep(&mut self, tensor: Tensor) -> Result<Tensor, HostError> {
        self.spill.keep(tensor)
    }
}

/// Lines of a text as the inputs of an encoder, by the `tokenizer.json` beside the model: one run for each, at most `most`.
///
/// # Errors
/// When there is no tokenizer, the graph has other inputs than token ids, their mask, types and positions, or a text is refused.
pub fn text_runs(model: &GraphModel, text: &str, most: usize) -> Result<Vec<Vec<Tensor>>, Error> {
    let lines: Vec<Text<'_>> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Text::from).collect();
    let lines: Vec<Text<'_>> = lines.iter().step_by(lines.len().div_ceil(most.max(1)).max(1)).copied().collect();
    let tokens = bert::tokens_of(&model.path, MOST_TOKENS, &lines)?;
    tokens
        .iter()
        .filter(|tokens| !tokens.ids.is_empty())
        .map(|tokens| inputs(&model.graph, &model.path, tokens))
        .collect()
}

fn inputs(graph: &Graph, path: &Path, tokens: &Tokens) -> Result<Vec<Tensor>, Error> {
    let unusable = |reason: String| Error::Unusable { path: path.to_owned(), reason };
    let numbers = |all: &[u32]| all.iter().map(|n| i64::from(*n)).collect::<Vec<i64>>();
    let known: BTreeMap<&str, Vec<i64>> = BTreeMap::from([
        (name::INPUT_IDS, numbers(&tokens.ids)),
        (name::ATTENTION_MASK, vec![1; tokens.ids.len()]),
        (name::TOKEN_TYPE_IDS, numbers(&tokens.types)),
        ("position_ids", (0..tokens.ids.len() as i64).collect()),
    ]);
    let mut all = Vec::new();
    for id in graph.inputs() {
        let value = graph.value(*id);
        let Some(numbers) = known.get(value.name.as_str()) else {
            let reason = format!("text says nothing of input {:?}; give tensors for calibration instead", value.name);
            return Err(unusable(reason));
        };
        let shape = [1, numbers.len()];
        all.push(match value.ty.as_tensor() {
            Some((DType::I64, _)) => Tensor::from_slice(&shape, numbers)?,
            Some((DType::I32, _)) => {
                let numbers: Vec<i32> = numbers.iter().map(|n| *n as i32).collect();
                Tensor::from_slice(&shape, &numbers)?
            }
            _ => return Err(unusable(format!("input {:?} is {}, no token ids", value.name, value.ty))),
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_hold_no_more_products_than_there_is_memory_for() {
        let mut graph = Graph::new("values");
        let ids: Vec<ValueId> = (0..4).map(|i| graph.input(&format!("x{i}"), DType::F32, &[8.into()])).collect();
        let mut demands: Vec<(ValueId, Demand)> = ids.iter().map(|id| (*id, Demand::Hessian { columns: 8 })).collect();
        demands.push((ids[3], Demand::Range));
        let lengths = |memory| passes(&demands, memory).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lengths(1 << 20), [5]);
        let (light, product) = (Demand::Range.bytes(), demands[0].1);
        assert_eq!((product.bytes(), product.work()), (512, 1280));
        assert_eq!(lengths(light + 2 * 512 + 1280), [3, 2]);
        assert_eq!(lengths(light + 2 * 512 + 1279), [2, 3]);
        // One at a time at least.
        assert_eq!(lengths(0), [2, 1, 1, 1]);
        assert!(passes(&[], 100).is_empty());
    }
}
