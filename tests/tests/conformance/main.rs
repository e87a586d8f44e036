//! Conformance: every operator on every backend, compared with the reference interpreter.
//!
//! One file per op family, as in every crate. A new backend is one more entry in [`backends::candidates`].

mod attention;
mod backends;
mod chains;
mod compare;
mod conv;
mod custom;
mod decoder;
mod device;
mod elementwise;
mod encoder;
mod errors;
mod fusion;
mod gather;
mod integer;
mod integer_conv;
mod matmul;
mod norm;
mod pool;
mod quantized;
mod random;
mod random_graph;
mod recurrent;
mod reduce;
mod resize;
mod rope;
mod shape;
mod state;
mod typed;
