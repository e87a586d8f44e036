//! Products of bytes, and the chains behind them that become one step with them.

use std::collections::HashMap;

use core_tensor::op::{Binary, Cast, ConvInteger, DequantizeLinear, Granularity, Op, Pool, PoolKind, QuantizeLinear};
use core_tensor::{BackendError, DType, Dim, Graph, Node, ValueId, ValueSource};

use super::{Compiler, Deal, Memory};
use crate::conv::geometry::Plane;
use crate::conv::image::Blocked;
use crate::integer::conv::IntegerConv;
use crate::integer::image::{ConvertImage, MaxPoolPixels, Pixels, ReorderPixels, image_bytes};
use crate::integer::linear::{self, Bytes, Floats, IntegerLinear, Tail, Target};
use crate::integer::product::IntegerProduct;
use crate::integer::quantize::{Conversion, DynamicQuantize, Share, Way};
use crate::weights::{IntegerForm, IntegerId, PackedIntegers};

fn input(node: &Node, i: usize) -> Option<ValueId> {
    node.inputs.get(i).copied().flatten()
}

/// The integers' signedness of a value of bytes.
fn signed(graph: &Graph, id: ValueId) -> Option<bool> {
    match graph.tensor_type(id)? {
        (DType::I8, _) => Some(true),
        (DType::U8, _) => Some(false),
        _ => None,
    }
}

/// The weight of a product of bytes as its kernel wants it; `None` where there is no kernel.
pub(crate) fn integer_id(graph: &Graph, node: &Node) -> Option<IntegerId> {
    if let Op::ConvInteger(op) = &node.op {
        return conv_id(graph, node, op);
    }
    if !matches!(node.op, Op::MatMulInteger(_)) {
        return None;
    }
    let (a, b) = (input(node, 0)?, input(node, 1)?);
    let (_, a_shape) = graph.tensor_type(a)?;
    let weight = graph.weight_of(b)?;
    signed(graph, b)?;
    // One zero point for all rows, or one for each row of a matrix.
    let zero_fits = |zero: ValueId| {
        let rows = |shape: &[Dim]| a_shape.len() == 2 && shape == &a_shape[..1];
        graph.tensor_type(zero).is_some_and(|(_, shape)| is_single(shape) || rows(shape))
    };
    let fits = weight.shape().len() == 2 && a_shape.len() >= 2 && a_shape.last() == Some(&Dim::Num(weight.shape()[0]));
    if !fits || !input(node, 2).is_none_or(zero_fits) {
        return None;
    }
    let zero = input(node, 3);
    let zero_fits = |zero: ValueId| {
        let count: Option<usize> = graph.weight_of(zero).map(|zero| zero.shape().iter().product());
        count.is_some_and(|count| count == 1 || count == weight.shape()[1])
    };
    zero.is_none_or(zero_fits).then_some(IntegerId { weight: b, zero, form: IntegerForm::Matrix })
}

/// The weight of a convolution of bytes; `None` where there is no kernel.
fn conv_id(graph: &Graph, node: &Node, op: &ConvInteger) -> Option<IntegerId> {
    let (x, w) = (input(node, 0)?, input(node, 1)?);
    let (_, x_shape) = graph.tensor_type(x)?;
    let weight = graph.weight_of(w)?;
    let shape = weight.shape();
    signed(graph, w)?;
    Plane::new(shape.get(2..)?, &op.window)?;
    let channels = x_shape.get(1)?.as_num()?;
    let single = |id: ValueId| graph.tensor_type(id).is_some_and(|(_, shape)| is_single(shape));
    let zero = input(node, 3);
    let each = |id: ValueId| {
        let count: Option<usize> = graph.weight_of(id).map(|zero| zero.shape().iter().product());
        count.is_some_and(|count| count == 1 || count == shape[0])
    };
    let fits = x_shape.len() == shape.len()
        && !shape.contains(&0)
        && op.groups > 0
        && shape[0].is_multiple_of(op.groups)
        && channels == shape[1] * op.groups
        && input(node, 2).is_none_or(single)
        && zero.is_none_or(each);
    if !fits {
        return None;
    }
    let form = match shape[1] == 1 && op.groups > 1 && shape[0] == op.groups {
        true => IntegerForm::Channels,
        false => IntegerForm::Conv(op.groups),
    };
    Some(IntegerId { weight: w, zero, form })
}

/// Whether there is a kernel for a product of computed bytes.
pub(super) fn multiplies_bytes(graph: &Graph, node: &Node) -> bool {
    let shape = |i: usize| input(node, i).and_then(|id| graph.tensor_type(id)).map(|(_, shape)| shape);
    let (Some(a), Some(b)) = (shape(0), shape(1)) else { return false };
    let single = |i: usize| shape(i).is_none_or(is_single);
    matches!(node.op, Op::MatMulInteger(_))
        && a.len() >= 2
        && b.len() >= 2
        && single(2)
        && single(3)
        && a.last() == b.get(b.len() - 2)
}

fn is_single(shape: &[Dim]) -> bool {
    shape.iter().all(|dim| *dim == Dim::Num(1))
}

/// Whether a value is one number, or a vector of `n` along an extent of `rank`, as it broadcasts.
fn is_factor(shape: &[Dim], axis: usize, rank: usize, n: usize) -> bool {
    let Some(lead) = rank.checked_sub(shape.len()) else { return false };
    is_single(shape)
        || (axis >= lead
            && shape.iter().enumerate().all(
                |(i, dim)| {
                    if i + lead == axis { *dim == Dim::Num(n) } else { *dim == Dim::Num(1) }
                },
            ))
}

/// What turns sums into floats: a cast, and a product with scales.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// The nodes that go with the product.
    nodes: Vec<usize>,
    sum_bias: Option<ValueId>,
    scales: [Option<ValueId>; 2],
    y: ValueId,
}

/// Readers of each value, as [`Compiler`] has them.
type Readers = [Vec<usize>];

/// Looks at the graph alone.
pub(super) struct Chains<'a> {
    pub(super) graph: &'a Graph,
    pub(super) readers: &'a Readers,
}

impl Chains<'_> {
    fn sole(&self, id: ValueId) -> Option<usize> {
        match self.readers[id.index()][..] {
            [reader] if reader != usize::MAX => Some(reader),
            _ => None,
        }
    }

    /// Whether a value is there before any node runs, or comes from the same quantization as a product's bytes.
    fn is_known(&self, id: ValueId, bytes: ValueId) -> bool {
        match self.graph.value(id).source {
            ValueSource::Input | ValueSource::Weight(_) => true,
            ValueSource::Node => self.graph.nodes().iter().any(|node| {
                matches!(node.op, Op::DynamicQuantizeLinear(_))
                    && node.outputs[0] == bytes
                    && node.outputs.contains(&id)
            }),
        }
    }

    /// The other operand of a node of two, if `id` is one of them.
    fn other(node: &Node, id: ValueId) -> Option<ValueId> {
        match node.inputs[..] {
            [Some(a), Some(b)] if a == id && b != id => Some(b),
            [Some(a), Some(b)] if b == id && a != id => Some(a),
            _ => None,
        }
    }

    /// The chain behind product `i`, whose outputs (`n` of them) lie along an extent of its result.
    pub(super) fn behind(&self, i: usize, axis: usize, n: usize) -> Option<Chain> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let (bytes, mut y) = (input(node, 0)?, node.outputs[0]);
        let rank = graph.tensor_type(y)?.1.len();
        let mut nodes = Vec::new();
        let mut next = self.sole(y)?;
        let mut sum_bias = None;
        if matches!(graph.nodes()[next].op, Op::Binary(Binary::Add)) {
            let bias = Self::other(&graph.nodes()[next], y)?;
            let (dtype, shape) = graph.tensor_type(bias)?;
            let vector = shape.iter().filter_map(Dim::as_num).product::<usize>() == n;
            if dtype != DType::I32 || !vector || !is_factor(shape, axis, rank, n) || graph.weight_of(bias).is_none() {
                return None;
            }
            sum_bias = Some(bias);
            nodes.push(next);
            y = graph.nodes()[next].outputs[0];
            next = self.sole(y)?;
        }
        if !matches!(graph.nodes()[next].op, Op::Cast(Cast { to: DType::F32 })) {
            return None;
        }
        nodes.push(next);
        y = graph.nodes()[next].outputs[0];
        let next = self.sole(y)?;
        if !matches!(graph.nodes()[next].op, Op::Binary(Binary::Mul)) {
            return None;
        }
        let scale = Self::other(&graph.nodes()[next], y)?;
        nodes.push(next);
        let fits = |id: ValueId| {
            let ty = graph.tensor_type(id);
            ty.is_some_and(|(dtype, shape)| dtype == DType::F32 && is_factor(shape, axis, rank, n))
                && self.is_known(id, bytes)
        };
        // The result must have the product's extents: a scale of more would widen it.
        let y = graph.nodes()[next].outputs[0];
        if graph.tensor_type(y)?.1.len() != rank {
            return None;
        }
        if fits(scale) {
            return Some(Chain { nodes, sum_bias, scales: [Some(scale), None], y });
        }
        let product = graph.nodes().iter().position(|node| node.outputs.contains(&scale))?;
        let factors = match (&graph.nodes()[product].op, &graph.nodes()[product].inputs[..]) {
            (Op::Binary(Binary::Mul), [Some(a), Some(b)]) if fits(*a) && fits(*b) => [Some(*a), Some(*b)],
            _ => return None,
        };
        Some(Chain { nodes, sum_bias, scales: factors, y })
    }
}

/// The chains behind all products, and the products of scales that these alone read.
pub(super) fn chains(graph: &Graph, readers: &Readers) -> (HashMap<usize, Chain>, Vec<usize>) {
    let looked = Chains { graph, readers };
    let mut found = HashMap::new();
    for (i, node) in graph.nodes().iter().enumerate() {
        let Some((axis, n)) = outputs(graph, node) else { continue };
        if let Some(chain) = looked.behind(i, axis, n) {
            found.insert(i, chain);
        }
    }
    let multiplied: std::collections::HashSet<usize> = found.values().flat_map(|chain| &chain.nodes).copied().collect();
    let mut spare = Vec::new();
    for chain in found.values().filter(|chain| chain.scales[1].is_some()) {
        // The last node multiplies by the scales' product.
        let Some(last) = chain.nodes.last().map(|last| &graph.nodes()[*last]) else { continue };
        for scale in last.inputs.iter().flatten() {
            let made = graph.nodes().iter().position(|node| node.outputs.contains(scale));
            let Some(made) = made.filter(|made| !multiplied.contains(made)) else { continue };
            if readers[scale.index()].iter().all(|reader| multiplied.contains(reader)) && !spare.contains(&made) {
                spare.push(made);
            }
        }
    }
    (found, spare)
}

/// The extent of a product's result that its outputs lie along, and their number; `None` where there is no kernel with a tail.
fn outputs(graph: &Graph, node: &Node) -> Option<(usize, usize)> {
    if integer_id(graph, node).is_none() && !multiplies_bytes(graph, node) {
        return None;
    }
    let (_, shape) = graph.tensor_type(node.outputs[0])?;
    // Images have channels after the batch.
    let axis = if matches!(node.op, Op::ConvInteger(_)) { 1 } else { shape.len().checked_sub(1)? };
    Some((axis, shape.get(axis)?.as_num()?))
}

/// Who shares a scale, where a kernel knows it.
fn share(granularity: Granularity, rank: usize) -> Option<Share> {
    match granularity {
        Granularity::Tensor => Some(Share::All),
        Granularity::Axis(axis) => {
            let axis = if axis < 0 { rank.checked_sub(axis.unsigned_abs())? } else { axis.unsigned_abs() };
            (axis < rank).then_some(Share::Axis(axis))
        }
        Granularity::Blocks { .. } => None,
    }
}

/// Whether there are loops for a conversion between f32 and bytes.
pub(super) fn converts_bytes(graph: &Graph, node: &Node) -> bool {
    let rank = |i: usize| input(node, i).and_then(|id| graph.tensor_type(id)).map_or(0, |(_, shape)| shape.len());
    let is = |i: usize, dtypes: &[DType]| {
        input(node, i).and_then(|id| graph.tensor_type(id)).is_some_and(|(dtype, _)| dtypes.contains(&dtype))
    };
    // One scale is known to be there, others are as many as the extent has indices.
    let single =
        |i: usize| input(node, i).and_then(|id| graph.tensor_type(id)).is_none_or(|(_, shape)| is_single(shape));
    let shared = |granularity: Granularity| match share(granularity, rank(0)) {
        Some(Share::All) => single(1) && single(2),
        Some(Share::Axis(_)) => true,
        None => false,
    };
    match node.op {
        Op::QuantizeLinear(op) => {
            let bytes = matches!(op.to, DType::I8 | DType::U8) && op.bits.is_none();
            bytes && is(0, &[DType::F32]) && shared(op.granularity)
        }
        Op::DequantizeLinear(op) => is(0, &[DType::I8, DType::U8]) && shared(op.granularity),
        Op::DynamicQuantizeLinear(_) => true,
        _ => false,
    }
}

impl Compiler<'_> {
    /// A conversion between f32 and bytes.
    pub(super) fn convert_bytes(&mut self, node: &Node) -> Result<(), BackendError> {
        let graph = self.graph;
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let rank = graph.tensor_type(x).map_or(0, |(_, shape)| shape.len());
        match node.op {
            Op::QuantizeLinear(QuantizeLinear { granularity, .. })
            | Op::DequantizeLinear(DequantizeLinear { granularity }) => {
                let (scale, zero) = (self.input(node, 1)?, input(node, 2));
                let Some(share) = share(granularity, rank) else { return self.reference(node) };
                let (way, bytes) = match node.op {
                    Op::QuantizeLinear(_) => (Way::Quantize, y),
                    _ => (Way::Dequantize, x),
                };
                let signed = signed(graph, bytes).unwrap_or(false);
                let reads: Vec<ValueId> = [x, scale].into_iter().chain(zero).collect();
                self.draft(Conversion { way, x, scale, zero, y, signed, share }, &reads, &[y], Deal::Own);
            }
            _ => {
                let ranges = self.scratch("ranges", DynamicQuantize::ranges_bytes(self.threads));
                let (scale, zero) = (node.outputs[1], node.outputs[2]);
                self.draft(DynamicQuantize { x, y, scale, zero, ranges }, &[x], &node.outputs, Deal::Own);
                self.last_writes(Memory::Scratch(ranges));
            }
        }
        Ok(())
    }

    /// A product of bytes with a constant matrix, and what follows it.
    pub(super) fn integer_linear(&mut self, i: usize, weight: IntegerId) -> Result<(), BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let value = self.input(node, 0)?;
        let a = Bytes { value, signed: signed(graph, value).unwrap_or(false), zero: input(node, 2) };
        let tail = self.tail(i);
        let Some(PackedIntegers::Matrix(matrix)) = self.weights.integers.get(&weight) else {
            return Err(BackendError::Mismatch("weights and graph"));
        };
        let (k, shifted) = (matrix.k(), matrix.columns().shifted);
        let rows = if a.signed || shifted || k % 4 != 0 {
            let bytes = IntegerLinear::rows_bytes(self.bound_rows(value)?, k);
            Some(self.scratch("unsigned bytes", bytes))
        } else {
            None
        };
        let scratch = self.scratch("integer tiles", linear::scratch_bytes() * self.threads);
        let counter = self.counter();
        let reads: Vec<ValueId> = [value].into_iter().chain(a.zero).chain(tail.reads()).collect();
        let writes = [tail.result()];
        self.draft(IntegerLinear { a, weight, tail, rows, scratch, counter }, &reads, &writes, Deal::Own);
        [Some(scratch), rows].into_iter().flatten().for_each(|buffer| self.last_writes(Memory::Scratch(buffer)));
        Ok(())
    }

    /// A product of two computed values.
    pub(super) fn integer_product(&mut self, i: usize) -> Result<(), BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let operand = |id: ValueId, zero| Bytes { value: id, signed: signed(graph, id).unwrap_or(false), zero };
        let a = operand(self.input(node, 0)?, input(node, 2));
        let b = operand(self.input(node, 1)?, input(node, 3));
        let tail = self.tail(i);
        let largest = [self.bound_cols(b.value)?, self.bound_cols(a.value)?];
        let scratch = self.scratch("packed bytes", IntegerProduct::scratch_bytes(largest) * self.threads);
        let counter = self.counter();
        let reads: Vec<ValueId> =
            [a.value, b.value].into_iter().chain(a.zero).chain(b.zero).chain(tail.reads()).collect();
        let writes = [tail.result()];
        self.draft(IntegerProduct { a, b, tail, scratch, counter, largest }, &reads, &writes, Deal::Own);
        self.last_writes(Memory::Scratch(scratch));
        Ok(())
    }

    /// Takes over what follows product `i`.
    pub(super) fn tail(&mut self, i: usize) -> Tail {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let Some(chain) = self.chains.remove(&i) else { return Tail::Sums(node.outputs[0]) };
        self.taken.extend(&chain.nodes);
        let Chain { sum_bias, scales, y, .. } = chain;
        let image = matches!(node.op, Op::ConvInteger(_));
        let (y, bias) = if image { self.take_channel_bias(y) } else { self.take_bias(y) };
        let (y, activation) = self.take_activation(y);
        let mut used: Vec<ValueId> = scales.into_iter().flatten().chain(bias).chain(sum_bias).collect();
        used.extend(node.inputs.iter().flatten());
        let target = match self.take_quantize(y) {
            Some(target) => target,
            // (Convolutions write images, which have no residual.)
            None if activation.is_none() && !image => {
                self.take_residual(y, i, &used).map_or(Target::Store(y), Target::Accumulate)
            }
            None => Target::Store(y),
        };
        Tail::Floats(Floats { sum_bias, scales, bias, activation, target })
    }

    /// Takes over a quantization with one constant scale.
    fn take_quantize(&mut self, y: ValueId) -> Option<Target> {
        let graph = self.graph;
        let reader = self.sole_reader(y).filter(|reader| !self.taken.contains(reader))?;
        let node = &graph.nodes()[reader];
        let Op::QuantizeLinear(op) = node.op else { return None };
        let (scale, zero) = (input(node, 1)?, input(node, 2));
        let constant = |id: ValueId| graph.weight_of(id).is_some();
        let fits = op.granularity == Granularity::Tensor
            && converts_bytes(graph, node)
            && input(node, 0) == Some(y)
            && constant(scale)
            && zero.is_none_or(constant);
        if !fits {
            return None;
        }
        self.taken.insert(reader);
        Some(Target::Quantize { y: node.outputs[0], scale, zero, signed: op.to == DType::I8 })
    }

    /// Takes over the addition of a constant for each channel.
    fn take_channel_bias(&mut self, y: ValueId) -> (ValueId, Option<ValueId>) {
        let graph = self.graph;
        let Some((reader, bias)) = self.sole_addition(y) else { return (y, None) };
        let (sum, ty) = (graph.nodes()[reader].outputs[0], graph.tensor_type(bias));
        let fits = match (graph.tensor_type(y), ty) {
            (Some((_, image)), Some((DType::F32, shape))) => image[1].as_num().is_some_and(|n| {
                let count: Option<usize> = shape.iter().map(Dim::as_num).product();
                count == Some(n) && is_factor(shape, 1, image.len(), n) && graph.weight_of(bias).is_some()
            }),
            _ => false,
        };
        if !fits {
            return (y, None);
        }
        self.taken.insert(reader);
        (sum, Some(bias))
    }

    /// The image of bytes, pixel by pixel, that a value is in its other form; made if there is none yet.
    pub(super) fn pixels(&mut self, id: ValueId) -> Result<Pixels, BackendError> {
        if let Some(scratch) = self.blocked.get(&id) {
            return Ok(self.pixels_at(id, *scratch));
        }
        let image = self.new_pixels(id)?;
        self.unplain.remove(&id);
        self.draft(ReorderPixels { image, to_pixels: true }, &[id], &[], Deal::Own);
        self.last_writes(Memory::Scratch(image.scratch));
        Ok(image)
    }

    fn pixels_at(&self, value: ValueId, scratch: usize) -> Pixels {
        Pixels { value, scratch, signed: signed(self.graph, value).unwrap_or(false) }
    }

    /// Room for the bytes of an image pixel by pixel, which are then its only form.
    pub(super) fn new_pixels(&mut self, id: ValueId) -> Result<Pixels, BackendError> {
        let bytes = image_bytes(&self.extent_at_bounds(id)?);
        let name = format!("{} by pixels", self.graph.value(id).name);
        let scratch = self.scratch(&name, bytes);
        self.blocked.insert(id, scratch);
        self.unplain.insert(id);
        Ok(self.pixels_at(id, scratch))
    }

    /// Makes the plain form of bytes that lie pixel by pixel in a scratch buffer.
    pub(super) fn plain_bytes(&mut self, id: ValueId, scratch: usize) {
        let image = self.pixels_at(id, scratch);
        self.draft(ReorderPixels { image, to_pixels: false }, &[], &[id], Deal::Own);
        self.last_reads(Memory::Scratch(scratch));
    }

    /// Whether a value is an image of bytes with a known number of channels.
    pub(super) fn is_byte_image(&self, id: ValueId) -> bool {
        let shape = self.graph.tensor_type(id).map_or(&[][..], |(_, shape)| shape);
        signed(self.graph, id).is_some() && matches!(shape.len(), 3 | 4) && shape[1].as_num().is_some()
    }

    /// Compiles what images of bytes have kernels for; `false` where another kernel has to.
    pub(super) fn byte_image_node(&mut self, i: usize) -> Result<bool, BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let (Some(x), y) = (input(node, 0), node.outputs[0]) else { return Ok(false) };
        match &node.op {
            Op::ConvInteger(op) => {
                let Some(weight) = integer_id(graph, node) else { return Ok(false) };
                self.integer_conv(i, x, weight, op)?;
            }
            Op::QuantizeLinear(op) if self.unplain.contains(&x) && self.is_byte_image(y) => {
                if op.granularity != Granularity::Tensor || !converts_bytes(graph, node) {
                    return Ok(false);
                }
                let Some(scratch) = self.blocked.get(&x).copied() else { return Ok(false) };
                let floats = Blocked { value: x, scratch };
                let pixels = self.new_pixels(y)?;
                self.convert_image(node, floats, pixels, true)?;
            }
            Op::DequantizeLinear(op) if self.unplain.contains(&x) && self.is_byte_image(x) => {
                if op.granularity != Granularity::Tensor || !converts_bytes(graph, node) {
                    return Ok(false);
                }
                let pixels = self.pixels(x)?;
                let floats = self.new_blocked(y)?;
                self.convert_image(node, floats, pixels, false)?;
            }
            Op::Pool(Pool { kind: PoolKind::Max, indices: false, kernel, window, .. })
                if self.unplain.contains(&x) && self.is_byte_image(x) =>
            {
                let Some(plane) = Plane::new(kernel, window) else { return Ok(false) };
                let x = self.pixels(x)?;
                let y = self.new_pixels(y)?;
                self.draft(MaxPoolPixels { plane, x, y }, &[], &[], Deal::Own);
                self.last_reads(Memory::Scratch(x.scratch));
                self.last_writes(Memory::Scratch(y.scratch));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn convert_image(
        &mut self,
        node: &Node,
        floats: Blocked,
        pixels: Pixels,
        to_bytes: bool,
    ) -> Result<(), BackendError> {
        let (scale, zero) = (self.input(node, 1)?, input(node, 2));
        let reads: Vec<ValueId> = [scale].into_iter().chain(zero).collect();
        self.draft(ConvertImage { floats, pixels, scale, zero, to_bytes }, &reads, &[], Deal::Own);
        let (from, to) = if to_bytes { (floats.scratch, pixels.scratch) } else { (pixels.scratch, floats.scratch) };
        self.last_reads(Memory::Scratch(from));
        self.last_writes(Memory::Scratch(to));
        Ok(())
    }

    fn integer_conv(&mut self, i: usize, x: ValueId, weight: IntegerId, op: &ConvInteger) -> Result<(), BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let shape = graph.weight_of(weight.weight).map_or(&[][..], |weight| weight.shape());
        let Some(plane) = shape.get(2..).and_then(|kernel| Plane::new(kernel, &op.window)) else {
            return Err(BackendError::Mismatch("weights and graph"));
        };
        let x = self.pixels(x)?;
        let zero = input(node, 2);
        let tail = self.tail(i);
        let y = tail.result();
        let to = match &tail {
            Tail::Sums(_) => None,
            Tail::Floats(Floats { target: Target::Quantize { .. }, .. }) => Some(self.new_pixels(y)?.scratch),
            Tail::Floats(_) => Some(self.new_blocked(y)?.scratch),
        };
        let channels = self.extent_at_bounds(x.value)?.channels;
        let scratch = self.scratch("integer tiles", IntegerConv::scratch_bytes(channels) * self.threads);
        let counter = self.counter();
        let reads: Vec<ValueId> = zero.into_iter().chain(tail.reads()).collect();
        let writes: Vec<ValueId> = if to.is_none() { vec![y] } else { Vec::new() };
        self.draft(IntegerConv { x, zero, weight, plane, tail, to, scratch, counter }, &reads, &writes, Deal::Own);
        self.last_reads(Memory::Scratch(x.scratch));
        to.into_iter().chain([scratch]).for_each(|buffer| self.last_writes(Memory::Scratch(buffer)));
        Ok(())
    }
}
