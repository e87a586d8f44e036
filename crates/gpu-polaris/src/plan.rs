//! A program before it is bound to memory: dispatches over named memory.

use std::collections::BTreeMap;

use core_tensor::{MemoryPlan, StateId, ValueId};

use crate::barrier::{Span, Touched};
use crate::step::Grid;
use crate::weights::Extent;

/// Memory that a dispatch binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// A value that a node computes; the one whose buffer it is.
    Value(ValueId),
    /// A buffer that only the backend knows.
    Scratch(usize),
    /// Weights.
    Weights(Extent),
    /// A state's rows.
    State(StateId),
    /// The scales of a state of blocks.
    StateScales(StateId),
    /// An input of the run, by its number.
    Input(usize),
    /// Cosines and sines of the step, by number of the table.
    Rope(usize),
    /// What kernels tell the host.
    Status,
    /// An output, by its number, on its way to the host.
    Output(usize),
    /// Nothing: a binding that this dispatch does not use, but the shader has.
    Unused,
}

/// What a dispatch does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    ReadWrite,
}

/// One binding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    pub(crate) binding: u32,
    pub(crate) memory: Memory,
    pub(crate) access: Access,
}

/// One kernel and what it runs on.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    /// For people.
    pub(crate) label: String,
    pub(crate) shader: String,
    /// Specialization constants; 0 is the size of a workgroup.
    pub(crate) constants: Vec<(u32, u32)>,
    /// Bindings from 1 on; 0 is the step's values.
    pub(crate) operands: Vec<Operand>,
    pub(crate) push: Vec<u32>,
    pub(crate) grid: Grid,
    /// Multiply-adds, roughly, at the bounds: what submissions are split by.
    pub(crate) work: f64,
}

impl Dispatch {
    pub(crate) fn new(label: &str, shader: impl Into<String>, threads: u32) -> Dispatch {
        Dispatch {
            label: label.to_owned(),
            shader: shader.into(),
            constants: vec![(0, threads)],
            operands: Vec::new(),
            push: Vec::new(),
            grid: Grid::Fixed([1, 1, 1]),
            work: 0.0,
        }
    }

    pub(crate) fn constant(mut self, id: u32, value: u32) -> Dispatch {
        self.constants.push((id, value));
        self
    }

    pub(crate) fn bind(mut self, binding: u32, memory: Memory, access: Access) -> Dispatch {
        self.operands.push(Operand { binding, memory, access });
        self
    }

    pub(crate) fn read(self, binding: u32, memory: Memory) -> Dispatch {
        self.bind(binding, memory, Access::Read)
    }

    pub(crate) fn write(self, binding: u32, memory: Memory) -> Dispatch {
        self.bind(binding, memory, Access::Write)
    }

    pub(crate) fn push(mut self, words: impl IntoIterator<Item = u32>) -> Dispatch {
        self.push.extend(words);
        self
    }

    pub(crate) fn grid(mut self, grid: Grid) -> Dispatch {
        self.grid = grid;
        self
    }

    pub(crate) fn work(mut self, work: f64) -> Dispatch {
        self.work = work;
        self
    }
}

/// Offset and length of a buffer in the arena, without the guards around it; `None` for memory that lies elsewhere.
pub(crate) fn place(
    places: &BTreeMap<(bool, usize), usize>,
    plan: &MemoryPlan,
    guard: usize,
    memory: Memory,
) -> Option<(u64, u64)> {
    let key = match memory {
        Memory::Value(id) => (false, id.index()),
        Memory::Scratch(i) => (true, i),
        _ => return None,
    };
    let buffer = *places.get(&key)?;
    Some(((plan.offsets[buffer] + guard) as u64, (plan.buffers[buffer].bytes - 2 * guard) as u64))
}

/// What a dispatch touches, for the placing of barriers. Weights, the step's values and inputs are only read: nothing conflicts there.
pub(crate) fn touched(dispatch: &Dispatch, place: impl Fn(Memory) -> Option<(u64, u64)>) -> Touched {
    let mut touched = Touched::default();
    for Operand { memory, access, .. } in &dispatch.operands {
        let span = match memory {
            Memory::Value(_) | Memory::Scratch(_) => match place(*memory) {
                Some((offset, len)) => Span { space: 0, bytes: offset..offset + len },
                None => continue,
            },
            Memory::Status => Span { space: 1, bytes: 0..1 },
            Memory::Output(i) => Span { space: 2, bytes: *i as u64..*i as u64 + 1 },
            Memory::State(id) | Memory::StateScales(id) => {
                Span { space: 3, bytes: id.index() as u64..id.index() as u64 + 1 }
            }
            Memory::Weights(_) | Memory::Input(_) | Memory::Rope(_) | Memory::Unused => continue,
        };
        if matches!(access, Access::Read | Access::ReadWrite) {
            touched.reads.push(span.clone());
        }
        // The status is changed by atomic operations only, in any order.
        if matches!(access, Access::Write | Access::ReadWrite) && *memory != Memory::Status {
            touched.writes.push(span);
        }
    }
    touched
}
