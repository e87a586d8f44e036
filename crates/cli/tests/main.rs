//! The commands, as a person or a program calls them: one program, which is linked once. A file is a part of it when it is named here.

mod encoders;
mod errors;
mod estimate;
mod graphs;
mod optimize;
mod prune;
mod quantize;
mod quantize_graph;
mod support;
mod tiny_model;
