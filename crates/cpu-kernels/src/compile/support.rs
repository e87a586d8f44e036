//! Which nodes have kernels.

use core_tensor::op::Op;
use core_tensor::{DType, Dim, Graph, Node, ValueSource};

use super::{integer, integer_id, quantized_matrix};
use crate::elementwise::{converts, has_loop};

/// Whether there is a kernel for a node.
pub(crate) fn supports(graph: &Graph, node: &Node) -> Result<(), String> {
    let is_input = |i: usize| {
        node.inputs.get(i).copied().flatten().is_some_and(|id| matches!(graph.value(id).source, ValueSource::Input))
    };
    match &node.op {
        Op::If(_) | Op::Loop(_) => Err("control flow is interpreted by the host".into()),
        Op::StateWrite(_) if !(is_input(1) && is_input(2)) => {
            Err("positions and slots must be inputs of the graph".into())
        }
        Op::Attention(_) if !(is_input(3) && is_input(4)) => {
            Err("positions and slots must be inputs of the graph".into())
        }
        Op::RotaryEmbedding(_) if !is_input(1) => Err("positions must be an input of the graph".into()),
        Op::Custom(_) => {
            let mut all = node.inputs.iter().flatten().chain(&node.outputs);
            match all.find(|id| graph.tensor_type(**id).is_none()) {
                Some(token) => Err(format!("{token} is a state's token, which a user's operator cannot read or give")),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Whether a node runs on kernels of its own, and not on its reference implementation.
pub(crate) fn has_kernel(graph: &Graph, node: &Node) -> bool {
    let tensor = |i: usize| node.inputs.get(i).copied().flatten().and_then(|id| graph.tensor_type(id));
    let is = |i: usize, dtype: DType| tensor(i).is_some_and(|(found, _)| found == dtype);
    let f32 = |i: usize| is(i, DType::F32);
    match &node.op {
        Op::MatMul(_) => {
            let is_matrix = |i: usize| tensor(i).is_some_and(|(dtype, shape)| dtype == DType::F32 && shape.len() >= 2);
            is_linear(graph, node) || is_matrix(0) && is_matrix(1)
        }
        Op::RmsNormalization(_)
        | Op::LayerNormalization(_)
        | Op::TensorAttention(_)
        | Op::RotaryEmbedding(_)
        | Op::StateWrite(_)
        | Op::Attention(_)
        | Op::GatedActivation(_)
        | Op::Transpose(_)
        | Op::Concat(_)
        | Op::Custom(_) => true,
        Op::Gather(op) => {
            let plain = |(dtype, _): (DType, &[Dim])| {
                dtype.packing().0 == 1 && !matches!(dtype, DType::F16 | DType::BF16) || op.axis == 0
            };
            tensor(0).is_some_and(plain) && (is(1, DType::I32) || is(1, DType::I64))
        }
        Op::GatherElements(_) => {
            // Of a scalar there is no extent to gather along.
            let plain = |(dtype, shape): (DType, &[Dim])| {
                !dtype.is_block() && matches!(dtype.packing().1, 1 | 2 | 4 | 8) && !shape.is_empty()
            };
            tensor(0).is_some_and(plain)
        }
        Op::Unary(op) => f32(0) && !op.is_predicate(),
        Op::Binary(op) => f32(0) && !op.is_comparison() || tensor(0).is_some_and(|(dtype, _)| has_loop(*op, dtype)),
        Op::Where(_) => tensor(1).is_some_and(|(dtype, _)| dtype.packing().0 == 1),
        Op::Expand(_) => node.inputs.len() == 1,
        Op::Softmax(_) | Op::Reduce(_) | Op::ArgMax(_) | Op::TopK(_) => f32(0),
        Op::Reshape(_) => node.inputs.len() == 1,
        Op::Slice(_) => true,
        Op::Pad(_) => {
            let one = |(_, shape): (DType, &[Dim])| shape.iter().all(|dim| *dim == Dim::Num(1));
            tensor(0).is_some_and(|(dtype, _)| dtype.packing().0 == 1) && tensor(1).is_none_or(one)
        }
        Op::QuantizeLinear(_) | Op::DequantizeLinear(_) | Op::DynamicQuantizeLinear(_) => {
            integer::converts_bytes(graph, node)
        }
        Op::ConvInteger(_) => integer_id(graph, node).is_some(),
        Op::MatMulInteger(_) => integer_id(graph, node).is_some() || integer::multiplies_bytes(graph, node),
        Op::Cast(op) => {
            const FLOATS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::I32];
            tensor(0).is_some_and(|(from, _)| {
                from == op.to || converts(from, op.to) || FLOATS.contains(&from) && FLOATS.contains(&op.to)
            })
        }
        _ => false,
    }
}

/// Whether a node is a product of f32 activations with a weight of two extents, which is packed for it.
pub(crate) fn is_linear(graph: &Graph, node: &Node) -> bool {
    let tensor = |i: usize| node.inputs.get(i).copied().flatten().and_then(|id| graph.tensor_type(id));
    let weight = node.inputs.get(1).copied().flatten().and_then(|id| graph.weight_of(id));
    matches!(node.op, Op::MatMul(_))
        && matches!(tensor(0), Some((DType::F32, _)))
        && (weight.is_some_and(|w| w.shape().len() == 2 && (w.dtype().is_float() || w.dtype().is_block()))
            || weight.is_none() && quantized_matrix(graph, node).is_some())
}
