//! Pruning of graphs: weights of products and convolutions that become zeros, and neurons and channels that go.
//!
//! ```text
//! graph ─ sites ─▶ inputs to observe ─ caller runs batches, feeds Observed ─▶ Hessian of each site ─ Pruning::site ─▶ new weights ─ rebuild ─▶ graph
//! ```
//!
//! Nothing is run here: a [`Site`] says which value meets its weight, the caller runs the graph with these as outputs
//! ([`crate::graph::observed`]) and feeds an [`Observed`].
//!
//! Channels and neurons are cut where that is sound: a [`Region`] is all values that share a set of channels, from the products or convolutions that make them to those
//! that read them, through functions, sums and products with constants and with each other, depthwise convolutions and pooling. Where anything else reads or
//! makes one of the values (an output of the graph, a normalization, a reshape), the whole region stays as it is.

mod observed;
mod rebuild;
mod regions;
mod sites;

use core_tensor::{GraphError, TensorError, WeightError};

use super::PruneError;

pub use observed::Observed;
pub use rebuild::{NewWeight, rebuild};
pub use regions::{Axis, Region, regions};
pub use sites::{Site, sites};

/// Why a graph cannot be pruned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphPruneError {
    /// A weight cannot be read.
    #[error("weight {name:?}: {source}")]
    Weight {
        /// The weight.
        name: String,
        /// Why.
        source: WeightError,
    },
    /// A weight cannot be pruned.
    #[error("weight {name:?}: {source}")]
    Prune {
        /// The weight.
        name: String,
        /// Why.
        source: PruneError,
    },
    /// An operator refuses what its inputs have become.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A tensor could not be made.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}
