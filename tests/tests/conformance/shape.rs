//! Operators that move elements, and casts.

use core_tensor::op::{Cast, Concat, Op, Pad, PadMode, Reshape, Slice, Transpose};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor, ValueId};
use proptest::prelude::*;

use crate::compare::Case;
use crate::random::Random;

const DTYPES: [DType; 8] =
    [DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64, DType::I8, DType::U8, DType::F64];

/// One graph of moves over an input `[rows, 6, 4]`; `computed` puts a copy before them, so that they read the arena.
fn moves(dtype: DType, computed: bool) -> Graph {
    let r = Dim::sym("rows");
    let mut graph = Graph::new("moves");
    let x = graph.input("x", dtype, &[r.clone(), 6.into(), 4.into()]);
    let w = graph.weight("w", Random::new(9).weight(dtype, &[2, 6, 4]));
    let add = |graph: &mut Graph, op: Op, inputs: &[ValueId]| graph.add("move", op, inputs).expect("a move");
    let x = if computed { add(&mut graph, Op::Concat(Concat { axis: 0 }), &[x]) } else { x };
    let mut outputs = Vec::new();
    for perm in [vec![2, 0, 1], vec![0, 1, 2], vec![1, 2, 0]] {
        outputs.push(add(&mut graph, Op::Transpose(Transpose { perm: perm.clone() }), &[x]));
        outputs.push(add(&mut graph, Op::Transpose(Transpose { perm }), &[w]));
    }
    for (axis, start, end) in [(1, 0, 6), (1, 2, 5), (-1, 3, 4), (2, 1, 1)] {
        outputs.push(add(&mut graph, Op::Slice(Slice::range(axis, start, end)), &[x]));
        outputs.push(add(&mut graph, Op::Slice(Slice::range(axis, start, end)), &[w]));
    }
    let part = add(&mut graph, Op::Slice(Slice::range(1, 1, 3)), &[x]);
    outputs.push(add(&mut graph, Op::Concat(Concat { axis: 1 }), &[part, x, part]));
    outputs.push(add(&mut graph, Op::Concat(Concat { axis: 0 }), &[x, w]));
    outputs.push(add(&mut graph, Op::Concat(Concat { axis: -1 }), &[x, x]));
    let flat = add(&mut graph, Op::Reshape(Reshape { shape: vec![r.clone(), 24.into()] }), &[x]);
    outputs.push(flat);
    let other = add(&mut graph, Op::Reshape(Reshape { shape: vec![4.into(), r, 6.into()] }), &[flat]);
    outputs.push(add(&mut graph, Op::Transpose(Transpose { perm: vec![1, 0, 2] }), &[other]));
    outputs.push(add(&mut graph, Op::Reshape(Reshape { shape: vec![8.into(), 6.into()] }), &[w]));
    outputs.into_iter().for_each(|y| graph.output(y));
    graph
}

#[test]
fn moves_are_exact_for_every_plain_dtype() {
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        for computed in [false, true] {
            let mut random = Random::new(i as u64);
            let steps = [1, 5, 3].map(|rows| vec![random.stored(dtype, &[rows, 6, 4])]);
            Case::new(moves(dtype, computed), Bindings::new().with("rows", 5), steps.into()).exact().check();
        }
    }
}

#[test]
fn casts_between_all_their_dtypes_are_exact() {
    let dtypes = [DType::F32, DType::F16, DType::BF16, DType::I32];
    for from in dtypes {
        let mut random = Random::new(1);
        let mut graph = Graph::new("casts");
        let x = graph.input("x", from, &[Dim::sym("rows"), 9.into()]);
        let w = graph.weight("w", random.weight(from, &[9]));
        for to in dtypes {
            for x in [x, w] {
                let y = graph.add("y", Op::Cast(Cast { to }), &[x]).expect("a cast");
                let z = graph.add("z", Op::Cast(Cast { to: DType::F32 }), &[y]).expect("a cast");
                graph.output(y);
                graph.output(z);
            }
        }
        let steps = [1, 4, 2].map(|rows| {
            let values: Vec<f32> = (0..rows * 9).map(|_| random.unit() * 300.0).collect();
            let f32 = Tensor::from_slice(&[rows, 9], &values).expect("a small tensor");
            vec![match from {
                DType::F32 => f32,
                DType::I32 => {
                    let values: Vec<i32> = values.iter().map(|v| *v as i32).collect();
                    Tensor::from_slice(&[rows, 9], &values).expect("a small tensor")
                }
                from => random.stored(from, &[rows, 9]),
            }]
        });
        Case::new(graph, Bindings::new().with("rows", 4), steps.into()).exact().check();
    }
}

#[test]
fn reshapes_with_symbols_in_products_agree() {
    let mut random = Random::new(4);
    let (r, batch) = (Dim::sym("rows"), Dim::sym("batch"));
    let mut graph = Graph::new("reshape");
    let x = graph.input("x", DType::F32, &[batch.clone(), r.clone(), 6.into()]);
    let flat = vec![batch.clone().mul(r.clone()), 6.into()];
    let y = graph.add("y", Op::Reshape(Reshape { shape: flat }), &[x]).expect("a reshape");
    let wide = vec![r.clone().mul(2.into()), batch.clone(), 3.into()];
    let z = graph.add("z", Op::Reshape(Reshape { shape: wide }), &[y]).expect("a reshape");
    let back = graph.add("back", Op::Reshape(Reshape { shape: vec![batch, 6.into(), r] }), &[z]).expect("a reshape");
    [y, z, back].into_iter().for_each(|y| graph.output(y));
    let steps = [(1, 1), (2, 3), (3, 2)].map(|(batch, rows)| vec![random.f32(&[batch, rows, 6])]);
    Case::new(graph, Bindings::new().with("rows", 3).with("batch", 3), steps.into()).exact().check();
}

proptest! {
    #![proptest_config(crate::random::proptest_config(16))]

    #[test]
    fn permutations_of_any_tensor_are_exact(
        extents in prop::collection::vec(1usize..6, 1..5),
        order in prop::collection::vec(any::<u16>(), 4),
        seed: u64,
    ) {
        let mut perm: Vec<usize> = (0..extents.len()).collect();
        perm.sort_by_key(|i| order[*i]);
        let mut graph = Graph::new("permutation");
        let dims: Vec<Dim> = extents.iter().map(|n| Dim::Num(*n)).collect();
        let x = graph.input("x", DType::F32, &dims);
        let y = graph.add("y", Op::Transpose(Transpose { perm }), &[x]).expect("a permutation");
        graph.output(y);
        Case::new(graph, Bindings::new(), vec![vec![Random::new(seed).f32(&extents)]]).exact().check();
    }
}

#[test]
fn elements_before_and_after_extents_are_exact_in_every_mode() {
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        let mut random = Random::new(80 + i as u64);
        let mut graph = Graph::new("pads");
        let n = || Dim::sym("n");
        let x = graph.input("x", dtype, &[2.into(), n(), 5.into()]);
        let constant = graph.input("constant", dtype, &[]);
        let none = || (Dim::Num(0), Dim::Num(0));
        let pads = [
            vec![none(), none(), (Dim::Num(2), Dim::Num(3))],
            vec![none(), (Dim::Num(1), Dim::Num(2)), (Dim::Num(4), Dim::Num(0))],
            vec![(Dim::Num(1), Dim::Num(1)), (Dim::Num(0), Dim::Num(1)), none()],
        ];
        for pads in pads {
            for mode in [PadMode::Constant, PadMode::Edge, PadMode::Reflect, PadMode::Wrap] {
                // An extent is reflected at most to its other end.
                if pads[0].0 != Dim::Num(0) && mode == PadMode::Wrap {
                    continue;
                }
                let y = graph.add("pad", Op::Pad(Pad { pads: pads.clone(), mode }), &[x]).expect("pads");
                graph.output(y);
            }
            let op = Op::Pad(Pad {
                pads: vec![(n(), Dim::Num(1)), pads[1].clone(), pads[2].clone()],
                mode: PadMode::Constant,
            });
            let y = graph.add("pad", op, &[x, constant]).expect("pads");
            graph.output(y);
        }
        let steps = [4, 3].map(|n| vec![random.stored(dtype, &[2, n, 5]), random.stored(dtype, &[])]);
        Case::new(graph, Bindings::new().with("n", 4), steps.into()).exact().check();
    }
}
