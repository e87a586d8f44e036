//! Attention over states.

use std::sync::atomic::AtomicUsize;

use core_tensor::op::{Attention, Op, RopeScaling, RotaryEmbedding, StateWrite};
use core_tensor::{Bindings, BlockFormat, DType, Dim, Graph, StateDecl, Tensor};
use proptest::prelude::*;

use crate::backends::{candidates, sampled};
use crate::compare::Case;
use crate::random::{Random, ints};

/// The extents and attributes of one attention.
#[derive(Clone, Copy, Debug)]
struct Shape {
    kv_heads: usize,
    group: usize,
    k_dim: usize,
    v_dim: usize,
    dtype: DType,
    capacity: usize,
    window: Option<usize>,
    /// Whether the states are rings of that window.
    ring: bool,
    softcap: Option<f32>,
    /// What turns queries, and keys, before they are written.
    rope: [Option<RotaryEmbedding>; 2],
}

const PLAIN: Shape = Shape {
    kv_heads: 2,
    group: 3,
    k_dim: 64,
    v_dim: 64,
    dtype: DType::F16,
    capacity: 160,
    window: None,
    ring: false,
    softcap: None,
    rope: [None, None],
};

const Q8_0: DType = DType::Block(BlockFormat::Q8_0);

/// A step: for each run of rows, its slot and how many rows.
type Schedule<'a> = &'a [&'a [(usize, usize)]];

/// Prompts of awkward lengths, single rows, and several slots in one step, each going on from what it holds.
const MIXED: Schedule = &[
    &[(0, 17)],
    &[(0, 1)],
    &[(1, 33), (0, 2), (2, 1)],
    &[(0, 1), (1, 1), (2, 1)],
    &[(0, 1), (1, 1), (0, 1), (1, 2), (0, 3)],
    &[(2, 70), (0, 5)],
    &[(0, 3), (2, 1), (1, 1)],
];

fn case(shape: Shape, schedule: Schedule, seed: u64) -> Case {
    let mut random = Random::new(seed);
    let mut graph = Graph::new("attention");
    let rows = Dim::sym("rows");
    let heads = shape.kv_heads * shape.group;
    let q = graph.input("q", DType::F32, &[rows.clone(), heads.into(), shape.k_dim.into()]);
    let k = graph.input("k", DType::F32, &[rows.clone(), shape.kv_heads.into(), shape.k_dim.into()]);
    let v = graph.input("v", DType::F32, &[rows.clone(), shape.kv_heads.into(), shape.v_dim.into()]);
    let positions = graph.input("positions", DType::I32, std::slice::from_ref(&rows));
    let slots = graph.input("slots", DType::I32, &[rows]);
    let mut turned = |name: &str, x, rope: Option<RotaryEmbedding>| match rope {
        Some(op) => graph.add(name, Op::RotaryEmbedding(op), &[x, positions]).expect("a rotation"),
        None => x,
    };
    let (q, k) = (turned("q turned", q, shape.rope[0]), turned("k turned", k, shape.rope[1]));
    let mut write = |name: &str, dim: usize, rows| {
        let state = graph.add_state(StateDecl {
            name: name.into(),
            dtype: shape.dtype,
            row: vec![shape.kv_heads, dim],
            capacity: shape.capacity.into(),
            window: shape.window.filter(|_| shape.ring),
        });
        graph.add(name, Op::StateWrite(StateWrite { state }), &[rows, positions, slots]).expect("a write")
    };
    let (k, v) = (write("keys", shape.k_dim, k), write("values", shape.v_dim, v));
    let scale = 1.0 / (shape.k_dim as f32).sqrt();
    let op = Attention { scale, softcap: shape.softcap, window: shape.window };
    let y = graph.add("y", Op::Attention(op), &[q, k, v, positions, slots]).expect("attention");
    graph.output(y);

    let mut len = [0i32; 3];
    let mut steps = Vec::new();
    for step in schedule {
        let (mut positions, mut slots) = (Vec::new(), Vec::new());
        for (slot, rows) in *step {
            for _ in 0..*rows {
                positions.push(len[*slot]);
                slots.push(*slot as i32);
                len[*slot] += 1;
            }
        }
        let rows = positions.len();
        let mut tensor = |heads, dim| random.scaled_f32(&[rows, heads, dim], 2.0);
        let inputs: Vec<Tensor> = vec![
            tensor(heads, shape.k_dim),
            tensor(shape.kv_heads, shape.k_dim),
            tensor(shape.kv_heads, shape.v_dim),
            ints(&positions),
            ints(&slots),
        ];
        steps.push(inputs);
    }
    let bound = steps.iter().map(|inputs| inputs[3].len()).max().unwrap_or(1);
    Case::new(graph, Bindings::new().with("rows", bound), steps).with_slots(3)
}

#[test]
fn attention_agrees_for_every_group_and_dtype_of_the_cache() {
    for (i, group) in [1, 3, 8].into_iter().enumerate() {
        for (j, dtype) in [DType::F32, DType::F16, Q8_0].into_iter().enumerate() {
            let kv_heads = if group == 8 { 1 } else { 3 };
            case(Shape { kv_heads, group, dtype, k_dim: 32, v_dim: 32, ..PLAIN }, MIXED, (10 * i + j) as u64).check();
        }
    }
}

#[test]
fn attention_agrees_for_head_dims_of_all_kinds() {
    for (i, (k_dim, v_dim)) in
        [(32, 32), (64, 64), (80, 80), (128, 128), (20, 20), (96, 33), (7, 64)].into_iter().enumerate()
    {
        let dtype = if i % 2 == 0 { DType::F16 } else { DType::F32 };
        case(Shape { k_dim, v_dim, dtype, kv_heads: 1, ..PLAIN }, MIXED, 100 + i as u64).check();
    }
    case(Shape { k_dim: 128, v_dim: 64, dtype: Q8_0, kv_heads: 1, ..PLAIN }, MIXED, 110).check();
}

#[test]
fn prompts_of_every_awkward_length_agree() {
    for (i, rows) in [1, 2, 3, 5, 17, 33, 70].into_iter().enumerate() {
        case(Shape { kv_heads: 1, ..PLAIN }, &[&[(0, rows)], &[(0, 1)], &[(0, rows)]], 200 + i as u64).check();
    }
}

#[test]
fn windows_and_soft_caps_agree() {
    for (i, (window, softcap)) in
        [(Some(1), None), (Some(8), None), (Some(40), Some(5.0)), (None, Some(0.5))].into_iter().enumerate()
    {
        case(Shape { window, softcap, kv_heads: 1, ..PLAIN }, MIXED, 300 + i as u64).check();
    }
}

#[test]
fn rings_agree_while_they_wrap_around() {
    let steps: Schedule = &[
        &[(0, 20)],
        &[(0, 1), (1, 9)],
        &[(0, 25), (1, 3)],
        &[(0, 1), (1, 1)],
        &[(1, 25), (0, 25)],
        &[(0, 1)],
        &[(0, 2), (1, 1), (0, 1)],
    ];
    for (i, dtype) in [DType::F32, DType::F16, Q8_0].into_iter().enumerate() {
        let shape = Shape { window: Some(8), ring: true, capacity: 32, dtype, k_dim: 32, v_dim: 32, ..PLAIN };
        case(shape, steps, 400 + i as u64).check();
    }
    // A window narrower than the one that the ring keeps.
    let mut narrow = case(Shape { window: Some(8), ring: true, capacity: 32, ..PLAIN }, steps, 410);
    narrow.tolerance = crate::compare::KERNEL;
    narrow.check();
}

/// A graphics device has kernels of its own for few rows, for many, and for shapes that those do not take.
fn check_graphics(case: &Case) {
    case.check_on(candidates().last());
}

/// Steps of so many rows for each of some slots, again and again.
fn again(times: usize, step: &[(usize, usize)]) -> Vec<&[(usize, usize)]> {
    vec![step; times]
}

#[test]
fn single_rows_agree_at_every_length_over_the_borders_of_tiles_and_parts() {
    let shapes = [
        (1, 64, 64, DType::F16),
        (2, 8, 8, DType::F32),
        (3, 64, 64, Q8_0),
        (4, 128, 128, DType::F16),
        (5, 32, 64, Q8_0),
        (7, 80, 80, DType::F16),
        (8, 96, 96, DType::F32),
        (9, 64, 256, DType::F16),
        (17, 16, 24, DType::F16),
    ];
    for (i, (group, k_dim, v_dim, dtype)) in shapes.into_iter().enumerate() {
        let shape = Shape { kv_heads: 1, group, k_dim, v_dim, dtype, capacity: 600, ..PLAIN };
        let steps = if i % 3 == 2 { 200 } else { 67 };
        check_graphics(&case(shape, &again(steps, &[(0, 1)]), 500 + i as u64));
        let two = Shape { kv_heads: 1 + i % 2, ..shape };
        check_graphics(&case(two, &again(20, &[(0, 1), (2, 1)]), 520 + i as u64));
    }
    let window = Shape { kv_heads: 1, window: Some(70), softcap: Some(3.0), capacity: 400, ..PLAIN };
    check_graphics(&case(window, &again(150, &[(1, 1)]), 540));
}

#[test]
fn a_few_rows_agree_at_long_contexts() {
    for (i, dtype) in [DType::F16, Q8_0, DType::F32].into_iter().enumerate() {
        let shape = Shape { kv_heads: 1, dtype, capacity: 700, ..PLAIN };
        let mut schedule = again(30, &[(0, 8)]);
        schedule.extend(again(20, &[(0, 4), (2, 3), (1, 1)]));
        check_graphics(&case(shape, &schedule, 550 + i as u64));
    }
}

#[test]
fn tiles_of_rows_agree_with_rows_of_several_slots_among_them() {
    let schedules: [Schedule; 5] = [
        &[&[(0, 9)], &[(0, 64)], &[(0, 70)], &[(0, 1)]],
        &[&[(0, 15), (1, 1), (2, 20)], &[(1, 3), (2, 16), (0, 31)], &[(0, 1), (1, 1), (2, 1)]],
        &[&[(0, 1), (1, 1), (0, 1), (1, 1), (2, 1), (0, 8), (1, 30)], &[(2, 17), (0, 63), (1, 2)]],
        &[&[(2, 48)], &[(2, 16)], &[(2, 16), (0, 1)], &[(2, 40)]],
        &[&[(1, 33)], &[(1, 31)], &[(1, 1)], &[(1, 63), (0, 2)]],
    ];
    let shapes = [
        (1, 64, 64, DType::F16),
        (3, 64, 64, Q8_0),
        (4, 128, 128, DType::F16),
        (2, 80, 80, DType::F16),
        (9, 96, 96, DType::F32),
        (2, 256, 256, DType::F16),
        (1, 8, 8, DType::F32),
        (2, 32, 160, Q8_0),
        (1, 72, 40, DType::F16),
        (2, 128, 128, Q8_0),
    ];
    for (i, (group, k_dim, v_dim, dtype)) in shapes.into_iter().enumerate() {
        let kv_heads = 1 + i % 2;
        let shape = Shape { kv_heads, group, k_dim, v_dim, dtype, ..PLAIN };
        check_graphics(&case(shape, schedules[i % 5], 600 + i as u64));
        let (window, softcap) = [(Some(20), None), (None, Some(2.0)), (Some(65), Some(4.0))][i % 3];
        check_graphics(&case(Shape { window, softcap, ..shape }, schedules[(i + 2) % 5], 620 + i as u64));
    }
}

#[test]
fn values_that_are_no_numbers_reach_only_the_rows_that_see_them() {
    for (i, dtype) in [DType::F16, DType::F32].into_iter().enumerate() {
        for (bad, window) in [(f32::NAN, None), (f32::INFINITY, None), (f32::NAN, Some(6))] {
            let shape = Shape { dtype, kv_heads: 1, window, ..PLAIN };
            let schedule: Schedule = &[&[(0, 9), (1, 4), (0, 9)], &[(1, 3), (2, 20), (0, 2)]];
            let mut case = case(shape, schedule, 900 + i as u64);
            let mut values = case.steps[0][2].to_vec::<f32>().expect("f32 values");
            // Row 5, of slot 0, and row 11, of slot 1.
            (values[5 * shape.v_dim + 3], values[11 * shape.v_dim + 40]) = (bad, bad);
            case.steps[0][2] = Tensor::from_slice(&[22, 1, shape.v_dim], &values).expect("values");
            check_graphics(&case);
        }
    }
}

#[test]
fn queries_and_keys_that_are_turned_on_their_way_agree() {
    let rope = |interleaved, rotary_dims| {
        Some(RotaryEmbedding { interleaved, rotary_dims, theta: 10_000.0, scaling: RopeScaling::None })
    };
    let ropes = [
        [rope(true, 32), rope(true, 32)],
        [rope(false, 32), rope(false, 32)],
        [rope(true, 20), rope(false, 12)],
        [None, rope(false, 32)],
        [rope(true, 6), None],
    ];
    for (i, rope) in ropes.into_iter().enumerate() {
        for (j, dtype) in [DType::F16, Q8_0, DType::F32].into_iter().enumerate() {
            let seed = 800 + (10 * i + j) as u64;
            let shape = Shape { dtype, k_dim: 32, v_dim: 64, rope, ..PLAIN };
            case(shape, &[&[(0, 20)], &[(1, 7), (0, 1)], &[(0, 1)]], seed).check();
            case(shape, &[&[(0, 3)], &[(1, 2), (0, 1)], &[(0, 1)]], seed).check();
            if dtype != Q8_0 {
                // Heads that only the general kernel takes.
                case(Shape { k_dim: 33, v_dim: 17, ..shape }, &[&[(0, 12)], &[(0, 1), (2, 1)]], seed).check();
            }
        }
    }
    let ring = Shape { window: Some(8), ring: true, capacity: 32, rope: ropes[0], k_dim: 32, v_dim: 32, ..PLAIN };
    case(ring, &[&[(0, 20)], &[(0, 20)], &[(0, 1), (1, 9)], &[(0, 25)]], 890).check();
}

#[test]
fn rings_agree_in_tiles_that_wrap_around() {
    for (i, dtype) in [DType::F16, Q8_0, DType::F32].into_iter().enumerate() {
        for (j, (window, capacity)) in [(100, 130), (64, 128), (70, 100), (3, 34)].into_iter().enumerate() {
            let seed = 700 + (10 * i + j) as u64;
            let shape = Shape { kv_heads: 1, window: Some(window), ring: true, capacity, dtype, ..PLAIN };
            let steps = if window > 64 { 150 } else { 80 };
            check_graphics(&case(shape, &again(steps, &[(0, 1)]), seed));
            check_graphics(&case(shape, &again(13, &[(0, 25), (1, 2), (2, 1)]), seed));
        }
    }
}

proptest! {
    #![proptest_config(crate::random::proptest_config(16))]

    #[test]
    fn attention_of_any_shape_agrees(
        kv_heads in 1usize..4,
        group in 1usize..5,
        k_dim in 1usize..50,
        v_dim in 1usize..50,
        half: bool,
        window in prop::option::of(1usize..30),
        ring: bool,
        schedule in prop::collection::vec(prop::collection::vec((0usize..3, 1usize..12), 1..4), 1..5),
        seed: u64,
    ) {
        static CASES: AtomicUsize = AtomicUsize::new(0);
        let dtype = if half { DType::F16 } else { DType::F32 };
        // A step has at most 3 × 11 rows of one slot.
        let capacity = window.filter(|_| ring).map_or(160, |window| window + 33);
        let shape = Shape { kv_heads, group, k_dim, v_dim, dtype, window, ring, capacity, softcap: None, rope: [None, None] };
        let schedule: Vec<&[(usize, usize)]> = schedule.iter().map(Vec::as_slice).collect();
        case(shape, &schedule, seed).check_on(sampled(&CASES));
    }
}
