//! Elements that come from where indices say, or go there; ranges and triangles; integers of every size.

use core_tensor::op::{
    Binary, Cast, GatherElements, GatherNd, Op, Range, Reduce, ReduceKind, ScatterElements, ScatterNd,
    ScatterReduction, Trilu, Unary,
};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor};

use crate::compare::Case;
use crate::random::Random;

/// Elements of every size that kernels move.
const SIZES: [DType; 5] = [DType::F32, DType::I64, DType::F16, DType::Bool, DType::I8];

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|n| Dim::Num(*n)).collect()
}

/// Any bits; bools are 0 or 1.
fn elements(random: &mut Random, dtype: DType, shape: &[usize]) -> Tensor {
    if dtype != DType::Bool {
        return random.stored(dtype, shape);
    }
    let bytes: Vec<u8> = (0..shape.iter().product()).map(|_| random.below(2) as u8).collect();
    Tensor::from_bytes(dtype, shape, &bytes).expect("a small tensor")
}

/// Indices of which some count from the end; `each` says how many there are for the last extent's elements, one after the other.
fn indices(random: &mut Random, dtype: DType, shape: &[usize], each: &[usize]) -> Tensor {
    let index = |i: usize| {
        let n = each[i % each.len()];
        random.below(2 * n) as i64 - n as i64
    };
    let values: Vec<i64> = (0..shape.iter().product()).map(index).collect();
    match dtype {
        DType::I64 => Tensor::from_slice(shape, &values),
        _ => Tensor::from_slice(shape, &values.iter().map(|v| *v as i32).collect::<Vec<_>>()),
    }
    .expect("a small tensor")
}

#[test]
fn single_elements_are_gathered_along_every_extent() {
    for dtype in SIZES {
        let mut random = Random::new(3);
        let mut graph = Graph::new("elements");
        let rows = Dim::sym("rows");
        let x = graph.input("x", dtype, &[rows.clone(), 5.into(), 7.into()]);
        let places = [(0isize, [4, 5, 7], 1), (1, [1, 3, 7], 5), (-1, [1, 2, 9], 7), (2, [1, 5, 1], 7)];
        let mut wanted = Vec::new();
        for (axis, shape, n) in places {
            for index in [DType::I32, DType::I64] {
                let at = graph.input("at", index, &dims(&shape));
                let y = graph.add("y", Op::GatherElements(GatherElements { axis }), &[x, at]).expect("a gather");
                graph.output(y);
                wanted.push((index, shape, n));
            }
        }
        let steps = [1, 6, 3].map(|rows| {
            let mut inputs = vec![elements(&mut random, dtype, &[rows, 5, 7])];
            inputs.extend(wanted.iter().map(|(index, shape, n)| indices(&mut random, *index, shape, &[*n])));
            inputs
        });
        Case::new(graph, Bindings::new().with("rows", 6), steps.into()).everywhere().exact().check();
    }
}

#[test]
fn slices_are_gathered_by_tuples_with_and_without_shared_extents() {
    for dtype in SIZES {
        let mut random = Random::new(4);
        let mut graph = Graph::new("tuples");
        let x = graph.input("x", dtype, &dims(&[2, 5, 4, 3]));
        let places: [(usize, &[usize], &[usize]); 5] = [
            (0, &[7, 1], &[2]),
            (0, &[2, 3, 4], &[2, 5, 4, 3]),
            (0, &[3, 2], &[2, 5]),
            (1, &[2, 3, 2], &[5, 4]),
            (2, &[2, 5, 6, 1], &[4]),
        ];
        let mut inputs = vec![elements(&mut random, dtype, &[2, 5, 4, 3])];
        for (batch_dims, shape, each) in places {
            for index in [DType::I32, DType::I64] {
                let at = graph.input("at", index, &dims(shape));
                let y = graph.add("y", Op::GatherNd(GatherNd { batch_dims }), &[x, at]).expect("a gather");
                graph.output(y);
                inputs.push(indices(&mut random, index, shape, each));
            }
        }
        Case::new(graph, Bindings::new(), vec![inputs]).everywhere().exact().check();
    }
}

#[test]
fn an_index_that_is_out_of_range_is_told() {
    let far = Tensor::from_slice(&[2, 1], &[1i64, -4]).expect("indices");
    for (op, name) in [
        (Op::GatherElements(GatherElements { axis: 0 }), "elements"),
        (Op::GatherNd(GatherNd { batch_dims: 0 }), "tuples"),
        (Op::ScatterNd(ScatterNd { reduction: ScatterReduction::None }), "scattered"),
    ] {
        let mut graph = Graph::new(name);
        let x = graph.input("x", DType::F32, &dims(&[3, 1]));
        let at = graph.input("at", DType::I64, &dims(&[2, 1]));
        let updates = graph.input("updates", DType::F32, &dims(&[2, 1]));
        let scatters = matches!(op, Op::ScatterNd(_));
        let inputs = if scatters { vec![x, at, updates] } else { vec![x, at] };
        let y = graph.add("y", op, &inputs).expect("a node");
        graph.output(y);
        let zeros = |n: usize| Tensor::from_slice(&[n, 1], &vec![0f32; n]).expect("zeros");
        let case = Case::new(graph, Bindings::new(), vec![vec![zeros(3), far.clone(), zeros(2)]]);
        let error = case.run(&crate::backends::vulkan()).expect_err("the index is out of range");
        assert!(error.to_string().contains("-4"), "{name}: {error}");
    }
}

#[test]
fn elements_are_scattered_along_every_extent() {
    for dtype in SIZES {
        let mut random = Random::new(5);
        let mut graph = Graph::new("scattered");
        let rows = Dim::sym("rows");
        let x = graph.input("x", dtype, &[rows.clone(), 5.into(), 7.into()]);
        let places = [(0isize, [4, 5, 7], 1), (1, [1, 3, 7], 5), (-1, [1, 2, 9], 7), (2, [1, 5, 1], 7)];
        let mut wanted = Vec::new();
        for (axis, shape, n) in places {
            for index in [DType::I32, DType::I64] {
                let at = graph.input("at", index, &dims(&shape));
                let updates = graph.input("updates", dtype, &dims(&shape));
                let op = ScatterElements { axis, reduction: ScatterReduction::None };
                let y = graph.add("y", Op::ScatterElements(op), &[x, at, updates]).expect("a scatter");
                graph.output(y);
                wanted.push((index, shape, n));
            }
        }
        let steps = [1, 6, 3].map(|rows| {
            let mut inputs = vec![elements(&mut random, dtype, &[rows, 5, 7])];
            for (index, shape, n) in &wanted {
                inputs.push(indices(&mut random, *index, shape, &[*n]));
                inputs.push(elements(&mut random, dtype, shape));
            }
            inputs
        });
        Case::new(graph, Bindings::new().with("rows", 6), steps.into()).everywhere().exact().check();
    }
}

#[test]
fn slices_are_scattered_at_tuples() {
    for dtype in SIZES {
        let mut random = Random::new(6);
        let mut graph = Graph::new("slices");
        let x = graph.input("x", dtype, &dims(&[4, 5, 3]));
        let mut inputs = vec![elements(&mut random, dtype, &[4, 5, 3])];
        let places: [(&[usize], &[usize], &[usize]); 3] =
            [(&[3, 1], &[4], &[3, 5, 3]), (&[2, 3, 2], &[4, 5], &[2, 3, 3]), (&[9, 3], &[4, 5, 3], &[9])];
        for (shape, each, updates_shape) in places {
            let at = graph.input("at", DType::I64, &dims(shape));
            let updates = graph.input("updates", dtype, &dims(updates_shape));
            let op = ScatterNd { reduction: ScatterReduction::None };
            let y = graph.add("y", Op::ScatterNd(op), &[x, at, updates]).expect("a scatter");
            graph.output(y);
            inputs.push(indices(&mut random, DType::I64, shape, each));
            inputs.push(elements(&mut random, dtype, updates_shape));
        }
        Case::new(graph, Bindings::new(), vec![inputs]).everywhere().exact().check();
    }
}

#[test]
fn scattered_elements_join_what_is_there_in_their_order() {
    use ScatterReduction::{Add, Max, Min, Mul};
    for dtype in [DType::F32, DType::I32] {
        let mut random = Random::new(7);
        let mut graph = Graph::new("joined");
        let x = graph.input("x", dtype, &dims(&[5, 6]));
        let (one, tuples) =
            (graph.input("one", DType::I64, &dims(&[5, 40])), graph.input("at", DType::I64, &dims(&[30, 1])));
        let updates = graph.input("updates", dtype, &dims(&[5, 40]));
        let slices = graph.input("slices", dtype, &dims(&[30, 6]));
        for reduction in [Add, Mul, Min, Max] {
            let op = Op::ScatterElements(ScatterElements { axis: 1, reduction });
            let y = graph.add("y", op, &[x, one, updates]).expect("a scatter");
            graph.output(y);
            let y = graph.add("y", Op::ScatterNd(ScatterNd { reduction }), &[x, tuples, slices]).expect("a scatter");
            graph.output(y);
        }
        let inputs = vec![
            random.stored(dtype, &[5, 6]),
            indices(&mut random, DType::I64, &[5, 40], &[6]),
            indices(&mut random, DType::I64, &[30, 1], &[5]),
            random.stored(dtype, &[5, 40]),
            random.stored(dtype, &[30, 6]),
        ];
        Case::new(graph, Bindings::new(), vec![inputs]).everywhere().exact().check();
    }
}

#[test]
fn triangles_of_matrices_of_every_element_size_remain() {
    for dtype in SIZES {
        let mut random = Random::new(8);
        let mut graph = Graph::new("triangles");
        let x = graph.input("x", dtype, &[2.into(), Dim::sym("rows"), 5.into()]);
        for (upper, k) in
            [(true, 0), (false, 0), (true, 2), (false, -2), (true, -1), (false, i64::MAX), (true, i64::MIN)]
        {
            let y = graph.add("y", Op::Trilu(Trilu { upper, k }), &[x]).expect("a triangle");
            graph.output(y);
        }
        let steps = [1, 9, 4].map(|rows| vec![elements(&mut random, dtype, &[2, rows, 5])]);
        Case::new(graph, Bindings::new().with("rows", 9), steps.into()).everywhere().exact().check();
    }
}

#[test]
fn ranges_of_floats_and_integers_are_made() {
    let mut graph = Graph::new("ranges");
    let mut inputs = Vec::new();
    let number = |dtype: DType, v: f64| match dtype {
        DType::F32 => Tensor::from_slice(&[], &[v as f32]),
        DType::I32 => Tensor::from_slice(&[], &[v as i32]),
        _ => Tensor::from_slice(&[], &[v as i64]),
    };
    for (dtype, start, delta, len) in [
        (DType::F32, 0.25, 0.1, 300),
        (DType::I32, 7.0, -3.0, 5),
        (DType::I64, -4e10, 3e9, 400),
        (DType::I64, 0.0, 1.0, 0),
    ] {
        let names = ["start", "limit", "delta"].map(|name| graph.input(name, dtype, &[]));
        let y = graph.add("y", Op::Range(Range { len: len.into() }), &names).expect("a range");
        graph.output(y);
        let limit = start + delta * (len as f64 - if dtype == DType::F32 { 0.5 } else { 0.0 });
        inputs.extend([start, limit, delta].map(|v| number(dtype, v).expect("a number")));
    }
    Case::new(graph, Bindings::new(), vec![inputs]).everywhere().check();
}

/// Integers of every size.
const INTEGERS: [DType; 8] =
    [DType::U8, DType::I8, DType::U16, DType::I16, DType::U32, DType::I32, DType::U64, DType::I64];

#[test]
fn functions_of_two_integers_of_every_size_agree() {
    use Binary::*;
    for dtype in INTEGERS {
        let mut random = Random::new(9);
        let mut graph = Graph::new("integers");
        let rows = Dim::sym("rows");
        let a = graph.input("a", dtype, &[rows.clone(), 3.into(), 5.into()]);
        let b = graph.input("b", dtype, &[3.into(), 1.into()]);
        let ones = graph.input("ones", dtype, &[3.into(), 1.into()]);
        let few = graph.input("few", dtype, &[rows, 3.into(), 5.into()]);
        for op in [
            Add,
            Sub,
            Mul,
            Min,
            Max,
            BitwiseAnd,
            BitwiseOr,
            BitwiseXor,
            Equal,
            Less,
            LessOrEqual,
            Greater,
            GreaterOrEqual,
        ] {
            for inputs in [[a, b], [b, a], [a, a]] {
                let y = graph.add("y", Op::Binary(op), &inputs).expect("a function");
                graph.output(y);
            }
        }
        for op in [Div, Mod, Fmod] {
            let y = graph.add("y", Op::Binary(op), &[a, ones]).expect("a function");
            graph.output(y);
        }
        for op in [Pow, ShiftLeft, ShiftRight] {
            let y = graph.add("y", Op::Binary(op), &[a, few]).expect("a function");
            graph.output(y);
        }
        for op in [Unary::Neg, Unary::Abs, Unary::Sign, Unary::Relu, Unary::BitwiseNot] {
            let y = graph.add("y", Op::Unary(op), &[a]).expect("a function");
            graph.output(y);
        }
        let small = |values: Vec<i64>, shape: &[usize]| {
            let tensor = Tensor::from_slice(shape, &values).expect("integers");
            let cast = Op::Cast(Cast { to: dtype });
            core_tensor::evaluate(&cast, &[Some(tensor)], &Bindings::new()).expect("integers").remove(0)
        };
        let steps = [1, 4, 3].map(|rows| {
            let shape = [rows, 3, 5];
            let few = small((0..rows * 15).map(|_| random.below(9) as i64).collect(), &shape);
            // None is 0, and one is -1 where there are signs.
            let ones = small(vec![3, -1, 7], &[3, 1]);
            vec![random.stored(dtype, &shape), random.stored(dtype, &[3, 1]), ones, few]
        });
        Case::new(graph, Bindings::new().with("rows", 4), steps.into()).everywhere().exact().check();
    }
}

#[test]
fn an_integer_that_is_divided_by_zero_is_told() {
    for dtype in [DType::I32, DType::I64] {
        for op in [Binary::Div, Binary::Mod, Binary::Fmod] {
            let mut graph = Graph::new("divided");
            let (a, b) = (graph.input("a", dtype, &dims(&[5])), graph.input("b", dtype, &dims(&[5])));
            let y = graph.add("y", Op::Binary(op), &[a, b]).expect("a function");
            graph.output(y);
            let zeros = Tensor::from_bytes(dtype, &[5], &[0; 40][..5 * dtype.packing().1]).expect("zeros");
            let case = Case::new(graph, Bindings::new(), vec![vec![zeros.clone(), zeros]]);
            let error = case.run(&crate::backends::vulkan()).expect_err("it is divided by zero");
            assert!(error.to_string().contains("divided by zero"), "{error}");
        }
    }
}

#[test]
fn integers_of_every_size_are_reduced() {
    use ReduceKind::{L1, Max, Mean, Min, Prod, Sum, SumSquare};
    for dtype in INTEGERS.into_iter().filter(|dtype| *dtype != DType::U64) {
        let mut random = Random::new(10);
        let mut graph = Graph::new("reduced");
        let x = graph.input("x", dtype, &[Dim::sym("rows"), 7.into()]);
        for kind in [Sum, Mean, Max, Min, Prod, L1, SumSquare] {
            if kind == Mean && dtype == DType::I64 {
                continue; // Sums of more than 64 bits are another number.
            }
            let y = graph.add("y", Op::Reduce(Reduce { kind }), &[x]).expect("a reduction");
            graph.output(y);
        }
        let steps = [1, 5, 130].map(|rows| vec![random.stored(dtype, &[rows, 7])]);
        Case::new(graph, Bindings::new().with("rows", 130), steps.into()).everywhere().exact().check();
    }
}

#[test]
fn floats_without_a_number_and_beyond_all_are_found() {
    let mut graph = Graph::new("found");
    let x = graph.input("x", DType::F32, &dims(&[9]));
    let mut ops = vec![Unary::IsNan];
    for (negative, positive) in [(true, true), (true, false), (false, true), (false, false)] {
        ops.push(Unary::IsInf { negative, positive });
    }
    for op in ops {
        let y = graph.add("y", Op::Unary(op), &[x]).expect("a function");
        graph.output(y);
    }
    let (infinite, none) = (f32::INFINITY, f32::NAN);
    let x = [0.0, -0.0, infinite, -infinite, none, -none, f32::MAX, f32::MIN, 1e-40];
    let x = Tensor::from_slice(&[9], &x).expect("numbers");
    Case::new(graph, Bindings::new(), vec![vec![x]]).everywhere().exact().check();
}

#[test]
fn integers_of_two_bytes_are_converted() {
    for from in
        [DType::F32, DType::F16, DType::I32, DType::I64, DType::U8, DType::I8, DType::U16, DType::I16, DType::Bool]
    {
        let mut random = Random::new(12);
        let mut graph = Graph::new("converted");
        let x = graph.input("x", from, &[Dim::sym("rows"), 3.into()]);
        for to in [DType::U16, DType::I16] {
            let y = graph.add("y", Op::Cast(Cast { to }), &[x]).expect("a cast");
            graph.output(y);
        }
        if matches!(from, DType::U16 | DType::I16) {
            for to in [DType::F32, DType::I32, DType::I64, DType::U8, DType::Bool, DType::F16] {
                let y = graph.add("y", Op::Cast(Cast { to }), &[x]).expect("a cast");
                graph.output(y);
            }
        }
        let steps = [1, 8, 5].map(|rows| match from {
            DType::F32 => vec![random.scaled_f32(&[rows, 3], 1e5)],
            _ => vec![elements(&mut random, from, &[rows, 3])],
        });
        Case::new(graph, Bindings::new().with("rows", 8), steps.into()).everywhere().exact().check();
    }
}
