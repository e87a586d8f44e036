//! Operators over images: convolutions, pooling, normalization of groups of channels.

use core_tensor::op::{GroupNormalization, Pool, PoolKind, Window};
use core_tensor::{BackendError, Dim, ValueId};

use super::nodes::known;
use super::{Compiler, ELEMENT_THREADS};
use crate::elementwise::Function;
use crate::filters::FilterKey;
use crate::plan::{Dispatch, Memory};
use crate::step::product;

/// Batch, channels, height and width; an image of one spatial extent is one line.
fn planes(shape: &[Dim]) -> Result<[Dim; 4], BackendError> {
    match shape {
        [batch, channels, width] => Ok([batch.clone(), channels.clone(), 1.into(), width.clone()]),
        [batch, channels, height, width] => Ok([batch, channels, height, width].map(Clone::clone)),
        _ => Err(BackendError::Mismatch("images and graph")),
    }
}

/// A number for each of two spatial extents in one word, the first in the lower half; an image of one extent has `rest` down.
fn both(numbers: &[usize], rest: usize) -> u32 {
    let (down, along) = match *numbers {
        [down, along] => (down, along),
        [along] => (rest, along),
        _ => (rest, rest),
    };
    (down as u32 & 0xffff) | (along as u32) << 16
}

/// Whether kernels take a window: one or two spatial extents, numbers that fit half a word.
pub(super) fn fits(window: &Window, kernel: &[usize]) -> Result<(), String> {
    let lists = [&window.strides[..], &window.dilations, &window.pads_begin, &window.pads_end, kernel];
    if !(1..=2).contains(&window.strides.len()) {
        return Err(format!("kernels have one or two spatial extents, not {}", window.strides.len()));
    }
    if lists.iter().any(|list| list.iter().any(|n| *n > 0x7fff)) {
        return Err("the window is too large".into());
    }
    Ok(())
}

/// Places of the result that a thread of `conv.comp` computes, and the slices that the image's channels are cut into.
fn shape(lanes: usize, places: usize, tiles: usize, channels: usize, target_waves: usize) -> (usize, usize) {
    let waves = |places_per_thread: usize| places.div_ceil(64 * places_per_thread).saturating_mul(tiles).max(1);
    let many = match lanes {
        8 => 4,
        16 => 3,
        _ => 2,
    };
    if waves(many) >= target_waves / 2 {
        return (many, 1);
    }
    let wanted = target_waves.div_ceil(waves(1)).min(channels / 8).clamp(1, 8);
    (1, 1 << wanted.ilog2())
}

impl Compiler<'_> {
    pub(super) fn conv(&mut self, i: usize, window: &Window) -> Result<(), BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let x = self.input(node, 0)?;
        let key = known(FilterKey::of(graph, node))?;
        let placed = self.weights.filters.get(&key).cloned().ok_or(BackendError::Mismatch("weights and graph"))?;
        let filter = &placed.filter;
        let y_shape = self.tensor(node.outputs[0])?.1;
        let [batch, all_outs, y_height, y_width] = planes(&y_shape)?;
        let [_, all_channels, height, width] = planes(&self.tensor(x)?.1)?;
        let bias = match self.optional(i, 2) {
            Some(id) => Some(self.as_f32(&node.name, id)?),
            None => None,
        };
        self.settle(x)?;
        let tail = self.take_tail(node.outputs[0], i, Function::is_light)?;
        let plane = y_height.mul(y_width.clone());
        let places = batch.mul(plane.clone());
        let bound = self.bound(&places)?;
        let function = tail.function.unwrap_or(Function { code: 0, p: 0.0, q: 0.0 });
        let flags = u32::from(bias.is_some()) | tail.flags();
        let [kernel_y, kernel_x] = filter.window.map(|n| n as u32);
        let mut words: Vec<u32> = [&places, &plane, &y_width, &height, &width].map(|dim| self.values.word(dim)).into();
        let strides = both(&window.strides, 1);
        let (shader, threads, groups, per_thread) = if filter.lanes == 1 {
            words.extend([&all_channels, &filter.outs.into(), &all_outs].map(|dim| self.values.word(dim)));
            ("conv_depthwise".to_owned(), 64, filter.outs * filter.groups, 4)
        } else {
            let tiles = filter.tiles() * filter.groups;
            let (per_thread, slices) = shape(filter.lanes, bound, tiles, filter.channels, self.target_waves);
            words.extend([
                filter.channels as u32,
                self.values.word(&all_channels),
                filter.outs as u32,
                self.values.word(&all_outs),
                filter.tiles() as u32,
            ]);
            (format!("conv.{per_thread}x{}", filter.lanes), 64 * slices as u32, tiles, per_thread)
        };
        words.extend([strides, both(&window.dilations, 1), both(&window.pads_begin, 0)]);
        words.extend([function.p.to_bits(), function.q.to_bits()]);
        let work = bound as f64 * (filter.outs * filter.groups * filter.channels) as f64;
        let grid = self.values.grid([places.div_ceil((64 * per_thread).into()), groups.into(), 1.into()]);
        let dispatch = Dispatch::new(&node.name, shader, threads)
            .constant(1, flags)
            .constant(2, tail.activation())
            .constant(3, kernel_y)
            .constant(4, kernel_x)
            .read(1, self.memory(x))
            .read(2, Memory::Weights(placed.extent))
            .read(3, bias.unwrap_or(Memory::Unused))
            .read(4, tail.residual.unwrap_or(Memory::Unused))
            .write(5, self.memory(tail.y))
            .push(words)
            .work(work * f64::from(kernel_y * kernel_x))
            .grid(grid);
        let dispatch = if filter.lanes == 1 { dispatch } else { dispatch.constant(5, u32::from(filter.transposed)) };
        self.emit(dispatch);
        Ok(())
    }

    pub(super) fn pool(&mut self, i: usize, op: &Pool) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let [batch, channels, y_height, y_width] = planes(&self.tensor(y)?.1)?;
        let [_, _, height, width] = planes(&self.tensor(x)?.1)?;
        let plane = y_height.mul(y_width.clone());
        let count = product(&[batch, channels, plane.clone()]);
        let kind = match op.kind {
            PoolKind::Max => 0,
            PoolKind::Average { count_include_pad } => 1 + u32::from(count_include_pad),
            PoolKind::Lp { .. } => return Err(BackendError::Mismatch("functions and shaders")),
        };
        let mut words: Vec<u32> = [&count, &plane, &y_width, &height, &width].map(|dim| self.values.word(dim)).into();
        let window = &op.window;
        words.extend([both(&op.kernel, 1), both(&window.strides, 1), both(&window.dilations, 1)]);
        words.extend([both(&window.pads_begin, 0), both(&window.pads_end, 0)]);
        let dispatch = Dispatch::new(&node.name, "pool", ELEMENT_THREADS)
            .constant(1, kind)
            .write(2, Memory::Value(y))
            .push(words)
            .grid(self.linear_grid(&count));
        let dispatch = self.reads(dispatch, 1, x)?;
        self.emit(dispatch);
        Ok(())
    }

    pub(super) fn group_norm(&mut self, i: usize, op: GroupNormalization) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let (_, shape) = self.tensor(x)?;
        let spatial = product(&shape[2..]);
        let channels = shape[1].clone().div(op.groups.into());
        let rows = shape[0].clone().mul(op.groups.into());
        let width = self.bound(&channels.clone().mul(spatial.clone()))?;
        let threads = if width <= 256 {
            64
        } else if width <= 4096 {
            256
        } else {
            1024
        };
        let words = [&rows, &channels, &spatial].map(|dim| self.values.word(dim));
        let (w, b): (Option<ValueId>, Option<ValueId>) = (self.optional(i, 1), self.optional(i, 2));
        let mut dispatch = Dispatch::new(&node.name, "group_norm", threads)
            .constant(1, u32::from(w.is_some()) | u32::from(b.is_some()) << 1)
            .write(4, Memory::Value(y))
            .push(words)
            .push([op.groups as u32, op.epsilon.to_bits()])
            .grid(self.row_grid(&rows));
        dispatch = self.reads(dispatch, 1, x)?;
        for (binding, id) in [(2, w), (3, b)] {
            dispatch = match id {
                Some(id) => self.reads(dispatch, binding, id)?,
                None => dispatch.read(binding, Memory::Unused),
            };
        }
        self.emit(dispatch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_of_a_convolution_has_its_shader() {
        for lanes in [8, 16, 32] {
            for places in [1, 49, 3136, 100_000] {
                for (tiles, channels) in [(1, 3), (64, 2048)] {
                    for waves in [4, 512] {
                        let (per_thread, slices) = shape(lanes, places, tiles, channels, waves);
                        let name = format!("conv.{per_thread}x{lanes}");
                        assert!(crate::shader::words(&name).is_some(), "{name}");
                        assert!(slices <= 8 && (slices == 1 || channels / slices >= 4));
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_of_both_extents_lie_in_one_word() {
        assert_eq!(both(&[3, 2], 1), 2 << 16 | 3);
        assert_eq!(both(&[2], 1), 2 << 16 | 1);
    }
}
