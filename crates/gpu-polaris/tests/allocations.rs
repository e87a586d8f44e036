//! A replayed step allocates little, and no more in a larger model.

#[path = "../examples/host_time/counting.rs"]
mod counting;
#[path = "../examples/host_time/decoder.rs"]
mod decoder;

use gpu_polaris::{GpuOptions, VulkanBackend};

use counting::{Counting, allocations};
use decoder::{Decoder, Shape};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the fourth step, and their bytes.
fn per_step(backend: &VulkanBackend, layers: usize, greedy: bool) -> (usize, usize) {
    let shape = Shape { layers, width: 128, heads: 2, kv_heads: 1, hidden: 192, vocabulary: 320, greedy };
    let mut decoder = Decoder::load(backend, shape, 16).unwrap();
    for _ in 0..3 {
        decoder.step(&decoder.inputs()).unwrap();
    }
    let inputs = decoder.inputs();
    let before = allocations();
    let outputs = decoder.step(&inputs).unwrap();
    let after = allocations();
    drop(outputs);
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn what_a_step_allocates_does_not_grow_with_the_model() {
    let backend = VulkanBackend::open(&GpuOptions::default()).unwrap();
    for greedy in [true, false] {
        let (small, large) = (per_step(&backend, 1, greedy), per_step(&backend, 6, greedy));
        assert_eq!(small, large, "allocations and bytes with 1 and 6 layers");
        // The outputs, and a handful of small lists that go with the inputs.
        assert!(large.0 <= 24, "{} allocations", large.0);
        assert!(large.1 <= 4 * 320 + 2048, "{} bytes", large.1);
    }
}
