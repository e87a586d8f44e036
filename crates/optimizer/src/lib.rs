//! Graph to graph: small passes over [`core_tensor`] graphs, run in a fixed order until nothing changes.
//!
//! Passes keep what a graph means: its inputs, outputs and states, and the order of its effects. In debug builds every result is verified.
//!
//! ```
//! use core_tensor::op::{Op, Reshape, Unary};
//! use core_tensor::{DType, Dim, Graph};
//!
//! let mut graph = Graph::new("example");
//! let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 4.into()]);
//! let same = graph.add("same", Op::Reshape(Reshape { shape: vec![Dim::sym("rows"), 4.into()] }), &[x])?;
//! let y = graph.add("y", Op::Unary(Unary::Neg), &[same])?;
//! graph.output(y);
//! let (graph, report) = polaris_optimizer::optimize(graph)?;
//! assert_eq!(graph.nodes().len(), 1);
//! assert_eq!(report.to_string(), "2 nodes -> 1 in 2 rounds; identities 1");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod common_subexpressions;
mod constant_folding;
mod dead_code;
mod gated_activations;
mod identities;
mod report;

use core_tensor::{Graph, GraphError};

pub use report::{PassReport, Report};

/// What a pass gives: the new graph and how many nodes it changed, or nothing if it changed none.
type Rewritten = Option<(Graph, usize)>;

/// A rewrite of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pass {
    /// Drops nodes that give back what they are given, and joins reshapes.
    Identities,
    /// Computes what depends on weights alone, as far as it does not grow.
    ConstantFolding,
    /// Computes equal things once.
    CommonSubexpressions,
    /// `activation(gate) * up` becomes one node.
    GatedActivations,
    /// Drops nodes that nothing needs.
    DeadCode,
}

impl Pass {
    /// All passes in the order in which [`optimize`] runs them: what simplifies first, what merges then, what sweeps last.
    pub const ALL: [Pass; 5] =
        [Pass::Identities, Pass::ConstantFolding, Pass::CommonSubexpressions, Pass::GatedActivations, Pass::DeadCode];

    /// The name that reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Pass::Identities => "identities",
            Pass::ConstantFolding => "constant folding",
            Pass::CommonSubexpressions => "common subexpressions",
            Pass::GatedActivations => "gated activations",
            Pass::DeadCode => "dead code",
        }
    }

    fn run(self, graph: &Graph) -> Result<Rewritten, GraphError> {
        match self {
            Pass::Identities => identities::run(graph),
            Pass::ConstantFolding => constant_folding::run(graph),
            Pass::CommonSubexpressions => common_subexpressions::run(graph),
            Pass::GatedActivations => gated_activations::run(graph),
            Pass::DeadCode => dead_code::run(graph),
        }
    }
}

/// Why a pass failed: the graph that it was given, or the one that it made, is wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OptimizerError {
    /// The graph was wrong before any pass ran.
    #[error("the graph to optimize is wrong: {0}")]
    Input(GraphError),
    /// A pass could not rebuild the graph, or made a wrong one.
    #[error("pass {pass:?}: {source}")]
    Pass {
        /// The pass.
        pass: &'static str,
        /// What is wrong.
        source: GraphError,
    },
}

/// Rounds at most: each pass can open the way for another, and a chain of that length is no graph's.
const MAX_ROUNDS: usize = 8;

/// Runs all passes until none changes anything.
///
/// # Errors
/// When the graph is wrong, or (which is a bug) a pass makes a wrong one.
pub fn optimize(graph: Graph) -> Result<(Graph, Report), OptimizerError> {
    optimize_with(graph, &Pass::ALL)
}

/// Runs some passes, in the order given, until none changes anything.
///
/// # Errors
/// As [`optimize`].
pub fn optimize_with(mut graph: Graph, passes: &[Pass]) -> Result<(Graph, Report), OptimizerError> {
    graph.verify().map_err(OptimizerError::Input)?;
    let mut report = Report {
        passes: passes.iter().map(|pass| PassReport { name: pass.name(), changed: 0 }).collect(),
        nodes_before: graph.nodes().len(),
        ..Report::default()
    };
    let mut changing = true;
    while changing && report.rounds < MAX_ROUNDS {
        changing = false;
        report.rounds += 1;
        for (pass, counts) in passes.iter().zip(&mut report.passes) {
            let failed = |source| OptimizerError::Pass { pass: pass.name(), source };
            if let Some((new, changed)) = pass.run(&graph).map_err(failed)? {
                if cfg!(debug_assertions) {
                    new.verify().map_err(failed)?;
                }
                graph = new;
                counts.changed += changed;
                changing = true;
            }
        }
    }
    report.nodes_after = graph.nodes().len();
    Ok((graph, report))
}

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
