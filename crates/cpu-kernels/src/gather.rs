//! Gathering rows.

use std::sync::atomic::{AtomicUsize, Ordering};

use core_tensor::op::OpError;
use core_tensor::{DType, ValueId};

use crate::program::{RunContext, Step};

/// Takes rows along the first extent, from a table of any weight dtype or from a value.
pub(crate) struct GatherRows {
    pub(crate) data: ValueId,
    /// Dtype of the data.
    pub(crate) from: DType,
    pub(crate) indices: ValueId,
    pub(crate) y: ValueId,
    pub(crate) dtype: DType,
    /// Rows read from the weight's file.
    pub(crate) read: AtomicUsize,
}

/// After so many rows the pages of a weight's file are let go: the system maps some around each that is read.
const RELEASE_ROWS: usize = 64;

impl Step for GatherRows {
    fn describe(&self) -> String {
        format!("Gather {} [{}] -> {}", self.data, self.indices, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let y = cx.view(self.y);
        let rows = cx.view(self.data).shape.first().copied().unwrap_or(0);
        let row_len: usize = cx.view(self.data).shape.get(1..).map_or(1, |rest| rest.iter().product());
        let indices = cx.ints(self.indices);
        for i in cx.worker.share(indices.len()) {
            // All dtypes that Gather gives have four bytes.
            let out = y.ptr.wrapping_add(i * row_len * 4);
            let Some(row) = usize::try_from(indices[i]).ok().filter(|row| *row < rows) else {
                cx.fail(OpError::Index { what: "rows to gather", index: i64::from(indices[i]), len: rows });
                // SAFETY: row i of y is this thread's and row_len elements long.
                unsafe { std::ptr::write_bytes(out, 0, row_len * 4) };
                continue;
            };
            self.copy(cx, row, row_len, out);
        }
    }
}

impl GatherRows {
    fn copy(&self, cx: &RunContext<'_>, row: usize, row_len: usize, out: *mut u8) {
        let Some(weight) = cx.weights.tables.get(&self.data) else {
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
            let decoded = if self.dtype == DType::I32 {
                bytes.to_vec()
            } else {
                let floats = core_tensor::decode_f32(weight.dtype(), &bytes, row_len).map_err(|e| e.to_string())?;
                bytemuck::cast_slice(&floats).to_vec()
            };
            // SAFETY: row i of y is this thread's and 4 * row_len bytes long, as is what was decoded.
            unsafe { std::ptr::copy_nonoverlapping(decoded.as_ptr(), out, decoded.len().min(row_len * 4)) };
            Ok(())
        });
        if let Err(reason) = copied {
            cx.fail(OpError::Custom(reason));
        }
    }
}
