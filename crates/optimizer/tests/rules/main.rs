//! Every rule: a graph before and after, with equal results; what rules must leave alone; random graphs.

mod activations;
mod algebra;
mod attention;
mod graphs;
mod movement;
mod normalization;
mod past;
mod quantization;
mod random;
mod report;
mod weights;
