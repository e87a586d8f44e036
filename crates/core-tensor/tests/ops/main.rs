//! The operators' reference implementations against hand-checked examples and against values that ONNX Runtime or NumPy gave.

mod attention;
mod conv;
mod gather;
mod hostile;
mod matmul;
mod norm;
mod order;
mod pool;
mod quantize;
mod recurrent;
mod resize;
mod shapes;
mod signal;

use core_tensor::op::{Op, OpError};
use core_tensor::{Bindings, Dim, Element, Tensor, evaluate};

/// A tensor of these elements.
fn tensor<T: Element>(shape: &[usize], elements: &[T]) -> Tensor {
    Tensor::from_slice(shape, elements).expect("as many elements as the shape has")
}

/// `sin(0.37 (i + seed))`: numbers without pattern that other programs can make, too.
fn wave(shape: &[usize], seed: usize) -> Tensor {
    let elements: Vec<f32> =
        (0..shape.iter().product()).map(|i: usize| ((i + seed) as f64 * 0.37).sin() as f32).collect();
    tensor(shape, &elements)
}

/// The outputs of an operator, all inputs given.
fn run(op: &Op, inputs: &[Tensor]) -> Vec<Tensor> {
    let inputs: Vec<Option<Tensor>> = inputs.iter().cloned().map(Some).collect();
    evaluate(op, &inputs, &Bindings::new()).expect("an operator that takes these inputs")
}

/// Why an operator refuses inputs.
fn refusal(op: &Op, inputs: &[Tensor]) -> OpError {
    let inputs: Vec<Option<Tensor>> = inputs.iter().cloned().map(Some).collect();
    evaluate(op, &inputs, &Bindings::new()).expect_err("an operator that refuses these inputs")
}

/// The only output, as f32, with its shape.
fn one(op: &Op, inputs: &[Tensor]) -> (Vec<usize>, Vec<f32>) {
    let outputs = run(op, inputs);
    assert_eq!(outputs.len(), 1);
    (outputs[0].shape().to_vec(), outputs[0].to_f32().expect("numbers"))
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 2e-6 + 2e-5 * b.abs(), "element {i} is {a}, {b} is expected");
    }
}

fn dims(extents: &[usize]) -> Vec<Dim> {
    extents.iter().map(|n| Dim::Num(*n)).collect()
}
