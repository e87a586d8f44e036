//! Writing states.

use core_tensor::{BlockFormat, DType, StateId, StateLayout, ValueId};

use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// Address of one head of one row of a state.
pub(crate) fn row_ptr(layout: &StateLayout, slot: usize, head: usize, position: usize) -> *mut u8 {
    let row = if layout.window.is_some() { position % layout.capacity } else { position };
    layout.base.wrapping_add(((slot * layout.heads + head) * layout.capacity + row) * layout.head_bytes)
}

/// Writes rows into a state. Slots and positions were checked before the run.
pub(crate) struct WriteState {
    pub(crate) state: StateId,
    pub(crate) rows: ValueId,
    pub(crate) positions: ValueId,
    pub(crate) slots: ValueId,
}

impl Step for WriteState {
    fn describe(&self) -> String {
        format!("StateWrite {} <- {}", self.state, self.rows)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let layout = cx.state(self.state);
        let rows = cx.view(self.rows);
        let (positions, slots) = (cx.ints(self.positions), cx.ints(self.slots));
        for unit in cx.worker.share(positions.len() * layout.heads) {
            let (token, head) = (unit / layout.heads, unit % layout.heads);
            let (slot, position) = (slots[token] as usize, positions[token] as usize);
            cx.level.run(Store {
                x: rows.f32().wrapping_add(unit * layout.head_dim),
                out: row_ptr(&layout, slot, head, position),
                n: layout.head_dim,
                dtype: layout.dtype,
            });
        }
    }
}

struct Store {
    x: *const f32,
    out: *mut u8,
    n: usize,
    dtype: DType,
}

impl Kernel for Store {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let _ = s;
        // SAFETY: x holds n elements, out the bytes that n elements of the dtype take.
        unsafe {
            match self.dtype {
                DType::F16 => {
                    for i in 0..self.n {
                        let value = half::f16::from_f32(*self.x.add(i));
                        self.out.add(2 * i).cast::<[u8; 2]>().write(value.to_le_bytes());
                    }
                }
                DType::Block(BlockFormat::Q8_0) => {
                    let x = std::slice::from_raw_parts(self.x, self.n);
                    let out = std::slice::from_raw_parts_mut(self.out, self.n / 32 * 34);
                    // The lengths are whole blocks: the session checked it when it was made.
                    let _ = core_tensor::block::encode_q8_0(x, out);
                }
                _ => std::ptr::copy_nonoverlapping(self.x.cast::<u8>(), self.out, self.n * 4),
            }
        }
    }
}
