//! Convolutions of bytes, alone and in nets.

use core_tensor::op::{
    Binary, Cast, ConvInteger, DequantizeLinear, Granularity, Op, Pool, PoolKind, QuantizeLinear, Unary, Window,
};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor, ValueId, Weight};

use crate::compare::Case;
use crate::random::Random;

fn bytes(random: &mut Random, dtype: DType, shape: &[usize]) -> Tensor {
    let bytes: Vec<u8> = (0..shape.iter().product()).map(|_| random.bits() as u8).collect();
    Tensor::from_bytes(dtype, shape, &bytes).expect("bytes")
}

fn weight(graph: &mut Graph, tensor: Tensor) -> ValueId {
    graph.weight("weight", Weight::stored(tensor))
}

/// Kernel, strides, dilations, pads; inputs, outputs, groups; extents of the image.
struct Form {
    kernel: &'static [usize],
    strides: &'static [usize],
    dilations: &'static [usize],
    pads: [&'static [usize]; 2],
    channels: [usize; 2],
    groups: usize,
    image: &'static [usize],
}

/// A convolution without anything special.
const PLAIN: Form = Form {
    kernel: &[3, 3],
    strides: &[1, 1],
    dilations: &[1, 1],
    pads: [&[1, 1], &[1, 1]],
    channels: [5, 20],
    groups: 1,
    image: &[9, 8],
};

const FORMS: [Form; 9] = [
    PLAIN,
    Form { kernel: &[1, 1], pads: [&[0, 0], &[0, 0]], channels: [33, 130], image: &[7, 5], ..PLAIN },
    Form { kernel: &[7, 7], strides: &[2, 2], pads: [&[3, 3], &[3, 3]], channels: [3, 16], image: &[23, 30], ..PLAIN },
    Form {
        kernel: &[3, 2],
        strides: &[2, 1],
        dilations: &[1, 2],
        pads: [&[0, 2], &[1, 0]],
        channels: [8, 8],
        groups: 2,
        image: &[8, 9],
    },
    Form { channels: [24, 24], groups: 24, image: &[6, 11], ..PLAIN },
    Form {
        strides: &[2, 2],
        dilations: &[2, 2],
        pads: [&[2, 2], &[2, 2]],
        channels: [17, 17],
        groups: 17,
        image: &[12, 9],
        ..PLAIN
    },
    Form { pads: [&[0, 0], &[0, 0]], channels: [6, 12], groups: 6, image: &[5, 5], ..PLAIN },
    Form { channels: [42, 63], groups: 7, image: &[6, 6], ..PLAIN },
    Form {
        kernel: &[5],
        strides: &[2],
        dilations: &[1],
        pads: [&[2], &[2]],
        channels: [10, 21],
        image: &[40],
        ..PLAIN
    },
];

impl Form {
    fn op(&self) -> Op {
        let window = Window {
            strides: self.strides.to_vec(),
            dilations: self.dilations.to_vec(),
            pads_begin: self.pads[0].to_vec(),
            pads_end: self.pads[1].to_vec(),
        };
        Op::ConvInteger(ConvInteger { window, groups: self.groups })
    }

    fn x_shape(&self, batch: usize) -> Vec<usize> {
        [&[batch, self.channels[0]], self.image].concat()
    }

    fn w_shape(&self) -> Vec<usize> {
        [&[self.channels[1], self.channels[0] / self.groups], self.kernel].concat()
    }
}

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().copied().map(Dim::from).collect()
}

#[test]
fn sums_over_windows_of_bytes_are_exact() {
    let (u, i) = (DType::U8, DType::I8);
    for (seed, form) in FORMS.iter().enumerate() {
        for (x_dtype, w_dtype, x_zero, w_zeros) in
            [(u, i, true, None), (i, i, true, Some(1)), (u, u, false, Some(form.channels[1])), (i, u, false, None)]
        {
            let mut random = Random::new(seed as u64);
            let mut graph = Graph::new("windows");
            let mut shape = dims(&form.x_shape(2));
            shape[0] = Dim::sym("batch");
            let x = graph.input("x", x_dtype, &shape);
            let w = bytes(&mut random, w_dtype, &form.w_shape());
            let w = weight(&mut graph, w);
            let mut inputs = vec![Some(x), Some(w)];
            inputs.push(x_zero.then(|| graph.input("zero", x_dtype, &[])));
            if let Some(count) = w_zeros {
                let zeros = bytes(&mut random, w_dtype, &[count]);
                inputs.push(Some(weight(&mut graph, zeros)));
            }
            while inputs.last() == Some(&None) {
                inputs.pop();
            }
            let y = graph.add_node("y", form.op(), inputs).expect("a convolution")[0];
            graph.output(y);
            let steps = [2, 1].map(|batch| {
                let mut step = vec![bytes(&mut random, x_dtype, &form.x_shape(batch))];
                if x_zero {
                    step.push(bytes(&mut random, x_dtype, &[]));
                }
                step
            });
            Case::new(graph, Bindings::new().with("batch", 2), steps.into()).exact().check();
        }
    }
}

struct Net {
    graph: Graph,
    random: Random,
}

impl Net {
    fn scalar(&mut self, value: f32) -> ValueId {
        weight(&mut self.graph, Tensor::from_slice(&[], &[value]).expect("a scale"))
    }

    fn zero(&mut self, dtype: DType) -> ValueId {
        let zero = bytes(&mut self.random, dtype, &[]);
        weight(&mut self.graph, zero)
    }

    fn quantize(&mut self, x: ValueId, to: DType) -> ValueId {
        let (scale, zero) = (self.scalar(0.7), self.zero(to));
        let op = QuantizeLinear { granularity: Granularity::Tensor, to, saturate: true, bits: None };
        self.graph.add("bytes", Op::QuantizeLinear(op), &[x, scale, zero]).expect("bytes")
    }

    fn dequantize(&mut self, x: ValueId) -> ValueId {
        let dtype = self.graph.tensor_type(x).expect("a tensor").0;
        let (scale, zero) = (self.scalar(0.3), self.zero(dtype));
        let op = DequantizeLinear { granularity: Granularity::Tensor };
        self.graph.add("floats", Op::DequantizeLinear(op), &[x, scale, zero]).expect("floats")
    }

    /// A convolution of bytes as quantized graphs have it: `sum_bias` before the cast, or a float bias after the scales.
    fn conv(&mut self, form: &Form, x: ValueId, sum_bias: bool, function: bool) -> ValueId {
        let n = form.channels[1];
        let w = bytes(&mut self.random, DType::I8, &form.w_shape());
        let w = weight(&mut self.graph, w);
        let zero = self.zero(self.graph.tensor_type(x).expect("a tensor").0);
        let inputs = vec![Some(x), Some(w), Some(zero)];
        let mut y = self.graph.add_node("sums", form.op(), inputs).expect("a convolution")[0];
        let mut shape = vec![1; form.kernel.len() + 2];
        shape[1] = n;
        if sum_bias {
            let values: Vec<i32> = (0..n).map(|_| self.random.below(20_000) as i32 - 10_000).collect();
            let bias = weight(&mut self.graph, Tensor::from_slice(&shape, &values).expect("a bias"));
            y = self.graph.add("sums", Op::Binary(Binary::Add), &[y, bias]).expect("a sum");
        }
        y = self.graph.add("floats", Op::Cast(Cast { to: DType::F32 }), &[y]).expect("a cast");
        let scale = self.random.scaled_f32(&shape, 0.002);
        let scale = weight(&mut self.graph, scale);
        y = self.graph.add("scaled", Op::Binary(Binary::Mul), &[y, scale]).expect("a product");
        if !sum_bias {
            let bias = self.random.f32(&shape);
            let bias = weight(&mut self.graph, bias);
            y = self.graph.add("biased", Op::Binary(Binary::Add), &[y, bias]).expect("a sum");
        }
        if function {
            y = self.graph.add("function", Op::Unary(Unary::Relu), &[y]).expect("a function");
        }
        y
    }
}

#[test]
fn convolutions_of_bytes_with_scales_and_biases_agree_as_floats_and_as_bytes() {
    for (seed, form) in FORMS.iter().enumerate() {
        for (x_dtype, to) in [(DType::U8, None), (DType::I8, Some(DType::U8)), (DType::U8, Some(DType::I8))] {
            let mut net = Net { graph: Graph::new("scaled"), random: Random::new(30 + seed as u64) };
            let x = net.graph.input("x", x_dtype, &dims(&form.x_shape(2)));
            let mut y = net.conv(form, x, seed % 2 == 0, to.is_none());
            if let Some(to) = to {
                y = net.quantize(y, to);
            }
            net.graph.output(y);
            let step = vec![bytes(&mut net.random, x_dtype, &form.x_shape(2))];
            Case::new(net.graph, Bindings::new(), vec![step]).exact().check();
        }
    }
}

#[test]
fn nets_of_bytes_with_pooling_and_residuals_agree() {
    for (seed, dtype) in [DType::U8, DType::I8].into_iter().enumerate() {
        let mut net = Net { graph: Graph::new("net"), random: Random::new(40 + seed as u64) };
        let x = net.graph.input("x", DType::F32, &dims(&[2, 3, 23, 30]));
        let q = net.quantize(x, dtype);
        let y = net.conv(&FORMS[2], q, false, true);
        let y = net.quantize(y, dtype);
        let window = |stride, pad| Window {
            strides: vec![stride; 2],
            dilations: vec![1; 2],
            pads_begin: vec![pad; 2],
            pads_end: vec![pad; 2],
        };
        let pool = Pool {
            kind: PoolKind::Max,
            kernel: vec![3, 3],
            window: window(2, 1),
            ceil_mode: false,
            indices: false,
            column_major: false,
        };
        let pooled = net.graph.add("pool", Op::Pool(pool), &[y]).expect("a pool");
        let same = Form {
            kernel: &[3, 3],
            strides: &[1, 1],
            dilations: &[1, 1],
            pads: [&[1, 1], &[1, 1]],
            channels: [16, 16],
            groups: 1,
            image: &[],
        };
        let y = net.conv(&same, pooled, true, false);
        let y = net.quantize(y, dtype);
        let (a, b) = (net.dequantize(y), net.dequantize(pooled));
        let sum = net.graph.add("sum", Op::Binary(Binary::Add), &[a, b]).expect("a sum");
        let sum = net.graph.add("function", Op::Unary(Unary::Relu), &[sum]).expect("a function");
        let y = net.quantize(sum, dtype);
        let floats = net.dequantize(y);
        // Both forms are read: the bytes as they are in the graph, and the floats.
        net.graph.output(y);
        net.graph.output(floats);
        net.graph.output(pooled);
        let step = vec![net.random.scaled_f32(&[2, 3, 23, 30], 90.0)];
        Case::new(net.graph, Bindings::new(), vec![step]).exact().check();
    }
}

/// The other summand is an image in one form or the other, and read elsewhere, too.
#[test]
fn a_residual_after_a_convolution_of_bytes_is_added() {
    for (seed, blocked) in [false, true].into_iter().enumerate() {
        let mut net = Net { graph: Graph::new("block"), random: Random::new(60 + seed as u64) };
        let mut x = net.graph.input("x", DType::F32, &dims(&[2, 16, 9, 8]));
        let same = Form {
            kernel: &[3, 3],
            strides: &[1, 1],
            dilations: &[1, 1],
            pads: [&[1, 1], &[1, 1]],
            channels: [16, 16],
            groups: 1,
            image: &[],
        };
        if blocked {
            let q = net.quantize(x, DType::U8);
            x = net.conv(&same, q, false, true);
        }
        let q = net.quantize(x, DType::U8);
        let y = net.conv(&same, q, false, false);
        let sum = net.graph.add("sum", Op::Binary(Binary::Add), &[y, x]).expect("a sum");
        let y = net.graph.add("function", Op::Unary(Unary::Relu), &[sum]).expect("a function");
        net.graph.output(y);
        net.graph.output(x);
        let step = vec![net.random.scaled_f32(&[2, 16, 9, 8], 90.0)];
        Case::new(net.graph, Bindings::new(), vec![step]).check();
    }
}
