//! Convolutions, and what stands between them: images keep their layout there.

use core_tensor::op::{
    Binary, Concat, Conv, ConvTranspose, GroupNormalization, Op, Reduce, ReduceKind, Reshape, Scalar, Slice, Unary,
    Window,
};
use core_tensor::{Bindings, DType, Dim, Graph, ValueId};
use proptest::prelude::*;

use crate::compare::Case;
use crate::random::Random;

/// One convolution over an image of one or two spatial extents.
#[derive(Clone, Debug)]
struct Shape {
    batch: usize,
    input: usize,
    output: usize,
    groups: usize,
    size: Vec<usize>,
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    pads: Vec<usize>,
    pads_end: Vec<usize>,
    bias: bool,
}

impl Shape {
    /// A square window at stride 1 that keeps the extents.
    fn new(input: usize, output: usize, kernel: usize, size: &[usize]) -> Shape {
        let n = size.len();
        Shape {
            batch: 1,
            input,
            output,
            groups: 1,
            size: size.to_vec(),
            kernel: vec![kernel; n],
            strides: vec![1; n],
            dilations: vec![1; n],
            pads: vec![kernel / 2; n],
            pads_end: vec![kernel / 2; n],
            bias: true,
        }
    }

    fn stride(mut self, strides: &[usize]) -> Shape {
        self.strides = strides.to_vec();
        self
    }

    fn groups(mut self, groups: usize) -> Shape {
        self.groups = groups;
        self
    }

    fn dilated(mut self, dilations: &[usize]) -> Shape {
        self.dilations = dilations.to_vec();
        self
    }

    fn batch(mut self, batch: usize) -> Shape {
        self.batch = batch;
        self
    }

    fn pads(mut self, begin: &[usize], end: &[usize]) -> Shape {
        (self.pads, self.pads_end) = (begin.to_vec(), end.to_vec());
        self
    }

    fn window(&self) -> Window {
        Window {
            strides: self.strides.clone(),
            dilations: self.dilations.clone(),
            pads_begin: self.pads.clone(),
            pads_end: self.pads_end.clone(),
        }
    }

    /// The convolution of `x`.
    fn add(&self, graph: &mut Graph, random: &mut Random, x: ValueId, dtype: DType) -> ValueId {
        let mut extents = vec![self.output, self.input / self.groups];
        extents.extend(&self.kernel);
        let mut inputs = vec![x, graph.weight("w", random.weight(dtype, &extents))];
        if self.bias {
            inputs.push(graph.weight("bias", random.weight(DType::F32, &[self.output])));
        }
        graph
            .add("conv", Op::Conv(Conv { window: self.window(), groups: self.groups }), &inputs)
            .expect("a convolution")
    }

    fn image(&self) -> Vec<usize> {
        [self.batch, self.input].into_iter().chain(self.size.iter().copied()).collect()
    }

    fn case(&self, seed: u64) -> Case {
        self.case_of(seed, DType::F32, |_, y| y)
    }

    fn case_of(&self, seed: u64, dtype: DType, then: impl FnOnce(&mut Graph, ValueId) -> ValueId) -> Case {
        let mut random = Random::new(seed);
        let mut graph = Graph::new("conv");
        let shape: Vec<Dim> = self.image().into_iter().map(Dim::from).collect();
        let x = graph.input("x", DType::F32, &shape);
        let y = self.add(&mut graph, &mut random, x, dtype);
        let y = then(&mut graph, y);
        graph.output(y);
        let steps = vec![vec![random.f32(&self.image())]];
        Case::new(graph, Bindings::new(), steps)
    }
}

#[test]
fn windows_of_all_kinds_agree() {
    let shapes = [
        Shape::new(16, 16, 1, &[5, 7]),
        Shape::new(17, 33, 1, &[3, 9]),
        Shape::new(5, 3, 3, &[8, 8]),
        Shape::new(48, 80, 3, &[9, 5]).stride(&[2, 2]),
        Shape::new(20, 40, 5, &[11, 10]).stride(&[2, 1]).dilated(&[1, 2]),
        Shape::new(33, 15, 3, &[7, 7]).dilated(&[3, 2]),
        Shape::new(8, 8, 2, &[6, 5]).pads(&[0, 1], &[1, 0]),
        Shape::new(24, 20, 3, &[6, 6]).pads(&[2, 0], &[0, 2]).batch(3),
        Shape::new(300, 40, 3, &[4, 4]),
        Shape::new(70, 600, 1, &[1, 1]).batch(2),
        Shape { bias: false, ..Shape::new(16, 24, 3, &[5, 5]) },
        Shape::new(8, 6, 3, &[1, 1]),
        Shape::new(6, 6, 7, &[2, 3]).stride(&[3, 3]),
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        shape.case(i as u64).check();
    }
}

#[test]
fn images_of_few_channels_agree() {
    let shapes = [
        Shape::new(3, 32, 3, &[20, 31]).stride(&[2, 2]),
        Shape::new(3, 24, 7, &[19, 17]).stride(&[2, 2]).batch(2),
        Shape::new(1, 20, 5, &[9, 9]),
        Shape::new(4, 17, 3, &[6, 40]).dilated(&[2, 2]),
        Shape::new(2, 48, 1, &[5, 3]),
        Shape::new(3, 16, 5, &[7, 90]).stride(&[1, 3]).pads(&[2, 4], &[0, 1]),
        Shape::new(1, 16, 15, &[60, 40]).stride(&[4, 4]),
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        shape.case(100 + i as u64).check();
    }
}

#[test]
fn few_outputs_of_wide_images_agree() {
    let mut seed = 40;
    for output in [1, 2, 3, 4, 5, 8] {
        for shape in [
            Shape::new(8, output, 5, &[9, 70]).batch(2),
            Shape::new(3, output, 3, &[12, 201]).stride(&[2, 3]).dilated(&[1, 2]),
            Shape::new(20, output, 3, &[70, 50]).pads(&[0, 2], &[1, 0]),
            Shape::new(1, output, 31, &[2500]).stride(&[2]),
        ] {
            seed += 1;
            shape.case(seed).check();
        }
    }
    for op in [Unary::Relu, Unary::Sigmoid, Unary::Clip { min: Scalar::new(-0.1), max: Scalar::new(0.2) }] {
        Shape::new(6, 2, 3, &[5, 60])
            .case_of(39, DType::F16, |graph, y| graph.add("function", Op::Unary(op), &[y]).expect("a function"))
            .check();
    }
}

#[test]
fn one_spatial_extent_agrees() {
    let shapes = [
        Shape::new(20, 40, 3, &[50]).stride(&[2]),
        Shape::new(1, 16, 11, &[70]).stride(&[5]),
        Shape::new(40, 40, 5, &[33]).groups(40),
        Shape::new(33, 18, 3, &[29]).dilated(&[4]).batch(2),
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        shape.case(200 + i as u64).check();
    }
}

#[test]
fn groups_agree() {
    let shapes = [
        Shape::new(32, 32, 3, &[6, 7]).groups(32),
        Shape::new(35, 35, 3, &[9, 12]).groups(35).stride(&[2, 2]),
        Shape::new(20, 20, 5, &[7, 7]).groups(20).dilated(&[2, 1]).batch(2),
        Shape::new(24, 48, 3, &[5, 5]).groups(24),
        Shape::new(48, 24, 3, &[5, 5]).groups(4),
        Shape::new(64, 64, 3, &[6, 6]).groups(16),
        Shape::new(72, 48, 1, &[5, 5]).groups(3),
        Shape::new(12, 6, 3, &[5, 6]).groups(2).batch(2),
        Shape::new(96, 96, 3, &[3, 3]).groups(3),
        Shape::new(18, 18, 3, &[37, 61]).groups(18),
        Shape::new(16, 16, 7, &[30, 30]).groups(16).stride(&[1, 3]),
        Shape::new(16, 16, 5, &[45, 20]).groups(16).stride(&[2, 2]),
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        shape.case(300 + i as u64).check();
    }
}

#[test]
fn windows_that_are_transformed_agree() {
    let shapes = [
        Shape::new(32, 32, 3, &[12, 12]),
        Shape::new(40, 70, 3, &[13, 15]).batch(2),
        Shape::new(130, 33, 3, &[14, 14]),
        Shape::new(36, 48, 3, &[33, 9]).pads(&[0, 2], &[1, 0]),
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        shape.case(400 + i as u64).check();
    }
}

#[test]
fn weights_of_shorter_floats_agree() {
    for (i, dtype) in [DType::F16, DType::BF16, DType::F64].into_iter().enumerate() {
        Shape::new(18, 20, 3, &[5, 6]).case_of(500 + i as u64, dtype, |_, y| y).check();
    }
}

#[test]
fn activations_that_are_taken_along_agree() {
    let scalar = Scalar::new;
    let functions = [
        Unary::Relu,
        Unary::Clip { min: scalar(0.0), max: scalar(6.0) },
        Unary::Silu,
        Unary::Sigmoid,
        Unary::HardSwish,
        Unary::LeakyRelu { alpha: scalar(0.1) },
        Unary::Exp,
    ];
    for (i, function) in functions.into_iter().enumerate() {
        let then = |graph: &mut Graph, y| graph.add("f", Op::Unary(function), &[y]).expect("a function");
        let seed = 600 + 10 * i as u64;
        Shape::new(20, 24, 3, &[6, 5]).case_of(seed, DType::F32, then).check();
        Shape::new(24, 24, 3, &[6, 11]).groups(24).case_of(seed + 1, DType::F32, then).check();
        Shape::new(32, 40, 3, &[13, 13]).case_of(seed + 2, DType::F32, then).check();
    }
}

#[test]
fn normalization_over_groups_of_channels_agrees() {
    for (i, (channels, groups, size)) in
        [(20, 4, [5, 7]), (48, 3, [6, 6]), (33, 33, [9, 4]), (40, 1, [3, 3]), (6, 2, [40, 30])].into_iter().enumerate()
    {
        let seed = 680 + i as u64;
        let mut random = Random::new(seed);
        let then = |graph: &mut Graph, y| {
            let op = Op::GroupNormalization(GroupNormalization { groups, epsilon: 1e-5 });
            let w = graph.weight("scale", random.weight(DType::F32, &[channels]));
            let b = graph.weight("shift", random.weight(DType::F32, &[channels]));
            let inputs = if i % 2 == 0 { vec![y, w, b] } else { vec![y] };
            let y = graph.add("norm", op, &inputs).expect("a normalization");
            graph.add("f", Op::Unary(Unary::Silu), &[y]).expect("a function")
        };
        Shape::new(5, channels, 3, &size).batch(1 + i % 2).case_of(seed, DType::F32, then).check();
    }
}

/// A network with everything that images meet between convolutions, on symbolic extents smaller than their bounds.
#[test]
fn a_network_of_images_agrees_at_every_extent_below_its_bounds() {
    let mut random = Random::new(7);
    let mut graph = Graph::new("network");
    let [batch, height, width] = ["batch", "height", "width"].map(Dim::sym);
    let x = graph.input("x", DType::F32, &[batch.clone(), 3.into(), height.clone(), width.clone()]);
    let stem = Shape::new(3, 20, 3, &[0, 0]).stride(&[2, 2]).add(&mut graph, &mut random, x, DType::F32);
    let stem = graph.add("silu", Op::Unary(Unary::Silu), &[stem]).expect("a function");
    // A residual block: the addition and what follows go with the second convolution.
    let a = Shape::new(20, 40, 1, &[0, 0]).add(&mut graph, &mut random, stem, DType::F32);
    let a = graph.add("relu", Op::Unary(Unary::Relu), &[a]).expect("a function");
    let a = Shape::new(40, 20, 3, &[0, 0]).add(&mut graph, &mut random, a, DType::F32);
    let sum = graph.add("sum", Op::Binary(Binary::Add), &[stem, a]).expect("a sum");
    let sum = graph.add("relu", Op::Unary(Unary::Relu), &[sum]).expect("a function");
    // An activation before the addition, and one after it.
    let b = Shape::new(20, 20, 3, &[0, 0]).groups(20).add(&mut graph, &mut random, sum, DType::F32);
    let b = graph.add("tanh", Op::Unary(Unary::Tanh), &[b]).expect("a function");
    let b = graph.add("sum", Op::Binary(Binary::Add), &[b, sum]).expect("a sum");
    let b = graph.add("silu", Op::Unary(Unary::Silu), &[b]).expect("a function");
    // Squeeze and excitation: a mean over pixels, and a factor for each channel.
    let (_, shape) = graph.tensor_type(b).expect("a tensor");
    let (rows, columns) = (shape[2].clone(), shape[3].clone());
    let flat = vec![batch.clone(), 20.into(), rows.mul(columns)];
    let flat = graph.add("flat", Op::Reshape(Reshape { shape: flat }), &[b]).expect("a shape");
    let mean = graph.add("mean", Op::Reduce(Reduce { kind: ReduceKind::Mean }), &[flat]).expect("a mean");
    let pixel = Reshape { shape: vec![batch.clone(), 20.into(), 1.into(), 1.into()] };
    let mean = graph.add("mean", Op::Reshape(pixel), &[mean]).expect("a shape");
    let gate = Shape::new(20, 20, 1, &[0, 0]).add(&mut graph, &mut random, mean, DType::F32);
    let gate = graph.add("gate", Op::Unary(Unary::Sigmoid), &[gate]).expect("a function");
    let gated = graph.add("gated", Op::Binary(Binary::Mul), &[gate, b]).expect("a product");
    let scale = graph.weight("scale", random.weight(DType::F32, &[20, 1, 1]));
    let scaled = graph.add("scaled", Op::Binary(Binary::Sub), &[scale, gated]).expect("a difference");
    let one = graph.weight("one", random.weight(DType::F32, &[]));
    let scaled = graph.add("divided", Op::Binary(Binary::Div), &[scaled, one]).expect("a quotient");
    // Channels joined and cut, at and beside the borders of blocks.
    let joined = graph.add("joined", Op::Concat(Concat { axis: 1 }), &[scaled, b, stem]).expect("joined");
    let cut = graph.add("cut", Op::Slice(Slice::range(1, 9, 50)), &[joined]).expect("cut");
    let y = Shape::new(41, 12, 1, &[0, 0]).add(&mut graph, &mut random, cut, DType::F32);
    // Read by a kernel of plain tensors, and an output besides.
    let soft = graph.add("turned", Op::Transpose(core_tensor::op::Transpose { perm: vec![0, 2, 3, 1] }), &[y]);
    graph.output(soft.expect("a permutation"));
    graph.output(y);
    graph.output(sum);
    let sizes = [[1, 9, 11], [2, 14, 30], [1, 1, 1], [2, 13, 8]];
    let steps = sizes.iter().map(|[n, h, w]| vec![random.f32(&[*n, 3, *h, *w])]).collect();
    let bounds = Bindings::new().with("batch", 2).with("height", 15).with("width", 33);
    Case::new(graph, bounds, steps).check();
}

fn transposed(shape: &Shape, padding: &[usize], seed: u64) -> Case {
    let mut random = Random::new(seed);
    let mut graph = Graph::new("transposed");
    let image: Vec<Dim> = shape.image().into_iter().map(Dim::from).collect();
    let x = graph.input("x", DType::F32, &image);
    let mut extents = vec![shape.input, shape.output / shape.groups];
    extents.extend(&shape.kernel);
    let w = graph.weight("w", random.weight(DType::F32, &extents));
    let bias = graph.weight("bias", random.weight(DType::F32, &[shape.output]));
    let op = ConvTranspose { window: shape.window(), groups: shape.groups, output_padding: padding.to_vec() };
    let y = graph.add("y", Op::ConvTranspose(op), &[x, w, bias]).expect("a transposed convolution");
    let y = graph.add("f", Op::Unary(Unary::Relu), &[y]).expect("a function");
    graph.output(y);
    let steps = vec![vec![random.f32(&shape.image())]];
    Case::new(graph, Bindings::new(), steps)
}

#[test]
fn transposed_convolutions_agree() {
    let cases: [(Shape, &[usize]); 8] = [
        (Shape::new(20, 18, 2, &[5, 6]).stride(&[2, 2]).pads(&[0, 0], &[0, 0]), &[0, 0]),
        (Shape::new(33, 20, 3, &[4, 7]).stride(&[2, 2]), &[1, 1]),
        (Shape::new(17, 5, 4, &[6, 5]).stride(&[2, 1]).batch(2), &[0, 0]),
        (Shape::new(8, 8, 3, &[5, 5]).stride(&[3, 2]).dilated(&[2, 3]), &[2, 0]),
        (Shape::new(24, 12, 3, &[5, 4]).groups(4).stride(&[2, 2]), &[0, 1]),
        (Shape::new(6, 6, 1, &[4, 4]).stride(&[3, 3]), &[1, 0]),
        (Shape::new(18, 9, 5, &[21]).stride(&[4]), &[1]),
        (Shape::new(3, 20, 3, &[5, 5]), &[0, 0]),
    ];
    for (i, (shape, padding)) in cases.iter().enumerate() {
        transposed(shape, padding, 700 + i as u64).check();
    }
}

/// Files can say so: products of such numbers wrap around where they are not looked at.
#[test]
fn windows_of_absurd_sizes_agree() {
    let far = 0x7fff_ffff;
    let shapes = [
        Shape { input: 2, output: 2, groups: 2, ..Shape::new(2, 2, 2, &[1, 1]) },
        Shape::new(1, 1, 2, &[1, 1]),
        Shape::new(20, 20, 2, &[1, 1]),
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        shape.dilated(&[far, far]).pads(&[far, far], &[0, 0]).case(800 + i as u64).check();
    }
    let wide = Shape::new(1, 1, 1, &[1, 1]).stride(&[65_536, 65_536]);
    transposed(&wide, &[0, 0], 810).check();
}

proptest! {
    #![proptest_config(crate::random::proptest_config(24))]

    #[test]
    fn convolutions_of_any_shape_agree(
        batch in 1usize..3,
        per_group in (1usize..20, 1usize..20),
        groups in 1usize..5,
        size in (1usize..12, 1usize..20),
        kernel in (1usize..5, 1usize..5),
        strides in (1usize..4, 1usize..4),
        dilations in (1usize..3, 1usize..3),
        pads in (0usize..3, 0usize..3, 0usize..3, 0usize..3),
        bias: bool,
        seed: u64,
    ) {
        let shape = Shape {
            batch,
            input: per_group.0 * groups,
            output: per_group.1 * groups,
            groups,
            size: vec![size.0, size.1],
            kernel: vec![kernel.0, kernel.1],
            strides: vec![strides.0, strides.1],
            dilations: vec![dilations.0, dilations.1],
            pads: vec![pads.0, pads.1],
            pads_end: vec![pads.2, pads.3],
            bias,
        };
        let fits = |size, kernel, dilation, pads| size + pads > dilation * (kernel - 1);
        prop_assume!(fits(size.0, kernel.0, dilations.0, pads.0 + pads.2));
        prop_assume!(fits(size.1, kernel.1, dilations.1, pads.1 + pads.3));
        shape.case(seed).check();
    }
}
