//! Images: which values lie in blocks of channels, and what convolutions take along.
//!
//! A value's blocked form is a scratch buffer beside its plain one. What computes images writes the blocked form alone; the plain form is made when a
//! step first reads it, and the blocked form of a plain value when a kernel of images does. So conversions stand at the edges only.

use core_tensor::op::{Binary, Op, Unary};
use core_tensor::{BackendError, DType, Dim, Graph, Node, ValueId};

use super::{Compiler, Deal, Memory};
use crate::conv::depthwise::DepthwiseStep;
use crate::conv::geometry::{Geometry, Plane};
use crate::conv::group_norm::GroupNorm;
use crate::conv::image::{Blocked, Extent, Reorder};
use crate::conv::packing::{ConvId, Form};
use crate::conv::planar::{self, PlanarStep};
use crate::conv::pointwise::{CombineImages, JoinChannels, MapImage, Operand, ReducePixels};
use crate::conv::tile::Activation;
use crate::conv::winograd::{self, WinogradStep};
use crate::conv::{ConvStep, Finish, MAX_ROW_PRODUCTS, Source, scratch_bytes};
use crate::pool::PoolStep;
use crate::resize::ResizeStep;

/// Channels up to which an image is read plain.
const FEW_CHANNELS: usize = 4;

/// Channels and pixels from which on Winograd's transformation pays.
const WINOGRAD_CHANNELS: usize = 32;
const WINOGRAD_PIXELS: usize = 144;
/// Pairs of channels up to which the room that transformed weights take is worth it: 36 MiB.
const WINOGRAD_PAIRS: usize = 512 * 512;

/// The weight of a convolution as its kernel wants it; `None` where there is no kernel.
pub(crate) fn conv_id(graph: &Graph, node: &Node) -> Option<ConvId> {
    let input = |i: usize| node.inputs.get(i).copied().flatten();
    let (DType::F32, x) = graph.tensor_type(input(0)?)? else { return None };
    let id = input(1)?;
    let weight = graph.weight_of(id)?;
    // A bias of another dtype is converted when weights are loaded.
    let computed = input(2).filter(|bias| graph.weight_of(*bias).is_none());
    let bias_fits = computed.is_none_or(|bias| matches!(graph.tensor_type(bias), Some((DType::F32, _))));
    if !weight.dtype().is_float() || !bias_fits {
        return None;
    }
    let shape = weight.shape();
    let geometry = match &node.op {
        Op::Conv(op) => Geometry::of_conv(op, shape)?,
        Op::ConvTranspose(op) => Geometry::of_transposed(op, shape)?,
        _ => return None,
    };
    let channels = x.get(1)?.as_num()?;
    if geometry.groups == 0 || x.len() != shape.len() || shape.contains(&0) || channels == 0 {
        return None;
    }
    let form = if geometry.transposed {
        Form::Tiles
    } else if shape[1] == 1 && shape[0] == geometry.groups && geometry.groups > 1 {
        Form::Depthwise
    } else if planar::pays(&geometry, channels, shape[0], x.last().and_then(Dim::as_num)) {
        Form::Planar
    } else if geometry.groups == 1 && channels <= FEW_CHANNELS && channels * geometry.plane.taps() <= MAX_ROW_PRODUCTS {
        Form::Rows
    } else if winograd_pays(&geometry, x, shape) {
        Form::Winograd
    } else {
        Form::Tiles
    };
    Some(ConvId { weight: id, geometry, form })
}

/// Whether a convolution is quicker by Winograd's transformation: its weights are four times as many, so there must be enough tiles.
fn winograd_pays(geometry: &Geometry, x: &[Dim], weight: &[usize]) -> bool {
    let plane = &geometry.plane;
    let fits = plane.kernel == [3, 3] && plane.strides == [1, 1] && plane.dilations == [1, 1] && geometry.groups == 1;
    let pixels: Option<usize> = x[2..].iter().map(Dim::as_num).product();
    let channels = weight[0].min(weight[1]) >= WINOGRAD_CHANNELS && weight[0] * weight[1] <= WINOGRAD_PAIRS;
    fits && channels && pixels.is_none_or(|pixels| pixels >= WINOGRAD_PIXELS)
}

/// Whether a value is an f32 image with a known number of channels.
fn is_image(graph: &Graph, id: ValueId) -> bool {
    let Some((DType::F32, shape)) = graph.tensor_type(id) else { return false };
    matches!(shape.len(), 3 | 4) && shape[1].as_num().is_some()
}

impl Compiler<'_> {
    pub(super) fn extent_at_bounds(&self, id: ValueId) -> Result<Extent, BackendError> {
        let (_, shape) = self.graph.tensor_type(id).ok_or(BackendError::Mismatch("value and graph"))?;
        let shape = core_tensor::eval_shape(shape, self.bounds).map_err(core_tensor::GraphError::from)?;
        Ok(Extent::of(&shape))
    }

    /// The blocked form of a value, made if there is none yet.
    fn blocked(&mut self, id: ValueId) -> Result<Blocked, BackendError> {
        if let Some(scratch) = self.blocked.get(&id) {
            return Ok(Blocked { value: id, scratch: *scratch });
        }
        let image = self.new_blocked(id)?;
        self.unplain.remove(&id);
        self.draft(Reorder { image, to_blocked: true }, &[id], &[], Deal::Own);
        self.last_writes(Memory::Scratch(image.scratch));
        Ok(image)
    }

    /// Room for the blocked form of a value, which is then the only one.
    pub(super) fn new_blocked(&mut self, id: ValueId) -> Result<Blocked, BackendError> {
        let bytes = self.extent_at_bounds(id)?.blocked_len() * 4;
        let name = format!("{} in blocks", self.graph.value(id).name);
        let scratch = self.scratch(&name, bytes);
        self.blocked.insert(id, scratch);
        self.unplain.insert(id);
        Ok(Blocked { value: id, scratch })
    }

    /// Sees to it that a value has its plain form.
    pub(super) fn plain(&mut self, id: ValueId) {
        if !self.unplain.remove(&id) {
            return;
        }
        if let Some(scratch) = self.blocked.get(&id).copied() {
            if self.is_byte_image(id) {
                return self.plain_bytes(id, scratch);
            }
            let image = Blocked { value: id, scratch };
            self.draft(Reorder { image, to_blocked: false }, &[], &[id], Deal::Own);
            self.last_reads(Memory::Scratch(scratch));
        }
    }

    /// A step that reads and writes blocked images, besides plain values that it reads.
    fn draft_image(
        &mut self,
        step: impl crate::program::Step + 'static,
        reads: &[ValueId],
        images: &[Blocked],
        y: Blocked,
    ) {
        self.draft(step, reads, &[], Deal::Own);
        images.iter().for_each(|image| self.last_reads(Memory::Scratch(image.scratch)));
        self.last_writes(Memory::Scratch(y.scratch));
    }

    /// Whether a value has a blocked form only.
    fn is_unplain(&self, id: ValueId) -> bool {
        self.unplain.contains(&id)
    }

    /// Compiles a node with kernels of images; `false` where another kernel has to.
    pub(super) fn image_node(&mut self, i: usize) -> Result<bool, BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let y = node.outputs[0];
        let first = node.inputs.first().copied().flatten();
        let Some(x) = first else { return Ok(false) };
        if self.byte_image_node(i)? {
            return Ok(true);
        }
        if self.is_byte_image(x) {
            return Ok(false);
        }
        match &node.op {
            Op::Conv(_) | Op::ConvTranspose(_) => {
                let Some(weight) = conv_id(graph, node) else { return Ok(false) };
                self.conv(i, x, weight)?;
            }
            Op::Recurrent(_) => return self.recurrent(i),
            Op::Pool(op) if is_image(graph, x) && !op.indices && PoolStep::supports(op.kind) => {
                let Some(plane) = Plane::new(&op.kernel, &op.window) else { return Ok(false) };
                let pads_end = match op.window.pads_end[..] {
                    [height, width] => [height, width],
                    [width] => [0, width],
                    _ => return Ok(false),
                };
                let x = self.blocked(x)?;
                let y = self.new_blocked(y)?;
                self.draft_image(PoolStep { kind: op.kind, plane, pads_end, x, y }, &[], &[x], y);
            }
            Op::Unary(op) if self.is_unplain(x) && !op.is_predicate() => {
                let x = self.blocked(x)?;
                let y = self.new_blocked(y)?;
                self.draft_image(MapImage { op: *op, x, y }, &[], &[x], y);
            }
            Op::Binary(op) if is_image(graph, y) && !op.is_comparison() => {
                let Some(other) = node.inputs.get(1).copied().flatten() else { return Ok(false) };
                return self.combine(i, *op, x, other);
            }
            Op::Concat(op) if is_image(graph, y) && self.axis(y, op.axis) == 1 => {
                let inputs: Vec<ValueId> = node.inputs.iter().copied().flatten().collect();
                if !inputs.iter().any(|id| self.is_unplain(*id)) || !inputs.iter().all(|id| is_image(graph, *id)) {
                    return Ok(false);
                }
                let xs = inputs.into_iter().map(|id| self.blocked(id)).collect::<Result<Vec<_>, _>>()?;
                let y = self.new_blocked(y)?;
                let images = xs.clone();
                self.draft_image(JoinChannels { xs, start: 0, y }, &[], &images, y);
            }
            Op::Slice(op) if self.is_unplain(x) && is_image(graph, y) && self.axis(x, op.axis) == 1 => {
                let Some((start, _)) = op.as_range() else { return Ok(false) };
                let x = self.blocked(x)?;
                let y = self.new_blocked(y)?;
                self.draft_image(JoinChannels { xs: vec![x], start, y }, &[], &[x], y);
            }
            Op::Resize(op) if is_image(graph, x) && is_image(graph, y) && ResizeStep::supports(op) => {
                let shapes = (graph.tensor_type(x), graph.tensor_type(y));
                let (Some((_, from)), Some((_, to))) = shapes else { return Ok(false) };
                if from[..2] != to[..2] || from.len() != to.len() {
                    return Ok(false);
                }
                let x = self.blocked(x)?;
                let y = self.new_blocked(y)?;
                self.draft_image(ResizeStep { op: op.clone(), x, y }, &[], &[x], y);
            }
            Op::GroupNormalization(op) if is_image(graph, x) => {
                let (w, b) = (node.inputs.get(1).copied().flatten(), node.inputs.get(2).copied().flatten());
                let x = self.blocked(x)?;
                let (y, post) = self.image_activation(y);
                let bytes = GroupNorm::statistics_bytes(self.extent_at_bounds(x.value)?);
                let y = self.new_blocked(y)?;
                let statistics = self.scratch("means and variances", bytes);
                let step = GroupNorm { groups: op.groups, epsilon: op.epsilon, x, w, b, post, y, statistics };
                let reads: Vec<ValueId> = w.into_iter().chain(b).collect();
                self.draft_image(step, &reads, &[x], y);
                self.last_writes(Memory::Scratch(statistics));
            }
            Op::Reshape(_) if self.is_unplain(x) => return self.reduce_pixels(x, y),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `Reduce(Reshape(x))` over all pixels, where `y` is the reshaped image and nothing else reads it.
    fn reduce_pixels(&mut self, x: ValueId, y: ValueId) -> Result<bool, BackendError> {
        let graph = self.graph;
        let Some(reader) = self.sole_reader(y) else { return Ok(false) };
        let Op::Reduce(op) = &graph.nodes()[reader].op else { return Ok(false) };
        let (Some((_, from)), Some((_, to))) = (graph.tensor_type(x), graph.tensor_type(y)) else { return Ok(false) };
        let flattened = from.len() >= 3 && to.len() == 3 && from[..2] == to[..2];
        if !flattened || !ReducePixels::supports(op.kind) {
            return Ok(false);
        }
        self.taken.insert(reader);
        let x = self.blocked(x)?;
        let y = graph.nodes()[reader].outputs[0];
        self.draft(ReducePixels { kind: op.kind, x, y }, &[], &[y], Deal::Own);
        self.last_reads(Memory::Scratch(x.scratch));
        Ok(true)
    }

    /// A function of two operands, one of which is a blocked image of the result's extents.
    fn combine(&mut self, i: usize, op: Binary, a: ValueId, b: ValueId) -> Result<bool, BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let y = node.outputs[0];
        let same = |id: ValueId| graph.tensor_type(id) == graph.tensor_type(y);
        let (x, other, swapped) = if self.is_unplain(a) && same(a) {
            (a, b, false)
        } else if self.is_unplain(b) && same(b) {
            (b, a, true)
        } else {
            return Ok(false);
        };
        let operand = if same(other) {
            let image = self.blocked(other)?;
            Operand::Image(image)
        } else {
            match per_channel(graph, other, y) {
                Some(operand) => operand,
                None => return Ok(false),
            }
        };
        let x = self.blocked(x)?;
        let (y, post) = self.image_activation(y);
        let y = self.new_blocked(y)?;
        let (reads, images) = match operand {
            Operand::Image(image) => (Vec::new(), vec![x, image]),
            Operand::Channels { value, .. } | Operand::Scalar(value) => (vec![value], vec![x]),
        };
        self.draft_image(CombineImages { op, x, operand, swapped, post, y }, &reads, &images, y);
        Ok(true)
    }

    /// Takes over an activation that alone reads a value.
    fn image_activation(&mut self, y: ValueId) -> (ValueId, Activation) {
        let Some(reader) = self.sole_reader(y).filter(|reader| !self.taken.contains(reader)) else {
            return (y, Activation::None);
        };
        let node = &self.graph.nodes()[reader];
        match node.op {
            Op::Unary(op) if is_activation(op) => {
                self.taken.insert(reader);
                (node.outputs[0], Activation::of(op))
            }
            _ => (y, Activation::None),
        }
    }

    fn conv(&mut self, i: usize, x: ValueId, weight: ConvId) -> Result<(), BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let bias = node.inputs.get(2).copied().flatten();
        if weight.form == Form::Planar {
            return self.planar(x, bias, node.outputs[0], weight);
        }
        let source = if weight.form == Form::Rows {
            self.plain(x);
            Source::Plain(x)
        } else {
            Source::Blocked(self.blocked(x)?)
        };
        let (y, pre) = self.image_activation(node.outputs[0]);
        let (y, residual) = match self.image_addition(y, i) {
            Some((reader, residual)) => {
                self.taken.insert(reader);
                (graph.nodes()[reader].outputs[0], Some(self.blocked(residual)?))
            }
            None => (y, None),
        };
        let (y, pre, post) = match residual {
            Some(_) => {
                let (y, post) = self.image_activation(y);
                (y, pre, post)
            }
            None => (y, Activation::None, pre),
        };
        let y = self.new_blocked(y)?;
        let finish = Finish { bias, pre, residual, post };
        let counter = self.counter();
        let mut reads: Vec<ValueId> = bias.into_iter().collect();
        let mut images: Vec<Blocked> = residual.into_iter().collect();
        match source {
            Source::Plain(x) => reads.push(x),
            Source::Blocked(x) => images.push(x),
        }
        match (weight.form, source) {
            (Form::Depthwise, Source::Blocked(x)) => {
                self.draft_image(DepthwiseStep { weight, x, y, finish, counter }, &reads, &images, y);
            }
            (Form::Winograd, Source::Blocked(x)) => {
                let inputs = self.extent_at_bounds(x.value)?.channels;
                let scratch = self.scratch("transformed tiles", winograd::scratch_bytes(inputs) * self.threads);
                self.draft_image(WinogradStep { weight, x, y, finish, scratch, counter }, &reads, &images, y);
                self.last_writes(Memory::Scratch(scratch));
            }
            _ => {
                let scratch = self.scratch("packed windows", scratch_bytes() * self.threads);
                let phases = weight.geometry.phases();
                let step = ConvStep { weight, phases, x: source, y, finish, scratch, counter };
                self.draft_image(step, &reads, &images, y);
                self.last_writes(Memory::Scratch(scratch));
            }
        }
        Ok(())
    }

    /// A convolution of a plain image to a plain one.
    fn planar(&mut self, x: ValueId, bias: Option<ValueId>, y: ValueId, weight: ConvId) -> Result<(), BackendError> {
        let (y, post) = self.image_activation(y);
        let columns = self.extent_at_bounds(y)?.width;
        let channels = self.extent_at_bounds(x)?.channels;
        let floats = planar::scratch_floats(&weight.geometry.plane, channels, columns);
        let scratch = self.scratch("split rows", 4 * floats * self.threads);
        let counter = self.counter();
        let finish = Finish { bias, pre: Activation::None, residual: None, post };
        let reads: Vec<ValueId> = [x].into_iter().chain(bias).collect();
        self.draft(PlanarStep { weight, x, y, finish, scratch, counter }, &reads, &[y], Deal::Own);
        self.last_writes(Memory::Scratch(scratch));
        Ok(())
    }

    /// The addition of an image, computed before node `i`, that alone reads a value; and that image.
    fn image_addition(&self, y: ValueId, i: usize) -> Option<(usize, ValueId)> {
        let (reader, residual) = self.sole_addition(y)?;
        let graph = self.graph;
        let sum = graph.nodes()[reader].outputs[0];
        let same =
            graph.tensor_type(sum) == graph.tensor_type(residual) && graph.tensor_type(sum) == graph.tensor_type(y);
        // It must be there: computed before by a step that has been drafted, or given.
        let made =
            graph.nodes()[..i].iter().enumerate().any(|(j, node)| node.outputs.contains(&residual) && !self.waits(j));
        let given = !matches!(graph.value(residual).source, core_tensor::ValueSource::Node);
        (same && (made || given) && is_image(graph, residual)).then_some((reader, residual))
    }
}

/// Functions that a convolution takes along.
fn is_activation(op: Unary) -> bool {
    !op.is_predicate()
}

/// An operand of one element for each channel or for all, as it is broadcast to an image.
fn per_channel(graph: &Graph, operand: ValueId, y: ValueId) -> Option<Operand> {
    let ((DType::F32, shape), (_, image)) = (graph.tensor_type(operand)?, graph.tensor_type(y)?) else { return None };
    let one = Dim::Num(1);
    if shape.len() > image.len() {
        return None;
    }
    let mut padded = vec![one.clone(); image.len() - shape.len()];
    padded.extend_from_slice(shape);
    if padded.iter().all(|dim| *dim == one) {
        return Some(Operand::Scalar(operand));
    }
    if padded[1] != image[1] || padded[2..].iter().any(|dim| *dim != one) {
        return None;
    }
    let per_image = match &padded[0] {
        dim if *dim == one => false,
        dim if *dim == image[0] => true,
        _ => return None,
    };
    // With a batch of 1 both readings are the same.
    Some(Operand::Channels { value: operand, per_image })
}
