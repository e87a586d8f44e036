//! A decoder of any size with random weights: its work per token is a real model's, its words are not.

use std::ops::ControlFlow;
use std::sync::Arc;

use core_tensor::op::{
    ArgMax, Attention, Binary, GatedActivation, Gather, MatMul, Op, Reshape, RmsNormalization, RopeScaling,
    RotaryEmbedding, StateWrite, Unary,
};
use core_tensor::{
    Backend, BackendError, Bindings, BlockFormat, DType, Dim, Graph, GraphError, Program, Session, StateDecl, Tensor,
    ValueId, Weight,
};
use half::f16;

/// The sizes of a decoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) hidden: usize,
    pub(crate) vocabulary: usize,
    /// Whether the device picks the token, so that only its number comes back.
    pub(crate) greedy: bool,
}

const HEAD_DIM: usize = 64;

struct Builder {
    graph: Graph,
    bits: u64,
}

impl Builder {
    fn add(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        self.graph.add(op.name(), op, inputs)
    }

    /// A Q4_0 matrix whose products keep values near 1.
    fn matrix(&mut self, n: usize, k: usize) -> ValueId {
        let format = BlockFormat::Q4_0;
        let scale = f16::from_f32(0.4 / (k as f32).sqrt()).to_le_bytes();
        let mut bytes = Vec::with_capacity(n * k / format.block_len() * format.block_bytes());
        for _ in 0..n * k / format.block_len() {
            bytes.extend_from_slice(&scale);
            for _ in 0..2 {
                self.bits ^= self.bits << 13;
                self.bits ^= self.bits >> 7;
                self.bits ^= self.bits << 17;
                bytes.extend_from_slice(&self.bits.to_le_bytes());
            }
        }
        let tensor =
            Tensor::from_bytes(DType::Block(format), &[n, k], &bytes).expect("as many blocks as the shape has");
        self.graph.weight("matrix", Weight::stored(tensor))
    }

    fn product(&mut self, x: ValueId, n: usize, k: usize) -> Result<ValueId, GraphError> {
        let w = self.matrix(n, k);
        self.add(Op::MatMul(MatMul { transpose_b: true }), &[x, w])
    }

    fn norm(&mut self, x: ValueId, width: usize) -> Result<ValueId, GraphError> {
        let ones = Tensor::from_slice(&[width], &vec![1.0f32; width]).expect("as many as the shape has");
        let w = self.graph.weight("norm", Weight::stored(ones));
        self.add(Op::RmsNormalization(RmsNormalization { epsilon: 1e-5 }), &[x, w])
    }

    fn reshape(&mut self, x: ValueId, rest: &[usize]) -> Result<ValueId, GraphError> {
        let shape = [Dim::sym("rows")].into_iter().chain(rest.iter().map(|n| Dim::Num(*n))).collect();
        self.add(Op::Reshape(Reshape { shape }), &[x])
    }

    fn layer(&mut self, shape: Shape, x: ValueId, [positions, slots]: [ValueId; 2]) -> Result<ValueId, GraphError> {
        let Shape { width, heads, kv_heads, hidden, .. } = shape;
        let rope = Op::RotaryEmbedding(RotaryEmbedding {
            interleaved: true,
            rotary_dims: HEAD_DIM,
            theta: 100_000.0,
            scaling: RopeScaling::None,
        });
        let h = self.norm(x, width)?;
        let (q, k) = (self.product(h, heads * HEAD_DIM, width)?, self.product(h, kv_heads * HEAD_DIM, width)?);
        let v = self.product(h, kv_heads * HEAD_DIM, width)?;
        let (q, k) = (self.reshape(q, &[heads, HEAD_DIM])?, self.reshape(k, &[kv_heads, HEAD_DIM])?);
        let v = self.reshape(v, &[kv_heads, HEAD_DIM])?;
        let (q, k) = (self.add(rope.clone(), &[q, positions])?, self.add(rope, &[k, positions])?);
        let mut write = |name: &str, rows| {
            let (row, capacity) = (vec![kv_heads, HEAD_DIM], Dim::sym("context"));
            let decl = StateDecl { name: name.into(), dtype: DType::F16, row, capacity, window: None };
            let state = self.graph.add_state(decl);
            self.add(Op::StateWrite(StateWrite { state }), &[rows, positions, slots])
        };
        let (k, v) = (write("keys", k)?, write("values", v)?);
        let attention = Attention { scale: 0.125, softcap: None, window: None };
        let y = self.add(Op::Attention(attention), &[q, k, v, positions, slots])?;
        let y = self.reshape(y, &[heads * HEAD_DIM])?;
        let y = self.product(y, width, heads * HEAD_DIM)?;
        let x = self.add(Op::Binary(Binary::Add), &[y, x])?;
        let h = self.norm(x, width)?;
        let (gate, up) = (self.product(h, hidden, width)?, self.product(h, hidden, width)?);
        let h = self.add(Op::GatedActivation(GatedActivation { activation: Unary::Silu }), &[gate, up])?;
        let h = self.product(h, width, hidden)?;
        self.add(Op::Binary(Binary::Add), &[h, x])
    }
}

impl Shape {
    /// Inputs: tokens, positions, slots, each `[rows]`.
    pub(crate) fn graph(self) -> Result<Arc<Graph>, GraphError> {
        let mut b = Builder { graph: Graph::new("decoder"), bits: 0x9e37_79b9_7f4a_7c15 };
        let mut input = |name| b.graph.input(name, DType::I32, &[Dim::sym("rows")]);
        let (tokens, places) = (input("tokens"), [input("positions"), input("slots")]);
        let table = b.matrix(self.vocabulary, self.width);
        let mut x = b.add(Op::Gather(Gather::rows()), &[table, tokens])?;
        for _ in 0..self.layers {
            x = b.layer(self, x, places)?;
        }
        let x = b.norm(x, self.width)?;
        let mut y = b.add(Op::MatMul(MatMul { transpose_b: true }), &[x, table])?;
        if self.greedy {
            y = b.add(Op::ArgMax(ArgMax), &[y])?;
        }
        b.graph.output(y);
        Ok(Arc::new(b.graph))
    }
}

/// A decoder that takes one token at a time.
pub(crate) struct Decoder {
    program: Arc<dyn Program>,
    session: Box<dyn Session>,
    position: i32,
}

impl Decoder {
    /// # Errors
    /// When the backend does not take it.
    pub(crate) fn load(backend: &dyn Backend, shape: Shape, context: usize) -> Result<Decoder, BackendError> {
        let graph = shape.graph()?;
        let bounds = Bindings::new().with("rows", 1).with("context", context);
        let weights = backend.load_weights(&graph, &mut |_, _| ControlFlow::Continue(()))?;
        let program = backend.compile(&graph, &weights, &bounds)?;
        Ok(Decoder { program, session: backend.new_session(&graph, 1, &bounds)?, position: 0 })
    }

    /// The inputs of the next step.
    pub(crate) fn inputs(&self) -> [Tensor; 3] {
        [7, self.position, 0].map(|value| Tensor::from_slice(&[1], &[value]).expect("one number"))
    }

    /// Runs a step.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn step(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        let outputs = self.program.run(&mut *self.session, inputs)?;
        self.position += 1;
        Ok(outputs)
    }
}
