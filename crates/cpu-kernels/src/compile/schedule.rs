//! Barriers between steps, and the memory plan.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use core_tensor::{BackendError, Bindings, BufferRequest, Graph, MemoryPlan, ValueId, ValueSource};

use super::{Deal, Draft, Memory, Scratch};
use crate::program::{Place, Scheduled, bound_bytes};

/// What happened to memory since the last barrier.
#[derive(Clone, Copy)]
struct Touch {
    writes: bool,
    deal: Deal,
}

/// Sets the barriers, and plans the arena by the phases between them. (That some steps wait for all threads inside does not count: they do so only
/// where there is more than one row.)
#[allow(clippy::type_complexity)]
pub(super) fn schedule(
    graph: &Graph,
    bounds: &Bindings,
    root: &[ValueId],
    drafts: Vec<Draft>,
    scratch: &[Scratch],
) -> Result<(Vec<Scheduled>, Vec<Place>, MemoryPlan), BackendError> {
    let mut steps = Vec::new();
    let mut pending: HashMap<Memory, Vec<Touch>> = HashMap::new();
    let mut phase = 0;
    let mut life: HashMap<Memory, (usize, usize)> = HashMap::new();
    for draft in drafts {
        let conflict = |memory: &Memory, writing: bool| {
            // A state's rows are dealt by the tokens of each step, and two steps may name the same row.
            let state = matches!(memory, Memory::State(_));
            let apart = |touch: &Touch| state || touch.deal == Deal::Own || touch.deal != draft.deal;
            let touches = pending.get(memory).map_or(&[][..], Vec::as_slice);
            touches.iter().any(|touch| (touch.writes || writing) && apart(touch))
        };
        let barrier = draft.reads.iter().any(|m| conflict(m, false)) || draft.writes.iter().any(|m| conflict(m, true));
        if barrier {
            pending.clear();
            phase += 1;
        }
        for (memories, writes) in [(&draft.reads, false), (&draft.writes, true)] {
            for memory in memories {
                pending.entry(*memory).or_default().push(Touch { writes, deal: draft.deal });
                let life = life.entry(*memory).or_insert((phase, phase));
                life.1 = phase;
            }
        }
        let mut bytes = 0u64;
        for memory in draft.reads.iter().chain(&draft.writes) {
            if let Memory::Value(id) = memory
                && let Some((dtype, shape)) = graph.tensor_type(*id)
            {
                bytes += bound_bytes(dtype, shape, bounds)? as u64;
            }
        }
        steps.push(Scheduled {
            barrier,
            step: draft.step,
            bytes,
            runs: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            worked: AtomicU64::new(0),
        });
    }
    // Outputs are read when everything is done.
    for output in graph.outputs() {
        if let Some(life) = life.get_mut(&Memory::Value(root[output.index()])) {
            life.1 = phase + 1;
        }
    }
    let mut requests = Vec::new();
    let mut buffers: HashMap<Memory, usize> = HashMap::new();
    // Scratch first: steps name it by number.
    for (i, scratch) in scratch.iter().enumerate() {
        let (first_step, last_step) = life.get(&Memory::Scratch(i)).copied().unwrap_or((0, phase));
        requests.push(BufferRequest { name: scratch.name.clone(), bytes: scratch.bytes, first_step, last_step });
    }
    let mut places = vec![Place::None; graph.values().len()];
    for id in graph.value_ids() {
        let root = root[id.index()];
        let Some((dtype, shape)) = graph.tensor_type(root) else { continue };
        places[id.index()] = match graph.value(root).source {
            ValueSource::Input => {
                graph.inputs().iter().position(|input| *input == root).map_or(Place::None, Place::Input)
            }
            ValueSource::Weight(_) => Place::Weight(root),
            ValueSource::Node => {
                let memory = Memory::Value(root);
                let Some((first_step, last_step)) = life.get(&memory).copied() else { continue };
                if let Some(buffer) = buffers.get(&memory) {
                    Place::Arena(*buffer)
                } else {
                    let bytes = bound_bytes(dtype, shape, bounds)?;
                    requests.push(BufferRequest { name: graph.value(root).name.clone(), bytes, first_step, last_step });
                    buffers.insert(memory, requests.len() - 1);
                    Place::Arena(requests.len() - 1)
                }
            }
        };
    }
    Ok((steps, places, MemoryPlan::new(requests, 64)))
}
