//! Rotary position embedding.

use core_tensor::op::{Op, RopeScaling, RotaryEmbedding};
use core_tensor::{Bindings, DType, Dim, Graph};
use proptest::prelude::*;

use crate::compare::Case;
use crate::random::{Random, ints};

fn yarn() -> RopeScaling {
    RopeScaling::Yarn {
        factor: 0.25,
        ext_factor: 1.0,
        attn_factor: 1.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_context: 4096,
    }
}

fn rope(op: RotaryEmbedding, heads: usize, head_dim: usize, factors: bool, rows: &[usize], seed: u64) -> Case {
    let mut random = Random::new(seed);
    let mut graph = Graph::new("rope");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), heads.into(), head_dim.into()]);
    let positions = graph.input("positions", DType::I32, &[Dim::sym("rows")]);
    let mut inputs = vec![x, positions];
    if factors {
        let values: Vec<f32> = (0..op.rotary_dims / 2).map(|i| 1.0 + i as f32 * 0.3).collect();
        let factors = core_tensor::Tensor::from_slice(&[values.len()], &values).expect("a small tensor");
        inputs.push(graph.weight("factors", core_tensor::Weight::stored(factors)));
    }
    // Two of them share one table; the second turns what the first turned, in place.
    let y = graph.add("once", Op::RotaryEmbedding(op), &inputs).expect("a rotation");
    inputs[0] = y;
    let z = graph.add("twice", Op::RotaryEmbedding(op), &inputs).expect("a rotation");
    graph.output(z);
    inputs[0] = x;
    let again = graph.add("again", Op::RotaryEmbedding(op), &inputs).expect("a rotation");
    graph.output(again);
    let steps = rows.iter().map(|rows| {
        let positions: Vec<i32> = (0..*rows).map(|_| random.below(9000) as i32).collect();
        vec![random.f32(&[*rows, heads, head_dim]), ints(&positions)]
    });
    let steps = steps.collect();
    Case::new(graph, Bindings::new().with("rows", rows.iter().copied().max().unwrap_or(1)), steps)
}

#[test]
fn rotations_agree_in_both_layouts_with_every_scaling() {
    let mut seed = 0;
    for interleaved in [true, false] {
        for scaling in [RopeScaling::None, RopeScaling::Linear { factor: 0.125 }, yarn()] {
            for (rotary_dims, head_dim) in [(2, 2), (64, 64), (20, 33), (34, 64)] {
                for factors in [false, true] {
                    let op = RotaryEmbedding { interleaved, rotary_dims, theta: 10_000.0, scaling };
                    seed += 1;
                    rope(op, 3, head_dim, factors, &[1, 5, 2], seed).check();
                }
            }
        }
    }
}

#[test]
fn yarn_without_extrapolation_agrees() {
    let RopeScaling::Yarn { factor, attn_factor, beta_fast, beta_slow, original_context, .. } = yarn() else {
        panic!("the scaling of these tests is YaRN's");
    };
    let scaling = RopeScaling::Yarn { factor, ext_factor: 0.0, attn_factor, beta_fast, beta_slow, original_context };
    let op = RotaryEmbedding { interleaved: false, rotary_dims: 32, theta: 500_000.0, scaling };
    rope(op, 2, 32, false, &[3], 1).check();
}

proptest! {
    #![proptest_config(crate::random::proptest_config(12))]

    #[test]
    fn rotations_of_any_size_agree(
        interleaved: bool,
        half in 1usize..40,
        rest in 0usize..9,
        heads in 1usize..6,
        rows in prop::collection::vec(1usize..9, 1..3),
        seed: u64,
    ) {
        let op = RotaryEmbedding { interleaved, rotary_dims: 2 * half, theta: 10_000.0, scaling: RopeScaling::None };
        rope(op, heads, 2 * half + rest, seed % 2 == 0, &rows, seed).check();
    }
}
