//! A few-line self-test of a device: what a driver computes is compared with the reference.

use std::ops::ControlFlow;
use std::sync::Arc;

use core_tensor::block::encode_q8_0;
use core_tensor::op::{MatMul, Op, RmsNormalization, Softmax};
use core_tensor::{
    Backend, BackendError, Bindings, BlockFormat, DType, Dim, Graph, ReferenceBackend, Tensor, TensorError, Weight,
};

use crate::VulkanBackend;

/// Columns of the input: whole blocks, no power of two.
const COLUMNS: usize = 96;
/// Rows of the weights: more than a tile.
const OUTPUTS: usize = 72;
/// Rows of a step: one, and more than the kernels for few rows take.
const ROWS: [usize; 2] = [1, 9];
/// The largest normalised mean squared error that passes.
const LIMIT: f64 = 1e-6;

/// Normalizes, multiplies with quantized weights and takes a softmax, for one row and for several.
///
/// # Errors
/// When the device fails, or its results are wrong.
pub(crate) fn run(backend: &VulkanBackend) -> Result<(), BackendError> {
    let graph = Arc::new(graph()?);
    for rows in ROWS {
        let input = Tensor::from_slice(&[rows, COLUMNS], &numbers(rows * COLUMNS, 1)).map_err(op)?;
        let found = evaluate(backend, &graph, &input)?;
        let expected = evaluate(&ReferenceBackend::new(false), &graph, &input)?;
        let error = error(&found, &expected);
        // What is no number is wrong, too.
        if error.is_none_or(|error| error.is_nan() || error > LIMIT) {
            let error = error.map_or("the length".to_owned(), |error| format!("error {error:.1e}"));
            let (name, driver) = (backend.gpu().name(), backend.gpu().driver());
            let reason = format!("{name} computes wrong results with {driver} ({error} for {rows} rows)");
            return Err(BackendError::Device(reason));
        }
    }
    Ok(())
}

/// Normalised mean squared error; `None` if there are not as many.
fn error(found: &[f32], expected: &[f32]) -> Option<f64> {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let error = square(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    (found.len() == expected.len()).then(|| error / square(&mut expected.iter().map(|b| f64::from(*b))))
}

fn op(error: TensorError) -> BackendError {
    core_tensor::op::OpError::from(error).into()
}

fn graph() -> Result<Graph, BackendError> {
    let mut graph = Graph::new("self-test");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), COLUMNS.into()]);
    let scale = Tensor::from_slice(&[COLUMNS], &numbers(COLUMNS, 2)).map_err(op)?;
    let scale = graph.weight("scale", Weight::stored(scale));
    let norm = Op::RmsNormalization(RmsNormalization { epsilon: 1e-5 });
    let normal = graph.add("normal", norm, &[x, scale])?;
    let mut bytes = vec![0; OUTPUTS * COLUMNS / 32 * 34];
    encode_q8_0(&numbers(OUTPUTS * COLUMNS, 3), &mut bytes).map_err(|error| op(error.into()))?;
    let weight = Tensor::from_bytes(DType::Block(BlockFormat::Q8_0), &[OUTPUTS, COLUMNS], &bytes).map_err(op)?;
    let weight = graph.weight("weight", Weight::stored(weight));
    let product = graph.add("product", Op::MatMul(MatMul { transpose_b: true }), &[normal, weight])?;
    let y = graph.add("softmax", Op::Softmax(Softmax), &[product])?;
    graph.output(y);
    Ok(graph)
}

fn evaluate(backend: &dyn Backend, graph: &Arc<Graph>, input: &Tensor) -> Result<Vec<f32>, BackendError> {
    let bounds = Bindings::new().with("rows", input.shape()[0]);
    let weights = backend.load_weights(graph, &mut |_, _| ControlFlow::Continue(()))?;
    let program = backend.compile(graph, &weights, &bounds)?;
    let mut session = backend.new_session(graph, 1, &bounds)?;
    let outputs = program.run(&mut *session, std::slice::from_ref(input))?;
    let output = outputs.first().ok_or(BackendError::Mismatch("outputs and graph"))?;
    output.to_f32().map_err(op)
}

/// Numbers between -1 and 1, the same for the same seed (xorshift).
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_no_number_or_too_short_does_not_pass() {
        let passes = |found: &[f32]| error(found, &[1.0, -2.0]).is_some_and(|error| error <= LIMIT);
        assert!(passes(&[1.0, -2.0]) && passes(&[1.0, -2.000_01]));
        for wrong in [&[1.0, 2.0][..], &[1.0, f32::NAN], &[1.0, f32::INFINITY], &[1.0], &[0.0, 0.0], &[1.01, -2.0]] {
            assert!(!passes(wrong), "{wrong:?}");
        }
    }
}
