//! Weights of 8 bits that the graph itself dequantizes before a product or a table look-up: they stay 8 bits in memory.

use std::collections::HashSet;

use core_tensor::op::{Binary, Granularity, Op};
use core_tensor::{DType, Graph, Node, ValueId, Weight, WeightError};

/// A weight of two extents, i8 or u8, and the factors of its outputs (or rows).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuantizedWeight {
    /// The weight.
    pub(crate) weight: ValueId,
    /// One f32 factor for each index of `axis`, or one for all.
    pub(crate) scale: ValueId,
    /// As many zero points of the weight's type, where they are not in the middle of it.
    pub(crate) zero: Option<ValueId>,
    /// The extent that the factors belong to.
    pub(crate) axis: usize,
}

/// A quantized weight in memory.
pub(crate) struct Loaded {
    /// Signed bytes around zero; unsigned ones if there are zero points.
    pub(crate) bytes: Vec<u8>,
    /// The factors along the axis.
    pub(crate) scales: Vec<f32>,
    /// The zero points along it.
    pub(crate) zeros: Option<Vec<u8>>,
}

impl QuantizedWeight {
    /// The weight's bytes, and the factor of each index of the axis.
    pub(crate) fn load(&self, graph: &Graph) -> Result<Option<Loaded>, WeightError> {
        let (Some(weight), Some(scale)) = (graph.weight_of(self.weight), graph.weight_of(self.scale)) else {
            return Ok(None);
        };
        let stored = if self.zero.is_some() { DType::U8 } else { DType::I8 };
        let bytes_of = |weight: &Weight| -> Result<Vec<u8>, WeightError> {
            let mut bytes = weight.to_tensor()?.bytes().to_vec();
            if weight.dtype() != stored {
                bytes.iter_mut().for_each(|byte| *byte ^= 0x80);
            }
            Ok(bytes)
        };
        let count = weight.shape()[self.axis];
        let zeros = self.zero.and_then(|zero| graph.weight_of(zero)).map(|zeros| bytes_of(zeros)).transpose()?;
        Ok(Some(Loaded {
            bytes: bytes_of(weight)?,
            scales: for_each_index(scale.to_tensor()?.to_f32()?, count),
            zeros: zeros.map(|zeros| for_each_index(zeros, count)),
        }))
    }
}

/// One for all becomes one for each.
fn for_each_index<T: Copy>(factors: Vec<T>, count: usize) -> Vec<T> {
    if factors.len() == 1 { vec![factors[0]; count] } else { factors }
}

fn producer(graph: &Graph, id: ValueId) -> Option<&Node> {
    graph.nodes().iter().find(|node| node.outputs.contains(&id))
}

/// A weight of bytes, of two extents.
fn bytes(graph: &Graph, id: ValueId) -> Option<&Weight> {
    let weight = graph.weight_of(id)?;
    (weight.shape().len() == 2 && matches!(weight.dtype(), DType::I8 | DType::U8)).then_some(weight)
}

/// What a value is the dequantized form of, with factors along `axis`.
fn dequantized(graph: &Graph, id: ValueId, axis: usize) -> Option<QuantizedWeight> {
    let node = producer(graph, id)?;
    let input = |i: usize| node.inputs.get(i).copied().flatten();
    match node.op {
        Op::DequantizeLinear(op) => {
            let (weight, scale) = (input(0)?, input(1)?);
            let stored = bytes(graph, weight)?;
            let fits = match op.granularity {
                Granularity::Tensor => true,
                Granularity::Axis(at) => at == axis as isize || at + 2 == axis as isize,
                Granularity::Blocks { .. } => false,
            };
            let agrees = |id: ValueId| {
                let count = graph.weight_of(id)?.shape().iter().product::<usize>();
                (count == 1 || count == stored.shape()[axis]).then_some(())
            };
            agrees(scale)?;
            // Bytes around zero, and unsigned ones around 128, need no correction.
            let middle = if stored.dtype() == DType::U8 { 0x80 } else { 0 };
            let zero = match input(2) {
                None if middle == 0 => None,
                None => return None,
                Some(zero) => {
                    agrees(zero)?;
                    let zeros = graph.weight_of(zero).filter(|zeros| zeros.dtype() == stored.dtype())?;
                    let centred = zeros.to_tensor().ok()?.bytes().iter().all(|byte| *byte == middle);
                    (!centred).then_some(zero)
                }
            };
            fits.then_some(QuantizedWeight { weight, scale, zero, axis })
        }
        Op::Binary(Binary::Mul) => {
            let (a, b) = (input(0)?, input(1)?);
            let (cast, scale) = if graph.weight_of(b).is_some() { (a, b) } else { (b, a) };
            let cast = producer(graph, cast)?;
            let weight = cast.inputs.first().copied().flatten()?;
            let stored = bytes(graph, weight).filter(|stored| stored.dtype() == DType::I8)?;
            let factors = graph.weight_of(scale).filter(|scale| scale.dtype() == DType::F32)?.shape();
            let count: usize = factors.iter().product();
            // As it broadcasts: aligned at the last extent.
            let along = factors.len().checked_add(axis).and_then(|at| at.checked_sub(2)).and_then(|at| factors.get(at));
            let fits = factors.len() <= 2 && (count == 1 || along == Some(&count) && count == stored.shape()[axis]);
            let to_f32 = matches!(&cast.op, Op::Cast(op) if op.to == DType::F32);
            (fits && to_f32).then_some(QuantizedWeight { weight, scale, zero: None, axis })
        }
        _ => None,
    }
}

/// The quantized weight that a product multiplies by.
pub(crate) fn quantized_matrix(graph: &Graph, node: &Node) -> Option<QuantizedWeight> {
    let Op::MatMul(op) = node.op else { return None };
    let (a, b) = (node.inputs.first().copied().flatten()?, node.inputs.get(1).copied().flatten()?);
    let floats = graph.tensor_type(a).is_some_and(|(dtype, _)| dtype == DType::F32);
    if !floats || a == b || graph.weight_of(b).is_some() {
        return None;
    }
    dequantized(graph, b, usize::from(!op.transpose_b))
}

/// The quantized table that rows are gathered from.
pub(crate) fn quantized_table(graph: &Graph, node: &Node) -> Option<QuantizedWeight> {
    let Op::Gather(op) = node.op else { return None };
    let data = node.inputs.first().copied().flatten()?;
    if op.axis != 0 || node.inputs.get(1).copied().flatten() == Some(data) || graph.weight_of(data).is_some() {
        return None;
    }
    dequantized(graph, data, 0)
}

/// Nodes that only dequantize for readers which do it themselves.
pub(crate) fn dequantizing_nodes(graph: &Graph) -> HashSet<usize> {
    let mut found: HashSet<usize> = HashSet::new();
    let candidate = |node: &Node| matches!(node.op, Op::DequantizeLinear(_) | Op::Binary(Binary::Mul) | Op::Cast(_));
    for (i, node) in graph.nodes().iter().enumerate().rev().filter(|(_, node)| candidate(node)) {
        let y = node.outputs[0];
        if graph.outputs().contains(&y) {
            continue;
        }
        let mut readers = graph.nodes().iter().enumerate().filter(|(_, reader)| reader.inputs.contains(&Some(y)));
        let is_cast = matches!(node.op, Op::Cast(_));
        let mut any = false;
        let all = readers.all(|(j, reader)| {
            any = true;
            if is_cast {
                return found.contains(&j);
            }
            reader.inputs.get(1) == Some(&Some(y)) && quantized_matrix(graph, reader).is_some()
                || reader.inputs.first() == Some(&Some(y)) && quantized_table(graph, reader).is_some()
        });
        if any && all {
            found.insert(i);
        }
    }
    found
}
