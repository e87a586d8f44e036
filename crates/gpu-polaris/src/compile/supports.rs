//! What there are kernels for.

use core_tensor::op::Op;
use core_tensor::{BlockFormat, DType, Graph, Node, StateId, ValueId, ValueType};

use crate::analysis::is_table;
use crate::elementwise::{binary_code, unary_code};
use crate::layout::{BLOCK, Format};
use crate::reduce::reduce_code;
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
            if shape.len() != 2 {
                return Err(format!("no kernel multiplies {} matrices at once", shape.len()));
            }
            if is_weight(1) {
                Format::of(dtype).ok_or_else(|| format!("no kernel multiplies {dtype} weights"))?;
                let k = shape[usize::from(op.transpose_b)].as_num().unwrap_or(0);
                if k > Matrix::LARGEST_K {
                    return Err(format!("k is {k}; kernels take {}", Matrix::LARGEST_K));
                }
                Ok(())
            } else if matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
                Ok(())
            } else {
                Err(format!("no kernel multiplies a computed {dtype} matrix"))
            }
        }
        Op::Gather(op) if op.axis != 0 || !matches!(tensor(1), Some((DType::I32, [_]))) => {
            Err("kernels gather rows, by a vector of i32".into())
        }
        Op::Gather(_) => match (value(0), tensor(0)) {
            (Some(id), Some(_)) if is_table(graph, id) => Ok(()),
            (_, Some((DType::F32 | DType::I32, _))) => Ok(()),
            (_, Some((dtype, shape))) => {
                Err(format!("no kernel gathers rows of a {dtype} table of {} extents", shape.len()))
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
        Op::Binary(op) => {
            f32s(0)?;
            known(binary_code(*op))?;
            let rank = |i: usize| tensor(i).map_or(0, |(_, shape)| shape.len());
            if rank(0).max(rank(1)) > 6 { Err("operands have more than 6 extents".into()) } else { Ok(()) }
        }
        Op::Reshape(_) if node.inputs.len() > 1 => Err("the shape is computed".into()),
        Op::Slice(op) if op.step != 1 => Err(format!("no kernel slices by steps of {}", op.step)),
        Op::Reshape(_) | Op::Slice(_) | Op::Concat(_) => words(tensor(0).map(|(dtype, _)| dtype)),
        Op::Transpose(op) => {
            if op.perm.len() > 8 {
                return Err("the tensor has more than 8 extents".into());
            }
            match tensor(0).map(|(dtype, _)| dtype.packing().1) {
                Some(2 | 4) => Ok(()),
                _ => Err("no kernel transposes elements of that size".into()),
            }
        }
        Op::RmsNormalization(_) => Ok(()),
        Op::Unary(op) => {
            f32s(0)?;
            known(unary_code(*op))
        }
        Op::GatedActivation(op) => known(unary_code(op.activation)),
        Op::Reduce(op) => {
            f32s(0)?;
            known(reduce_code(op.kind))
        }
        Op::Softmax(_) | Op::ArgMax(_) => f32s(0),
        Op::Cast(op) => {
            const KNOWN: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::I32];
            match tensor(0) {
                Some((from, _)) if KNOWN.contains(&from) && KNOWN.contains(&op.to) => Ok(()),
                Some((from, _)) => Err(format!("no kernel converts {from} to {}", op.to)),
                None => Err("no tensor".into()),
            }
        }
        Op::TopK(op) => {
            f32s(0)?;
            if op.k <= crate::reduce::LARGEST_K {
                Ok(())
            } else {
                Err(format!("kernels find {} at most", crate::reduce::LARGEST_K))
            }
        }
        Op::Custom(_) => Err("a user's operator runs on the processor".into()),
        _ => Err("there is no kernel for it".into()),
    }
}

/// Fails where shaders do not know a function.
fn known(code: Option<u32>) -> Result<(), String> {
    code.map(|_| ()).ok_or_else(|| "no kernel knows the function".into())
}

/// Elements that kernels move: in words of two or four bytes.
fn words(dtype: Option<DType>) -> Result<(), String> {
    match dtype {
        Some(dtype) if dtype.packing().1 >= 2 => Ok(()),
        Some(dtype) => Err(format!("no kernel moves single bytes of {dtype}")),
        None => Err("no tensor".into()),
    }
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
