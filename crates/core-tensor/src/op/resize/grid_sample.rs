//! Sampling at given places.

use crate::op::conv::{image, places};
use crate::op::{Evaluation, Inference, OpError, Operator, expect_shape, filled, same, split_last};
use crate::{DType, Dim, ValueType};

/// Samples an image at given places (ONNX GridSample).
///
/// Inputs: x f32 `[batch, channels, spatial...]`; grid f32 `[batch, out..., 2 or 3]` in -1..=1. Output: f32 `[batch, channels, out...]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridSample {
    /// How samples between elements are made.
    pub mode: GridMode,
    /// What lies outside.
    pub padding: GridPadding,
    /// Whether -1 and 1 are the centers of the corner elements, and not their edges.
    pub align_corners: bool,
}

/// ONNX GridSample's mode.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GridMode {
    Linear,
    Nearest,
    Cubic,
}

/// ONNX GridSample's padding_mode.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GridPadding {
    Zeros,
    Border,
    Reflection,
}

impl GridSample {
    /// Mirrors a coordinate at the borders until it lies between them.
    fn reflect(&self, x: f64, extent: usize) -> f64 {
        let (least, most) = self.borders(extent);
        let range = most - least;
        if range <= 0.0 || (least..=most).contains(&x) {
            return if range <= 0.0 { least } else { x };
        }
        let within = (x - least).rem_euclid(2.0 * range);
        least + if within <= range { within } else { 2.0 * range - within }
    }

    /// The least and the largest coordinate of an extent.
    fn borders(&self, extent: usize) -> (f64, f64) {
        let n = extent as f64;
        if self.align_corners { (0.0, n - 1.0) } else { (-0.5, n - 0.5) }
    }

    /// The element that a coordinate names; `None` where there is nothing.
    fn element(&self, at: f64, extent: usize) -> Option<usize> {
        let last = extent.checked_sub(1)? as f64;
        match self.padding {
            GridPadding::Zeros => (0.0..=last).contains(&at).then_some(at as usize),
            GridPadding::Border => Some(at.clamp(0.0, last) as usize),
            GridPadding::Reflection => Some(self.reflect(at, extent).clamp(0.0, last) as usize),
        }
    }

    /// The elements along one extent, with their weights, for a coordinate in -1..=1.
    fn taps(&self, coordinate: f32, extent: usize) -> Vec<(Option<usize>, f32)> {
        let n = extent as f32;
        let mut x = if self.align_corners {
            (coordinate + 1.0) / 2.0 * (n - 1.0)
        } else {
            ((coordinate + 1.0) * n - 1.0) / 2.0
        };
        if self.mode == GridMode::Nearest {
            x = x.round_ties_even();
        }
        let (least, most) = self.borders(extent);
        if f64::from(x) < least || f64::from(x) > most {
            match self.padding {
                GridPadding::Zeros => {}
                GridPadding::Border => x = x.min(n - 1.0).max(0.0),
                GridPadding::Reflection => x = self.reflect(f64::from(x), extent) as f32,
            }
        }
        let base = x.floor();
        let ratio = x - base;
        let tap = |offset: f32, weight: f32| (self.element(f64::from(base + offset), extent), weight);
        match self.mode {
            GridMode::Nearest => vec![(self.element(f64::from(x.trunc()), extent), 1.0)],
            GridMode::Linear => vec![tap(0.0, 1.0 - ratio), tap(1.0, ratio)],
            GridMode::Cubic => {
                let a = -0.75;
                let near = |d: f32| ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0;
                let far = |d: f32| ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a;
                vec![
                    tap(-1.0, far(ratio + 1.0)),
                    tap(0.0, near(ratio)),
                    tap(1.0, near(1.0 - ratio)),
                    tap(2.0, far(2.0 - ratio)),
                ]
            }
        }
    }
}

impl Operator for GridSample {
    fn name(&self) -> &'static str {
        "GridSample"
    }

    fn attributes(&self) -> String {
        format!(" {{mode={:?}, padding={:?}, align_corners={}}}", self.mode, self.padding, self.align_corners)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=2, "2")?;
        let (x, grid) = (cx.f32(0)?, cx.f32(1)?);
        let (batch, channels, spatial) = image(x)?;
        let (rest, coordinates) = split_last(grid)?;
        expect_shape(std::slice::from_ref(coordinates), &[Dim::Num(spatial.len())], "a place")?;
        let [grid_batch, out @ ..] = rest else {
            return Err(OpError::Shape("the grid must be [batch, out..., coordinates]".into()));
        };
        if out.len() != spatial.len() {
            return Err(OpError::Shape(format!("{} extents of places in {} extents", out.len(), spatial.len())));
        }
        let batch = same(batch, grid_batch, "batch of x and the grid")?;
        let shape: Vec<Dim> = [batch, channels].into_iter().chain(out).cloned().collect();
        Ok(vec![ValueType::Tensor { dtype: DType::F32, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let (x, grid) = (cx.f32(0)?, cx.f32(1)?);
        let spatial = cx.tensor(0)?.shape()[2..].to_vec();
        let (plane, out): (usize, usize) = (spatial.iter().product(), shape[2..].iter().product());
        let rank = spatial.len();
        let (batch, channels) = (shape[0], shape[1]);
        let mut y = filled(&shape, 0.0f32)?;
        for i in 0..if y.is_empty() { 0 } else { batch * out } {
            let (image, place) = (i / out, i % out);
            // Coordinates come innermost first.
            let taps: Vec<_> = (0..rank).map(|d| self.taps(grid[i * rank + rank - 1 - d], spatial[d])).collect();
            let counts: Vec<usize> = taps.iter().map(Vec::len).collect();
            for combination in 0..counts.iter().product() {
                let which = places(combination, &counts);
                let weight: f32 = (0..rank).map(|d| taps[d][which[d]].1).product();
                let at = (0..rank).try_fold(0, |at, d| taps[d][which[d]].0.map(|i| at * spatial[d] + i));
                let Some(at) = at else { continue };
                for channel in 0..channels {
                    let plane_at = image * channels + channel;
                    y[plane_at * out + place] += x[plane_at * plane + at] * weight;
                }
            }
        }
        cx.put_f32(0, &y)
    }
}
