//! The encoders, and graphs that are quantized, trained and pruned: one program, which is linked once. A file is a part of it when it is named here.

mod calibrated;
mod contract;
mod errors;
mod graph;
mod mixtures;
mod opened;
mod prune;
mod prune_graph;
mod rebalance;
mod reconstruct;
mod support;
