//! Products of bytes, exactly; the chains behind them that become one step; floats to bytes and back.

use core_tensor::op::{
    Binary, Cast, DequantizeLinear, DynamicQuantizeLinear, Granularity, MatMulInteger, Op, QuantizeLinear, Unary,
};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor, ValueId, Weight};

use crate::compare::Case;
use crate::random::Random;

/// Bytes, the extreme ones often.
fn bytes(random: &mut Random, dtype: DType, shape: &[usize]) -> Tensor {
    let byte = |random: &mut Random| match random.below(6) {
        0 => 0x80,
        1 => 0x7f,
        2 => 0xff,
        _ => random.bits() as u8,
    };
    let bytes: Vec<u8> = (0..shape.iter().product()).map(|_| byte(random)).collect();
    Tensor::from_bytes(dtype, shape, &bytes).expect("bytes")
}

fn weight(graph: &mut Graph, tensor: Tensor) -> ValueId {
    graph.weight("weight", Weight::stored(tensor))
}

/// Zero points of a product's operands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Zero {
    None,
    One,
    /// One for each row of the first operand, or each column of the second.
    Each,
}

const ROWS: usize = 131;

fn sums([a, b]: [DType; 2], zeros: [Zero; 2], [n, k]: [usize; 2], seed: u64) -> Case {
    let mut random = Random::new(seed);
    let mut graph = Graph::new("sums");
    let rows = Dim::sym("rows");
    let x = graph.input("x", a, &[rows.clone(), k.into()]);
    let w = weight(&mut graph, bytes(&mut random, b, &[k, n]));
    let mut inputs = vec![Some(x), Some(w)];
    let a_zero = match zeros[0] {
        Zero::None => None,
        Zero::One => Some(graph.input("zero", a, &[])),
        Zero::Each => Some(graph.input("zero", a, &[rows])),
    };
    inputs.push(a_zero);
    inputs.push(match zeros[1] {
        Zero::None => None,
        Zero::One => Some(weight(&mut graph, bytes(&mut random, b, &[]))),
        Zero::Each => Some(weight(&mut graph, bytes(&mut random, b, &[n]))),
    });
    while inputs.last() == Some(&None) {
        inputs.pop();
    }
    let y = graph.add_node("y", Op::MatMulInteger(MatMulInteger), inputs).expect("a product")[0];
    graph.output(y);
    let steps = [1, 2, 3, 5, 14, ROWS].map(|rows| {
        let mut step = vec![bytes(&mut random, a, &[rows, k])];
        match zeros[0] {
            Zero::None => {}
            Zero::One => step.push(bytes(&mut random, a, &[])),
            Zero::Each => step.push(bytes(&mut random, a, &[rows])),
        }
        step
    });
    Case::new(graph, Bindings::new().with("rows", ROWS), steps.into()).exact()
}

#[test]
fn products_of_bytes_with_constant_matrices_are_exact_for_all_signs_and_zero_points() {
    let (u, i) = (DType::U8, DType::I8);
    let mut seed = 0;
    for dtypes in [[u, i], [i, i], [u, u], [i, u]] {
        for a in [Zero::None, Zero::One, Zero::Each] {
            for b in [Zero::None, Zero::One, Zero::Each] {
                seed += 1;
                let shape = [[35, 70], [16, 12], [83, 33]][seed as usize % 3];
                sums(dtypes, [a, b], shape, seed).check();
            }
        }
    }
}

#[test]
fn long_and_wide_products_of_bytes_are_exact() {
    // Longer than a chunk of rows that stays in the cache; more groups than a unit has; one output.
    for (seed, shape) in [[16, 5000], [300, 8], [1, 20], [17, 3]].into_iter().enumerate() {
        sums([DType::U8, DType::I8], [Zero::One, Zero::None], shape, 60 + seed as u64).check();
    }
}

#[test]
fn products_of_computed_bytes_of_any_broadcast_are_exact() {
    let cases: [(&[usize], &[usize]); 6] = [
        (&[5, 7], &[7, 9]),
        (&[2, 3, 40, 33], &[2, 3, 33, 50]),
        (&[2, 1, 13, 8], &[3, 8, 17]),
        (&[4, 1, 600], &[600, 20]),
        (&[300, 20], &[2, 20, 40]),
        (&[1, 2000], &[2000, 300]),
    ];
    for (seed, (a_shape, b_shape)) in cases.into_iter().enumerate() {
        for (a_dtype, b_dtype) in [(DType::U8, DType::I8), (DType::I8, DType::U8)] {
            let mut random = Random::new(70 + seed as u64);
            let mut graph = Graph::new("computed");
            let dims = |shape: &[usize]| shape.iter().copied().map(Dim::from).collect::<Vec<Dim>>();
            let a = graph.input("a", a_dtype, &dims(a_shape));
            let b = graph.input("b", b_dtype, &dims(b_shape));
            let zero = graph.input("zero", b_dtype, &[1.into()]);
            let inputs = vec![Some(a), Some(b), None, Some(zero)];
            let y = graph.add_node("y", Op::MatMulInteger(MatMulInteger), inputs).expect("a product")[0];
            graph.output(y);
            let step = vec![
                bytes(&mut random, a_dtype, a_shape),
                bytes(&mut random, b_dtype, b_shape),
                bytes(&mut random, b_dtype, &[1]),
            ];
            Case::new(graph, Bindings::new(), vec![step]).exact().check();
        }
    }
}

/// What follows a product in a graph.
#[derive(Clone, Copy, Debug, Default)]
struct Behind {
    sum_bias: bool,
    /// Two scales that are multiplied first.
    two_scales: bool,
    bias: bool,
    function: Option<Unary>,
    residual: bool,
    quantized: Option<DType>,
    /// Whether the scaled sums are an output, too.
    shared: bool,
}

fn chain(behind: Behind, dynamic: bool, computed: bool, seed: u64) -> Case {
    let (n, k) = (37, 24);
    let mut random = Random::new(seed);
    let mut graph = Graph::new("chain");
    let rows = Dim::sym("rows");
    let x = graph.input("x", DType::F32, &[2.into(), rows.clone(), k.into()]);
    let (a, scale, zero) = if dynamic {
        let all = graph.add_node("q", Op::DynamicQuantizeLinear(DynamicQuantizeLinear), vec![Some(x)]).expect("bytes");
        (all[0], all[1], all[2])
    } else {
        let scale = weight(&mut graph, Tensor::from_slice(&[], &[0.011f32]).expect("a scale"));
        let zero = weight(&mut graph, Tensor::from_slice(&[], &[-7i8]).expect("a zero point"));
        let op = QuantizeLinear { granularity: Granularity::Tensor, to: DType::I8, saturate: true, bits: None };
        let a = graph.add("q", Op::QuantizeLinear(op), &[x, scale, zero]).expect("bytes");
        (a, scale, zero)
    };
    let w = bytes(&mut random, DType::I8, &[k, n]);
    let w = if computed { graph.input("w", DType::I8, &[k.into(), n.into()]) } else { weight(&mut graph, w) };
    let y = graph.add_node("sums", Op::MatMulInteger(MatMulInteger), vec![Some(a), Some(w), Some(zero)]);
    let mut y = y.expect("a product")[0];
    if behind.sum_bias {
        let values: Vec<i32> = (0..n).map(|_| random.below(20_000) as i32 - 10_000).collect();
        let bias = weight(&mut graph, Tensor::from_slice(&[n], &values).expect("a bias"));
        y = graph.add("sums", Op::Binary(Binary::Add), &[y, bias]).expect("a sum");
    }
    y = graph.add("floats", Op::Cast(Cast { to: DType::F32 }), &[y]).expect("a cast");
    let each = weight(&mut graph, random.scaled_f32(&[n], 0.02));
    let factor = if behind.two_scales {
        graph.add("scale", Op::Binary(Binary::Mul), &[scale, each]).expect("scales")
    } else {
        scale
    };
    y = graph.add("scaled", Op::Binary(Binary::Mul), &[y, factor]).expect("a product");
    if behind.shared {
        graph.output(y);
    }
    if behind.bias {
        let bias = weight(&mut graph, random.f32(&[n]));
        y = graph.add("biased", Op::Binary(Binary::Add), &[bias, y]).expect("a sum");
    }
    if let Some(function) = behind.function {
        y = graph.add("function", Op::Unary(function), &[y]).expect("a function");
    }
    if behind.residual {
        let shape: Vec<Dim> = graph.tensor_type(y).expect("a tensor").1.to_vec();
        let other = graph.input("other", DType::F32, &shape);
        // Computed, so that its buffer may be taken over.
        let other = graph.add("other", Op::Unary(Unary::Neg), &[other]).expect("a negation");
        y = graph.add("summed", Op::Binary(Binary::Add), &[y, other]).expect("a sum");
    }
    if let Some(to) = behind.quantized {
        let scale = weight(&mut graph, Tensor::from_slice(&[], &[0.5f32]).expect("a scale"));
        let zero = weight(&mut graph, Tensor::from_bytes(to, &[], &[3]).expect("a zero point"));
        let op = QuantizeLinear { granularity: Granularity::Tensor, to, saturate: true, bits: None };
        y = graph.add("bytes", Op::QuantizeLinear(op), &[y, scale, zero]).expect("bytes");
    }
    graph.output(y);
    let steps = [1, 3, 70].map(|rows| {
        let mut step = vec![random.f32(&[2, rows, k])];
        if computed {
            step.push(bytes(&mut random, DType::I8, &[k, n]));
        }
        if behind.residual {
            step.push(random.f32(&[2, rows, n]));
        }
        step
    });
    Case::new(graph, Bindings::new().with("rows", 70), steps.into())
}

#[test]
fn what_follows_a_product_of_bytes_is_computed_as_if_alone() {
    let none = Behind::default();
    let behind = [
        none,
        Behind { sum_bias: true, ..none },
        Behind { two_scales: true, bias: true, ..none },
        Behind { two_scales: true, shared: true, bias: true, ..none },
        Behind { bias: true, residual: true, ..none },
        Behind { two_scales: true, residual: true, ..none },
        Behind { bias: true, quantized: Some(DType::U8), ..none },
        Behind { sum_bias: true, two_scales: true, function: Some(Unary::Relu), quantized: Some(DType::I8), ..none },
        Behind { function: Some(Unary::Neg), ..none },
    ];
    for (i, behind) in behind.into_iter().enumerate() {
        for dynamic in [false, true] {
            for computed in [false, true] {
                chain(behind, dynamic, computed, i as u64).exact().check();
            }
        }
    }
}

#[test]
fn conversions_between_floats_and_bytes_round_and_saturate_as_the_reference_does() {
    for (i, to) in [DType::U8, DType::I8].into_iter().enumerate() {
        for (granularity, extents) in [
            (Granularity::Tensor, vec![]),
            (Granularity::Tensor, vec![1]),
            (Granularity::Axis(0), vec![3]),
            (Granularity::Axis(1), vec![7]),
            (Granularity::Axis(-1), vec![19]),
        ] {
            for zeros in [false, true] {
                let mut random = Random::new(i as u64);
                let mut graph = Graph::new("conversions");
                let x = graph.input("x", DType::F32, &[3.into(), 7.into(), 19.into()]);
                let count: usize = extents.iter().product();
                let scales: Vec<f32> = (0..count).map(|_| 0.01 + random.unit().abs()).collect();
                let scale = weight(&mut graph, Tensor::from_slice(&extents, &scales).expect("scales"));
                let mut inputs = vec![Some(x), Some(scale)];
                if zeros {
                    inputs.push(Some(weight(&mut graph, bytes(&mut random, to, &extents))));
                }
                let op = QuantizeLinear { granularity, to, saturate: true, bits: None };
                let q = graph.add_node("q", Op::QuantizeLinear(op), inputs.clone()).expect("bytes")[0];
                inputs[0] = Some(q);
                let d = graph.add_node("d", Op::DequantizeLinear(DequantizeLinear { granularity }), inputs);
                graph.output(q);
                graph.output(d.expect("floats")[0]);
                let mut values: Vec<f32> = (0..3 * 7 * 19).map(|_| random.unit() * 300.0).collect();
                values[5..10].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, 0.5, -2.5, 1e30]);
                let x = Tensor::from_slice(&[3, 7, 19], &values).expect("floats");
                Case::new(graph, Bindings::new(), vec![vec![x]]).exact().check();
            }
        }
    }
}

#[test]
fn the_range_of_a_whole_tensor_gives_the_numbers_that_onnx_prescribes() {
    let mut graph = Graph::new("ranges");
    let x = graph.input("x", DType::F32, &[Dim::sym("n")]);
    for y in graph.add_node("q", Op::DynamicQuantizeLinear(DynamicQuantizeLinear), vec![Some(x)]).expect("bytes") {
        graph.output(y);
    }
    let mut random = Random::new(5);
    let mut steps = vec![
        Tensor::from_slice(&[1], &[0.0f32]).expect("zero"),
        Tensor::from_slice(&[2], &[-3.0f32, -1.0]).expect("negative numbers"),
        Tensor::from_slice(&[3], &[7.5f32, 2.0, 1.0]).expect("positive numbers"),
    ];
    steps.extend([40, 999].map(|n| random.scaled_f32(&[n], 9.0)));
    let steps = steps.into_iter().map(|x| vec![x]).collect();
    Case::new(graph, Bindings::new().with("n", 999), steps).exact().check();
}
