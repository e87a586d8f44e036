//! Resampling of images: by factors, and at given places.

use core_tensor::op::{CoordinateMode, GridMode, GridPadding, GridSample, NearestMode, Resize, ResizeMode};
use core_tensor::{BackendError, DType, Dim};

use super::{Compiler, ELEMENT_THREADS};
use crate::plan::{Dispatch, Memory};
use crate::step::product;

/// Spatial extents that `grid_sample.comp` takes.
const MOST_SPATIAL: usize = 3;
/// An extent is not shrunk by more where filters are stretched: each element would be a sum of as many.
const MOST_SHRINK: f32 = 1024.0;

/// Whether there is a kernel for a resize.
///
/// # Errors
/// Why not.
pub(super) fn resizes(op: &Resize, dtype: DType) -> Result<(), String> {
    if op.coordinates == CoordinateMode::TfCropAndResize {
        return Err("no kernel takes a region of interest".into());
    }
    match op.mode {
        ResizeMode::Nearest(_) if !matches!(dtype.packing(), (1, 1 | 2 | 4 | 8)) => {
            Err(format!("no kernel moves elements of {dtype}"))
        }
        ResizeMode::Linear | ResizeMode::Cubic(_) if dtype != DType::F32 => Err("kernels compute in f32".into()),
        _ if op.antialias && op.scales.iter().flatten().any(|scale| *scale < 1.0 / MOST_SHRINK) => {
            Err("kernels do not shrink by so much".into())
        }
        _ => Ok(()),
    }
}

/// Whether there is a kernel for samples of an image of so many extents.
///
/// # Errors
/// Why not.
pub(super) fn samples(rank: usize) -> Result<(), String> {
    if (3..=2 + MOST_SPATIAL).contains(&rank) {
        Ok(())
    } else {
        Err(format!("kernels sample images of up to {MOST_SPATIAL} extents"))
    }
}

impl Compiler<'_> {
    pub(super) fn resize(&mut self, i: usize, op: &Resize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        self.settle(x)?;
        let (dtype, mut shape) = self.tensor(x)?;
        let size = dtype.packing().1;
        let (mode, rounding, a) = match op.mode {
            ResizeMode::Nearest(NearestMode::RoundPreferFloor) => (0, 0, 0.0),
            ResizeMode::Nearest(NearestMode::RoundPreferCeil) => (0, 1, 0.0),
            ResizeMode::Nearest(NearestMode::Floor) => (0, 2, 0.0),
            ResizeMode::Nearest(NearestMode::Ceil) => (0, 3, 0.0),
            ResizeMode::Linear => (1, 0, 0.0),
            ResizeMode::Cubic(a) => (2, 0, a.get()),
        };
        let coordinates = match op.coordinates {
            CoordinateMode::HalfPixel => 0,
            CoordinateMode::HalfPixelSymmetric => 1,
            CoordinateMode::PytorchHalfPixel => 2,
            CoordinateMode::AlignCorners => 3,
            CoordinateMode::Asymmetric => 4,
            CoordinateMode::TfCropAndResize => return Err(BackendError::Mismatch("functions and shaders")),
        };
        let factor = |d: usize| op.scales.as_ref().map_or(0.0, |scales| scales[d]);
        // One extent after the other; what stays as it is comes along.
        let stays = |d: &usize| shape[*d] == op.shape[*d] && matches!(factor(*d), 0.0 | 1.0);
        let mut order: Vec<usize> = (0..shape.len()).filter(|d| !stays(d)).collect();
        // What shrinks comes first, so that nothing in between is larger than both image and result.
        let grows = |d: &usize| match (self.bound(&shape[*d]), self.bound(&op.shape[*d])) {
            (Ok(from), Ok(to)) => to > from,
            _ => false,
        };
        order.sort_by_key(grows);
        let Some(last) = order.last().copied() else { return self.copy(&node.name, x, y) };
        let mut from = self.memory(x);
        for d in order {
            let before = std::mem::replace(&mut shape[d], op.shape[d].clone());
            let count = product(&shape);
            let to = if d == last {
                Memory::Value(y)
            } else {
                let bytes = self.bound(&count)?.saturating_mul(size);
                self.scratch(&format!("{}, extent {d}", node.name), bytes)
            };
            let inner = product(&shape[d + 1..]);
            let words = [&before, &shape[d], &inner].map(|dim| self.values.word(dim));
            let flags = u32::from(op.antialias) | u32::from(op.exclude_outside) << 1;
            let grid = if mode == 0 { self.word_grid(&count, size) } else { self.linear_grid(&count) };
            let dispatch = Dispatch::new(&node.name, "resize", ELEMENT_THREADS)
                .constant(1, mode)
                .read(1, from)
                .write(2, to)
                .push([self.values.word(&count), size as u32])
                .push(words)
                .push([factor(d).to_bits(), coordinates, rounding, a.to_bits(), flags])
                .grid(grid);
            self.emit(dispatch);
            from = to;
        }
        Ok(())
    }

    pub(super) fn grid_sample(&mut self, i: usize, op: GridSample) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, grid, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        let (from, to) = (self.tensor(x)?.1, self.tensor(y)?.1);
        let spatial = &from[2..];
        let mode = match op.mode {
            GridMode::Linear => 0,
            GridMode::Nearest => 1,
            GridMode::Cubic => 2,
        };
        let padding = match op.padding {
            GridPadding::Zeros => 0,
            GridPadding::Border => 1,
            GridPadding::Reflection => 2,
        };
        let count = product(&to);
        let words = [&count, &product(&to[2..]), &from[1]].map(|dim| self.values.word(dim));
        let dims: Vec<u32> =
            (0..MOST_SPATIAL).map(|d| self.values.word(spatial.get(d).unwrap_or(&Dim::Num(1)))).collect();
        let dispatch = Dispatch::new(&node.name, "grid_sample", ELEMENT_THREADS)
            .constant(1, spatial.len() as u32)
            .constant(2, mode)
            .write(3, Memory::Value(y))
            .push(words)
            .push([padding, u32::from(op.align_corners)])
            .push(dims)
            .grid(self.linear_grid(&count));
        let dispatch = self.reads(dispatch, 1, x)?;
        let dispatch = self.reads(dispatch, 2, grid)?;
        self.emit(dispatch);
        Ok(())
    }
}
