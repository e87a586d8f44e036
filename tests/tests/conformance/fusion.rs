//! What backends fuse, take over in place and reorder, and where they must not.

use std::sync::Arc;

use core_tensor::op::{
    Binary, GatedActivation, MatMul, Op, Reshape, RmsNormalization, RopeScaling, RotaryEmbedding, Unary,
};
use core_tensor::{Bindings, BlockFormat, DType, Dim, Graph, ValueId};
use cpu_kernels::{CpuBackend, CpuOptions};

use crate::compare::{Case, EIGHT_BITS, load};
use crate::decoder::Decoder;
use crate::random::Random;

const WIDTH: usize = 64;
const Q4_0: DType = DType::Block(BlockFormat::Q4_0);
const Q8_0: DType = DType::Block(BlockFormat::Q8_0);

/// A graph in the making, of values `[rows, 64]`.
struct Sketch {
    graph: Graph,
    random: Random,
}

impl Sketch {
    fn add(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.graph.add("node", op, inputs).expect("the operator takes these inputs")
    }

    fn weight(&mut self, dtype: DType, shape: &[usize]) -> ValueId {
        let weight = self.random.weight(dtype, shape);
        self.graph.weight("weight", weight)
    }

    /// A product with a new square weight.
    fn product(&mut self, dtype: DType, x: ValueId) -> ValueId {
        let w = self.weight(dtype, &[WIDTH, WIDTH]);
        self.add(Op::MatMul(MatMul { transpose_b: true }), &[x, w])
    }

    fn norm(&mut self, x: ValueId) -> ValueId {
        let w = self.weight(DType::F32, &[WIDTH]);
        self.add(Op::RmsNormalization(RmsNormalization { epsilon: 1e-5 }), &[x, w])
    }

    fn plus(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.add(Op::Binary(Binary::Add), &[a, b])
    }

    fn bias(&mut self, x: ValueId) -> ValueId {
        let b = self.weight(DType::F32, &[WIDTH]);
        self.plus(x, b)
    }

    fn unary(&mut self, op: Unary, x: ValueId) -> ValueId {
        self.add(Op::Unary(op), &[x])
    }

    fn gated(&mut self, gate: ValueId, up: ValueId) -> ValueId {
        self.add(Op::GatedActivation(GatedActivation { activation: Unary::Silu }), &[gate, up])
    }

    fn heads(&mut self, x: ValueId) -> ValueId {
        self.reshape(x, &[4, 16])
    }

    fn reshape(&mut self, x: ValueId, rest: &[usize]) -> ValueId {
        let shape = [Dim::sym("rows")].into_iter().chain(rest.iter().map(|n| Dim::Num(*n))).collect();
        self.add(Op::Reshape(Reshape { shape }), &[x])
    }
}

/// Builds a graph of one input `[rows, 64]` and a vector of positions, for weights of a dtype; what is returned are the outputs.
fn check(name: &str, build: impl Fn(&mut Sketch, DType, ValueId, ValueId) -> Vec<ValueId>) {
    for dtype in [DType::F32, Q4_0] {
        let mut sketch = Sketch { graph: Graph::new(name), random: Random::new(1) };
        let x = sketch.graph.input("x", DType::F32, &[Dim::sym("rows"), WIDTH.into()]);
        let positions = sketch.graph.input("positions", DType::I32, &[Dim::sym("rows")]);
        for output in build(&mut sketch, dtype, x, positions) {
            sketch.graph.output(output);
        }
        let mut random = Random::new(2);
        let steps = [1, 9, 4, 1, 2].map(|rows| vec![random.f32(&[rows, WIDTH]), random.i32_below(rows, 100)]);
        // Where products follow each other a rounding that falls the other way moves an activation by a whole 8-bit step, which is no error of
        // a kernel: the tight bound is for f32 weights here, and for single products in `matmul`.
        let tolerance = if dtype.is_block() { EIGHT_BITS } else { 1e-7 };
        Case::new(sketch.graph, Bindings::new().with("rows", 9), steps.into()).within(tolerance).check();
    }
}

#[test]
fn norms_before_products() {
    check("norm, product", |s, d, x, _| {
        let h = s.norm(x);
        vec![s.product(d, h)]
    });
    check("norm of a computed value that is read again in place", |s, d, x, _| {
        let x = s.unary(Unary::Neg, x);
        let h = s.norm(x);
        // Runs before the product, and would like to have x's buffer.
        let z = s.unary(Unary::Tanh, x);
        let y = s.product(d, h);
        vec![y, z]
    });
    check("norm of a value that a residual takes over before the product", |s, d, x, _| {
        let a = s.unary(Unary::Neg, x);
        let h = s.norm(a);
        let other = s.product(d, x);
        let sum = s.plus(other, a);
        let y = s.product(d, h);
        vec![sum, y]
    });
    check("norm that is an output, too", |s, d, x, _| {
        let h = s.norm(x);
        let y = s.product(d, h);
        vec![y, h]
    });
    check("norm that something else reads, too", |s, d, x, _| {
        let h = s.norm(x);
        let y = s.product(d, h);
        let z = s.unary(Unary::Relu, h);
        vec![y, z]
    });
    check("norms after each other", |s, d, x, _| {
        let h = s.norm(x);
        let h = s.norm(h);
        vec![s.product(d, h)]
    });
    check("norm with a computed weight that is taken over", |s, d, x, _| {
        let w = s.weight(DType::F32, &[WIDTH]);
        let w = s.unary(Unary::Neg, w);
        let h = s.add(Op::RmsNormalization(RmsNormalization { epsilon: 1e-5 }), &[x, w]);
        let z = s.unary(Unary::Tanh, w);
        let y = s.product(d, h);
        vec![y, z]
    });
}

#[test]
fn products_that_share_their_activations() {
    check("three products of one norm, of different dtypes", |s, d, x, _| {
        let h = s.norm(x);
        vec![s.product(d, h), s.product(d, h), s.product(d, h)]
    });
    check("three products with biases, one of which is read by another", |s, d, x, _| {
        let h = s.norm(x);
        let (a, b, c) = (s.product(d, h), s.product(d, h), s.product(d, h));
        let a = s.bias(a);
        let both = s.plus(b, a);
        let c = s.bias(c);
        vec![both, c]
    });
    check("a product of a product of the same activations", |s, d, x, _| {
        let a = s.product(d, x);
        let b = s.product(d, a);
        let c = s.product(d, x);
        let sum = s.plus(b, c);
        vec![sum, a]
    });
    check("the same weight twice", |s, d, x, _| {
        let w = s.weight(d, &[WIDTH, WIDTH]);
        let op = Op::MatMul(MatMul { transpose_b: true });
        let a = s.add(op.clone(), &[x, w]);
        let b = s.add(op, &[x, w]);
        vec![a, b]
    });
}

#[test]
fn products_of_mixed_dtypes_that_share_their_activations() {
    let mut sketch = Sketch { graph: Graph::new("mixed"), random: Random::new(1) };
    let x = sketch.graph.input("x", DType::F32, &[Dim::sym("rows"), WIDTH.into()]);
    let h = sketch.norm(x);
    for dtype in [Q4_0, Q8_0, DType::F32, DType::F16, DType::Block(BlockFormat::Q5_1)] {
        let y = sketch.product(dtype, h);
        let y = sketch.bias(y);
        sketch.graph.output(y);
    }
    // A gate and an up product that are not rounded alike.
    let (gate, up) = (sketch.product(Q4_0, h), sketch.product(DType::F32, h));
    let y = sketch.gated(gate, up);
    sketch.graph.output(y);
    let mut random = Random::new(2);
    let steps = [1, 9, 2, 4].map(|rows| vec![random.f32(&[rows, WIDTH])]);
    // The norm comes first and may be off by its last bit, which rounds an activation the other way now and then.
    Case::new(sketch.graph, Bindings::new().with("rows", 9), steps.into()).within(1e-5).check();
}

#[test]
fn biases() {
    check("bias on either side", |s, d, x, _| {
        let a = s.product(d, x);
        let a = s.bias(a);
        let b = s.product(d, x);
        let bias = s.weight(DType::F32, &[WIDTH]);
        let b = s.plus(bias, b);
        vec![a, b]
    });
    check("one number as a bias", |s, d, x, _| {
        let a = s.product(d, x);
        let bias = s.weight(DType::F32, &[1]);
        vec![s.plus(a, bias)]
    });
    check("a bias for a product that is an output, too", |s, d, x, _| {
        let a = s.product(d, x);
        let b = s.bias(a);
        vec![b, a]
    });
    check("two biases and a residual", |s, d, x, _| {
        let r = s.unary(Unary::Neg, x);
        let a = s.product(d, x);
        let a = s.bias(a);
        let a = s.bias(a);
        vec![s.plus(a, r)]
    });
}

#[test]
fn residuals() {
    check("residual on either side", |s, d, x, _| {
        let r = s.unary(Unary::Neg, x);
        let a = s.product(d, x);
        let r = s.plus(a, r);
        let b = s.product(d, x);
        vec![s.plus(r, b)]
    });
    check("residual that is read later", |s, d, x, _| {
        let r = s.unary(Unary::Neg, x);
        let a = s.product(d, x);
        let y = s.plus(a, r);
        let z = s.unary(Unary::Abs, r);
        vec![y, z]
    });
    check("residual that is an output", |s, d, x, _| {
        let r = s.unary(Unary::Neg, x);
        let a = s.product(d, x);
        vec![s.plus(a, r), r]
    });
    check("residual that is the activations", |s, d, x, _| {
        let r = s.unary(Unary::Neg, x);
        let a = s.product(d, r);
        vec![s.plus(a, r)]
    });
    check("residual that is the norm's input", |s, d, x, _| {
        let r = s.unary(Unary::Neg, x);
        let h = s.norm(r);
        let a = s.product(d, h);
        let r = s.plus(r, a);
        let h = s.norm(r);
        let a = s.product(d, h);
        vec![s.plus(a, r)]
    });
    check("residual that is an input", |s, d, x, _| {
        let h = s.norm(x);
        let a = s.product(d, h);
        vec![s.plus(a, x)]
    });
    check("residual that is an alias of what is read later", |s, d, x, _| {
        let r = s.unary(Unary::Neg, x);
        let heads = s.heads(r);
        let a = s.product(d, x);
        let y = s.plus(a, r);
        let z = s.unary(Unary::Abs, heads);
        vec![y, z]
    });
    check("residual that is computed after the product", |s, d, x, _| {
        let a = s.product(d, x);
        let r = s.unary(Unary::Neg, x);
        vec![s.plus(a, r)]
    });
    check("residual that is a product of the same activations", |s, d, x, _| {
        let (a, b) = (s.product(d, x), s.product(d, x));
        vec![s.plus(a, b)]
    });
    check("two products into one residual", |s, d, x, _| {
        let r = s.unary(Unary::Neg, x);
        let (a, b) = (s.product(d, x), s.product(d, x));
        let y = s.plus(a, r);
        vec![s.plus(b, y)]
    });
    check("a product plus itself", |s, d, x, _| {
        let a = s.product(d, x);
        vec![s.plus(a, a)]
    });
    check("a residual of one row, broadcast", |s, d, x, _| {
        let w = s.weight(DType::F32, &[1, WIDTH]);
        let r = s.unary(Unary::Neg, w);
        let a = s.product(d, x);
        vec![s.plus(a, r)]
    });
    check("residual that is a weight", |s, d, x, _| {
        let r = s.weight(DType::F32, &[1, WIDTH]);
        let a = s.product(d, x);
        vec![s.plus(a, r)]
    });
}

#[test]
fn gated_activations() {
    check("gate first", |s, d, x, _| {
        let h = s.norm(x);
        let (gate, up) = (s.product(d, h), s.product(d, h));
        let y = s.gated(gate, up);
        vec![s.product(d, y)]
    });
    check("up first", |s, d, x, _| {
        let h = s.norm(x);
        let (up, gate) = (s.product(d, h), s.product(d, h));
        let y = s.gated(gate, up);
        vec![s.product(d, y)]
    });
    check("with biases", |s, d, x, _| {
        let (gate, up) = (s.product(d, x), s.product(d, x));
        let (gate, up) = (s.bias(gate), s.bias(up));
        let y = s.gated(gate, up);
        let (up, gate) = (s.product(d, x), s.product(d, x));
        let (up, gate) = (s.bias(up), s.bias(gate));
        let z = s.gated(gate, up);
        vec![y, z]
    });
    check("with one number as a bias", |s, d, x, _| {
        let (gate, up) = (s.product(d, x), s.product(d, x));
        let number = s.weight(DType::F32, &[1]);
        let up = s.plus(up, number);
        let y = s.gated(gate, up);
        let (gate, up) = (s.product(d, x), s.product(d, x));
        let gate = s.plus(gate, number);
        let z = s.gated(gate, up);
        vec![y, z]
    });
    check("whose up is read again", |s, d, x, _| {
        let (gate, up) = (s.product(d, x), s.product(d, x));
        let y = s.gated(gate, up);
        let z = s.unary(Unary::Neg, up);
        vec![y, z]
    });
    check("whose gate is an output", |s, d, x, _| {
        let (gate, up) = (s.product(d, x), s.product(d, x));
        let y = s.gated(gate, up);
        vec![y, gate]
    });
    check("of itself", |s, d, x, _| {
        let gate = s.product(d, x);
        vec![s.gated(gate, gate)]
    });
    check("of products of different activations", |s, d, x, _| {
        let other = s.unary(Unary::Tanh, x);
        let (gate, up) = (s.product(d, x), s.product(d, other));
        vec![s.gated(gate, up)]
    });
    check("two that share their up", |s, d, x, _| {
        let (gate, up, other) = (s.product(d, x), s.product(d, x), s.product(d, x));
        vec![s.gated(gate, up), s.gated(other, up)]
    });
}

/// More outputs and more rows than the tiles of any kernel have.
#[test]
fn wide_gated_activations_of_many_rows() {
    for dtype in [DType::F32, DType::F16, DType::BF16, Q4_0] {
        let mut random = Random::new(3);
        let mut graph = Graph::new("wide");
        let x = graph.input("x", DType::F32, &[Dim::sym("rows"), WIDTH.into()]);
        let [gate, up] = ["gate", "up"].map(|name| {
            let w = graph.weight(name, random.weight(dtype, &[2_200, WIDTH]));
            graph.add(name, Op::MatMul(MatMul { transpose_b: true }), &[x, w]).expect("a product")
        });
        let gated = Op::GatedActivation(GatedActivation { activation: Unary::Silu });
        let y = graph.add("y", gated, &[gate, up]).expect("a gated activation");
        graph.output(y);
        let steps = [1, 3, 4, 5, 33, 300].map(|rows| vec![random.f32(&[rows, WIDTH])]);
        let tolerance = if dtype.is_block() { EIGHT_BITS } else { 1e-7 };
        Case::new(graph, Bindings::new().with("rows", 300), steps.into()).within(tolerance).check();
    }
}

#[test]
fn chains_in_place_with_later_readers() {
    check("a chain", |s, _, x, _| {
        let a = s.unary(Unary::Neg, x);
        let b = s.unary(Unary::Tanh, a);
        let c = s.unary(Unary::Abs, b);
        vec![c]
    });
    check("a chain whose first link is read at the end", |s, _, x, _| {
        let a = s.unary(Unary::Neg, x);
        let b = s.unary(Unary::Tanh, a);
        let c = s.unary(Unary::Abs, b);
        vec![s.plus(c, a)]
    });
    check("both operands die", |s, _, x, _| {
        let (a, b) = (s.unary(Unary::Neg, x), s.unary(Unary::Tanh, x));
        let c = s.plus(a, b);
        let c = s.add(Op::Binary(Binary::Sub), &[c, x]);
        vec![c]
    });
    check("operands in one buffer", |s, _, x, _| {
        let a = s.unary(Unary::Neg, x);
        let heads = s.heads(a);
        let back = s.reshape(heads, &[WIDTH]);
        let y = s.add(Op::Binary(Binary::Mul), &[a, back]);
        vec![y]
    });
    check("rotations of heads, with the heads read later", |s, d, x, positions| {
        let op = |interleaved| {
            Op::RotaryEmbedding(RotaryEmbedding {
                interleaved,
                rotary_dims: 16,
                theta: 1000.0,
                scaling: RopeScaling::None,
            })
        };
        let a = s.product(d, x);
        let heads = s.heads(a);
        let turned = s.add(op(true), &[heads, positions]);
        let more = s.add(op(false), &[turned, positions]);
        let flat = s.reshape(more, &[WIDTH]);
        vec![s.plus(flat, a), flat]
    });
    check("heads cut in two ways", |s, d, x, positions| {
        let rope = |dims| {
            Op::RotaryEmbedding(RotaryEmbedding {
                interleaved: true,
                rotary_dims: dims,
                theta: 1000.0,
                scaling: RopeScaling::None,
            })
        };
        let a = s.product(d, x);
        let heads = s.heads(a);
        let turned = s.add(rope(16), &[heads, positions]);
        let wide = s.reshape(turned, &[2, 32]);
        let turned = s.add(rope(32), &[wide, positions]);
        let flat = s.reshape(turned, &[WIDTH]);
        vec![s.product(d, flat)]
    });
}

#[test]
fn outputs_of_every_kind() {
    check("an output that is read", |s, d, x, _| {
        let a = s.unary(Unary::Neg, x);
        let b = s.unary(Unary::Tanh, a);
        let c = s.product(d, b);
        vec![a, b, c]
    });
    check("the same output twice", |s, _, x, _| {
        let a = s.unary(Unary::Neg, x);
        vec![a, a]
    });
    check("an input as an output", |s, _, x, positions| {
        let a = s.unary(Unary::Neg, x);
        vec![x, a, positions, x]
    });
    check("aliases as outputs", |s, _, x, _| {
        let a = s.unary(Unary::Neg, x);
        let heads = s.heads(a);
        let of_input = s.heads(x);
        let back = s.reshape(of_input, &[WIDTH]);
        vec![a, heads, of_input, back]
    });
    check("weights as outputs", |s, d, x, _| {
        let w = s.weight(d, &[WIDTH, WIDTH]);
        let half = s.weight(DType::F16, &[3]);
        let double = s.weight(DType::F64, &[3]);
        let unused = s.weight(d, &[2, WIDTH]);
        let y = s.add(Op::MatMul(MatMul { transpose_b: true }), &[x, w]);
        vec![y, w, half, double, unused]
    });
    check("nothing but an input", |_, _, x, _| vec![x]);
    check("nothing", |_, _, _, _| Vec::new());
}

#[test]
fn a_layer_runs_in_few_steps() {
    let graph = Decoder { weights: Q4_0, ..Decoder::default() }.graph();
    let backend = CpuBackend::new(CpuOptions::default());
    let loaded = load(&backend, &graph, 1, &Decoder::bounds()).expect("it loads");
    let text = loaded.program.to_text();
    // Norms, residuals and the gated activation go with the products: per layer q k v, two rotations, two writes, attention, out, gate and up,
    // down. Before them the embedding and the table of angles, after them the logits.
    assert_eq!(text.lines().count(), 2 * 9 + 3, "{text}");
    assert_eq!(text.matches("Add").count(), 0, "{text}");
    let graph = Arc::clone(&graph);
    assert!(loaded.program.plan().arena_bytes < loaded.program.plan().unshared_bytes(), "{}", graph.name());
}
