//! A quick self-test: a handful of operators on the processor at every instruction-set level, and on the graphics device, against the reference interpreter.

use std::error::Error;
use std::ops::ControlFlow;
use std::sync::Arc;

use core_tensor::block::encode_q8_0;
use core_tensor::op::{GatedActivation, MatMul, Op, RmsNormalization, Softmax, Unary};
use core_tensor::{
    Backend, Bindings, BlockFormat, DType, Dim, Graph, GraphError, ReferenceBackend, Tensor, TensorError, ValueId,
    Weight,
};
use cpu_kernels::simd::Level;
use cpu_kernels::{CpuBackend, CpuOptions};
use serde::Serialize;

/// Rows of the inputs: more than the one-row kernels take.
const ROWS: usize = 5;
/// Columns of the inputs: whole blocks of 32, no power of two.
const COLUMNS: usize = 96;
/// Rows of the weights.
const WEIGHTS: usize = 40;
/// The largest normalised mean squared error that passes: both sides quantize activations the same way.
const LIMIT: f64 = 1e-6;

/// How one operator did at one level.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// The instruction-set level, or the backend's name.
    pub(crate) level: String,
    /// The operator.
    pub(crate) operator: &'static str,
    /// Whether the results agree.
    pub(crate) passed: bool,
    /// Normalised mean squared error, or why there is no result.
    pub(crate) detail: String,
}

type Build = fn(&mut Graph, ValueId) -> Result<ValueId, Box<dyn Error>>;

const CASES: &[(&str, Build)] = &[
    ("MatMul f32", |graph, x| Ok(matmul(graph, x, Tensor::from_slice(&[WEIGHTS, COLUMNS], &weights())?)?)),
    ("MatMul q8_0", |graph, x| Ok(matmul(graph, x, q8_0_weights()?)?)),
    ("RMSNormalization", |graph, x| {
        let scale = graph.weight("scale", Weight::stored(Tensor::from_slice(&[COLUMNS], &noise(COLUMNS, 3))?));
        Ok(graph.add("y", Op::RmsNormalization(RmsNormalization { epsilon: 1e-5 }), &[x, scale])?)
    }),
    ("Softmax", |graph, x| Ok(graph.add("y", Op::Softmax(Softmax), &[x])?)),
    ("GatedActivation", |graph, x| {
        Ok(graph.add("y", Op::GatedActivation(GatedActivation { activation: Unary::Silu }), &[x, x])?)
    }),
];

/// Runs every operator at every level that the processor has, and on the other backends. Takes a few milliseconds, and on a graphics device
/// the time that its driver needs to compile the kernels.
pub(crate) fn run(backends: &[Arc<dyn Backend>]) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for level in Level::available() {
        let backend = CpuBackend::new(CpuOptions::default().with_threads(2).with_level(level).with_small_alone(false));
        test(&backend, level.name(), true, &mut outcomes);
    }
    for backend in backends.iter().filter(|backend| !matches!(backend.name(), "cpu" | "reference")) {
        test(&**backend, backend.name(), false, &mut outcomes);
    }
    outcomes
}

/// `rounds`: whether it multiplies quantized weights with activations rounded to 8 bits.
fn test(backend: &dyn Backend, level: &str, rounds: bool, outcomes: &mut Vec<Outcome>) {
    for (operator, build) in CASES {
        let compared = compare(backend, rounds, *build);
        outcomes.push(Outcome {
            level: level.to_owned(),
            operator,
            passed: compared.as_ref().is_ok_and(|error| *error <= LIMIT),
            detail: compared.map_or_else(|error| error.to_string(), |error| format!("NMSE {error:.1e}")),
        });
    }
}

fn matmul(graph: &mut Graph, x: ValueId, weight: Tensor) -> Result<ValueId, GraphError> {
    let weight = graph.weight("weight", Weight::stored(weight));
    graph.add("y", Op::MatMul(MatMul { transpose_b: true }), &[x, weight])
}

fn weights() -> Vec<f32> {
    noise(WEIGHTS * COLUMNS, 2)
}

fn q8_0_weights() -> Result<Tensor, Box<dyn Error>> {
    let mut bytes = vec![0; WEIGHTS * COLUMNS / 32 * 34];
    encode_q8_0(&weights(), &mut bytes)?;
    let tensor: Result<Tensor, TensorError> =
        Tensor::from_bytes(DType::Block(BlockFormat::Q8_0), &[WEIGHTS, COLUMNS], &bytes);
    Ok(tensor?)
}

/// The normalised mean squared error of a backend's result against the reference's.
fn compare(backend: &dyn Backend, rounds: bool, build: Build) -> Result<f64, Box<dyn Error>> {
    let mut graph = Graph::new("self-test");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), COLUMNS.into()]);
    let y = build(&mut graph, x)?;
    graph.output(y);
    let graph = Arc::new(graph);
    let found = evaluate(backend, &graph)?;
    let expected = evaluate(&ReferenceBackend::new(rounds), &graph)?;
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let error = square(&mut found.iter().zip(&expected).map(|(a, b)| f64::from(a - b)));
    Ok(error / square(&mut expected.iter().map(|b| f64::from(*b))))
}

fn evaluate(backend: &dyn Backend, graph: &Arc<Graph>) -> Result<Vec<f32>, Box<dyn Error>> {
    let bounds = Bindings::new().with("rows", ROWS);
    let weights = backend.load_weights(graph, &mut |_, _| ControlFlow::Continue(()))?;
    let program = backend.compile(graph, &weights, &bounds)?;
    let mut session = backend.new_session(graph, 1, &bounds)?;
    let input = Tensor::from_slice(&[ROWS, COLUMNS], &noise(ROWS * COLUMNS, 1))?;
    let outputs = program.run(&mut *session, &[input])?;
    Ok(outputs.first().ok_or("no output")?.to_f32()?)
}

/// Numbers between -1 and 1, the same for the same seed (xorshift).
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
    .take(count)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_agrees_with_the_reference_at_every_level() {
        let outcomes = run(&[]);
        assert_eq!(outcomes.len(), CASES.len() * Level::available().len());
        let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }
}
