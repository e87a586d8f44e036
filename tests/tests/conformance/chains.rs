//! Chains of element-wise operators, which become one step: what comes out must not tell.

use core_tensor::op::{
    Binary, DequantizeLinear, Granularity, LayerNormalization, MatMul, Op, QuantizeLinear, Reshape, Unary,
};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor, ValueId, Weight};
use proptest::prelude::*;

use crate::compare::Case;
use crate::random::Random;

const COLUMNS: usize = 70;

struct Builder {
    graph: Graph,
    random: Random,
    /// f32 values `[2, rows, COLUMNS]`, oldest first.
    values: Vec<ValueId>,
}

impl Builder {
    fn new() -> Builder {
        let mut graph = Graph::new("chains");
        let shape = [2.into(), Dim::sym("rows"), COLUMNS.into()];
        let values = vec![graph.input("x", DType::F32, &shape), graph.input("y", DType::F32, &shape)];
        Builder { graph, random: Random::new(7), values }
    }

    fn recent(&self, code: u8) -> ValueId {
        let n = self.values.len();
        self.values[n - 1 - usize::from(code) % n.min(3)]
    }

    fn add(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        let y = self.graph.add("node", op, inputs).expect("an operator");
        self.values.push(y);
        y
    }

    fn weight(&mut self, shape: &[usize]) -> ValueId {
        self.graph.weight("weight", self.random.weight(DType::F32, shape))
    }

    fn scalar(&mut self, value: f32) -> ValueId {
        self.graph.weight("scale", Weight::stored(Tensor::from_slice(&[], &[value]).expect("a number")))
    }

    fn step(&mut self, [what, a, b]: [u8; 3]) {
        const UNARY: [Unary; 4] = [Unary::Neg, Unary::Relu, Unary::Sigmoid, Unary::Abs];
        const BINARY: [Binary; 5] = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Max, Binary::Min];
        let x = self.recent(a);
        match what % 16 {
            0..=3 => {
                self.add(Op::Unary(UNARY[usize::from(what % 4)]), &[x]);
            }
            4..=8 => {
                let op = Op::Binary(BINARY[usize::from(what % 16 - 4)]);
                let other = match b % 5 {
                    0 => self.weight(&[]),
                    1 => self.weight(&[COLUMNS]),
                    2 => self.weight(&[1, 1, COLUMNS]),
                    _ => self.recent(b / 5),
                };
                self.add(op, &if b % 2 == 0 { [x, other] } else { [other, x] });
            }
            9..=11 => {
                // To bytes and back.
                let to = if b % 2 == 0 { DType::U8 } else { DType::I8 };
                let granularity = Granularity::Tensor;
                let scale = self.scalar(0.021);
                let zero = Tensor::from_bytes(to, &[], &[100]).expect("a zero point");
                let zero = self.graph.weight("zero", Weight::stored(zero));
                let op = QuantizeLinear { granularity, to, saturate: true, bits: None };
                let q = self.graph.add("q", Op::QuantizeLinear(op), &[x, scale, zero]).expect("bytes");
                if b % 3 == 0 {
                    self.graph.output(q);
                }
                self.add(Op::DequantizeLinear(DequantizeLinear { granularity }), &[q, scale, zero]);
            }
            12 => {
                let w = self.weight(&[COLUMNS, COLUMNS]);
                let y =
                    self.graph.add("product", Op::MatMul(MatMul { transpose_b: true }), &[x, w]).expect("a product");
                let other = self.recent(b);
                self.add(Op::Binary(Binary::Add), &[y, other]);
            }
            13 => {
                let shape = vec![Dim::sym("rows"), 2.into(), COLUMNS.into()];
                let y = self.graph.add("other", Op::Reshape(Reshape { shape }), &[x]).expect("another shape");
                let y = self.graph.add("other", Op::Unary(Unary::Neg), &[y]).expect("a function");
                let shape = vec![2.into(), Dim::sym("rows"), COLUMNS.into()];
                self.add(Op::Reshape(Reshape { shape }), &[y]);
            }
            14 => {
                let (w, b) = (self.weight(&[COLUMNS]), self.weight(&[COLUMNS]));
                self.add(Op::LayerNormalization(LayerNormalization { epsilon: 1e-5 }), &[x, w, b]);
            }
            _ => self.graph.output(x),
        }
    }
}

proptest! {
    #![proptest_config(crate::random::proptest_config(40))]

    #[test]
    fn random_chains_agree(codes in prop::collection::vec(any::<[u8; 3]>(), 1..24)) {
        let mut builder = Builder::new();
        codes.into_iter().for_each(|code| builder.step(code));
        let last = builder.recent(0);
        builder.graph.output(last);
        let steps = [9, 1].map(|rows| {
            let shape = [2, rows, COLUMNS];
            vec![builder.random.f32(&shape), builder.random.f32(&shape)]
        });
        // Rounding to bytes turns a last bit into a step of the scale, here and there.
        Case::new(builder.graph, Bindings::new().with("rows", 9), steps.into()).within(1e-4).check_on(crate::backends::schedulers());
    }
}

#[test]
fn a_chain_of_conversions_and_arithmetic_on_bytes_is_exact_on_every_level() {
    for (i, dtype) in [DType::U8, DType::I8].into_iter().enumerate() {
        let mut random = Random::new(3 + i as u64);
        let mut graph = Graph::new("bytes");
        let shape = [3.into(), Dim::sym("n")];
        let inputs = [graph.input("a", dtype, &shape), graph.input("b", dtype, &shape)];
        let scalar = |graph: &mut Graph, value: f32| {
            graph.weight("scale", Weight::stored(Tensor::from_slice(&[], &[value]).expect("a number")))
        };
        let zero = Tensor::from_bytes(dtype, &[], &[77]).expect("a zero point");
        let zero = graph.weight("zero", Weight::stored(zero));
        let granularity = Granularity::Tensor;
        let floats = inputs.map(|x| {
            let scale = scalar(&mut graph, 0.03);
            graph.add("d", Op::DequantizeLinear(DequantizeLinear { granularity }), &[x, scale, zero]).expect("floats")
        });
        let sum = graph.add("sum", Op::Binary(Binary::Add), &floats).expect("a sum");
        let sum = graph.add("relu", Op::Unary(Unary::Relu), &[sum]).expect("a function");
        let half = scalar(&mut graph, 0.5);
        let sum = graph.add("half", Op::Binary(Binary::Mul), &[half, sum]).expect("a product");
        let scale = scalar(&mut graph, 0.017);
        let op = QuantizeLinear { granularity, to: dtype, saturate: true, bits: None };
        let y = graph.add("q", Op::QuantizeLinear(op), &[sum, scale, zero]).expect("bytes");
        graph.output(y);
        let steps = [2500, 1, 700].map(|n| {
            let mut bytes = || {
                let bytes: Vec<u8> = (0..3 * n).map(|_| random.bits() as u8).collect();
                Tensor::from_bytes(dtype, &[3, n], &bytes).expect("bytes")
            };
            vec![bytes(), bytes()]
        });
        Case::new(graph, Bindings::new().with("n", 2500), steps.into()).exact().check();
    }
}
