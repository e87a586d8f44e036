//! What there are kernels for.

use core_tensor::op::{Op, PoolKind, ReduceKind, Window};
use core_tensor::{BlockFormat, DType, Dim, Graph, Node, StateId, ValueId, ValueType};

use super::images;
use super::moves::{MOST_EXTENTS, axis, gathers_bytes, moves_words};
use super::{indexing, integer, resample};
use crate::analysis::{is_matrix, is_table};
use crate::elementwise::{
    Function, binary_code, cast_code, gate_code, integer_code, integer_function, integer_kind, truth_code,
};
use crate::filters::{Filter, FilterKey};
use crate::layout::BLOCK;
use crate::weights::Matrix;

/// Elements of a head that kernels hold.
const LARGEST_HEAD: usize = 512;

/// Whether there is a kernel for a node.
///
/// # Errors
/// Why not.
pub(crate) fn supports(graph: &Graph, node: &Node) -> Result<(), String> {
    let value = |i: usize| node.inputs.get(i).copied().flatten();
    let tensor = |i: usize| value(i).and_then(|id| graph.tensor_type(id));
    let is_weight = |i: usize| value(i).is_some_and(|id| graph.weight_of(id).is_some());
    let is_input = |i: usize| value(i).is_some_and(|id| graph.inputs().contains(&id));
    let f32s = |i: usize| match tensor(i) {
        Some((DType::F32, _)) => Ok(()),
        Some((dtype, _)) => Err(format!("kernels compute in f32, input {i} is {dtype}")),
        None => Err("no tensor".into()),
    };
    match &node.op {
        Op::MatMul(op) => {
            let Some((dtype, shape)) = tensor(1) else { return Err("B is no tensor".into()) };
            f32s(0)?;
            if value(1).is_some_and(|id| is_matrix(graph, id)) {
                let k = shape[usize::from(op.transpose_b)].as_num().unwrap_or(0);
                if k > Matrix::LARGEST_K {
                    return Err(format!("k is {k}; kernels take {}", Matrix::LARGEST_K));
                }
                Ok(())
            } else if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
                Err(format!("no kernel multiplies {dtype} weights"))
            } else if shape.len() > MOST_EXTENTS || tensor(0).is_some_and(|(_, a)| a.len() > MOST_EXTENTS) {
                Err(format!("operands have more than {MOST_EXTENTS} extents"))
            } else {
                Ok(())
            }
        }
        Op::Gather(op) => match (value(0), tensor(0)) {
            (Some(id), Some(_)) if is_table(graph, *op, id) => Ok(()),
            (_, Some((DType::F16 | DType::BF16, _))) => Ok(()),
            (_, Some((dtype, _))) if matches!(dtype.packing(), (1, 4 | 8)) => Ok(()),
            (_, Some((dtype, shape))) if gathers_bytes(dtype) && axis(op.axis, shape.len()) == 0 => Ok(()),
            (_, Some((dtype, shape))) => {
                Err(format!("no kernel gathers from a {dtype} table of {} extents", shape.len()))
            }
            _ => Err("the table is no tensor".into()),
        },
        Op::RotaryEmbedding(_) => {
            if !is_input(1) {
                return Err("positions must be an input of the graph".into());
            }
            if value(2).is_some() && !is_weight(2) {
                return Err("frequency factors must be weights".into());
            }
            Ok(())
        }
        Op::StateWrite(op) => {
            let (keys, values) = roles(graph, op.state);
            if keys && values {
                return Err(format!("state {} is read both as keys and as values", op.state));
            }
            if graph.state(op.state).row.len() != 2 {
                return Err(format!("rows of state {} must be [heads, head_dim]", op.state));
            }
            given(graph, value(1), value(2))
        }
        Op::Attention(_) => {
            let state = |i: usize| match value(i).map(|id| &graph.value(id).ty) {
                Some(ValueType::Token(state)) => Some(*state),
                _ => None,
            };
            let (Some(k), Some(v)) = (state(1), state(2)) else { return Err("K and V must be states".into()) };
            for (state, what) in [(k, "keys"), (v, "values")] {
                let dim = graph.state(state).row.last().copied().unwrap_or(0);
                if dim > LARGEST_HEAD {
                    return Err(format!("{what} have {dim} elements; kernels take {LARGEST_HEAD}"));
                }
                if roles(graph, state) == (true, true) {
                    return Err(format!("state {state} is read both as keys and as values"));
                }
            }
            given(graph, value(3), value(4))
        }
        Op::TensorAttention(_) => {
            let dim = |i: usize| tensor(i).and_then(|(_, shape)| shape.last().and_then(Dim::as_num));
            let heads = |i: usize| tensor(i).and_then(|(_, shape)| shape.get(2).and_then(Dim::as_num));
            for i in 0..3 {
                f32s(i)?;
            }
            let (Some(q), Some(v)) = (dim(0), dim(2)) else { return Err("the extents of heads are not known".into()) };
            if q.max(v) > LARGEST_HEAD {
                return Err(format!("heads have {} elements; kernels take {LARGEST_HEAD}", q.max(v)));
            }
            match (heads(0), heads(1)) {
                (Some(_), Some(_)) => Ok(()),
                _ => Err("the numbers of heads are not known".into()),
            }
        }
        Op::Binary(op) => {
            let (dtype, a) = tensor(0).ok_or("no tensor")?;
            if binary_code(*op, dtype).is_none() && integer_code(*op, dtype).is_none() {
                return Err(format!("no kernel knows the function of {dtype}"));
            }
            walks(a.len().max(tensor(1).map_or(0, |(_, b)| b.len())))
        }
        Op::Where(_) => {
            let (dtype, a) = tensor(1).ok_or("no tensor")?;
            if !matches!(dtype.packing(), (1, 4 | 8)) {
                return Err(format!("no kernel chooses between elements of {dtype}"));
            }
            let rank = |i: usize| tensor(i).map_or(0, |(_, shape)| shape.len());
            walks(a.len().max(rank(0)).max(rank(2)) + usize::from(dtype.packing().1 == 8))
        }
        Op::Reshape(_) | Op::Expand(_) if node.inputs.len() > 1 => Err("the shape is computed".into()),
        Op::Reshape(_) | Op::Slice(_) | Op::Concat(_) | Op::Transpose(_) | Op::Expand(_) => {
            let (dtype, _) = tensor(0).ok_or("no tensor")?;
            moves_words(&node.op, dtype.packing().1)?;
            let rank = node.outputs.first().and_then(|y| graph.tensor_type(*y)).map_or(0, |(_, shape)| shape.len());
            if rank + usize::from(dtype.packing().1 == 8) > MOST_EXTENTS {
                return Err(format!("the tensor has more than {MOST_EXTENTS} extents"));
            }
            Ok(())
        }
        Op::Pad(_) => {
            let (dtype, shape) = tensor(0).ok_or("no tensor")?;
            match dtype.packing() {
                (1, 4) if shape.len() <= MOST_EXTENTS => Ok(()),
                (1, 4) => Err(format!("the tensor has more than {MOST_EXTENTS} extents")),
                _ => Err(format!("no kernel pads {dtype}")),
            }
        }
        Op::RmsNormalization(_) | Op::LayerNormalization(_) | Op::GroupNormalization(_) => f32s(0),
        Op::Unary(op) => match tensor(0) {
            Some((dtype, _)) if truth_code(*op).is_some_and(|(from, _)| from == dtype) => Ok(()),
            Some((dtype, _)) if integer_function(*op, dtype).is_some() => Ok(()),
            _ => {
                f32s(0)?;
                known(Function::of(*op))
            }
        },
        Op::GatedActivation(op) => known(gate_code(op.activation)),
        Op::Reduce(op) => match tensor(0) {
            Some((dtype, _)) if integer_kind(dtype).is_some() => reduces_integers(op.kind),
            _ => f32s(0),
        },
        Op::Softmax(_) | Op::LogSoftmax(_) | Op::ArgMax(_) | Op::CumSum(_) => f32s(0),
        Op::Cast(op) => match tensor(0) {
            Some((from, _)) if cast_code(from).is_some() && cast_code(op.to).is_some() => Ok(()),
            Some((from, _)) => Err(format!("no kernel converts {from} to {}", op.to)),
            None => Err("no tensor".into()),
        },
        Op::Conv(op) => convolution(graph, node, &op.window),
        Op::ConvTranspose(op) => convolution(graph, node, &op.window),
        Op::Pool(op) => {
            f32s(0)?;
            if op.indices || matches!(op.kind, PoolKind::Lp { .. }) {
                return Err("kernels give the largest and the mean only".into());
            }
            images::fits(&op.window, &op.kernel)
        }
        Op::TopK(op) => {
            f32s(0)?;
            if op.k <= crate::reduce::LARGEST_K {
                Ok(())
            } else {
                Err(format!("kernels find {} at most", crate::reduce::LARGEST_K))
            }
        }
        Op::GatherElements(_)
        | Op::GatherNd(_)
        | Op::ScatterElements(_)
        | Op::ScatterNd(_)
        | Op::Trilu(_)
        | Op::Range(_) => indexing::supports(graph, node),
        Op::Resize(op) => resample::resizes(op, tensor(0).ok_or("no tensor")?.0),
        Op::GridSample(_) => {
            f32s(0)?;
            resample::samples(tensor(0).map_or(0, |(_, shape)| shape.len()))
        }
        Op::QuantizeLinear(_) | Op::DequantizeLinear(_) | Op::DynamicQuantizeLinear(_) | Op::MatMulInteger(_) => {
            integer::supports(graph, node)
        }
        Op::Custom(_) => Err("a user's operator runs on the processor".into()),
        _ => Err("there is no kernel for it".into()),
    }
}

/// Whether integers are reduced that way.
fn reduces_integers(kind: ReduceKind) -> Result<(), String> {
    match kind {
        ReduceKind::L2 | ReduceKind::LogSum | ReduceKind::LogSumExp => Err("roots and logarithms are of floats".into()),
        _ => Ok(()),
    }
}

/// Fails where shaders do not know a function.
fn known<T>(code: Option<T>) -> Result<(), String> {
    code.map(|_| ()).ok_or_else(|| "no kernel knows the function".into())
}

/// Whether kernels walk over so many extents.
fn walks(rank: usize) -> Result<(), String> {
    let most = crate::walk::MOST_EXTENTS;
    if rank > most { Err(format!("operands have more than {most} extents")) } else { Ok(()) }
}

fn convolution(graph: &Graph, node: &Node, window: &Window) -> Result<(), String> {
    let dtype = |i: usize| node.inputs.get(i).copied().flatten().and_then(|id| graph.tensor_type(id)).map(|(d, _)| d);
    if dtype(0) != Some(DType::F32) {
        return Err("kernels compute in f32".into());
    }
    if dtype(2).is_some_and(|dtype| cast_code(dtype).is_none_or(|code| code > 2)) {
        return Err("no kernel adds a bias of that dtype".into());
    }
    let key = FilterKey::of(graph, node).ok_or("no kernel convolves by a computed weight")?;
    let filter = Filter::of(graph, key).ok_or("no kernel convolves by a weight like this")?;
    images::fits(window, &filter.window)?;
    // One workgroup after the other along the second extent of a grid.
    if filter.groups.saturating_mul(filter.outs.div_ceil(filter.lanes)) > 65_535 {
        return Err("there are too many channels".into());
    }
    Ok(())
}

/// Whether positions and slots are inputs: the host checks them before a step.
fn given(graph: &Graph, positions: Option<ValueId>, slots: Option<ValueId>) -> Result<(), String> {
    let is_input = |id: Option<ValueId>| id.is_some_and(|id| graph.inputs().contains(&id));
    if is_input(positions) && is_input(slots) {
        Ok(())
    } else {
        Err("positions and slots must be inputs of the graph".into())
    }
}

/// Whether a state is read as keys, and as values: by any node of the whole graph, since programs for some of its outputs share the session.
pub(crate) fn roles(graph: &Graph, state: StateId) -> (bool, bool) {
    let graph = graph.whole();
    let reads = |at: usize| {
        graph.nodes().iter().filter(|node| matches!(node.op, Op::Attention(_))).any(|node| {
            let token = node.inputs.get(at).copied().flatten();
            token.is_some_and(|id| graph.value(id).ty == ValueType::Token(state))
        })
    };
    (reads(1), reads(2))
}

/// 16-byte units of a head of a state, if kernels know its type.
pub(crate) fn units(dtype: DType, dim: usize) -> Option<usize> {
    match dtype {
        DType::F32 => Some(dim.div_ceil(4)),
        DType::F16 => Some(dim.div_ceil(8)),
        DType::Block(BlockFormat::Q8_0) if dim.is_multiple_of(BLOCK) => Some(dim / 16),
        _ => None,
    }
}
