//! Gathering, and operators that move elements.

use core_tensor::op::{Concat, Expand, Gather, Op, Pad, PadMode, Reshape, Slice, Transpose};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor};

use crate::compare::Case;
use crate::random::Random;

/// Indices of which some count from the end.
fn indices(random: &mut Random, dtype: DType, shape: &[usize], n: usize) -> Tensor {
    let count = shape.iter().product();
    let values: Vec<i64> = (0..count).map(|_| random.below(2 * n) as i64 - n as i64).collect();
    match dtype {
        DType::I64 => Tensor::from_slice(shape, &values),
        _ => Tensor::from_slice(shape, &values.iter().map(|v| *v as i32).collect::<Vec<_>>()),
    }
    .expect("a small tensor")
}

#[test]
fn elements_are_gathered_along_every_extent_by_indices_of_any_shape() {
    for index in [DType::I32, DType::I64] {
        for (axis, n) in [(0, 6), (1, 5), (-1, 4)] {
            let mut random = Random::new(n as u64);
            let mut graph = Graph::new("gather");
            let at = graph.input("at", index, &[2.into(), Dim::sym("rows")]);
            let one = graph.input("one", index, &[]);
            for dtype in [DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64] {
                let data = graph.weight("data", random.weight(dtype, &[6, 5, 4]));
                for at in [at, one] {
                    let y = graph.add("y", Op::Gather(Gather { axis }), &[data, at]).expect("a gather");
                    graph.output(y);
                }
            }
            let steps = [1, 7, 3]
                .map(|rows| vec![indices(&mut random, index, &[2, rows], n), indices(&mut random, index, &[], n)]);
            Case::new(graph, Bindings::new().with("rows", 7), steps.into()).everywhere().exact().check();
        }
    }
}

#[test]
fn rows_of_bytes_are_gathered_wherever_they_begin() {
    for dtype in [DType::I8, DType::U8, DType::Bool, DType::I16] {
        let mut random = Random::new(4);
        let mut graph = Graph::new("bytes");
        let at = graph.input("at", DType::I64, &[2.into(), Dim::sym("rows")]);
        for shape in [&[9][..], &[9, 5], &[9, 3, 8]] {
            let data = graph.weight("data", random.weight(dtype, shape));
            let y = graph.add("y", Op::Gather(Gather::rows()), &[data, at]).expect("a gather");
            graph.output(y);
        }
        let steps = [1, 7, 3].map(|rows| vec![indices(&mut random, DType::I64, &[2, rows], 9)]);
        Case::new(graph, Bindings::new().with("rows", 7), steps.into()).everywhere().exact().check();
    }
}

#[test]
fn rows_of_tables_are_gathered_by_wide_indices() {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::Block(core_tensor::BlockFormat::Q8_0)] {
        let mut random = Random::new(3);
        let mut graph = Graph::new("embedding");
        let table = graph.weight("table", random.weight(dtype, &[70, 64]));
        let at = graph.input("at", DType::I64, &[Dim::sym("batch"), Dim::sym("rows")]);
        let y = graph.add("y", Op::Gather(Gather::rows()), &[table, at]).expect("a gather");
        graph.output(y);
        let steps = [(1, 1), (2, 7)].map(|(b, rows)| vec![indices(&mut random, DType::I64, &[b, rows], 70)]);
        let bounds = Bindings::new().with("rows", 7).with("batch", 2);
        Case::new(graph, bounds, steps.into()).everywhere().exact().check();
    }
}

#[test]
fn elements_of_every_size_are_sliced_by_steps_turned_and_repeated() {
    for dtype in [DType::F32, DType::F16, DType::I64, DType::Bool] {
        let mut random = Random::new(9);
        let mut graph = Graph::new("moves");
        let rows = Dim::sym("rows");
        let x = graph.input("x", dtype, &[rows.clone(), 5.into(), 6.into()]);
        let slices = [
            Slice { axis: 1, start: 0.into(), len: 3.into(), step: 2 },
            Slice { axis: 1, start: 4.into(), len: 5.into(), step: -1 },
            Slice { axis: -1, start: 5.into(), len: 2.into(), step: -3 },
            Slice { axis: 0, start: rows.clone().sub(1.into()), len: rows.clone(), step: -1 },
            Slice { axis: 2, start: 1.into(), len: 3.into(), step: 1 },
            Slice { axis: 1, start: 2.into(), len: 0.into(), step: 2 },
        ];
        for slice in slices {
            let y = graph.add("y", Op::Slice(slice), &[x]).expect("a slice");
            graph.output(y);
        }
        for perm in [[2, 0, 1], [1, 0, 2], [0, 2, 1], [2, 1, 0]] {
            let y = graph.add("y", Op::Transpose(Transpose { perm: perm.to_vec() }), &[x]).expect("a permutation");
            graph.output(y);
        }
        let line = graph.input("line", dtype, &[5.into(), 1.into()]);
        for shape in [vec![5.into(), 6.into()], vec![2.into(), rows.clone(), 5.into(), 3.into()]] {
            let y = graph.add("y", Op::Expand(Expand { shape }), &[line]).expect("a broadcast");
            graph.output(y);
        }
        let flat = Reshape { shape: [rows.mul(5.into()), 6.into()].into_iter().collect() };
        let y = graph.add("y", Op::Reshape(flat), &[x]).expect("a shape");
        graph.output(y);
        let mut tensor = |shape: &[usize]| match dtype {
            DType::Bool => {
                let bytes: Vec<u8> = (0..shape.iter().product()).map(|_| random.below(2) as u8).collect();
                Tensor::from_bytes(dtype, shape, &bytes).expect("a small tensor")
            }
            _ => random.stored(dtype, shape),
        };
        let steps = [1, 2, 7, 3].map(|rows| vec![tensor(&[rows, 5, 6]), tensor(&[5, 1])]);
        Case::new(graph, Bindings::new().with("rows", 7), steps.into()).everywhere().exact().check();
    }
}

#[test]
fn values_are_joined_along_every_extent() {
    for axis in [0, 1, -1] {
        let mut random = Random::new(2);
        let mut graph = Graph::new("concat");
        let parts = ["a", "b", "c"].map(|name| graph.input(name, DType::I64, &[2.into(), 3.into(), Dim::sym("n")]));
        let y = graph.add("y", Op::Concat(Concat { axis }), &parts).expect("parts");
        graph.output(y);
        let steps = [1, 5].map(|n| ["a", "b", "c"].map(|_| random.stored(DType::I64, &[2, 3, n])).into());
        Case::new(graph, Bindings::new().with("n", 5), steps.into()).everywhere().exact().check();
    }
}

#[test]
fn padding_of_every_kind_agrees() {
    for dtype in [DType::F32, DType::I32] {
        for mode in [PadMode::Constant, PadMode::Edge, PadMode::Reflect, PadMode::Wrap] {
            let mut random = Random::new(4);
            let mut graph = Graph::new("pad");
            let x = graph.input("x", dtype, &[Dim::sym("rows"), 3.into(), 5.into()]);
            let constant = graph.weight("constant", random.weight(dtype, &[]));
            let pads = vec![(0.into(), 0.into()), (1.into(), 2.into()), (4.into(), 3.into())];
            let inputs = if mode == PadMode::Constant { vec![x, constant] } else { vec![x] };
            let y = graph.add("y", Op::Pad(Pad { pads: pads.clone(), mode }), &inputs).expect("padding");
            graph.output(y);
            let y = graph.add("y", Op::Pad(Pad { pads, mode }), &[x]).expect("padding");
            graph.output(y);
            let steps = [1, 4].map(|rows| vec![random.stored(dtype, &[rows, 3, 5])]);
            Case::new(graph, Bindings::new().with("rows", 4), steps.into()).everywhere().exact().check();
        }
    }
}

#[test]
fn an_index_beyond_the_table_is_an_error_that_names_it() {
    let backend = crate::backends::vulkan();
    let mut graph = Graph::new("gather");
    let data = graph.input("data", DType::F32, &[6.into(), 5.into()]);
    let at = graph.input("at", DType::I64, &[1.into()]);
    let y = graph.add("y", Op::Gather(Gather { axis: 1 }), &[data, at]).expect("a gather");
    graph.output(y);
    let mut random = Random::new(1);
    for index in [5i64, -6, 1 << 32, i64::MIN] {
        let inputs = vec![random.f32(&[6, 5]), Tensor::from_slice(&[1], &[index]).expect("an index")];
        let case = Case::new(graph.clone(), Bindings::new(), vec![inputs]);
        let error = case.run(&backend).expect_err("there is no such column").to_string();
        assert!(error.contains(&format!("index {index} is outside of 0..5")), "{error}");
    }
}
