//! A small decoder with everything that a language model has: the subject of tests on sessions, errors and fusion.

use std::sync::Arc;

use core_tensor::op::{
    Attention, Binary, GatedActivation, Gather, MatMul, Op, Reshape, RmsNormalization, RopeScaling, RotaryEmbedding,
    StateWrite, Unary,
};
use core_tensor::{Bindings, BlockFormat, DType, Dim, Graph, StateDecl, Tensor, ValueId};

use crate::random::{Random, ints};

pub(crate) const VOCABULARY: usize = 50;
const WIDTH: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const HIDDEN: usize = 96;

/// What differs between decoders.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoder {
    pub(crate) weights: DType,
    pub(crate) cache: DType,
    pub(crate) capacity: usize,
    /// Window of the second layer, whose states are rings of this capacity.
    pub(crate) ring: Option<(usize, usize)>,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { weights: DType::F32, cache: DType::F16, capacity: 48, ring: None }
    }
}

struct Builder {
    graph: Graph,
    random: Random,
    dtype: DType,
}

impl Builder {
    fn add(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> ValueId {
        self.graph.add(name, op, inputs).expect("the operator takes these inputs")
    }

    fn linear(&mut self, name: &str, x: ValueId, n: usize, k: usize) -> ValueId {
        let w = self.random.weight(self.dtype, &[n, k]);
        // Of magnitude 1/sqrt(k), so that values stay near 1 through the layers.
        let w = if self.dtype.is_block() { w } else { w.scale(1.7 / (k as f32).sqrt()) };
        let w = self.graph.weight(name, w);
        self.add(name, Op::MatMul(MatMul { transpose_b: true }), &[x, w])
    }

    fn norm(&mut self, name: &str, x: ValueId) -> ValueId {
        let w = self.random.weight(DType::F32, &[WIDTH]);
        let w = self.graph.weight(name, w);
        self.add(name, Op::RmsNormalization(RmsNormalization { epsilon: 1e-5 }), &[x, w])
    }

    fn reshape(&mut self, x: ValueId, rest: &[usize]) -> ValueId {
        let shape = [Dim::sym("rows")].into_iter().chain(rest.iter().map(|n| Dim::Num(*n))).collect();
        self.add("reshape", Op::Reshape(Reshape { shape }), &[x])
    }

    fn layer(&mut self, decoder: Decoder, layer: usize, x: ValueId, positions: ValueId, slots: ValueId) -> ValueId {
        let ring = decoder.ring.filter(|_| layer == 1);
        let h = self.norm("attention norm", x);
        let q = self.linear("q", h, HEADS * HEAD_DIM, WIDTH);
        let k = self.linear("k", h, KV_HEADS * HEAD_DIM, WIDTH);
        let v = self.linear("v", h, KV_HEADS * HEAD_DIM, WIDTH);
        let rope = Op::RotaryEmbedding(RotaryEmbedding {
            interleaved: true,
            rotary_dims: HEAD_DIM,
            theta: 10_000.0,
            scaling: RopeScaling::None,
        });
        let q = self.reshape(q, &[HEADS, HEAD_DIM]);
        let q = self.add("q rope", rope.clone(), &[q, positions]);
        let k = self.reshape(k, &[KV_HEADS, HEAD_DIM]);
        let k = self.add("k rope", rope, &[k, positions]);
        let v = self.reshape(v, &[KV_HEADS, HEAD_DIM]);
        let mut write = |name: &str, rows| {
            let state = self.graph.add_state(StateDecl {
                name: name.into(),
                dtype: decoder.cache,
                row: vec![KV_HEADS, HEAD_DIM],
                capacity: ring.map_or(decoder.capacity, |(_, capacity)| capacity).into(),
                window: ring.map(|(window, _)| window),
            });
            self.add(name, Op::StateWrite(StateWrite { state }), &[rows, positions, slots])
        };
        let (k, v) = (write("keys", k), write("values", v));
        let op = Attention { scale: 0.25, softcap: None, window: ring.map(|(window, _)| window) };
        let y = self.add("attention", Op::Attention(op), &[q, k, v, positions, slots]);
        let y = self.reshape(y, &[HEADS * HEAD_DIM]);
        let y = self.linear("out", y, WIDTH, HEADS * HEAD_DIM);
        let x = self.add("attention residual", Op::Binary(Binary::Add), &[y, x]);
        let h = self.norm("mlp norm", x);
        let gate = self.linear("gate", h, HIDDEN, WIDTH);
        let up = self.linear("up", h, HIDDEN, WIDTH);
        let op = Op::GatedActivation(GatedActivation { activation: Unary::Silu });
        let h = self.add("gated", op, &[gate, up]);
        let h = self.linear("down", h, WIDTH, HIDDEN);
        self.add("mlp residual", Op::Binary(Binary::Add), &[x, h])
    }
}

impl Decoder {
    /// Inputs: tokens, positions, slots, each `[rows]`. Output: logits `[rows, VOCABULARY]`.
    pub(crate) fn graph(self) -> Arc<Graph> {
        let mut b = Builder { graph: Graph::new("decoder"), random: Random::new(77), dtype: self.weights };
        let mut input = |name| b.graph.input(name, DType::I32, &[Dim::sym("rows")]);
        let (tokens, positions, slots) = (input("tokens"), input("positions"), input("slots"));
        let table = b.random.weight(DType::Block(BlockFormat::Q8_0), &[VOCABULARY, WIDTH]);
        let table = b.graph.weight("embedding", table);
        let mut x = b.add("embed", Op::Gather(Gather::rows()), &[table, tokens]);
        for layer in 0..2 {
            x = b.layer(self, layer, x, positions, slots);
        }
        let x = b.norm("output norm", x);
        let logits = b.linear("logits", x, VOCABULARY, WIDTH);
        b.graph.output(logits);
        Arc::new(b.graph)
    }

    pub(crate) fn bounds() -> Bindings {
        Bindings::new().with("rows", 24)
    }
}

/// The inputs of a step: tokens of one slot from a position on.
pub(crate) fn step(tokens: &[i32], position: usize, slot: usize) -> Vec<Tensor> {
    let positions: Vec<i32> = (0..tokens.len()).map(|i| (position + i) as i32).collect();
    vec![ints(tokens), ints(&positions), ints(&vec![slot as i32; tokens.len()])]
}

/// Some tokens.
pub(crate) fn text(len: usize, seed: u64) -> Vec<i32> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.below(VOCABULARY) as i32).collect()
}
