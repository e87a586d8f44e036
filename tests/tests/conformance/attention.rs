//! Attention over states.

use core_tensor::op::{Attention, Op, StateWrite};
use core_tensor::{Bindings, BlockFormat, DType, Dim, Graph, StateDecl, Tensor};
use proptest::prelude::*;

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
        let dtype = if half { DType::F16 } else { DType::F32 };
        // A step has at most 3 × 11 rows of one slot.
        let capacity = window.filter(|_| ring).map_or(160, |window| window + 33);
        let shape = Shape { kv_heads, group, k_dim, v_dim, dtype, window, ring, capacity, softcap: None };
        let schedule: Vec<&[(usize, usize)]> = schedule.iter().map(Vec::as_slice).collect();
        case(shape, &schedule, seed).check();
    }
}
