//! Elements before and after extents.

use core_tensor::op::{OpError, PadMode};
use core_tensor::{Dim, ValueId};

use crate::program::{RunContext, Step};

/// `y = x` with so many elements before each extent; what lies behind is what the result's extents leave.
pub(crate) struct PadStep {
    pub(crate) x: ValueId,
    /// One element that the constant mode fills with; zeros without it.
    pub(crate) constant: Option<ValueId>,
    pub(crate) y: ValueId,
    pub(crate) before: Vec<Dim>,
    pub(crate) mode: PadMode,
    /// Bytes of an element, at most 8.
    pub(crate) size: usize,
}

/// The index of an extent of `n` elements that an index beside it stands for; `None` for the constant.
fn inside(at: isize, n: usize, mode: PadMode) -> Option<usize> {
    let len = n.cast_signed();
    if (0..len).contains(&at) {
        return Some(at.cast_unsigned());
    }
    if n == 0 {
        return None;
    }
    match mode {
        PadMode::Constant => None,
        PadMode::Edge => Some(at.clamp(0, len - 1).cast_unsigned()),
        PadMode::Wrap => Some(at.rem_euclid(len).cast_unsigned()),
        PadMode::Reflect => {
            let period = (2 * (len - 1)).max(1);
            let m = at.rem_euclid(period);
            Some(if m < len { m } else { period - m }.cast_unsigned())
        }
    }
}

impl PadStep {
    fn pad(&self, cx: &RunContext<'_>) -> Result<(), OpError> {
        let (x, y) = (cx.view(self.x), cx.view(self.y));
        let before: Vec<usize> = self.before.iter().map(|dim| dim.eval(cx.bindings)).collect::<Result<_, _>>()?;
        let size = self.size;
        let mut constant = [0u8; 8];
        if let Some(id) = self.constant {
            // SAFETY: one element.
            unsafe { std::ptr::copy_nonoverlapping(cx.view(id).ptr.cast_const(), constant.as_mut_ptr(), size) };
        }
        let put = |to: *mut u8, at: Option<usize>| {
            let from = at.map_or(constant.as_ptr(), |at| x.ptr.cast_const().wrapping_add(at * size));
            // SAFETY: an element of x or the constant, and one of y which is this thread's.
            unsafe { std::ptr::copy_nonoverlapping(from, to, size) };
        };
        let Some((cols, outer)) = y.shape.split_last() else {
            if cx.worker.index == 0 {
                put(y.ptr, Some(0));
            }
            return Ok(());
        };
        let (x_cols, first) = (x.cols(), before[before.len() - 1]);
        for row in cx.worker.share(y.rows()) {
            let (mut rest, mut from, mut stride) = (row, Some(0), x_cols);
            for i in (0..outer.len()).rev() {
                let at = (rest % outer[i]).cast_signed() - before[i].cast_signed();
                rest /= outer[i];
                from = from.zip(inside(at, x.shape[i], self.mode)).map(|(from, at)| from + at * stride);
                stride *= x.shape[i];
            }
            let to = |column: usize| y.ptr.wrapping_add((row * cols + column) * size);
            let edge = |column: usize| {
                let at = inside(column.cast_signed() - first.cast_signed(), x_cols, self.mode);
                put(to(column), from.zip(at).map(|(from, at)| from + at));
            };
            let last = (first + x_cols).min(*cols);
            let first = first.min(*cols);
            match from.filter(|_| first < last) {
                Some(from) => {
                    (0..first).for_each(edge);
                    let source = x.ptr.cast_const().wrapping_add(from * size);
                    // SAFETY: a run of a row of x, and of this thread's row of y.
                    unsafe { std::ptr::copy_nonoverlapping(source, to(first), (last - first) * size) };
                    (last..*cols).for_each(edge);
                }
                None => (0..*cols).for_each(edge),
            }
        }
        Ok(())
    }
}

impl Step for PadStep {
    fn describe(&self) -> String {
        format!("Pad {:?} {} -> {}", self.mode, self.x, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        if let Err(error) = self.pad(cx) {
            cx.fail(error);
        }
    }
}
