//! Element-wise functions, reductions and normalizations of imported graphs.

use core_tensor::op::{
    Binary, Cast, CumSum, GroupNormalization, LayerNormalization, LogSoftmax, Op, Reduce, ReduceKind, Unary, Where,
};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor};

use crate::compare::Case;
use crate::random::Random;

const ROWS: [usize; 4] = [1, 2, 7, 3];

fn bounds() -> Bindings {
    Bindings::new().with("rows", 7)
}

#[test]
fn every_function_of_a_float_agrees() {
    for op in Unary::all() {
        let mut random = Random::new(1);
        let mut graph = Graph::new("unary");
        let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 37.into()]);
        let y = graph.add("y", Op::Unary(op), &[x]).expect("a function");
        graph.output(y);
        // Once more before a product, which may apply it on its way, and after one.
        let w = graph.weight("w", random.weight(DType::F32, &[37, 5]));
        let product = Op::MatMul(core_tensor::op::MatMul { transpose_b: false });
        let z = graph.add("before", Op::Unary(op), &[x]).expect("a function");
        let z = graph.add("z", product.clone(), &[z, w]).expect("a product");
        graph.output(z);
        let v = graph.add("v", product, &[x, w]).expect("a product");
        let v = graph.add("after", Op::Unary(op), &[v]).expect("a function");
        graph.output(v);
        // Where functions are defined: for products and functions of large sums tolerances would say nothing.
        let scale = match op {
            Unary::Asin | Unary::Acos | Unary::Atanh => 0.1,
            Unary::Tan | Unary::Floor | Unary::Ceil | Unary::Round | Unary::Sign | Unary::ThresholdedRelu { .. } => 0.3,
            Unary::Shrink { .. } | Unary::Acosh => 1.0,
            _ => 3.0,
        };
        let steps = ROWS.map(|rows| vec![random.scaled_f32(&[rows, 37], scale)]);
        let jumps = matches!(
            op,
            Unary::Floor
                | Unary::Ceil
                | Unary::Round
                | Unary::Sign
                | Unary::ThresholdedRelu { .. }
                | Unary::Shrink { .. }
        );
        // A sum on the other side of a jump is another number; acosh, the root and the logarithm of what is negative have no value.
        let case = Case::new(graph, bounds(), steps.into()).everywhere();
        if jumps { case.within(1e-3).check() } else { case.check() }
    }
}

#[test]
fn functions_agree_over_their_whole_range() {
    let values: Vec<f32> = (-400..=400).map(|i| i as f32 * 0.05).chain([1e-3, -1e-3, 1e-6, 0.999, 1.001]).collect();
    let inside: Vec<f32> = (-100..=100).map(|i| i as f32 * 0.01).collect();
    for op in Unary::all() {
        let values = match op {
            Unary::Asin | Unary::Acos => &inside,
            _ => &values,
        };
        let mut graph = Graph::new("range");
        let x = graph.input("x", DType::F32, &[Dim::sym("n")]);
        let y = graph.add("y", Op::Unary(op), &[x]).expect("a function");
        graph.output(y);
        let step = vec![Tensor::from_slice(&[values.len()], values).expect("a small tensor")];
        Case::new(graph, Bindings::new().with("n", 900), vec![step]).everywhere().check();
    }
}

/// Shapes of operands that broadcast in every way, among them with a symbol that turns out to be 1.
fn broadcasts() -> Vec<(Vec<Dim>, Vec<Dim>)> {
    let (r, s) = (Dim::sym("rows"), Dim::sym("some"));
    vec![
        (vec![r.clone(), 21.into()], vec![r.clone(), 21.into()]),
        (vec![r.clone(), 21.into()], vec![21.into()]),
        (vec![r.clone(), 21.into()], vec![r.clone(), 1.into()]),
        (vec![1.into(), 21.into()], vec![r.clone(), 1.into()]),
        (vec![r.clone(), 1.into(), 4.into()], vec![1.into(), 3.into(), 4.into()]),
        (vec![r.clone(), 5.into()], vec![]),
        (vec![r.clone(), 3.into(), 2.into()], vec![s, 1.into(), 2.into()]),
    ]
}

fn shaped(shape: &[Dim], rows: usize, some: usize) -> Vec<usize> {
    let bindings = Bindings::new().with("rows", rows).with("some", some);
    core_tensor::eval_shape(shape, &bindings).expect("symbols are bound")
}

/// Small whole numbers of a dtype, so that some are equal.
fn numbers(random: &mut Random, dtype: DType, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let values: Vec<i64> = (0..count).map(|_| random.below(7) as i64 - 3).collect();
    let tensor = match dtype {
        DType::F32 => Tensor::from_slice(shape, &values.iter().map(|v| *v as f32).collect::<Vec<_>>()),
        DType::I32 => Tensor::from_slice(shape, &values.iter().map(|v| *v as i32).collect::<Vec<_>>()),
        DType::I64 => Tensor::from_slice(shape, &values.iter().map(|v| *v << 33 | *v).collect::<Vec<_>>()),
        _ => Tensor::from_bytes(dtype, shape, &values.iter().map(|v| u8::from(*v > 0)).collect::<Vec<_>>()),
    };
    tensor.expect("a small tensor")
}

#[test]
fn functions_and_comparisons_of_every_dtype_agree_with_every_broadcast() {
    let comparisons = [Binary::Equal, Binary::Less, Binary::LessOrEqual, Binary::Greater, Binary::GreaterOrEqual];
    let integers = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Max, Binary::Min];
    let bools = [Binary::And, Binary::Or, Binary::Xor, Binary::Equal];
    let floats = [Binary::Mod, Binary::PRelu];
    let cases = [
        (DType::F32, [&floats[..], &comparisons].concat()),
        (DType::I32, [&integers[..], &comparisons].concat()),
        (DType::I64, [&integers[..], &comparisons].concat()),
        (DType::Bool, bools.to_vec()),
    ];
    for (dtype, ops) in cases {
        for (i, (a, b)) in broadcasts().iter().enumerate() {
            let mut random = Random::new(i as u64);
            let mut graph = Graph::new("binary");
            let inputs = [graph.input("a", dtype, a), graph.input("b", dtype, b)];
            for op in &ops {
                let y = graph.add("y", Op::Binary(*op), &inputs).expect("a function");
                graph.output(y);
            }
            let steps = [(1, 1), (2, 2), (7, 1), (3, 3)].map(|(rows, some)| {
                vec![
                    numbers(&mut random, dtype, &shaped(a, rows, some)),
                    numbers(&mut random, dtype, &shaped(b, rows, some)),
                ]
            });
            Case::new(graph, bounds().with("some", 7), steps.into()).everywhere().check();
        }
    }
}

#[test]
fn remainders_agree_where_quotients_are_whole_numbers() {
    let mut graph = Graph::new("mod");
    let inputs = ["a", "b"].map(|name| graph.input(name, DType::F32, &[Dim::sym("n")]));
    let y = graph.add("y", Op::Binary(Binary::Mod), &inputs).expect("a function");
    graph.output(y);
    let pairs: Vec<(f32, f32)> =
        (-60i16..=60).flat_map(|a| [-7i16, -3, -1, 1, 3, 7].map(|b| (f32::from(a), f32::from(b)))).collect();
    let of = |side: fn(&(f32, f32)) -> f32| {
        Tensor::from_slice(&[pairs.len()], &pairs.iter().map(side).collect::<Vec<_>>()).expect("a small tensor")
    };
    let steps = vec![vec![of(|p| p.0), of(|p| p.1)]];
    Case::new(graph, Bindings::new().with("n", 1000), steps).everywhere().exact().check();
}

#[test]
fn elements_are_chosen_by_masks_of_every_broadcast() {
    for dtype in [DType::F32, DType::I32, DType::I64] {
        for (i, (a, b)) in broadcasts().iter().enumerate() {
            let mut random = Random::new(i as u64);
            let mut graph = Graph::new("where");
            let c = graph.input("c", DType::Bool, a);
            let x = graph.input("a", dtype, b);
            let z = graph.input("b", dtype, a);
            for operands in [[c, x, z], [c, z, x]] {
                let y = graph.add("y", Op::Where(Where), &operands).expect("a choice");
                graph.output(y);
            }
            let not = graph.add("not", Op::Unary(Unary::Not), &[c]).expect("a function");
            let y = graph.add("y", Op::Where(Where), &[not, x, z]).expect("a choice");
            graph.output(y);
            let steps = [(1, 1), (7, 1), (3, 3)].map(|(rows, some)| {
                vec![
                    numbers(&mut random, DType::Bool, &shaped(a, rows, some)),
                    numbers(&mut random, dtype, &shaped(b, rows, some)),
                    numbers(&mut random, dtype, &shaped(a, rows, some)),
                ]
            });
            Case::new(graph, bounds().with("some", 7), steps.into()).everywhere().exact().check();
        }
    }
}

#[test]
fn elements_of_every_dtype_are_converted_to_every_other() {
    let kinds =
        [DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64, DType::U8, DType::I8, DType::Bool, DType::U32];
    let values = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 100.0, 127.0, 128.0, 255.0, 256.0, -129.0, 1e5, -1e9];
    let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e20, -1e20, 3e9, 2_147_483_600.0, 16_777_217.0];
    for from in kinds {
        let mut graph = Graph::new("casts");
        let x = graph.input("x", from, &[Dim::sym("n")]);
        for to in kinds {
            let y = graph.add("y", Op::Cast(Cast { to }), &[x]).expect("a cast");
            graph.output(y);
        }
        let floats: Vec<f32> =
            if matches!(from, DType::F32) { [&values[..], &special].concat() } else { values.to_vec() };
        let integers: Vec<i64> = values.iter().map(|v| *v as i64).collect();
        let wide: Vec<i64> =
            integers.iter().copied().chain([i64::MAX, i64::MIN, 1 << 53, (1 << 53) + 1, -(1 << 40) - 3]).collect();
        let narrow = |bytes: Vec<u8>| Tensor::from_bytes(from, &[bytes.len()], &bytes);
        let tensor = match from {
            DType::F32 => Tensor::from_slice(&[floats.len()], &floats),
            DType::F16 => {
                let values: Vec<half::f16> = floats.iter().map(|v| half::f16::from_f32(*v)).collect();
                Tensor::from_slice(&[values.len()], &values)
            }
            DType::BF16 => {
                let values: Vec<half::bf16> = floats.iter().map(|v| half::bf16::from_f32(*v)).collect();
                Tensor::from_slice(&[values.len()], &values)
            }
            DType::I32 => {
                let values: Vec<i32> = wide.iter().map(|v| *v as i32).collect();
                Tensor::from_slice(&[values.len()], &values)
            }
            DType::U32 => {
                let bytes = wide.iter().flat_map(|v| (*v as u32).to_le_bytes()).collect::<Vec<u8>>();
                Tensor::from_bytes(from, &[wide.len()], &bytes)
            }
            DType::I64 => Tensor::from_slice(&[wide.len()], &wide),
            DType::Bool => narrow(vec![0, 1, 1, 0, 1]),
            _ => narrow((0..=255).collect()),
        };
        let steps = vec![vec![tensor.expect("a small tensor")]];
        Case::new(graph, Bindings::new().with("n", 300), steps).everywhere().exact().check();
    }
}

#[test]
fn reductions_of_every_kind_agree() {
    let kinds = [
        ReduceKind::Sum,
        ReduceKind::Mean,
        ReduceKind::Max,
        ReduceKind::Min,
        ReduceKind::Prod,
        ReduceKind::L1,
        ReduceKind::L2,
        ReduceKind::SumSquare,
        ReduceKind::LogSum,
        ReduceKind::LogSumExp,
    ];
    for width in [1, 49, 700] {
        let mut random = Random::new(width as u64);
        let mut graph = Graph::new("reduce");
        let x = graph.input("x", DType::F32, &[Dim::sym("rows"), width.into()]);
        for kind in kinds {
            // Products of many factors near 1; logarithms of sums above 0.
            let x = match kind {
                ReduceKind::LogSum => graph.add("abs", Op::Unary(Unary::Abs), &[x]).expect("a function"),
                ReduceKind::Prod => {
                    let scaled = graph.add("tanh", Op::Unary(Unary::Exp), &[x]).expect("a function");
                    graph.add("root", Op::Unary(Unary::Sqrt), &[scaled]).expect("a function")
                }
                _ => x,
            };
            let y = graph.add("y", Op::Reduce(Reduce { kind }), &[x]).expect("a reduction");
            graph.output(y);
        }
        let y = graph.add("y", Op::LogSoftmax(LogSoftmax), &[x]).expect("a softmax");
        graph.output(y);
        let steps = ROWS.map(|rows| vec![random.f32(&[rows, width])]);
        Case::new(graph, bounds(), steps.into()).everywhere().check();
    }
}

#[test]
fn running_sums_agree_along_every_extent() {
    for axis in [0, 1, -1] {
        let mut random = Random::new(5);
        let mut graph = Graph::new("cumsum");
        let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 9.into(), 5.into()]);
        for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
            let y = graph.add("y", Op::CumSum(CumSum { axis, exclusive, reverse }), &[x]).expect("a sum");
            graph.output(y);
        }
        let steps = ROWS.map(|rows| vec![random.f32(&[rows, 9, 5])]);
        Case::new(graph, bounds(), steps.into()).everywhere().check();
    }
}

#[test]
fn normalizations_of_rows_agree_alone_and_before_products() {
    for width in [1, 32, 37, 384] {
        let mut random = Random::new(width as u64);
        let mut graph = Graph::new("layer norm");
        let x = graph.input("x", DType::F32, &[Dim::sym("rows"), width.into()]);
        let op = Op::LayerNormalization(LayerNormalization { epsilon: 1e-5 });
        let [w, b] = ["w", "b"].map(|name| graph.weight(name, random.weight(DType::F32, &[width])));
        for inputs in [&[x][..], &[x, w], &[x, w, b]] {
            let y = graph.add("y", op.clone(), inputs).expect("a normalization");
            graph.output(y);
        }
        let y = graph.add("before", op, &[x, w, b]).expect("a normalization");
        let matrix = graph.weight("matrix", random.weight(DType::F32, &[width, 70]));
        let product = core_tensor::op::MatMul { transpose_b: false };
        let z = graph.add("z", Op::MatMul(product), &[y, matrix]).expect("a product");
        graph.output(z);
        let steps = [1, 7, 3, 40].map(|rows| vec![random.scaled_f32(&[rows, width], 10.0)]);
        Case::new(graph, Bindings::new().with("rows", 40), steps.into()).everywhere().check();
    }
}

#[test]
fn normalizations_of_groups_of_channels_agree() {
    for (groups, channels) in [(1, 6), (3, 6), (6, 6)] {
        let mut random = Random::new(groups as u64);
        let mut graph = Graph::new("group norm");
        let shape = [Dim::sym("rows"), channels.into(), 5.into(), Dim::sym("width")];
        let x = graph.input("x", DType::F32, &shape);
        let op = Op::GroupNormalization(GroupNormalization { groups, epsilon: 1e-5 });
        let [w, b] = ["w", "b"].map(|name| graph.weight(name, random.weight(DType::F32, &[channels])));
        for inputs in [&[x][..], &[x, w], &[x, w, b]] {
            let y = graph.add("y", op.clone(), inputs).expect("a normalization");
            graph.output(y);
        }
        let steps = [(1, 3), (2, 70)].map(|(rows, width)| vec![random.f32(&[rows, channels, 5, width])]);
        let bounds = Bindings::new().with("rows", 2).with("width", 70);
        Case::new(graph, bounds, steps.into()).everywhere().check();
    }
}
