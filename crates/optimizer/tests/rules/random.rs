//! Random graphs: what they compute before and after all passes, on the reference interpreter.

use core_tensor::op::{Binary, Op, Scalar, Unary};
use core_tensor::{Dim, Graph, ValueId};
use polaris_optimizer::optimize;
use proptest::prelude::*;

use crate::graphs::{Build, assert_close, dims, inputs, run};

/// One instruction of a random program: which operator, which operands, which attribute.
type Code = [u8; 4];

fn shape(b: &Build, id: ValueId) -> Vec<usize> {
    let (_, shape) = b.graph.tensor_type(id).unwrap();
    shape.iter().filter_map(Dim::as_num).collect()
}

/// Functions whose results stay small and smooth, so that rounding does not decide what comes out.
fn unary(code: u8) -> Unary {
    match code % 8 {
        0 => Unary::Neg,
        1 => Unary::Relu,
        2 => Unary::Tanh,
        3 => Unary::Sigmoid,
        4 => Unary::Silu,
        5 => Unary::Abs,
        6 => Unary::Erf,
        _ => Unary::Clip { min: Scalar::new(-1.5), max: Scalar::new(2.0) },
    }
}

/// A constant that broadcasts against a shape: one number (often a neutral one), a vector, or all.
fn constant(b: &mut Build, shape: &[usize], code: u8) -> ValueId {
    match code % 6 {
        0 => b.number(1.0),
        1 => b.number(0.5),
        2 => b.number(0.0),
        3 => b.weight(&shape[shape.len() - 1..]),
        4 if shape.len() > 1 => {
            let mut part = vec![1; shape.len()];
            part[1] = shape[1];
            b.weight(&part)
        }
        _ => b.weight(shape),
    }
}

fn permutation(rank: usize, code: u8) -> Vec<usize> {
    let mut perm: Vec<usize> = (0..rank).collect();
    let mut code = usize::from(code);
    for i in (1..rank).rev() {
        perm.swap(i, code % (i + 1));
        code /= i + 1;
    }
    perm
}

fn build(program: &[Code]) -> Graph {
    let mut b = Build::new();
    let mut values = vec![b.input(&dims(&[2, 3, 4])), b.input(&dims(&[2, 3, 4])), b.input(&dims(&[1, 2, 3, 4]))];
    for [what, first, second, attribute] in program {
        // Small numbers are recent values, so that chains form.
        let pick = |code: u8| values[values.len() - 1 - usize::from(code / 3) % values.len()];
        let x = pick(*first);
        let y = pick(*second);
        let x_shape = shape(&b, x);
        let value = match what % 13 {
            0 | 1 => b.unary(unary(*attribute), x),
            2 => {
                let c = constant(&mut b, &x_shape, *attribute);
                b.mul(c, x)
            }
            3 => {
                let c = constant(&mut b, &x_shape, *attribute);
                if attribute & 64 == 0 { b.add(x, c) } else { b.sub(x, c) }
            }
            4 | 5 => b.transpose(x, &permutation(x_shape.len(), *attribute)),
            6 => {
                let count: usize = x_shape.iter().product();
                let first = [1, 2, 3, 4, 6][usize::from(*attribute) % 5];
                let first = if count.is_multiple_of(first) { first } else { 1 };
                let to = match attribute % 3 {
                    0 => vec![first, count / first],
                    1 => vec![1, first, count / first],
                    _ => vec![count / first, 1, first],
                };
                b.reshape(x, &dims(&to))
            }
            7 if x_shape == shape(&b, y) => {
                let op = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Max][usize::from(*attribute) % 4];
                b.binary(op, x, y)
            }
            8 => {
                let mean = b.mean(x);
                b.sub(x, mean)
            }
            9 => b.softmax(x),
            10 => {
                let k = *x_shape.last().unwrap();
                let w = b.weight(&[k, 4]);
                b.matmul(x, w)
            }
            11 => {
                // A product of a value and itself, transposed: what attention begins with.
                let mut perm: Vec<usize> = (0..x_shape.len()).collect();
                let rank = perm.len();
                perm.swap(rank - 1, rank - 2);
                let t = b.transpose(x, &perm);
                let scores = b.matmul(x, t);
                let half = b.number(0.25);
                let scores = b.mul(scores, half);
                let p = b.softmax(scores);
                if attribute % 2 == 0 { b.matmul(p, x) } else { p }
            }
            12 => {
                let half = x_shape.last().unwrap() / 2;
                let last = *x_shape.last().unwrap();
                if half == 0 {
                    continue;
                }
                let (low, high) = (b.slice(x, -1, 0, half), b.slice(x, -1, half, last));
                b.concat(-1, &[high, low])
            }
            _ => continue,
        };
        if shape(&b, value).iter().product::<usize>() <= 4096 {
            values.push(value);
        }
    }
    // The last value, and one that others may have used.
    let last = values[values.len() - 1];
    let other = values[values.len() - 1 - values.len() / 3];
    for id in [last, other] {
        let bounded = b.unary(Unary::Tanh, id);
        b.graph.output(bounded);
    }
    let count = b.graph.nodes().len();
    assert!(count > 0 && matches!(b.graph.nodes()[count - 1].op, Op::Unary(Unary::Tanh)));
    b.graph
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_passes_preserve_the_results_of_random_graphs(program in prop::collection::vec(any::<Code>(), 1..24)) {
        let graph = build(&program);
        let inputs = inputs(&graph);
        let expected = run(graph.clone(), &inputs);
        let text = graph.to_text();
        let (after, report) = optimize(graph).unwrap();
        prop_assert!(report.rounds < 32, "{report}\n{text}");
        after.verify().unwrap();
        assert_close(&expected, &run(after.clone(), &inputs), &format!("{text}----\n{}", after.to_text()));
        // What is done is done.
        let (again, report) = optimize(after.clone()).unwrap();
        prop_assert_eq!(after.to_text(), again.to_text(), "{}", report);
    }
}
