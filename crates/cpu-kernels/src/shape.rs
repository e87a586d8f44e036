//! Operators that move elements, and those that run on one thread: casts and users' own.

use std::sync::Arc;

use core_tensor::op::{CustomOp, Op, OpError};
use core_tensor::{DType, Tensor, ValueId};

use crate::program::{RunContext, Step};

/// Moves runs of bytes: what Concat and a Reshape that cannot alias come down to.
pub(crate) enum Move {
    /// Inputs joined along extent `axis`.
    Concat { xs: Vec<ValueId>, y: ValueId, axis: usize, size: usize },
    /// The same bytes.
    Copy { x: ValueId, y: ValueId, size: usize },
}

impl Step for Move {
    fn describe(&self) -> String {
        match self {
            Move::Concat { xs, y, axis, .. } => format!("Concat axis={axis} {xs:?} -> {y}"),
            Move::Copy { x, y, .. } => format!("Copy {x} -> {y}"),
        }
    }

    fn run(&self, cx: &RunContext<'_>) {
        // SAFETY: source and target runs are inside their values, which are different ones, and each thread writes its own share
        // of the output.
        let copy = |from: *const u8, to: *mut u8, bytes| unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
        match self {
            Move::Copy { x, y, size } => {
                let (x, y) = (cx.view(*x), cx.view(*y));
                let share = cx.worker.share(y.len());
                copy(
                    x.ptr.wrapping_add(share.start * size),
                    y.ptr.wrapping_add(share.start * size),
                    share.len() * size,
                );
            }
            Move::Concat { xs, y, axis, size } => {
                let y = cx.view(*y);
                let inner: usize = y.shape[axis + 1..].iter().product::<usize>() * size;
                let outer: usize = y.shape[..*axis].iter().product();
                // Bytes of the result, wherever they come from, in equal shares.
                let row = y.shape[*axis] * inner;
                let mut share = cx.worker.share(outer * row);
                while !share.is_empty() {
                    let (i, mut first) = (share.start / row, 0);
                    for x in xs {
                        let x = cx.view(*x);
                        let run = x.shape[*axis] * inner;
                        let at = i * row + first;
                        let part = share.start.max(at)..share.end.min(at + run);
                        if !part.is_empty() {
                            let from = x.ptr.wrapping_add(i * run + part.start - at);
                            copy(from, y.ptr.wrapping_add(part.start), part.len());
                        }
                        first += run;
                    }
                    share.start = ((i + 1) * row).min(share.end);
                }
            }
        }
    }
}

/// Steps that one thread runs on whole tensors.
pub(crate) enum Whole {
    /// Converts the element type.
    Cast { x: ValueId, from: DType, y: ValueId, to: DType },
    /// An operator without a kernel, by its reference implementation.
    Reference { op: Op, inputs: Vec<Option<(ValueId, DType)>>, outputs: Vec<(ValueId, DType)> },
    /// A user's operator.
    Custom { op: Arc<dyn CustomOp>, inputs: Vec<(ValueId, DType)>, outputs: Vec<(ValueId, DType)> },
}

impl Step for Whole {
    fn describe(&self) -> String {
        match self {
            Whole::Cast { x, y, to, .. } => format!("Cast {to} {x} -> {y}"),
            Whole::Reference { op, outputs, .. } => {
                let outputs: Vec<String> = outputs.iter().map(|(id, _)| id.to_string()).collect();
                format!("Reference {}{} -> {}", op.name(), op.attributes(), outputs.join(", "))
            }
            Whole::Custom { op, .. } => format!("Custom {}", op.name()),
        }
    }

    fn run(&self, cx: &RunContext<'_>) {
        if cx.worker.index != 0 {
            return;
        }
        let result = match self {
            Whole::Cast { x, from, y, to } => cast(cx, *x, *from, *y, *to),
            Whole::Reference { op, inputs, outputs } => {
                let inputs = inputs.iter().map(|input| input.map(|(id, dtype)| load(cx, id, dtype)).transpose());
                inputs.collect::<Result<Vec<_>, _>>().and_then(|inputs| {
                    guarded(cx, op.name(), outputs, || core_tensor::evaluate(op, &inputs, cx.bindings))
                })
            }
            Whole::Custom { op, inputs, outputs } => custom(cx, &**op, inputs, outputs),
        };
        if let Err(error) = result {
            cx.fail(error);
        }
    }
}

fn load(cx: &RunContext<'_>, id: ValueId, dtype: DType) -> Result<Tensor, OpError> {
    let view = cx.view(id);
    let bytes = core_tensor::byte_len(dtype, view.shape)?;
    let source = if bytes == 0 {
        &[]
    } else {
        // SAFETY: the value is that long, and nobody writes it in this step.
        unsafe { std::slice::from_raw_parts(view.ptr.cast_const(), bytes) }
    };
    Ok(Tensor::from_bytes(dtype, view.shape, source)?)
}

fn store(cx: &RunContext<'_>, id: ValueId, tensor: &Tensor) {
    let view = cx.view(id);
    // SAFETY: the caller saw to it that the tensor has the value's dtype and shape.
    unsafe { std::ptr::copy_nonoverlapping(tensor.bytes().as_ptr(), view.ptr, tensor.bytes().len()) };
}

fn cast(cx: &RunContext<'_>, x: ValueId, from: DType, y: ValueId, to: DType) -> Result<(), OpError> {
    let source = load(cx, x, from)?;
    let values = source.to_f32()?;
    let shape = source.shape();
    let result = match to {
        DType::F16 => Tensor::from_slice(shape, &values.iter().map(|x| half::f16::from_f32(*x)).collect::<Vec<_>>()),
        DType::BF16 => Tensor::from_slice(shape, &values.iter().map(|x| half::bf16::from_f32(*x)).collect::<Vec<_>>()),
        DType::I32 => Tensor::from_slice(shape, &values.iter().map(|x| *x as i32).collect::<Vec<_>>()),
        _ => Tensor::from_slice(shape, &values),
    }?;
    store(cx, y, &result);
    Ok(())
}

fn custom(
    cx: &RunContext<'_>,
    op: &dyn CustomOp,
    inputs: &[(ValueId, DType)],
    outputs: &[(ValueId, DType)],
) -> Result<(), OpError> {
    let inputs: Vec<Tensor> = inputs.iter().map(|(id, dtype)| load(cx, *id, *dtype)).collect::<Result<_, _>>()?;
    guarded(cx, op.name(), outputs, || op.run(&inputs))
}

/// Runs a function that gives whole tensors, and stores these.
fn guarded(
    cx: &RunContext<'_>,
    name: &str,
    outputs: &[(ValueId, DType)],
    run: impl FnOnce() -> Result<Vec<Tensor>, OpError>,
) -> Result<(), OpError> {
    // Other threads may wait for this one: a panic must not keep it from the next barrier.
    let run = std::panic::AssertUnwindSafe(run);
    let results = std::panic::catch_unwind(run).unwrap_or_else(|_| Err(OpError::Custom(format!("{name} panicked"))))?;
    for (i, (id, dtype)) in outputs.iter().enumerate() {
        let expected = cx.view(*id).shape;
        match results.get(i) {
            Some(tensor) if tensor.dtype() == *dtype && tensor.shape() == expected => store(cx, *id, tensor),
            other => {
                return Err(OpError::Custom(format!("{name} gave {other:?}, {dtype} {expected:?} expected")));
            }
        }
    }
    Ok(())
}
