//! Gathering.

use std::sync::atomic::{AtomicUsize, Ordering};

use core_tensor::op::OpError;
use core_tensor::{DType, ValueId};

use crate::compile::QuantizedWeight;
use crate::program::{RunContext, Step, View};

/// Takes rows along one extent, from a table of any weight dtype (along the first) or from a value.
pub(crate) struct GatherRows {
    pub(crate) data: ValueId,
    /// Dtype of the data.
    pub(crate) from: DType,
    pub(crate) indices: ValueId,
    /// Whether the indices are i64, and not i32.
    pub(crate) wide: bool,
    pub(crate) axis: usize,
    pub(crate) y: ValueId,
    pub(crate) dtype: DType,
    /// What the data is the dequantized form of, if the rows are dequantized here.
    pub(crate) quantized: Option<QuantizedWeight>,
    /// Rows read from the weight's file.
    pub(crate) read: AtomicUsize,
}

/// After so many rows the pages of a weight's file are let go: the system maps some around each that is read.
const RELEASE_ROWS: usize = 64;

impl Step for GatherRows {
    fn describe(&self) -> String {
        format!("Gather {} [{}] axis={} -> {}", self.data, self.indices, self.axis, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (data, indices, y) = (cx.view(self.data), cx.view(self.indices), cx.view(self.y));
        let rows = data.shape.get(self.axis).copied().unwrap_or(0);
        let outer: usize = data.shape.iter().take(self.axis).product();
        let row_len: usize = data.shape.iter().skip(self.axis + 1).product();
        let row_bytes = row_len * self.dtype.packing().1;
        let count = indices.len();
        for i in cx.worker.share(outer * count) {
            let out = y.ptr.wrapping_add(i * row_bytes);
            let at = i % count;
            let Some(row) = place(cx, indices, self.wide, at, rows, "rows to gather") else {
                // SAFETY: row i of y is this thread's and row_len elements long.
                unsafe { std::ptr::write_bytes(out, 0, row_bytes) };
                continue;
            };
            self.copy(cx, i / count * rows + row, row_len, out);
        }
    }
}

/// The index `at` as a place among `len`, negative ones from the end; `None`, which fails the run, where it is none.
fn place(
    cx: &RunContext<'_>,
    indices: View<'_>,
    wide: bool,
    at: usize,
    len: usize,
    what: &'static str,
) -> Option<usize> {
    // SAFETY: the caller's `at` is one of the indices, and no step writes them meanwhile.
    let index = unsafe {
        if wide {
            indices.ptr.cast::<i64>().wrapping_add(at).read()
        } else {
            i64::from(indices.ptr.cast::<i32>().wrapping_add(at).read())
        }
    };
    let place = if index < 0 { index.checked_add_unsigned(len as u64) } else { Some(index) };
    let place = place.and_then(|place| usize::try_from(place).ok()).filter(|place| *place < len);
    if place.is_none() {
        cx.fail(OpError::Index { what, index, len });
    }
    place
}

/// Takes single elements along one extent.
pub(crate) struct GatherElementsStep {
    pub(crate) data: ValueId,
    pub(crate) indices: ValueId,
    /// Whether the indices are i64, and not i32.
    pub(crate) wide: bool,
    pub(crate) axis: usize,
    pub(crate) y: ValueId,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub(crate) size: usize,
}

impl Step for GatherElementsStep {
    fn describe(&self) -> String {
        format!("GatherElements {} [{}] axis={} -> {}", self.data, self.indices, self.axis, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        match self.size {
            1 => self.elements::<u8>(cx),
            2 => self.elements::<u16>(cx),
            4 => self.elements::<u32>(cx),
            _ => self.elements::<u64>(cx),
        }
    }
}

impl GatherElementsStep {
    fn elements<T: Copy + Default>(&self, cx: &RunContext<'_>) {
        let (data, indices, y) = (cx.view(self.data), cx.view(self.indices), cx.view(self.y));
        let rank = data.shape.len();
        let stride = |axis: usize| data.shape[axis + 1..].iter().product::<usize>();
        let (len, along) = (data.shape[self.axis], stride(self.axis));
        let last = indices.shape[rank - 1];
        let (from, to) = (data.ptr.cast::<T>(), y.ptr.cast::<T>());
        let range = cx.worker.share(indices.len());
        let mut i = range.start;
        while i < range.end {
            // The place of a row's first element of data, but for the extent that is gathered along.
            let (mut rest, mut base) = (i / last, 0);
            for axis in (0..rank - 1).rev() {
                if axis != self.axis {
                    base += rest % indices.shape[axis] * stride(axis);
                }
                rest /= indices.shape[axis];
            }
            let end = ((i / last + 1) * last).min(range.end);
            for (at, column) in (i..end).zip(i % last..) {
                let element = match place(cx, indices, self.wide, at, len, "elements along an extent") {
                    Some(place) => {
                        let column = if self.axis == rank - 1 { 0 } else { column };
                        // SAFETY: the place is within its extent, and no other extent of the indices is larger than that of data; they are as
                        // many as the elements of y, of which this one is this thread's.
                        unsafe { from.wrapping_add(base + place * along + column).read() }
                    }
                    None => T::default(),
                };
                // SAFETY: as above.
                unsafe { to.wrapping_add(at).write(element) };
            }
            i = end;
        }
    }
}

impl GatherRows {
    fn copy(&self, cx: &RunContext<'_>, row: usize, row_len: usize, out: *mut u8) {
        if let Some(table) = self.quantized {
            return dequantize(cx, table, row, row_len, out.cast());
        }
        let Some(weight) = cx.weights.tables.get(&self.data).filter(|_| self.axis == 0) else {
            let bytes = row_len * self.from.packing().1;
            let source = cx.view(self.data).ptr.wrapping_add(row * bytes);
            if self.from == self.dtype {
                // SAFETY: the row is inside data, and row i of y is this thread's; they are different values.
                unsafe { std::ptr::copy_nonoverlapping(source, out, bytes) };
            } else if bytes > 0 {
                // SAFETY: as above.
                let source = unsafe { std::slice::from_raw_parts(source.cast_const(), bytes) };
                match core_tensor::decode_f32(self.from, source, row_len) {
                    // SAFETY: row i of y is this thread's, and has row_len f32.
                    Ok(floats) => unsafe { std::ptr::copy_nonoverlapping(floats.as_ptr().cast(), out, 4 * row_len) },
                    Err(error) => cx.fail(error.into()),
                }
            }
            return;
        };
        if self.read.fetch_add(1, Ordering::Relaxed) % RELEASE_ROWS == RELEASE_ROWS - 1 {
            weight.release_rows(0..weight.row_count());
        }
        // A table of more than two extents gathers several of the weight's rows.
        let inner = weight.row_len();
        let count = row_len.checked_div(inner).unwrap_or(0);
        let range = row * count..(row + 1) * count;
        let copied = weight.rows(range).map_err(|e| e.to_string()).and_then(|bytes| {
            let floats;
            let decoded: &[u8] = if self.dtype == weight.dtype() {
                &bytes
            } else {
                floats = core_tensor::decode_f32(weight.dtype(), &bytes, row_len).map_err(|e| e.to_string())?;
                bytemuck::cast_slice(&floats)
            };
            let row_bytes = row_len * self.dtype.packing().1;
            // SAFETY: row i of y is this thread's and row_bytes long, as is what was decoded.
            unsafe { std::ptr::copy_nonoverlapping(decoded.as_ptr(), out, decoded.len().min(row_bytes)) };
            Ok(())
        });
        if let Err(reason) = copied {
            cx.fail(OpError::Custom(reason));
        }
    }
}

/// One row of a table of bytes times its factor.
fn dequantize(cx: &RunContext<'_>, table: QuantizedWeight, row: usize, row_len: usize, out: *mut f32) {
    let Some(weight) = cx.weights.tables.get(&table.weight) else { return };
    let scales = cx.floats(table.scale);
    let scale = scales[if scales.len() == 1 { 0 } else { row }];
    let signed = weight.dtype() == DType::I8;
    let number = |byte: u8| if signed { i16::from(byte.cast_signed()) } else { i16::from(byte) };
    let zero = match table.zero.map(|zero| cx.view(zero)) {
        // SAFETY: there is one zero point, or one for each row.
        Some(zeros) => number(unsafe { zeros.ptr.add(if zeros.len() == 1 { 0 } else { row }).read() }),
        None => {
            if signed {
                0
            } else {
                128
            }
        }
    };
    match weight.rows(row..row + 1) {
        Ok(bytes) => {
            for (i, byte) in bytes.iter().take(row_len).enumerate() {
                let value = f32::from(number(*byte) - zero) * scale;
                // SAFETY: row i of the result is this thread's, and has row_len f32.
                unsafe { out.add(i).write(value) };
            }
        }
        Err(error) => cx.fail(OpError::Custom(error.to_string())),
    }
}
