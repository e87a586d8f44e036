//! Any bytes: opening and importing never panics, and a graph that comes out of it verifies.

#![no_main]

use libfuzzer_sys::fuzz_target;
use loader_onnx::{ImportOptions, OnnxModel};

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = OnnxModel::from_slice("fuzz", bytes) else { return };
    model.initializers().for_each(drop);
    if let Ok(graph) = model.graph(&ImportOptions::default()) {
        graph.verify().expect("an imported graph verifies");
    }
});
