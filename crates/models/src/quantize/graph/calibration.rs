//! Data that a graph runs on so that its activations are seen.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use core_tensor::{DType, Graph, Tensor, ValueId};
use polaris_quant::graph::{Calibration, GraphOptions, GraphType, demands, observed};
use polaris_runtime::{Executable, ExecutableOptions};

use super::GraphModel;
use crate::Error;
use crate::backends::{self, Activations, BackendOptions, Device};
use crate::bert::{self, Text, Tokens, name};
use crate::quantize::QuantizeProgress;

/// Tokens of a text at most: more say little more of activations, and take long.
pub const MOST_TOKENS: usize = 128;

/// Texts of which activations are observed: of more, as many are taken at equal distances.
pub const MOST_TEXTS: usize = 128;

/// Inputs for a number of runs.
#[derive(Clone, Debug, Default)]
pub struct CalibrationData {
    /// Where they are from, for the manifest.
    pub name: String,
    /// For each run a tensor for each of the graph's inputs, in order.
    pub runs: Vec<Vec<Tensor>>,
}

/// Runs the graph on the data and looks at what the type needs to know.
pub(super) fn observe(
    model: &GraphModel,
    options: &GraphOptions,
    data: Option<&CalibrationData>,
    progress: &mut QuantizeProgress<'_>,
) -> Result<Calibration, Error> {
    let demands = demands(&model.graph, options).map_err(|error| model.unusable(error))?;
    let mut calibration = Calibration::new(&demands);
    if demands.is_empty() {
        return Ok(calibration);
    }
    let Some(data) = data.filter(|data| !data.runs.is_empty()) else {
        let what = if options.ty == GraphType::Int8 { "int8" } else { "GPTQ" };
        return Err(model.unusable(format!("{what} needs data for calibration (int8-dynamic needs none)")));
    };
    let values: Vec<ValueId> = demands.iter().map(|(id, _)| *id).collect();
    let graph = observed(&model.graph, &values);
    let backend = BackendOptions {
        device: Device::Cpu,
        threads: Some(options.threads),
        activations: Activations::F32,
        profile: false,
    };
    let opened = backends::open(&backend)?;
    let executable =
        Executable::load(&opened.backends, graph, ExecutableOptions::default(), &mut |_, _| ControlFlow::Continue(()))?;
    let total = data.runs.len() as u64 + 1;
    for (done, inputs) in data.runs.iter().enumerate() {
        if progress(done as u64, total, "calibration") == ControlFlow::Break(()) {
            return Err(Error::Cancelled);
        }
        let outputs = executable.run(inputs)?;
        let seen = outputs.iter().skip(model.graph.outputs().len());
        for (id, tensor) in values.iter().zip(seen) {
            calibration.observe(*id, &tensor.elements::<f32>()?);
        }
    }
    Ok(calibration)
}

/// Lines of a text as the inputs of an encoder, by the `tokenizer.json` beside the model: one run for each, at most [`MOST_TEXTS`].
///
/// # Errors
/// When there is no tokenizer, the graph has other inputs than token ids, their mask, types and positions, or a text is refused.
pub fn text_runs(model: &GraphModel, text: &str) -> Result<Vec<Vec<Tensor>>, Error> {
    let lines: Vec<Text<'_>> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Text::from).collect();
    let lines: Vec<Text<'_>> = lines.iter().step_by(lines.len().div_ceil(MOST_TEXTS).max(1)).copied().collect();
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
