//! Weights in the backend's layout.

mod packing;

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use core_tensor::op::Op;
use core_tensor::{BackendError, DType, Graph, Progress, Tensor, ValueId, Weight, WeightError, Weights};

use crate::compile::{
    Loaded, conv_id, dequantizing_nodes, has_kernel, integer_id, is_linear, quantized_matrix, quantized_table,
    recurrent_id,
};
use crate::conv::packing::{ConvId, PackedConv};
use crate::integer::depthwise::ChannelWindows;
use crate::matmul::integer::IntegerMatrix;
use crate::matmul::{PackError, PackedMatrix, PackedMatrixBuilder};
use crate::recurrent::{PackedRecurrent, Plain, RecurrentId};
use crate::threads::ThreadPool;
use packing::Source;

/// A model's weights: matrices packed for the kernels, everything else as f32 or as stored.
pub(crate) struct CpuWeights {
    graph: Arc<Graph>,
    pub(crate) matrices: HashMap<MatrixId, PackedMatrix>,
    /// Weights of convolutions.
    pub(crate) convs: HashMap<ConvId, PackedConv>,
    /// Weights of recurrent layers.
    pub(crate) recurrents: HashMap<RecurrentId, PackedRecurrent>,
    /// Weights of products of bytes.
    pub(crate) integers: HashMap<IntegerId, PackedIntegers>,
    /// Weights that kernels read element by element.
    pub(crate) plain: HashMap<ValueId, Tensor>,
    /// Biases of convolutions that are stored in other dtypes, as f32.
    pub(crate) biases: HashMap<ValueId, Tensor>,
    /// Tables that rows are gathered from, as stored.
    pub(crate) tables: HashMap<ValueId, Arc<Weight>>,
    bytes: u64,
}

impl Weights for CpuWeights {
    fn byte_len(&self) -> u64 {
        self.bytes
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A weight as products multiply with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MatrixId {
    pub(crate) weight: ValueId,
    /// Whether the graph has it as `[k, n]`, and not as `[n, k]`.
    pub(crate) transposed: bool,
}

impl fmt::Display for MatrixId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.weight, if self.transposed { " transposed" } else { "" })
    }
}

/// How the outputs of a weight of bytes lie in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum IntegerForm {
    /// `[k, n]`
    Matrix,
    /// `[outputs, channels of a group, window...]` in so many groups.
    Conv(usize),
    /// `[channels, 1, window...]`, a group for each channel.
    Channels,
}

/// Packed weights of a product of bytes.
pub(crate) enum PackedIntegers {
    Matrix(IntegerMatrix),
    /// One for each group of channels; and a window of ones, where sums of rows are needed.
    Conv {
        groups: Vec<IntegerMatrix>,
        ones: Option<IntegerMatrix>,
    },
    Channels(ChannelWindows),
}

impl PackedIntegers {
    fn bytes(&self) -> usize {
        match self {
            PackedIntegers::Matrix(matrix) => matrix.bytes(),
            PackedIntegers::Conv { groups, ones } => groups.iter().chain(ones).map(IntegerMatrix::bytes).sum(),
            PackedIntegers::Channels(windows) => windows.bytes(),
        }
    }
}

/// A weight as products of bytes multiply with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IntegerId {
    pub(crate) weight: ValueId,
    pub(crate) zero: Option<ValueId>,
    pub(crate) form: IntegerForm,
}

/// How a graph uses a weight.
#[derive(Clone, Copy, Default)]
struct Uses {
    matrix: bool,
    transposed_matrix: bool,
    table: bool,
    plain: bool,
    bias: bool,
}

fn uses(graph: &Graph) -> HashMap<ValueId, Uses> {
    let mut all: HashMap<ValueId, Uses> = HashMap::new();
    let folded = dequantizing_nodes(graph);
    for (_, node) in graph.nodes().iter().enumerate().filter(|(i, _)| !folded.contains(i)) {
        if let Some(table) = quantized_table(graph, node) {
            all.entry(table.weight).or_default().table = true;
            all.entry(table.scale).or_default().plain = true;
            table.zero.into_iter().for_each(|zero| all.entry(zero).or_default().plain = true);
        }
        for (i, input) in node.inputs.iter().enumerate() {
            let Some(id) = input.filter(|id| graph.weight_of(*id).is_some()) else { continue };
            let uses = all.entry(id).or_default();
            match (&node.op, i) {
                (Op::MatMul(op), 1) if is_linear(graph, node) && op.transpose_b => uses.matrix = true,
                (Op::MatMul(_), 1) if is_linear(graph, node) => uses.transposed_matrix = true,
                (Op::MatMulInteger(_) | Op::ConvInteger(_), 1 | 3) if integer_id(graph, node).is_some() => {}
                (Op::Recurrent(_), 1..=3 | 7) if recurrent_id(graph, node).is_some() => {}
                (Op::Conv(_) | Op::ConvTranspose(_), 1) if conv_id(graph, node).is_some() => {}
                (Op::Conv(_) | Op::ConvTranspose(_), 2) if conv_id(graph, node).is_some() && !is_f32(graph, id) => {
                    uses.bias = true;
                }
                // Of a vector each element is a row, and not one of the weight's.
                (Op::Gather(op), 0) if op.axis == 0 && has_kernel(graph, node) => match graph.weight_of(id) {
                    Some(weight) if weight.shape().len() > 1 => uses.table = true,
                    _ => uses.plain = true,
                },
                _ => uses.plain = true,
            }
        }
    }
    all
}

fn is_f32(graph: &Graph, id: ValueId) -> bool {
    matches!(graph.tensor_type(id), Some((DType::F32, _)))
}

impl CpuWeights {
    pub(crate) fn is_of(&self, graph: &Arc<Graph>) -> bool {
        graph.shares_values(&self.graph)
    }

    pub(crate) fn load(
        graph: &Arc<Graph>,
        pool: &ThreadPool,
        progress: &mut Progress<'_>,
    ) -> Result<CpuWeights, BackendError> {
        let mut loaded = CpuWeights {
            graph: graph.clone(),
            matrices: HashMap::new(),
            convs: HashMap::new(),
            recurrents: HashMap::new(),
            integers: HashMap::new(),
            plain: HashMap::new(),
            biases: HashMap::new(),
            tables: HashMap::new(),
            bytes: 0,
        };
        let name = |id: ValueId| graph.value(id).name.clone();
        let uses = uses(graph);
        let mut matrices: Vec<(MatrixId, Source)> = Vec::new();
        for (id, weight) in graph.weights() {
            let Some(uses) = uses.get(&id) else { continue };
            if uses.plain {
                let tensor = plain(weight).map_err(|source| BackendError::Weight { name: name(id), source })?;
                loaded.bytes += tensor.bytes().len() as u64;
                loaded.plain.insert(id, tensor);
            }
            if uses.bias {
                let cast = weight.cast(DType::F32).and_then(|weight| weight.to_tensor());
                let tensor = cast.map_err(|source| BackendError::Weight { name: name(id), source })?;
                loaded.bytes += tensor.bytes().len() as u64;
                loaded.biases.insert(id, tensor);
            }
            if uses.table {
                loaded.tables.insert(id, weight.clone());
            }
            for transposed in [false, true] {
                if !(if transposed { uses.transposed_matrix } else { uses.matrix }) {
                    continue;
                }
                let matrix = if transposed { weight.cast(DType::F32) } else { kernel_dtype(weight) };
                let matrix = matrix.map_err(|source| BackendError::Weight { name: name(id), source })?;
                matrices.push((MatrixId { weight: id, transposed }, Source::new(matrix, transposed)));
            }
        }
        loaded.load_convs(graph, pool)?;
        loaded.load_integers(graph, pool)?;
        loaded.load_recurrents(graph)?;
        let mut factors: HashMap<MatrixId, (Vec<f32>, Option<Vec<u8>>)> = HashMap::new();
        for node in graph.nodes() {
            let (Some(quantized), Op::MatMul(op)) = (quantized_matrix(graph, node), &node.op) else { continue };
            let Some(weight) = node.inputs.get(1).copied().flatten() else { continue };
            let id = MatrixId { weight, transposed: !op.transpose_b };
            if factors.contains_key(&id) {
                continue;
            }
            let failed = |source| BackendError::Weight { name: name(quantized.weight), source };
            let Some(Loaded { bytes, scales, zeros }) = quantized.load(graph).map_err(failed)? else { continue };
            let n = scales.len();
            let k = bytes.len().checked_div(n).unwrap_or(0);
            let rows =
                if op.transpose_b { bytes } else { (0..n * k).map(|i| bytes[i % k * n + i / k]).collect::<Vec<u8>>() };
            let dtype = if zeros.is_some() { DType::U8 } else { DType::I8 };
            let tensor = Tensor::from_bytes(dtype, &[n, k], &rows);
            let rows = Weight::stored(tensor.map_err(WeightError::from).map_err(failed)?);
            matrices.push((id, Source::new(rows, false)));
            factors.insert(id, (scales, zeros));
        }
        // One region for all, in the graph's order: a step reads its matrices from one place.
        let shapes: Vec<(DType, usize, usize)> = matrices.iter().map(|(_, source)| source.shape()).collect();
        let builders =
            PackedMatrixBuilder::several(&shapes).map_err(|(i, error)| refused(graph, matrices[i].0.weight, &error))?;
        let packing: Vec<(MatrixId, Source, PackedMatrixBuilder)> =
            matrices.into_iter().zip(builders).map(|((id, source), builder)| (id, source, builder)).collect();
        packing::pack(graph, &packing, pool, progress)?;
        for (id, _, builder) in packing {
            let matrix = builder.finish().and_then(|matrix| match factors.get(&id) {
                Some((scales, Some(zeros))) => matrix.with_zero_points(scales, zeros),
                Some((scales, None)) => matrix.with_scales(scales),
                None => Ok(matrix),
            });
            let matrix = matrix.map_err(|error| refused(graph, id.weight, &error))?;
            loaded.bytes += matrix.bytes() as u64;
            loaded.matrices.insert(id, matrix);
        }
        Ok(loaded)
    }

    /// Packs the weights of products of bytes, each on whichever thread is free.
    fn load_integers(&mut self, graph: &Graph, pool: &ThreadPool) -> Result<(), BackendError> {
        let mut ids: Vec<IntegerId> = Vec::new();
        let mut known = HashSet::new();
        ids.extend(graph.nodes().iter().filter_map(|node| integer_id(graph, node)).filter(|id| known.insert(*id)));
        let next = AtomicUsize::new(0);
        let packed = Mutex::new(Vec::with_capacity(ids.len()));
        pool.run(&|_| {
            while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = pack_integers(graph, id);
                packed.lock().unwrap_or_else(PoisonError::into_inner).push((*id, result));
            }
        });
        for (id, packed) in packed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let packed = packed?;
            self.bytes += packed.bytes() as u64;
            self.integers.insert(id, packed);
        }
        Ok(())
    }

    fn load_recurrents(&mut self, graph: &Graph) -> Result<(), BackendError> {
        for node in graph.nodes() {
            let Some(id) = recurrent_id(graph, node).filter(|id| !self.recurrents.contains_key(id)) else { continue };
            let floats = |id: ValueId| match graph.weight_of(id) {
                Some(weight) => {
                    let failed = |source| BackendError::Weight { name: graph.value(id).name.clone(), source };
                    weight.to_tensor().and_then(|tensor| Ok(tensor.to_f32()?)).map_err(failed)
                }
                None => Ok(Vec::new()),
            };
            let shape = |id: ValueId| graph.weight_of(id).map_or(&[][..], |weight| weight.shape());
            let (&[directions, _, input], &[_, _, hidden]) = (shape(id.w), shape(id.r)) else { continue };
            let (w, r) = (floats(id.w)?, floats(id.r)?);
            let (b, p) = (id.b.map(floats).transpose()?, id.p.map(floats).transpose()?);
            let plain = Plain { w: &w, r: &r, b: b.as_deref(), p: p.as_deref() };
            let packed = PackedRecurrent::pack(&plain, id.cell, directions, input, hidden);
            let packed = packed.ok_or(BackendError::NoMemory { what: "weights", bytes: 4 * (w.len() + r.len()) })?;
            self.bytes += packed.bytes() as u64;
            self.recurrents.insert(id, packed);
        }
        Ok(())
    }

    /// Packs the weights of convolutions, each on whichever thread is free.
    fn load_convs(&mut self, graph: &Graph, pool: &ThreadPool) -> Result<(), BackendError> {
        let mut ids: Vec<ConvId> = Vec::new();
        let mut known = HashSet::new();
        ids.extend(graph.nodes().iter().filter_map(|node| conv_id(graph, node)).filter(|id| known.insert(id.clone())));
        let next = AtomicUsize::new(0);
        let packed = Mutex::new(Vec::with_capacity(ids.len()));
        pool.run(&|_| {
            while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = pack_conv(graph, id);
                packed.lock().unwrap_or_else(PoisonError::into_inner).push((id.clone(), result));
            }
        });
        for (id, packed) in packed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let packed = packed?;
            self.bytes += packed.bytes() as u64;
            self.convs.insert(id, packed);
        }
        Ok(())
    }
}

fn pack_integers(graph: &Graph, id: &IntegerId) -> Result<PackedIntegers, BackendError> {
    let weight = graph.weight_of(id.weight).ok_or(BackendError::Mismatch("weights and graph"))?;
    let tensor = |value: ValueId| {
        let weight = graph.weight_of(value).ok_or(BackendError::Mismatch("weights and graph"))?;
        weight.to_tensor().map_err(|source| BackendError::Weight { name: graph.value(value).name.clone(), source })
    };
    let (values, zeros) = (tensor(id.weight)?, id.zero.map(tensor).transpose()?);
    let (bytes, signed) = (values.bytes(), weight.dtype() == DType::I8);
    let zero = |o: usize| {
        let zeros = zeros.as_ref().map_or(&[0][..], |zeros| zeros.bytes());
        let zero = zeros[if zeros.len() == 1 { 0 } else { o }];
        if signed { i32::from(zero.cast_signed()) } else { i32::from(zero) }
    };
    let packed = match id.form {
        IntegerForm::Matrix => {
            let (k, n) = (weight.row_count(), weight.row_len());
            let packed = IntegerMatrix::pack([n, 1, k], signed, |o, _, i| bytes[i * n + o], zero);
            packed.map(PackedIntegers::Matrix)
        }
        IntegerForm::Conv(count) => {
            let (outputs, k) = (weight.shape()[0], weight.shape()[1]);
            let taps: usize = weight.shape()[2..].iter().product();
            let n = outputs / count;
            let group = |g: usize| {
                let place = |o: usize, tap: usize, i: usize| bytes[((g * n + o) * k + i) * taps + tap];
                IntegerMatrix::pack([n, taps, k], signed, place, |o| zero(g * n + o))
            };
            let groups: Option<Vec<IntegerMatrix>> = (0..count).map(group).collect();
            groups.and_then(|groups| {
                let shifted = groups.iter().any(|group| group.columns().shifted);
                let ones = || IntegerMatrix::pack([1, taps, k], true, |_, _, _| 1, |_| 0);
                let ones = if shifted { Some(ones()?) } else { None };
                Some(PackedIntegers::Conv { groups, ones })
            })
        }
        IntegerForm::Channels => {
            let n = weight.shape()[0];
            let taps: usize = weight.shape()[2..].iter().product();
            let value = |byte: u8| if signed { i32::from(byte.cast_signed()) } else { i32::from(byte) };
            let weight = |channel: usize, tap: usize| value(bytes[channel * taps + tap]) - zero(channel);
            Some(PackedIntegers::Channels(ChannelWindows::pack([n, taps], weight)))
        }
    };
    let packed = packed.ok_or(BackendError::NoMemory { what: "weights", bytes: bytes.len() })?;
    weight.release_rows(0..weight.row_count());
    Ok(packed)
}

fn pack_conv(graph: &Graph, id: &ConvId) -> Result<PackedConv, BackendError> {
    let weight = graph.weight_of(id.weight).ok_or(BackendError::Mismatch("weights and graph"))?;
    let failed = |source| BackendError::Weight { name: graph.value(id.weight).name.clone(), source };
    let values = weight.to_tensor().and_then(|tensor| Ok(tensor.to_f32()?)).map_err(failed)?;
    let packed = PackedConv::pack(&values, weight.shape(), &id.geometry, id.form);
    let packed = packed.ok_or(BackendError::NoMemory { what: "weights", bytes: values.len() * 4 })?;
    weight.release_rows(0..weight.row_count());
    Ok(packed)
}

fn refused(graph: &Graph, id: ValueId, error: &PackError) -> BackendError {
    match error {
        PackError::NoMemory { bytes } => BackendError::NoMemory { what: "weights", bytes: *bytes },
        other => unsupported(graph, id, &other.to_string()),
    }
}

fn unsupported(graph: &Graph, id: ValueId, reason: &str) -> BackendError {
    BackendError::Unsupported { node: graph.value(id).name.clone(), op: "weight", reason: reason.to_owned() }
}

/// The elements as they are. Kernels read them in place, so they must lie aligned: a copy does.
fn plain(weight: &Weight) -> Result<Tensor, WeightError> {
    let tensor = weight.to_tensor()?;
    Ok(Tensor::from_bytes(tensor.dtype(), tensor.shape(), tensor.bytes())?)
}

/// The weight in a dtype that the kernels of products read: as it is, or as f32 (which f64 and 8-bit floats become).
fn kernel_dtype(weight: &Arc<Weight>) -> Result<Arc<Weight>, WeightError> {
    match weight.dtype() {
        DType::F32 | DType::F16 | DType::BF16 | DType::Block(_) => Ok(weight.clone()),
        _ => weight.cast(DType::F32),
    }
}
