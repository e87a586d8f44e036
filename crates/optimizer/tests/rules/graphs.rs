//! Small graphs in few words, and their results.

use std::sync::Arc;

use core_tensor::op::{
    Binary, Cast, Concat, Expand, Gather, MatMul, Op, Reduce, ReduceKind, Reshape, Slice, Softmax, Transpose, Unary,
    Where,
};
use core_tensor::{Bindings, DType, Dim, Graph, HostStates, Interpreter, Tensor, ValueId, Weight};
use polaris_optimizer::{Report, optimize};

/// A graph under construction; nodes are named after their operators.
pub(crate) struct Build {
    pub(crate) graph: Graph,
    seed: u32,
}

impl Build {
    pub(crate) fn new() -> Build {
        Build { graph: Graph::new("case"), seed: 1 }
    }

    pub(crate) fn input(&mut self, shape: &[Dim]) -> ValueId {
        let name = format!("x{}", self.graph.inputs().len());
        self.graph.input(&name, DType::F32, shape)
    }

    pub(crate) fn input_of(&mut self, dtype: DType, shape: &[Dim]) -> ValueId {
        let name = format!("x{}", self.graph.inputs().len());
        self.graph.input(&name, dtype, shape)
    }

    pub(crate) fn tensor(&mut self, tensor: Tensor) -> ValueId {
        self.graph.weight("c", Weight::stored(tensor))
    }

    pub(crate) fn constant(&mut self, shape: &[usize], values: &[f32]) -> ValueId {
        self.tensor(Tensor::from_slice(shape, values).unwrap())
    }

    /// One number.
    pub(crate) fn number(&mut self, value: f32) -> ValueId {
        self.constant(&[], &[value])
    }

    /// Different numbers around 0, none of them 0.
    pub(crate) fn weight(&mut self, shape: &[usize]) -> ValueId {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.next()).collect();
        self.constant(shape, &values)
    }

    /// The next of a fixed sequence of numbers, 0.05 to 1 in magnitude.
    pub(crate) fn next(&mut self) -> f32 {
        self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let x = (self.seed >> 8) as f32 / (1 << 23) as f32 - 1.0;
        x.signum() * (0.05 + 0.95 * x.abs())
    }

    pub(crate) fn op(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        let name = op.name();
        self.graph.add(name, op, inputs).unwrap()
    }

    pub(crate) fn unary(&mut self, op: Unary, x: ValueId) -> ValueId {
        self.op(Op::Unary(op), &[x])
    }

    pub(crate) fn binary(&mut self, op: Binary, a: ValueId, b: ValueId) -> ValueId {
        self.op(Op::Binary(op), &[a, b])
    }

    pub(crate) fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(Binary::Add, a, b)
    }

    pub(crate) fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(Binary::Mul, a, b)
    }

    pub(crate) fn sub(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(Binary::Sub, a, b)
    }

    pub(crate) fn div(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(Binary::Div, a, b)
    }

    pub(crate) fn pow(&mut self, a: ValueId, exponent: f32) -> ValueId {
        let exponent = self.number(exponent);
        self.binary(Binary::Pow, a, exponent)
    }

    pub(crate) fn mean(&mut self, x: ValueId) -> ValueId {
        self.op(Op::Reduce(Reduce { kind: ReduceKind::Mean }), &[x])
    }

    pub(crate) fn reduce(&mut self, kind: ReduceKind, x: ValueId) -> ValueId {
        self.op(Op::Reduce(Reduce { kind }), &[x])
    }

    pub(crate) fn softmax(&mut self, x: ValueId) -> ValueId {
        self.op(Op::Softmax(Softmax), &[x])
    }

    pub(crate) fn transpose(&mut self, x: ValueId, perm: &[usize]) -> ValueId {
        self.op(Op::Transpose(Transpose { perm: perm.to_vec() }), &[x])
    }

    pub(crate) fn reshape(&mut self, x: ValueId, shape: &[Dim]) -> ValueId {
        self.op(Op::Reshape(Reshape { shape: shape.to_vec() }), &[x])
    }

    pub(crate) fn expand(&mut self, x: ValueId, shape: &[Dim]) -> ValueId {
        self.op(Op::Expand(Expand { shape: shape.to_vec() }), &[x])
    }

    pub(crate) fn matmul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.op(Op::MatMul(MatMul { transpose_b: false }), &[a, b])
    }

    pub(crate) fn choose(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> ValueId {
        self.op(Op::Where(Where), &[condition, a, b])
    }

    pub(crate) fn cast(&mut self, x: ValueId, to: DType) -> ValueId {
        self.op(Op::Cast(Cast { to }), &[x])
    }

    pub(crate) fn concat(&mut self, axis: isize, parts: &[ValueId]) -> ValueId {
        self.op(Op::Concat(Concat { axis }), parts)
    }

    pub(crate) fn slice(&mut self, x: ValueId, axis: isize, start: usize, end: usize) -> ValueId {
        self.op(Op::Slice(Slice::range(axis, start, end)), &[x])
    }

    pub(crate) fn gather(&mut self, table: ValueId, indices: ValueId) -> ValueId {
        self.op(Op::Gather(Gather { axis: 0 }), &[table, indices])
    }

    pub(crate) fn output(mut self, y: ValueId) -> Graph {
        self.graph.output(y);
        self.graph
    }
}

/// Symbols in the cases.
pub(crate) fn bindings() -> Bindings {
    Bindings::new().with("batch", 2).with("tokens", 3).with("rows", 5)
}

pub(crate) fn sym(name: &str) -> Dim {
    Dim::sym(name)
}

/// Inputs for a graph: f32 around 0, small integers, both kinds of bool.
pub(crate) fn inputs(graph: &Graph) -> Vec<Tensor> {
    let mut numbers = Build::new();
    let mut make = |dtype: DType, shape: &[Dim]| {
        let shape: Vec<usize> = shape.iter().map(|dim| dim.eval(&bindings()).unwrap()).collect();
        let floats: Vec<f32> = (0..shape.iter().product()).map(|_| 2.0 * numbers.next()).collect();
        let small = floats.iter().map(|x| (x.abs() * 2.0) as i64);
        match dtype {
            DType::F32 => Tensor::from_slice(&shape, &floats),
            DType::I64 => Tensor::from_slice(&shape, &small.collect::<Vec<i64>>()),
            DType::I32 => Tensor::from_slice(&shape, &small.map(|n| n as i32).collect::<Vec<i32>>()),
            DType::U8 => {
                Tensor::from_slice(&shape, &floats.iter().map(|x| (x.abs() * 120.0) as u8).collect::<Vec<u8>>())
            }
            DType::I8 => Tensor::from_slice(&shape, &floats.iter().map(|x| (x * 60.0) as i8).collect::<Vec<i8>>()),
            // The first of each row is true.
            DType::Bool => {
                let last = shape.last().copied().unwrap_or(1);
                let bytes: Vec<u8> =
                    floats.iter().enumerate().map(|(i, x)| u8::from(i % last == 0 || *x > 0.0)).collect();
                Tensor::from_bytes(DType::Bool, &shape, &bytes)
            }
            other => Tensor::zeroed(other, &shape),
        }
        .unwrap()
    };
    graph.inputs().iter().map(|id| graph.tensor_type(*id).map(|(dtype, shape)| make(dtype, shape)).unwrap()).collect()
}

pub(crate) fn run(graph: Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    let graph = Arc::new(graph);
    let mut states = HostStates::new(&graph, 1, &bindings()).unwrap();
    Interpreter::new(graph).run(&mut states, inputs).unwrap()
}

/// Fails unless all outputs are the same but for rounding.
pub(crate) fn assert_close(expected: &[Tensor], found: &[Tensor], what: &str) {
    assert_eq!(expected.len(), found.len());
    for (expected, found) in expected.iter().zip(found) {
        assert_eq!((expected.dtype(), expected.shape()), (found.dtype(), found.shape()), "{what}");
        if expected.dtype() != DType::F32 {
            assert_eq!(expected.bytes(), found.bytes(), "{what}");
            continue;
        }
        let (expected, found) = (expected.to_f32().unwrap(), found.to_f32().unwrap());
        let mut error = 0.0f64;
        let mut power = 0.0f64;
        for (x, y) in expected.iter().zip(&found) {
            if !x.is_finite() || !y.is_finite() {
                assert!(x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()), "{what}: {x} became {y}");
                continue;
            }
            error += f64::from(x - y).powi(2);
            power += f64::from(*x).powi(2);
        }
        assert!(error <= 1e-9 * power + 1e-12, "{what}: squared error {error:e} of {power:e}");
    }
}

/// Optimizes with everything, checks that results stay, and shows the graph before and after with the rules that fired.
pub(crate) fn optimized(graph: Graph) -> (String, Report) {
    let inputs = inputs(&graph);
    let expected = run(graph.clone(), &inputs);
    let before = graph.to_text();
    let (after, report) = optimize(graph).unwrap();
    assert_close(&expected, &run(after.clone(), &inputs), &after.to_text());
    let fired: Vec<String> = report
        .rules
        .iter()
        .filter(|rule| rule.fired > 0)
        .map(|rule| if rule.fired == 1 { rule.name.to_owned() } else { format!("{} x{}", rule.name, rule.fired) })
        .collect();
    (format!("{before}---- {}\n{}", fired.join(", "), after.to_text()), report)
}

/// The operators that are left, in order.
pub(crate) fn operators(graph: Graph) -> String {
    let (text, _) = optimized(graph);
    let after = text.split_once("---- ").unwrap().1;
    let name = |line: &str| Some(line.strip_prefix('%')?.split_once(" = ")?.1.split(['(', ' ']).next()?.to_owned());
    after.lines().filter_map(name).collect::<Vec<_>>().join(" ")
}

/// `[Dim]` from numbers.
pub(crate) fn dims(extents: &[usize]) -> Vec<Dim> {
    extents.iter().map(|n| Dim::Num(*n)).collect()
}
