//! Element-wise operators on integers and truth values, and moves with strides.

use core_tensor::op::{Binary, Cast, Expand, Op, Slice, Where};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor};

use crate::compare::Case;
use crate::random::Random;

/// Small numbers of a dtype.
fn numbers(random: &mut Random, dtype: DType, shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<i64> = (0..count).map(|_| random.below(7) as i64 - 3).collect();
    let tensor = match dtype {
        DType::I64 => Tensor::from_slice(shape, &values),
        DType::I32 => Tensor::from_slice(shape, &values.iter().map(|x| *x as i32).collect::<Vec<_>>()),
        DType::F32 => Tensor::from_slice(shape, &values.iter().map(|x| *x as f32).collect::<Vec<_>>()),
        dtype => Tensor::from_bytes(dtype, shape, &values.iter().map(|x| u8::from(*x > 0)).collect::<Vec<_>>()),
    };
    tensor.expect("a small tensor")
}

#[test]
fn integer_arithmetic_and_comparisons_of_any_broadcast_are_exact() {
    use Binary::{Add, And, Equal, Greater, GreaterOrEqual, Less, LessOrEqual, Max, Min, Mul, Or, Sub, Xor};
    let compare = [Equal, Less, LessOrEqual, Greater, GreaterOrEqual];
    let arithmetic = [Add, Sub, Mul, Min, Max];
    let cases = [
        (DType::I64, [&arithmetic[..], &compare].concat()),
        (DType::I32, [&arithmetic[..], &compare].concat()),
        (DType::F32, compare.to_vec()),
        (DType::Bool, vec![And, Or, Xor, Equal]),
    ];
    for (i, (dtype, ops)) in cases.into_iter().enumerate() {
        let mut random = Random::new(i as u64);
        let mut graph = Graph::new("typed");
        let shapes: [&[Dim]; 4] = [&[Dim::sym("n"), 3.into()], &[1.into(), 3.into()], &[Dim::sym("n"), 1.into()], &[]];
        let inputs = shapes.map(|shape| graph.input("x", dtype, shape));
        for op in ops {
            for other in inputs {
                let y = graph.add("y", Op::Binary(op), &[inputs[0], other]).expect("an operator");
                graph.output(y);
                let y = graph.add("y", Op::Binary(op), &[other, inputs[2]]).expect("an operator");
                graph.output(y);
            }
        }
        let steps = [5, 1]
            .map(|n| [&[n, 3][..], &[1, 3], &[n, 1], &[]].map(|shape| numbers(&mut random, dtype, shape)).to_vec());
        Case::new(graph, Bindings::new().with("n", 5), steps.into()).exact().check();
    }
}

#[test]
fn choices_of_any_broadcast_and_size_are_exact() {
    for (i, dtype) in [DType::F32, DType::I64, DType::Bool].into_iter().enumerate() {
        let mut random = Random::new(10 + i as u64);
        let mut graph = Graph::new("choice");
        let c = graph.input("c", DType::Bool, &[Dim::sym("n"), 1.into(), 4.into()]);
        let a = graph.input("a", dtype, &[3.into(), 1.into()]);
        let b = graph.input("b", dtype, &[]);
        let y = graph.add("y", Op::Where(Where), &[c, a, b]).expect("a choice");
        graph.output(y);
        let steps = [4, 1].map(|n| {
            let c = numbers(&mut random, DType::Bool, &[n, 1, 4]);
            vec![c, numbers(&mut random, dtype, &[3, 1]), numbers(&mut random, dtype, &[])]
        });
        Case::new(graph, Bindings::new().with("n", 4), steps.into()).exact().check();
    }
}

#[test]
fn casts_of_integers_and_truth_values_are_exact() {
    let dtypes = [DType::I64, DType::I32, DType::Bool, DType::F32];
    for (i, from) in dtypes.into_iter().enumerate() {
        let mut random = Random::new(20 + i as u64);
        let mut graph = Graph::new("casts");
        let x = graph.input("x", from, &[Dim::sym("n")]);
        for to in dtypes {
            let y = graph.add("y", Op::Cast(Cast { to }), &[x]).expect("a cast");
            graph.output(y);
        }
        let steps = [9, 1].map(|n| vec![numbers(&mut random, from, &[n])]);
        Case::new(graph, Bindings::new().with("n", 9), steps.into()).exact().check();
    }
}

#[test]
fn slices_with_steps_and_symbols_and_repeated_extents_are_exact() {
    let mut random = Random::new(30);
    let mut graph = Graph::new("strides");
    let n = || Dim::sym("n");
    let x = graph.input("x", DType::F32, &[3.into(), n(), 5.into()]);
    let slice = |axis, start: Dim, len: Dim, step| Op::Slice(Slice { axis, start, len, step });
    let slices = [
        slice(1, n().sub(Dim::Num(1)), n(), -1),
        slice(1, n().sub(Dim::Num(1)), Dim::Num(1), 1),
        slice(-1, Dim::Num(4), Dim::Num(3), -2),
        slice(-1, Dim::Num(1), Dim::Num(2), 3),
        slice(0, Dim::Num(1), Dim::Num(2), 1),
    ];
    for op in slices {
        let y = graph.add("y", op, &[x]).expect("a slice");
        graph.output(y);
    }
    let thin = graph.input("thin", DType::I64, &[n(), 1.into()]);
    for shape in [vec![Dim::Num(2), n(), Dim::Num(3)], vec![n(), Dim::Num(4)], vec![n(), Dim::Num(1)]] {
        let y = graph.add("y", Op::Expand(Expand { shape }), &[thin]).expect("an expansion");
        graph.output(y);
    }
    let steps = [6, 1, 3].map(|n| vec![random.f32(&[3, n, 5]), numbers(&mut random, DType::I64, &[n, 1])]);
    Case::new(graph, Bindings::new().with("n", 6), steps.into()).exact().check();
}
