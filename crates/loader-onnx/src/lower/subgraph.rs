//! Graphs within nodes.
