//! Convolutions and pooling.

use core_tensor::op::{Binary, Conv, ConvTranspose, Op, Pool, PoolKind, Unary, Window};
use core_tensor::{Bindings, DType, Dim, Graph};

use crate::compare::Case;
use crate::random::Random;

fn window(strides: &[usize], dilations: &[usize], before: &[usize], after: &[usize]) -> Window {
    Window {
        strides: strides.to_vec(),
        dilations: dilations.to_vec(),
        pads_begin: before.to_vec(),
        pads_end: after.to_vec(),
    }
}

/// Channels, groups, channels of the result, the kernel and the window.
type Shape = (usize, usize, usize, Vec<usize>, Window);

fn shapes() -> Vec<Shape> {
    let one = window(&[1, 1], &[1, 1], &[0, 0], &[0, 0]);
    let same = window(&[1, 1], &[1, 1], &[1, 1], &[1, 1]);
    let odd = window(&[2, 1], &[1, 2], &[0, 2], &[1, 1]);
    let line = window(&[2], &[1], &[1], &[2]);
    vec![
        (3, 1, 64, vec![3, 3], same.clone()),
        (16, 1, 40, vec![1, 1], one.clone()),
        (37, 1, 5, vec![3, 3], same.clone()),
        (6, 2, 10, vec![3, 2], odd.clone()),
        (8, 8, 8, vec![3, 3], same),
        (4, 4, 8, vec![3, 3], odd),
        (70, 1, 33, vec![1, 1], one),
        (5, 1, 16, vec![4], line.clone()),
        (6, 6, 6, vec![3], line),
    ]
}

#[test]
fn convolutions_of_one_and_two_extents_agree() {
    for dtype in [DType::F32, DType::F16] {
        for (i, (channels, groups, outs, kernel, window)) in shapes().into_iter().enumerate() {
            let mut random = Random::new(i as u64);
            let mut graph = Graph::new("conv");
            let spatial: &[usize] = if kernel.len() == 1 { &[13] } else { &[9, 11] };
            let x_shape: Vec<Dim> =
                [Dim::sym("batch"), channels.into()].into_iter().chain(spatial.iter().map(|n| (*n).into())).collect();
            let x = graph.input("x", DType::F32, &x_shape);
            let w = graph.weight("w", random.weight(dtype, &[&[outs, channels / groups][..], &kernel].concat()));
            let bias = graph.weight("bias", random.weight(dtype, &[outs]));
            let op = Op::Conv(Conv { window, groups });
            let plain = graph.add("plain", op.clone(), &[x, w]).expect("a convolution");
            graph.output(plain);
            // With a bias, the sum with another value and a function.
            let other = graph.add("other", Op::Unary(Unary::Abs), &[plain]).expect("a function");
            let y = graph.add("y", op.clone(), &[x, w, bias]).expect("a convolution");
            let y = graph.add("sum", Op::Binary(Binary::Add), &[y, other]).expect("a sum");
            let y = graph.add("relu", Op::Unary(Unary::Relu), &[y]).expect("a function");
            graph.output(y);
            let z = graph.add("z", op, &[x, w, bias]).expect("a convolution");
            let z = graph.add("swish", Op::Unary(Unary::Silu), &[z]).expect("a function");
            let z = graph.add("sum", Op::Binary(Binary::Add), &[other, z]).expect("a sum");
            graph.output(z);
            let steps = [1, 3, 2].map(|batch| vec![random.f32(&[&[batch, channels][..], spatial].concat())]);
            Case::new(graph, Bindings::new().with("batch", 3), steps.into()).everywhere().check();
        }
    }
}

#[test]
fn images_of_any_size_are_convolved_by_one_program() {
    let mut random = Random::new(8);
    let mut graph = Graph::new("conv");
    let x = graph.input("x", DType::F32, &[1.into(), 4.into(), Dim::sym("height"), Dim::sym("width")]);
    let w = graph.weight("w", random.weight(DType::F32, &[12, 4, 3, 3]));
    let window = window(&[2, 2], &[1, 1], &[1, 1], &[1, 1]);
    let y = graph.add("y", Op::Conv(Conv { window, groups: 1 }), &[x, w]).expect("a convolution");
    graph.output(y);
    let steps = [(3, 5), (40, 33), (7, 2)].map(|(height, width)| vec![random.f32(&[1, 4, height, width])]);
    let bounds = Bindings::new().with("height", 40).with("width", 33);
    Case::new(graph, bounds, steps.into()).everywhere().check();
}

#[test]
fn transposed_convolutions_agree() {
    for (i, (channels, groups, outs)) in [(4, 1, 10), (6, 2, 4), (4, 4, 4)].into_iter().enumerate() {
        for (strides, padding) in [([1, 1], [0, 0]), ([2, 3], [1, 1])] {
            let mut random = Random::new(i as u64);
            let mut graph = Graph::new("conv transpose");
            let x = graph.input("x", DType::F32, &[Dim::sym("batch"), channels.into(), 5.into(), 6.into()]);
            let w = graph.weight("w", random.weight(DType::F32, &[channels, outs / groups, 3, 4]));
            let bias = graph.weight("bias", random.weight(DType::F32, &[outs]));
            let window = window(&strides, &[1, 2], &[1, 0], &[0, 1]);
            let op = ConvTranspose { window, groups, output_padding: padding.to_vec() };
            let y = graph.add("y", Op::ConvTranspose(op), &[x, w, bias]).expect("a convolution");
            graph.output(y);
            let steps = [1, 2].map(|batch| vec![random.f32(&[batch, channels, 5, 6])]);
            Case::new(graph, Bindings::new().with("batch", 2), steps.into()).everywhere().check();
        }
    }
}

#[test]
fn pooling_agrees() {
    let kinds =
        [PoolKind::Max, PoolKind::Average { count_include_pad: false }, PoolKind::Average { count_include_pad: true }];
    for kind in kinds {
        for ceil_mode in [false, true] {
            let mut random = Random::new(7);
            let mut graph = Graph::new("pool");
            let pool = |kernel: &[usize], window| {
                let kernel = kernel.to_vec();
                Op::Pool(Pool { kind, kernel, window, ceil_mode, indices: false, column_major: false })
            };
            let x = graph.input("x", DType::F32, &[Dim::sym("batch"), 3.into(), 9.into(), 10.into()]);
            let line = graph.input("line", DType::F32, &[Dim::sym("batch"), 2.into(), 11.into()]);
            let windows = [
                window(&[2, 2], &[1, 1], &[0, 0], &[0, 0]),
                window(&[2, 3], &[1, 1], &[1, 1], &[1, 0]),
                window(&[1, 1], &[2, 1], &[1, 0], &[0, 1]),
            ];
            for window in windows {
                let y = graph.add("y", pool(&[3, 2], window), &[x]).expect("pooling");
                graph.output(y);
            }
            let y = graph.add("y", pool(&[4], window(&[3], &[1], &[1], &[2])), &[line]).expect("pooling");
            graph.output(y);
            let steps = [1, 2].map(|batch| vec![random.f32(&[batch, 3, 9, 10]), random.f32(&[batch, 2, 11])]);
            Case::new(graph, Bindings::new().with("batch", 2), steps.into()).everywhere().check();
        }
    }
}
