//! How fast a model will run on a card that is not at hand, and whether it fits.
//!
//! The compiler plans a program for the card's limits, just as it does for a device; nothing is allocated and no weight is read. Each dispatch is then
//! given the longest of three times:
//!
//! - **memory**: bytes of weights, states and intermediate results over the memory bus, at the part of its bandwidth that a card reaches (0.858). Weights
//!   that do not stay in the 2 MB cache are read again for every tile of columns;
//! - **vector**: clocks of the vector units in the main loop, from the instructions that Mesa's RADV makes of the shader for Polaris
//!   (`gcn4-figures.json`), times its trips, at the part of the clocks in which vector units work (0.755). Where there are few waves, the busiest SIMD
//!   counts; where shared memory takes longer than the vector units, its clocks count;
//! - **latency**: the course of a single wave, which issues one instruction every four clocks and waits for memory once per trip (450 clocks).
//!
//! Dispatches between two barriers share the card. To each dispatch 1 µs is added, to each barrier 2 µs, to each step 100 µs of the host's.
//!
//! The two parts are each fitted to *one* published measurement of llama.cpp on an RX 470; `model.rs` names them. Latency and what dispatches, barriers and steps
//! cost are assumptions. The clock is taken as the mean of base and boost, for cards lower it under load: users saw an RX 470 fall from 1206 to 750 MHz in
//! mat-vecs, and to 1100 with a higher power limit. This choice was made with the four reports on whole models in view; [`Prediction::range`] is from the boost
//! clock to the base clock.
//!
//! [`validate`] feeds the same arithmetic with llama.cpp's shaders and compares it with what users measured. How far that is off is the least
//! uncertainty that a prediction has; a kernel that RADV compiles to other instructions than it runs well with is not seen at all.
//!
//! ```
//! use gpu_polaris::estimate::{Card, validate};
//!
//! let card = Card::by_name("RX 580").expect("a card that is known");
//! assert_eq!(card.compute_units, 36);
//! assert!(validate().iter().all(|check| check.measured > 0.0));
//! ```

mod card;
mod figures;
mod llama_cpp;
mod model;
mod work;

use std::collections::BTreeSet;
use std::sync::Arc;

use core_tensor::{BackendError, Bindings, Graph};

use crate::barrier::{Touched, barriers};
use crate::compile::{self, Compiled, roles};
use crate::plan::{place, touched};
use crate::state::StatePlace;
use crate::weights::WeightPlan;

pub use card::Card;
pub use llama_cpp::{Check, Quantity, validate};
pub use model::Bound;
use model::{BARRIER, DISPATCH, Model, STEP, Time, Work};
use work::{Rows, Works};

/// Plans programs for a card and predicts their time.
#[derive(Debug)]
pub struct Estimator {
    card: Card,
    graph: Arc<Graph>,
    weights: WeightPlan,
}

/// Bytes on the card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Weights, repacked.
    pub weights: u64,
    /// States of one sequence.
    pub states: u64,
    /// Intermediate results and what the host writes for each step.
    pub working: u64,
}

impl Memory {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.states).saturating_add(self.working)
    }
}

/// How long a step will take.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Seconds of a step.
    pub seconds: f64,
    /// Seconds at the card's boost clock and at its base clock.
    pub range: (f64, f64),
    /// Dispatches.
    pub dispatches: usize,
    /// Barriers between them.
    pub barriers: usize,
    /// Bytes over the memory bus.
    pub bytes: f64,
    /// Seconds that go into starting dispatches, barriers and the host.
    pub overhead: f64,
    /// The kernels, those that take longest first.
    pub kernels: Vec<Kernel>,
    /// Shaders without figures, for which a default stands.
    pub missing: Vec<String>,
    /// Bytes of intermediate results and of what the host writes for each step.
    pub working: u64,
}

/// All dispatches of one shader.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// The shader.
    pub shader: String,
    /// Its dispatches in a step.
    pub dispatches: usize,
    /// Their seconds, without what starting them costs.
    pub seconds: f64,
    /// Their bytes over the memory bus.
    pub bytes: f64,
    /// Instructions of the vector unit, in clocks of one SIMD.
    pub vector_clocks: f64,
    /// What bounds most of their time.
    pub bound: Bound,
}

impl Estimator {
    /// Plans where a graph's weights would lie on a card. They are not read.
    ///
    /// # Errors
    /// When a weight cannot be held.
    pub fn new(card: Card, graph: &Arc<Graph>) -> Result<Estimator, BackendError> {
        let weights = WeightPlan::new(card.title, &card.target().limits, graph)?;
        Ok(Estimator { card, graph: graph.clone(), weights })
    }

    /// The same for programs that give only some of the graph's outputs ([`Graph::with_outputs`]).
    #[must_use]
    pub fn with_outputs(mut self, outputs: &[usize]) -> Estimator {
        self.graph = self.graph.with_outputs(outputs);
        self
    }

    /// Predicts a step of `rows` rows after `past` positions of the sequence; `bounds` are the extents that it is compiled for.
    ///
    /// # Errors
    /// When a node has no kernel, a symbol no bound, or a value does not fit the card's limits.
    pub fn step(&self, bounds: &Bindings, rows: usize, past: usize) -> Result<Prediction, BackendError> {
        let compiled = compile::plan(self.card.target(), &self.graph, &self.weights, bounds, false)?;
        let works = Works::new(&self.graph, &compiled, figures::committed(), bounds, Rows { rows, past })?;
        Ok(predict(self.card, &compiled, &works))
    }

    /// Memory for programs that were predicted, with the states that `bounds` ask for.
    ///
    /// # Errors
    /// When a state cannot be held.
    pub fn memory(&self, bounds: &Bindings, steps: &[&Prediction]) -> Result<Memory, BackendError> {
        let mut states = 0u64;
        for (id, decl) in self.graph.state_ids().zip(self.graph.states()) {
            let unsupported = |reason: String| core_tensor::StateError::Unsupported { name: decl.name.clone(), reason };
            let capacity = decl.capacity.eval(bounds).map_err(core_tensor::GraphError::from)?;
            let place = StatePlace::new(decl, capacity, roles(&self.graph, id).0).map_err(unsupported)?;
            let rows = place.slot_bytes().ok_or_else(|| unsupported("its size overflows".into()))? as u64;
            let most = self.card.target().limits.max_range;
            if rows > most {
                return Err(unsupported(format!("its {rows} bytes do not fit a range of {most}")).into());
            }
            states = states.saturating_add(rows).saturating_add(place.scale_bytes() as u64);
        }
        let working = steps.iter().map(|step| step.working).max().unwrap_or(0);
        Ok(Memory { weights: self.weights.arenas.iter().sum(), states, working })
    }
}

/// The compiler and its version whose instructions are counted.
#[must_use]
pub fn figures_from() -> &'static str {
    &figures::committed().driver
}

fn predict(card: Card, compiled: &Compiled, works: &Works<'_>) -> Prediction {
    let spans = |memory| place(&compiled.places, &compiled.plan, compiled.guard, memory);
    let touched: Vec<Touched> = compiled.dispatches.iter().map(|dispatch| touched(dispatch, spans)).collect();
    let barriers = barriers(touched.iter());
    let mut missing = BTreeSet::new();
    let mut work = Vec::with_capacity(compiled.dispatches.len());
    for dispatch in &compiled.dispatches {
        let (one, without_figures) = works.of(dispatch);
        work.push(one);
        if without_figures {
            missing.insert(dispatch.shader.clone());
        }
    }
    let mut starts: Vec<usize> = (0..work.len()).filter(|i| *i == 0 || barriers[*i]).collect();
    starts.push(work.len());
    let phases: Vec<&[Work]> = starts.windows(2).map(|ends| &work[ends[0]..ends[1]]).collect();
    let count = barriers.iter().filter(|barrier| **barrier).count();
    let overhead = work.len() as f64 * DISPATCH + count as f64 * BARRIER + STEP;
    let at = |mhz: f64| {
        let model = Model::new(card, mhz);
        phases.iter().map(|phase| model.together(phase).seconds).sum::<f64>() + overhead
    };
    let model = Model::new(card, sustained(&card));
    // What a phase takes is shared out among its kernels as they would take alone.
    let mut kernels: Vec<Kernel> = Vec::new();
    let mut first = 0;
    for phase in &phases {
        let alone: Vec<Time> = phase.iter().map(|work| model.kernel(work)).collect();
        let sum: f64 = alone.iter().map(|time| time.seconds).sum();
        let scale = if sum > 0.0 { model.together(phase).seconds / sum } else { 0.0 };
        for ((work, time), dispatch) in phase.iter().zip(alone).zip(&compiled.dispatches[first..]) {
            add(&mut kernels, &dispatch.shader, work, Time { seconds: time.seconds * scale, ..time });
        }
        first += phase.len();
    }
    kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let ropes: usize = compiled.ropes.iter().map(|table| table.bytes).sum();
    Prediction {
        seconds: at(sustained(&card)),
        range: (at(card.boost_mhz), at(card.base_mhz)),
        dispatches: work.len(),
        barriers: count,
        bytes: work.iter().map(|work| work.bytes).sum(),
        overhead,
        kernels,
        missing: missing.into_iter().collect(),
        working: (compiled.plan.arena_bytes + ropes + compiled.values.len() * 4) as u64,
    }
}

/// The clock that a card is taken to hold under load, MHz.
fn sustained(card: &Card) -> f64 {
    f64::midpoint(card.base_mhz, card.boost_mhz)
}

fn add(kernels: &mut Vec<Kernel>, shader: &str, work: &Work, time: Time) {
    let vector_clocks = work.waves * work.vector_clocks;
    match kernels.iter_mut().find(|kernel| kernel.shader == shader) {
        Some(kernel) => {
            if time.seconds * kernel.dispatches as f64 > kernel.seconds {
                kernel.bound = time.bound;
            }
            kernel.dispatches += 1;
            kernel.seconds += time.seconds;
            kernel.bytes += work.bytes;
            kernel.vector_clocks += vector_clocks;
        }
        None => kernels.push(Kernel {
            shader: shader.to_owned(),
            dispatches: 1,
            seconds: time.seconds,
            bytes: work.bytes,
            vector_clocks,
            bound: time.bound,
        }),
    }
}

#[cfg(test)]
mod tests;
