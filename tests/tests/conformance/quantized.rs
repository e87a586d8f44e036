//! Weights of 8 bits that the graph dequantizes, as quantized ONNX models hold them; products of computed matrices.

use core_tensor::op::{Binary, Cast, DequantizeLinear, Gather, Granularity, MatMul, Op};
use core_tensor::{Bindings, DType, Dim, Graph, ReferenceBackend, Tensor, ValueId, Weight};
use cpu_kernels::matmul::ActivationKind;
use cpu_kernels::{CpuBackend, CpuOptions};

use crate::compare::{Case, EIGHT_BITS, difference};
use crate::random::Random;

fn bytes(random: &mut Random, graph: &mut Graph, dtype: DType, shape: &[usize]) -> ValueId {
    let bytes: Vec<u8> = (0..shape.iter().product()).map(|_| random.below(255) as u8).collect();
    graph.weight("bytes", Weight::stored(Tensor::from_bytes(dtype, shape, &bytes).expect("a weight")))
}

#[derive(Clone, Copy, Debug)]
enum Zero {
    /// The same everywhere.
    All(u8),
    /// Another for each output, anywhere.
    Any,
}

/// How a graph spells the dequantization.
#[derive(Clone, Copy, Debug)]
enum Spelling {
    /// With one zero point for all, or one for each output.
    Operator {
        dtype: DType,
        zero: Option<Zero>,
        per_channel: bool,
    },
    CastAndFactor {
        scale_first: bool,
    },
}

/// `[k, n]` weights, or `[n, k]`, dequantized with a factor for each output.
fn dequantized(
    graph: &mut Graph,
    random: &mut Random,
    how: Spelling,
    [n, k]: [usize; 2],
    transpose_b: bool,
) -> ValueId {
    let shape = if transpose_b { [n, k] } else { [k, n] };
    let axis = usize::from(!transpose_b);
    match how {
        Spelling::Operator { dtype, zero, per_channel } => {
            let w = bytes(random, graph, dtype, &shape);
            let extents: &[usize] = if per_channel { &[n] } else { &[] };
            let scale = graph.weight("scale", random.weight(DType::F32, extents));
            let mut inputs = vec![Some(w), Some(scale)];
            inputs.extend(zero.map(|zero| {
                let count = extents.iter().product();
                let zeros: Vec<u8> = match zero {
                    Zero::All(zero) => vec![zero; count],
                    Zero::Any => (0..count).map(|i| (37 * i + 3) as u8).collect(),
                };
                let zeros = Tensor::from_bytes(dtype, extents, &zeros).expect("zero points");
                Some(graph.weight("zero", Weight::stored(zeros)))
            }));
            let granularity = if per_channel { Granularity::Axis(axis as isize) } else { Granularity::Tensor };
            let op = Op::DequantizeLinear(DequantizeLinear { granularity });
            graph.add_node("floats", op, inputs).expect("a dequantization")[0]
        }
        Spelling::CastAndFactor { scale_first } => {
            let w = bytes(random, graph, DType::I8, &shape);
            let w = graph.add("cast", Op::Cast(Cast { to: DType::F32 }), &[w]).expect("a cast");
            let scale = if transpose_b { vec![n, 1] } else { vec![1, n] };
            let scale = graph.weight("scale", random.weight(DType::F32, &scale));
            let inputs = if scale_first { [scale, w] } else { [w, scale] };
            graph.add("floats", Op::Binary(Binary::Mul), &inputs).expect("a product")
        }
    }
}

fn spellings() -> Vec<Spelling> {
    let operator = |dtype, zero, per_channel| Spelling::Operator { dtype, zero, per_channel };
    vec![
        operator(DType::I8, None, true),
        operator(DType::I8, Some(Zero::All(0)), false),
        operator(DType::I8, Some(Zero::Any), true),
        operator(DType::I8, Some(Zero::All(3)), false),
        operator(DType::U8, Some(Zero::All(128)), true),
        operator(DType::U8, Some(Zero::Any), true),
        operator(DType::U8, None, false),
        Spelling::CastAndFactor { scale_first: false },
        Spelling::CastAndFactor { scale_first: true },
    ]
}

fn product(how: Spelling, [n, k]: [usize; 2], transpose_b: bool, seed: u64) -> Case {
    let mut random = Random::new(seed);
    let mut graph = Graph::new("quantized");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), k.into()]);
    let w = dequantized(&mut graph, &mut random, how, [n, k], transpose_b);
    let y = graph.add("y", Op::MatMul(MatMul { transpose_b }), &[x, w]).expect("a product");
    graph.output(y);
    let steps = [1, 2, 5, 14].map(|rows| vec![random.f32(&[rows, k])]);
    Case::new(graph, Bindings::new().with("rows", 14), steps.into())
}

#[test]
fn products_with_dequantized_weights_agree_however_they_are_spelled() {
    for (i, how) in spellings().into_iter().enumerate() {
        for transpose_b in [false, true] {
            product(how, [35, 70], transpose_b, i as u64).check();
            product(how, [16, 600], transpose_b, i as u64).check();
        }
    }
}

#[test]
fn activations_of_8_bits_are_an_option_and_stay_near() {
    for (i, how) in spellings().into_iter().enumerate() {
        let case = product(how, [35, 170], i % 2 == 0, 50 + i as u64);
        let expected = case.run(&ReferenceBackend::new(false)).expect("the reference runs");
        let options = CpuOptions::default().with_threads(2).with_dequantized(ActivationKind::Q8);
        let found = case.run(&CpuBackend::new(options)).expect("the backend runs");
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            difference(found, expected, EIGHT_BITS).unwrap_or_else(|reason| panic!("{how:?}: {reason}"));
        }
    }
}

#[test]
fn rows_of_dequantized_tables_agree_and_the_table_may_be_read_otherwise_too() {
    for (i, how) in spellings().into_iter().enumerate() {
        for read_twice in [false, true] {
            let mut random = Random::new(70 + i as u64);
            let mut graph = Graph::new("table");
            let indices = graph.input("indices", DType::I64, &[2.into(), Dim::sym("n")]);
            let table = dequantized(&mut graph, &mut random, how, [11, 20], true);
            let y = graph.add("y", Op::Gather(Gather::rows()), &[table, indices]).expect("rows");
            graph.output(y);
            if read_twice {
                graph.output(table);
            }
            let steps = [3, 1].map(|n| {
                let indices: Vec<i64> = (0..2 * n).map(|_| random.below(22) as i64 - 11).collect();
                vec![Tensor::from_slice(&[2, n], &indices).expect("indices")]
            });
            Case::new(graph, Bindings::new().with("n", 3), steps.into()).check();
        }
    }
}

#[test]
fn products_of_computed_matrices_of_any_broadcast_agree() {
    let cases: [(&[usize], &[usize]); 9] = [
        (&[2, 3, 2, 65], &[3, 65, 90]),
        (&[3, 33], &[33, 270]),
        (&[4, 19], &[5, 19, 64]),
        (&[5, 7], &[7, 9]),
        (&[2, 3, 40, 33], &[2, 3, 33, 50]),
        (&[2, 1, 13, 8], &[3, 8, 17]),
        (&[4, 1, 600], &[600, 20]),
        (&[300, 20], &[2, 20, 40]),
        (&[1, 2000], &[2000, 300]),
    ];
    for (i, (a_shape, b_shape)) in cases.into_iter().enumerate() {
        for transpose_b in [false, true] {
            let mut random = Random::new(90 + i as u64);
            let mut b_shape = b_shape.to_vec();
            let rank = b_shape.len();
            if transpose_b {
                b_shape.swap(rank - 2, rank - 1);
            }
            let mut graph = Graph::new("tensors");
            let dims = |shape: &[usize]| shape.iter().copied().map(Dim::from).collect::<Vec<Dim>>();
            let a = graph.input("a", DType::F32, &dims(a_shape));
            let b = graph.input("b", DType::F32, &dims(&b_shape));
            let y = graph.add("y", Op::MatMul(MatMul { transpose_b }), &[a, b]).expect("a product");
            graph.output(y);
            Case::new(graph, Bindings::new(), vec![vec![random.f32(a_shape), random.f32(&b_shape)]]).check();
        }
    }
}
