//! Quantization, and products of bytes.

use core_tensor::op::{
    Binary, Cast, DequantizeLinear, DynamicQuantizeLinear, Granularity, MatMulInteger, Op, QuantizeLinear,
};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor, ValueId};

use crate::compare::Case;
use crate::random::Random;

/// Elements of any bits, the extreme bytes often.
fn integers(random: &mut Random, dtype: DType, shape: &[usize]) -> Tensor {
    let byte = |random: &mut Random| match random.below(6) {
        0 => 0x80,
        1 => 0x7f,
        2 => 0xff,
        _ => random.bits() as u8,
    };
    let len = core_tensor::byte_len(dtype, shape).expect("a small tensor");
    let bytes: Vec<u8> = (0..len).map(|_| byte(random)).collect();
    Tensor::from_bytes(dtype, shape, &bytes).expect("a small tensor")
}

fn constant(graph: &mut Graph, tensor: Tensor) -> ValueId {
    graph.weight("constant", core_tensor::Weight::stored(tensor))
}

/// Scales between 0.01 and 0.02: results reach both ends of 8 bits.
fn scales(random: &mut Random, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| 0.015 + 0.005 * random.unit()).collect();
    Tensor::from_slice(shape, &values).expect("a small tensor")
}

const GRANULARITIES: [(Granularity, &[usize]); 5] = [
    (Granularity::Tensor, &[]),
    (Granularity::Axis(1), &[6]),
    (Granularity::Axis(-1), &[5]),
    (Granularity::Blocks { axis: 1, block: 4 }, &[0, 2, 5]),
    (Granularity::Blocks { axis: -1, block: 2 }, &[0, 6, 3]),
];

/// The shape of scales for so many rows.
fn extents(shape: &[usize], rows: Dim) -> Vec<Dim> {
    let dim = |n: &usize| if *n == 0 { rows.clone() } else { Dim::Num(*n) };
    shape.iter().map(dim).collect()
}

fn rows_of(shape: &[usize], rows: usize) -> Vec<usize> {
    shape.iter().map(|n| if *n == 0 { rows } else { *n }).collect()
}

#[test]
fn floats_become_integers_by_scales_of_tensors_rows_and_blocks() {
    let targets = [
        (DType::U8, None),
        (DType::I8, None),
        (DType::U16, None),
        (DType::I16, None),
        (DType::U8, Some(4)),
        (DType::I8, Some(2)),
        (DType::F8E4M3, None),
        (DType::F8E5M2, None),
    ];
    for (to, bits) in targets {
        let mut random = Random::new(5);
        let mut graph = Graph::new("quantize");
        let rows = Dim::sym("rows");
        let floats = graph.input("floats", DType::F32, &[rows.clone(), 6.into(), 5.into()]);
        let numbers = graph.input("numbers", DType::I32, &[rows.clone(), 6.into(), 5.into()]);
        let mut shapes = Vec::new();
        for (granularity, shape) in GRANULARITIES {
            let scale = graph.input("scale", DType::F32, &extents(shape, rows.clone()));
            let zero = graph.input("zero", to, &extents(shape, rows.clone()));
            shapes.push(shape);
            for saturate in [true, false] {
                let op = Op::QuantizeLinear(QuantizeLinear { granularity, to, saturate, bits });
                for x in [floats, numbers] {
                    let y = graph.add("y", op.clone(), &[x, scale]).expect("a quantization");
                    graph.output(y);
                    let y = graph.add("y", op.clone(), &[x, scale, zero]).expect("a quantization");
                    graph.output(y);
                }
            }
        }
        let steps = [1, 7, 3].map(|rows| {
            let mut inputs = vec![random.scaled_f32(&[rows, 6, 5], 3.0)];
            let numbers: Vec<i32> = (0..rows * 30).map(|_| random.below(9) as i32 - 4).collect();
            inputs.push(Tensor::from_slice(&[rows, 6, 5], &numbers).expect("a small tensor"));
            for shape in &shapes {
                inputs.push(scales(&mut random, &rows_of(shape, rows)));
                let zero = match bits {
                    // Integers of fewer bits are held one per byte.
                    Some(_) => {
                        Tensor::from_bytes(to, &rows_of(shape, rows), &vec![1; rows_of(shape, rows).iter().product()])
                    }
                    None => Ok(integers(&mut random, to, &rows_of(shape, rows))),
                };
                inputs.push(zero.expect("a small tensor"));
            }
            inputs
        });
        Case::new(graph, Bindings::new().with("rows", 7), steps.into()).everywhere().exact().check();
    }
}

#[test]
fn halves_are_rounded_to_even_integers() {
    let mut graph = Graph::new("halves");
    let x = graph.input("x", DType::F32, &[600.into()]);
    let scale = graph.input("scale", DType::F32, &[]);
    let zero = graph.input("zero", DType::I8, &[]);
    for inputs in [&[x, scale][..], &[x, scale, zero]] {
        let op = QuantizeLinear { granularity: Granularity::Tensor, to: DType::I8, saturate: true, bits: None };
        let y = graph.add("y", Op::QuantizeLinear(op), inputs).expect("a quantization");
        graph.output(y);
    }
    // Odd multiples of half a scale that is no power of two; what is far from them.
    let steps = [0.5f32, 0.1, 0.037, 1e-3].map(|scale: f32| {
        let mut x: Vec<f32> = (-297..297).map(|i| (i as f32 + 0.5) * scale).collect();
        x.extend([1e4, -1e4, 1e-30, -1e-30, 0.0, -0.0].map(|v| v * scale));
        let zero = Tensor::from_slice(&[], &[-3i8]).expect("a number");
        let scale = Tensor::from_slice(&[], &[scale]).expect("a number");
        vec![Tensor::from_slice(&[600], &x).expect("numbers"), scale, zero]
    });
    Case::new(graph, Bindings::new(), steps.into()).everywhere().exact().check();
}

#[test]
fn what_is_no_number_is_quantized_to_the_zero_point() {
    let mut graph = Graph::new("no number");
    let x = graph.input("x", DType::F32, &[6.into()]);
    let scale = graph.input("scale", DType::F32, &[]);
    let zero = graph.input("zero", DType::I8, &[]);
    let op = QuantizeLinear { granularity: Granularity::Tensor, to: DType::I8, saturate: true, bits: None };
    let y = graph.add("y", Op::QuantizeLinear(op), &[x, scale, zero]).expect("a quantization");
    graph.output(y);
    let x = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, 0.0];
    let inputs = vec![
        Tensor::from_slice(&[6], &x).expect("numbers"),
        Tensor::from_slice(&[], &[0.1f32]).expect("a number"),
        Tensor::from_slice(&[], &[-3i8]).expect("a number"),
    ];
    Case::new(graph, Bindings::new(), vec![inputs]).everywhere().exact().check();
}

#[test]
fn integers_become_floats_by_scales_of_tensors_rows_and_blocks() {
    for from in [DType::U8, DType::I8, DType::U16, DType::I16, DType::I32, DType::F8E4M3, DType::F8E5M2] {
        let mut random = Random::new(6);
        let mut graph = Graph::new("dequantize");
        let rows = Dim::sym("rows");
        let x = graph.input("x", from, &[rows.clone(), 6.into(), 5.into()]);
        let mut shapes = Vec::new();
        for (granularity, shape) in GRANULARITIES {
            let scale = graph.input("scale", DType::F32, &extents(shape, rows.clone()));
            let zero = graph.input("zero", from, &extents(shape, rows.clone()));
            shapes.push(shape);
            for inputs in [&[x, scale][..], &[x, scale, zero]] {
                let op = Op::DequantizeLinear(DequantizeLinear { granularity });
                let y = graph.add("y", op, inputs).expect("a dequantization");
                graph.output(y);
            }
        }
        let small = |random: &mut Random, shape: &[usize]| random.stored(from, shape);
        let steps = [1, 7, 3].map(|rows| {
            let mut inputs = vec![small(&mut random, &[rows, 6, 5])];
            for shape in &shapes {
                inputs.push(scales(&mut random, &rows_of(shape, rows)));
                inputs.push(small(&mut random, &rows_of(shape, rows)));
            }
            inputs
        });
        Case::new(graph, Bindings::new().with("rows", 7), steps.into()).everywhere().check();
    }
}

#[test]
fn floats_become_bytes_by_their_range() {
    let mut random = Random::new(7);
    let mut graph = Graph::new("range");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 700.into()]);
    for y in graph.add_node("y", Op::DynamicQuantizeLinear(DynamicQuantizeLinear), vec![Some(x)]).expect("bytes") {
        graph.output(y);
    }
    let mut steps: Vec<Vec<Tensor>> =
        [1, 7, 300, 2].map(|rows| vec![random.scaled_f32(&[rows, 700], rows as f32)]).into();
    // Nothing but 0, and ranges that begin or end there.
    for (scale, shift) in [(0.0, 0.0), (1.0, 2.0), (1.0, -2.0)] {
        let values: Vec<f32> = (0..700).map(|_| random.unit() * scale + shift).collect();
        steps.push(vec![Tensor::from_slice(&[1, 700], &values).expect("numbers")]);
    }
    Case::new(graph, Bindings::new().with("rows", 300), steps).everywhere().exact().check();
}

const BYTES: [DType; 2] = [DType::U8, DType::I8];

#[test]
fn products_of_bytes_are_exact_for_all_signs_and_zero_points() {
    for (a, b) in BYTES.into_iter().flat_map(|a| BYTES.map(|b| (a, b))) {
        for (k, n) in [(1, 1), (3, 4), (130, 37), (601, 300)] {
            let mut random = Random::new(k as u64);
            let mut graph = Graph::new("products");
            let rows = Dim::sym("rows");
            let x = graph.input("x", a, &[rows.clone(), k.into()]);
            let w = constant(&mut graph, integers(&mut random, b, &[k, n]));
            let a_zeros = [None, Some(graph.input("one", a, &[])), Some(graph.input("each", a, &[rows]))];
            let b_zeros = [None, Some(integers(&mut random, b, &[])), Some(integers(&mut random, b, &[n]))];
            let b_zeros = b_zeros.map(|zero| zero.map(|zero| constant(&mut graph, zero)));
            for (zero, other) in a_zeros.into_iter().flat_map(|zero| b_zeros.map(|other| (zero, other))) {
                let inputs = vec![Some(x), Some(w), zero, other];
                let y = graph.add_node("y", Op::MatMulInteger(MatMulInteger), inputs).expect("a product")[0];
                graph.output(y);
            }
            let steps = [1, 2, 8, 19].map(|rows| {
                let zeros = [&[][..], &[rows]].map(|shape| integers(&mut random, a, shape));
                [vec![integers(&mut random, a, &[rows, k])], zeros.into()].concat()
            });
            Case::new(graph, Bindings::new().with("rows", 19), steps.into()).everywhere().exact().check();
            let mut graph = Graph::new("one row");
            let x = graph.input("x", a, &[1.into(), k.into()]);
            let w = constant(&mut graph, integers(&mut random, b, &[k, n]));
            let y = graph.add("y", Op::MatMulInteger(MatMulInteger), &[x, w]).expect("a product");
            graph.output(y);
            let steps = vec![vec![integers(&mut random, a, &[1, k])]];
            Case::new(graph, Bindings::new(), steps).everywhere().exact().check();
        }
    }
}

#[test]
fn products_of_computed_bytes_agree_in_every_broadcast() {
    let shapes: [(&[usize], &[usize]); 6] = [
        (&[3, 5, 7], &[7, 6]),
        (&[3, 5, 7], &[3, 7, 4]),
        (&[5, 7], &[3, 7, 6]),
        (&[2, 1, 5, 7], &[3, 7, 6]),
        (&[7], &[3, 7, 6]),
        (&[7], &[7, 4]),
    ];
    for (a, b) in shapes {
        let mut random = Random::new(9);
        let mut graph = Graph::new("computed");
        let dims = |shape: &[usize]| shape.iter().map(|n| Dim::Num(*n)).collect::<Vec<_>>();
        let x = graph.input("x", DType::U8, &dims(a));
        let w = graph.input("w", DType::I8, &dims(b));
        let (zero, other) = (graph.input("zero", DType::U8, &[]), graph.input("other", DType::I8, &[1.into()]));
        for inputs in [&[x, w][..], &[x, w, zero, other]] {
            let y = graph.add("y", Op::MatMulInteger(MatMulInteger), inputs).expect("a product");
            graph.output(y);
        }
        let inputs = vec![
            integers(&mut random, DType::U8, a),
            integers(&mut random, DType::I8, b),
            integers(&mut random, DType::U8, &[]),
            integers(&mut random, DType::I8, &[1]),
        ];
        Case::new(graph, Bindings::new(), vec![inputs]).everywhere().exact().check();
    }
}

#[test]
fn a_linear_layer_whose_activations_become_bytes_on_the_way_agrees() {
    for n in [40, 37] {
        let mut random = Random::new(11);
        let mut graph = Graph::new("linear");
        let x = graph.input("x", DType::F32, &[2.into(), Dim::sym("rows"), 70.into()]);
        let bytes = graph.add_node("bytes", Op::DynamicQuantizeLinear(DynamicQuantizeLinear), vec![Some(x)]);
        let bytes = bytes.expect("bytes");
        let w = constant(&mut graph, integers(&mut random, DType::I8, &[70, n]));
        let zero = constant(&mut graph, integers(&mut random, DType::I8, &[n]));
        let inputs = vec![Some(bytes[0]), Some(w), Some(bytes[2]), Some(zero)];
        let y = graph.add_node("sums", Op::MatMulInteger(MatMulInteger), inputs).expect("a product")[0];
        let y = graph.add("floats", Op::Cast(Cast { to: DType::F32 }), &[y]).expect("floats");
        let by = constant(&mut graph, scales(&mut random, &[n]));
        let scale = graph.add("scale", Op::Binary(Binary::Mul), &[bytes[1], by]).expect("a product");
        let y = graph.add("scaled", Op::Binary(Binary::Mul), &[y, scale]).expect("a product");
        let bias = constant(&mut graph, random.f32(&[n]));
        let y = graph.add("y", Op::Binary(Binary::Add), &[y, bias]).expect("a sum");
        graph.output(y);
        let steps = [1, 9, 4].map(|rows| vec![random.f32(&[2, rows, 70])]);
        Case::new(graph, Bindings::new().with("rows", 9), steps.into()).everywhere().check();
    }
}
