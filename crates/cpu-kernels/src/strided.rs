//! Copies between layouts: what Transpose, Slice and Expand come down to.

use core_tensor::op::OpError;
use core_tensor::{Dim, ValueId};

use crate::program::{RunContext, Step, View};

/// Which element of the input an element of the output is.
pub(crate) enum Layout {
    /// Extent `i` of the output is extent `perm[i]` of the input.
    Transpose(Vec<usize>),
    /// Elements `start`, `start + step`, … of extent `axis`.
    Slice { axis: usize, start: Dim, step: isize },
    /// Extents of 1 repeated.
    Expand,
}

pub(crate) struct Strided {
    pub(crate) layout: Layout,
    pub(crate) x: ValueId,
    pub(crate) y: ValueId,
    /// Bytes of an element.
    pub(crate) size: usize,
}

/// One extent of the output, and the elements of the input from one to the next.
#[derive(Clone, Copy)]
struct Extent {
    len: usize,
    stride: isize,
}

impl Strided {
    /// The output's extents with strides in the input, and the first element.
    fn extents(&self, cx: &RunContext<'_>, x: View<'_>, y: View<'_>) -> Result<(Vec<Extent>, isize), OpError> {
        let mut strides = vec![1isize; x.shape.len()];
        for i in (1..strides.len()).rev() {
            strides[i - 1] = strides[i] * x.shape[i] as isize;
        }
        let mut first = 0;
        let strides: Vec<isize> = match &self.layout {
            Layout::Transpose(perm) => perm.iter().map(|i| strides[*i]).collect(),
            Layout::Slice { axis, start, step } => {
                first = start.eval(cx.bindings)? as isize * strides[*axis];
                strides[*axis] *= step;
                strides
            }
            Layout::Expand => {
                let before = y.shape.len() - x.shape.len();
                let stride = |i: usize| match i.checked_sub(before) {
                    Some(j) if x.shape[j] != 1 => strides[j],
                    _ => 0,
                };
                (0..y.shape.len()).map(stride).collect()
            }
        };
        // Extents that follow each other in both are one.
        let mut extents: Vec<Extent> = Vec::new();
        for (len, stride) in y.shape.iter().copied().zip(strides).filter(|(len, _)| *len != 1) {
            match extents.last_mut() {
                Some(last) if last.stride == stride * len as isize => *last = Extent { len: last.len * len, stride },
                _ => extents.push(Extent { len, stride }),
            }
        }
        Ok((extents, first))
    }
}

impl Step for Strided {
    fn describe(&self) -> String {
        match &self.layout {
            Layout::Transpose(perm) => format!("Transpose {perm:?} {} -> {}", self.x, self.y),
            Layout::Slice { axis, start, step } => {
                format!("Slice axis={axis} start={start} step={step} {} -> {}", self.x, self.y)
            }
            Layout::Expand => format!("Expand {} -> {}", self.x, self.y),
        }
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (x, y) = (cx.view(self.x), cx.view(self.y));
        if y.len() == 0 {
            return;
        }
        let (mut extents, first) = match self.extents(cx, x, y) {
            Ok(layout) => layout,
            Err(error) => return cx.fail(error),
        };
        // The whole in one run: a row for each thread.
        if extents.len() < 2 {
            let run = extents.pop().unwrap_or(Extent { len: 1, stride: 1 });
            let share = cx.worker.share(run.len);
            let at = first + run.stride * share.start as isize;
            let (from, to) = self.places(x, y, at, share.start);
            return copy(from, to, Extent { len: share.len(), ..run }, self.size);
        }
        let Some(run) = extents.pop() else { return };
        let rows: usize = extents.iter().map(|extent| extent.len).product();
        let share = cx.worker.share(rows);
        // The place of the first row; from there on the indices count up like an odometer.
        let mut indices = vec![0usize; extents.len()];
        let (mut rest, mut at) = (share.start, first);
        for (index, extent) in indices.iter_mut().zip(&extents).rev() {
            *index = rest % extent.len;
            rest /= extent.len;
            at += *index as isize * extent.stride;
        }
        for row in share {
            let (from, to) = self.places(x, y, at, row * run.len);
            copy(from, to, run, self.size);
            for (index, extent) in indices.iter_mut().zip(&extents).rev() {
                *index += 1;
                at += extent.stride;
                if *index < extent.len {
                    break;
                }
                at -= extent.stride * extent.len as isize;
                *index = 0;
            }
        }
    }
}

impl Strided {
    fn places(&self, x: View<'_>, y: View<'_>, from: isize, to: usize) -> (*const u8, *mut u8) {
        let from = x.ptr.cast_const().wrapping_offset(from * self.size as isize);
        (from, y.ptr.wrapping_add(to * self.size))
    }
}

/// Copies a run of elements of so many bytes.
fn copy(from: *const u8, to: *mut u8, run: Extent, size: usize) {
    if run.stride == 1 {
        // SAFETY: the runs are inside of their values, which are different ones; the target is this thread's.
        return unsafe { std::ptr::copy_nonoverlapping(from, to, run.len * size) };
    }
    // SAFETY: as above; values lie aligned for their elements.
    unsafe {
        match size {
            1 => elements::<u8>(from, to, run),
            2 => elements::<u16>(from.cast(), to.cast(), run),
            4 => elements::<u32>(from.cast(), to.cast(), run),
            _ => elements::<u64>(from.cast(), to.cast(), run),
        }
    }
}

/// # Safety
/// `to` holds the run's elements, `from` is readable at each stride.
unsafe fn elements<T: Copy>(from: *const T, to: *mut T, run: Extent) {
    for i in 0..run.len {
        // SAFETY: the caller's.
        unsafe { *to.add(i) = *from.offset(i as isize * run.stride) };
    }
}
