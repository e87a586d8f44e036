//! Element-wise operators on integers, truth values and choices: one loop for each type, rows of the result at a time.

use std::ops::Range;

use core_tensor::op::Binary;
use core_tensor::{DType, ValueId};

use crate::program::{RunContext, Step, View};

/// Whether [`TypedStep`] has a loop for an operator on a dtype.
pub(crate) fn has_loop(op: Binary, dtype: DType) -> bool {
    match op {
        Binary::Add | Binary::Sub | Binary::Mul | Binary::Min | Binary::Max => {
            matches!(dtype, DType::I64 | DType::I32)
        }
        Binary::And | Binary::Or | Binary::Xor => dtype == DType::Bool,
        Binary::Equal => matches!(dtype, DType::F32 | DType::I64 | DType::I32 | DType::Bool),
        op if op.is_comparison() => matches!(dtype, DType::F32 | DType::I64 | DType::I32),
        _ => false,
    }
}

/// Whether elements are converted by a loop.
pub(crate) fn converts(from: DType, to: DType) -> bool {
    use DType::{Bool, F32, I32, I64};
    matches!((from, to), (I64 | I32 | Bool, F32) | (I64, I32 | Bool) | (I32, I64 | Bool) | (Bool, I64 | I32))
}

pub(crate) enum TypedStep {
    /// `op(a, b)`, broadcast.
    Binary { op: Binary, dtype: DType, a: ValueId, b: ValueId, y: ValueId },
    /// `a` where the condition holds, else `b`, broadcast; elements of so many bytes.
    Where { condition: ValueId, a: ValueId, b: ValueId, y: ValueId, size: usize },
    /// Another dtype.
    Convert { x: ValueId, from: DType, y: ValueId, to: DType },
}

impl Step for TypedStep {
    fn describe(&self) -> String {
        match self {
            TypedStep::Binary { op, dtype, a, b, y } => format!("{op:?} {dtype} {a} {b} -> {y}"),
            TypedStep::Where { condition, a, b, y, .. } => format!("Where {condition} {a} {b} -> {y}"),
            TypedStep::Convert { x, y, to, .. } => format!("Cast {to} {x} -> {y}"),
        }
    }

    fn run(&self, cx: &RunContext<'_>) {
        match *self {
            TypedStep::Binary { op, dtype, a, b, y } => {
                let (a, b, y) = (cx.view(a), cx.view(b), cx.view(y));
                let rows = cx.worker.share(y.rows());
                match dtype {
                    DType::I64 => integers::<i64>(op, a, b, y, rows),
                    DType::I32 => integers::<i32>(op, a, b, y, rows),
                    DType::F32 => compare::<f32>(op, a, b, y, rows),
                    _ => truths(op, a, b, y, rows),
                }
            }
            TypedStep::Where { condition, a, b, y, size } => {
                let views = [cx.view(condition), cx.view(a), cx.view(b)];
                let y = cx.view(y);
                let rows = cx.worker.share(y.rows());
                match size {
                    1 => choose::<u8>(views, y, rows),
                    2 => choose::<u16>(views, y, rows),
                    4 => choose::<u32>(views, y, rows),
                    _ => choose::<u64>(views, y, rows),
                }
            }
            TypedStep::Convert { x, from, y, to } => {
                let (x, y) = (cx.view(x), cx.view(y));
                let share = cx.worker.share(y.len());
                use DType::{Bool, F32, I32, I64};
                match (from, to) {
                    (I64, F32) => convert(x, y, share, |x: i64| x as f32),
                    (I32, F32) => convert(x, y, share, |x: i32| x as f32),
                    (Bool, F32) => convert(x, y, share, |x: u8| f32::from(u8::from(x != 0))),
                    (I64, I32) => convert(x, y, share, |x: i64| x as i32),
                    (I64, Bool) => convert(x, y, share, |x: i64| u8::from(x != 0)),
                    (I32, I64) => convert(x, y, share, |x: i32| i64::from(x)),
                    (I32, Bool) => convert(x, y, share, |x: i32| u8::from(x != 0)),
                    (Bool, I64) => convert(x, y, share, |x: u8| i64::from(x != 0)),
                    _ => convert(x, y, share, |x: u8| i32::from(x != 0)),
                }
            }
        }
    }
}

/// The integers that have loops.
trait Integer: Copy + PartialOrd {
    fn arithmetic(op: Binary) -> Option<fn(Self, Self) -> Self>;
}

macro_rules! integer {
    ($t:ty) => {
        impl Integer for $t {
            fn arithmetic(op: Binary) -> Option<fn($t, $t) -> $t> {
                match op {
                    Binary::Add => Some(<$t>::wrapping_add),
                    Binary::Sub => Some(<$t>::wrapping_sub),
                    Binary::Mul => Some(<$t>::wrapping_mul),
                    Binary::Min => Some(Ord::min),
                    Binary::Max => Some(Ord::max),
                    _ => None,
                }
            }
        }
    };
}

integer!(i32);
integer!(i64);

fn integers<T: Integer>(op: Binary, a: View<'_>, b: View<'_>, y: View<'_>, rows: Range<usize>) {
    match T::arithmetic(op) {
        Some(f) => zip(a, b, y, rows, f),
        None => compare::<T>(op, a, b, y, rows),
    }
}

fn compare<T: Copy + PartialOrd>(op: Binary, a: View<'_>, b: View<'_>, y: View<'_>, rows: Range<usize>) {
    match op {
        Binary::Equal => zip(a, b, y, rows, |a: T, b: T| u8::from(a == b)),
        Binary::Less => zip(a, b, y, rows, |a: T, b: T| u8::from(a < b)),
        Binary::LessOrEqual => zip(a, b, y, rows, |a: T, b: T| u8::from(a <= b)),
        Binary::Greater => zip(a, b, y, rows, |a: T, b: T| u8::from(a > b)),
        _ => zip(a, b, y, rows, |a: T, b: T| u8::from(a >= b)),
    }
}

fn truths(op: Binary, a: View<'_>, b: View<'_>, y: View<'_>, rows: Range<usize>) {
    match op {
        Binary::And => zip(a, b, y, rows, |a: u8, b: u8| a & b),
        Binary::Or => zip(a, b, y, rows, |a: u8, b: u8| a | b),
        Binary::Xor => zip(a, b, y, rows, |a: u8, b: u8| a ^ b),
        _ => zip(a, b, y, rows, |a: u8, b: u8| u8::from(a == b)),
    }
}

/// Where an operand's elements for a row of the result lie: the first one, and the distance from one to the next.
fn row<T>(operand: View<'_>, result: View<'_>, row: usize) -> (*const T, usize) {
    let (at, advances) = super::operand(operand.shape, result.shape, row);
    (operand.ptr.cast_const().cast::<T>().wrapping_add(at), usize::from(advances))
}

fn zip<T: Copy, U>(a: View<'_>, b: View<'_>, y: View<'_>, rows: Range<usize>, f: impl Fn(T, T) -> U) {
    let n = y.cols();
    for i in rows {
        let ((a, a_step), (b, b_step)) = (row::<T>(a, y, i), row::<T>(b, y, i));
        let y = y.ptr.cast::<U>().wrapping_add(i * n);
        for j in 0..n {
            // SAFETY: both operands broadcast to the result, whose row is this thread's; all are aligned for their elements.
            unsafe { y.add(j).write(f(*a.add(j * a_step), *b.add(j * b_step))) };
        }
    }
}

fn choose<T: Copy>([condition, a, b]: [View<'_>; 3], y: View<'_>, rows: Range<usize>) {
    let n = y.cols();
    for i in rows {
        let (c, c_step) = row::<u8>(condition, y, i);
        let ((a, a_step), (b, b_step)) = (row::<T>(a, y, i), row::<T>(b, y, i));
        let y = y.ptr.cast::<T>().wrapping_add(i * n);
        for j in 0..n {
            // SAFETY: as in `zip`.
            unsafe { y.add(j).write(if *c.add(j * c_step) != 0 { *a.add(j * a_step) } else { *b.add(j * b_step) }) };
        }
    }
}

fn convert<T: Copy, U>(x: View<'_>, y: View<'_>, share: Range<usize>, f: impl Fn(T) -> U) {
    let (x, y) = (x.ptr.cast_const().cast::<T>(), y.ptr.cast::<U>());
    for i in share {
        // SAFETY: both hold as many elements, and the share is this thread's.
        unsafe { y.add(i).write(f(*x.add(i))) };
    }
}
