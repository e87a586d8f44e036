//! Where the windows of a convolution stand.

use std::ops::Range;

use core_tensor::op::{Conv, ConvTranspose, Window};

/// A window on a plane: height first. One of a single spatial extent has height 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plane {
    pub(crate) kernel: [usize; 2],
    pub(crate) strides: [usize; 2],
    pub(crate) dilations: [usize; 2],
    pub(crate) pads: [usize; 2],
}

/// Kernels compute with places in windows without a thought of overflow: what is larger than any real window is the reference's.
const MOST: usize = 0x7fff;
/// A transposed window looks at its taps in `stride × stride` ways.
const MOST_TRANSPOSED_STRIDE: usize = 64;

impl Plane {
    /// A window of one or two spatial extents; `None` for others, and for absurd ones.
    pub(crate) fn new(kernel: &[usize], window: &Window) -> Option<Plane> {
        let two = |v: &[usize], fill: usize| match *v {
            [w] => Some([fill, w]),
            [h, w] => Some([h, w]),
            _ => None,
        };
        let plane = Plane {
            kernel: two(kernel, 1)?,
            strides: two(&window.strides, 1)?,
            dilations: two(&window.dilations, 1)?,
            pads: two(&window.pads_begin, 0)?,
        };
        let spatial = kernel.len();
        let fits = window.strides.len() == spatial
            && window.dilations.len() == spatial
            && window.pads_begin.len() == spatial
            && plane.strides.iter().all(|stride| *stride > 0)
            && [kernel, &window.strides, &window.dilations, &window.pads_begin, &window.pads_end]
                .into_iter()
                .flatten()
                .all(|n| *n <= MOST);
        fits.then_some(plane)
    }

    pub(crate) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}

/// What a convolution is besides its weights' numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Geometry {
    pub(crate) plane: Plane,
    pub(crate) groups: usize,
    pub(crate) transposed: bool,
}

/// Pixels of the result that see the same elements of the window: all of a convolution's, every `stride`th of a transposed one's.
pub(crate) struct Phase {
    /// The elements of the window, in the order of [`Geometry::order`].
    pub(crate) taps: Range<usize>,
    /// Each one's place in the input, from where the window stands.
    pub(crate) offsets: Vec<[isize; 2]>,
    /// The first pixel.
    pub(crate) first: [usize; 2],
}

impl Geometry {
    pub(crate) fn of_conv(op: &Conv, weight: &[usize]) -> Option<Geometry> {
        let plane = Plane::new(weight.get(2..)?, &op.window)?;
        Some(Geometry { plane, groups: op.groups, transposed: false })
    }

    pub(crate) fn of_transposed(op: &ConvTranspose, weight: &[usize]) -> Option<Geometry> {
        let plane = Plane::new(weight.get(2..)?, &op.window)?;
        let few = plane.strides.iter().all(|stride| *stride <= MOST_TRANSPOSED_STRIDE);
        few.then_some(Geometry { plane, groups: op.groups, transposed: true })
    }

    /// From one place of the window to the next in the input.
    pub(crate) fn input_step(&self) -> [usize; 2] {
        if self.transposed { [1, 1] } else { self.plane.strides }
    }

    /// From one pixel of a phase to the next in the result.
    pub(crate) fn output_step(&self) -> [usize; 2] {
        if self.transposed { self.plane.strides } else { [1, 1] }
    }

    /// The phases.
    pub(crate) fn phases(&self) -> Vec<Phase> {
        let Plane { kernel, strides, dilations, pads } = self.plane;
        let reach = |axis: usize, tap: usize| (tap * dilations[axis]).cast_signed() - pads[axis].cast_signed();
        if !self.transposed {
            let offsets = (0..kernel[0])
                .flat_map(|ky| (0..kernel[1]).map(move |kx| [ky, kx]))
                .map(|tap| [reach(0, tap[0]), reach(1, tap[1])]);
            return vec![Phase { taps: 0..self.plane.taps(), offsets: offsets.collect(), first: [0, 0] }];
        }
        let mut phases = Vec::new();
        let mut taps = 0;
        for y in 0..strides[0] {
            for x in 0..strides[1] {
                let along = |axis: usize, first: usize| {
                    self.seen(axis, first)
                        .into_iter()
                        .map(move |tap| (first.cast_signed() - reach(axis, tap)) / strides[axis].cast_signed())
                };
                let rows: Vec<isize> = along(0, y).collect();
                let columns: Vec<isize> = along(1, x).collect();
                let offsets: Vec<[isize; 2]> =
                    rows.iter().flat_map(|y| columns.iter().map(move |x| [*y, *x])).collect();
                phases.push(Phase { taps: taps..taps + offsets.len(), offsets, first: [y, x] });
                taps += phases[phases.len() - 1].taps.len();
            }
        }
        phases
    }

    /// The elements of a transposed window that reach result pixels `first`, `first + stride` ... along an axis.
    fn seen(&self, axis: usize, first: usize) -> Vec<usize> {
        let Plane { kernel, strides, dilations, pads } = self.plane;
        let stands = |tap: &usize| {
            let reach = (first + pads[axis]).cast_signed() - (tap * dilations[axis]).cast_signed();
            reach.rem_euclid(strides[axis].cast_signed()) == 0
        };
        (0..kernel[axis]).filter(stands).collect()
    }

    /// The window's elements (row · width + column) in the order in which phases see them.
    pub(crate) fn order(&self) -> Vec<usize> {
        if !self.transposed {
            return (0..self.plane.taps()).collect();
        }
        let mut order = Vec::new();
        for y in 0..self.plane.strides[0] {
            for x in 0..self.plane.strides[1] {
                for row in self.seen(0, y) {
                    order.extend(self.seen(1, x).into_iter().map(|column| row * self.plane.kernel[1] + column));
                }
            }
        }
        order
    }
}
