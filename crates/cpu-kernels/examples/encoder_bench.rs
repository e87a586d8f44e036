//! Latency of an encoder with random weights: `cargo run --release -p cpu-kernels --example encoder_bench -- [options]`
//!
//! ```text
//! --model NAME     minilm (6 layers of 384) or bert-base (12 of 768) (minilm)
//! --batch N        texts (1)
//! --tokens N       tokens of each (128)
//! --threads N      threads (2)
//! --runs N         runs to time (20)
//! --primitive      attention, GELU and normalization as exporters spell them: products, softmax, erf, reductions
//! --int8           weights of 8 bits, each output with its own scale
//! --q8             lets products round activations to 8 bits
//! --profile        what each step takes, and the program
//! ```
//!
//! Prints milliseconds, the least and the median: of one thread's processor time, which other work on the machine does not count in, or of the
//! wall clock.

use std::ops::ControlFlow;
use std::sync::Arc;

use core_tensor::op::{
    Binary, Cast, DequantizeLinear, Gather, Granularity, LayerNormalization, MatMul, Op, Reduce, ReduceKind, Reshape,
    Slice, Softmax, TensorAttention, Transpose, Unary,
};
use core_tensor::{Backend, Bindings, DType, Dim, Graph, GraphError, Tensor, ValueId, Weight};
use cpu_kernels::matmul::ActivationKind;
use cpu_kernels::{CpuBackend, CpuOptions};

struct Options {
    layers: usize,
    width: usize,
    heads: usize,
    batch: usize,
    tokens: usize,
    threads: usize,
    runs: usize,
    primitive: bool,
    int8: bool,
    q8: bool,
    profile: bool,
}

fn options() -> Options {
    let mut o = Options {
        layers: 6,
        width: 384,
        heads: 12,
        batch: 1,
        tokens: 128,
        threads: 2,
        runs: 20,
        primitive: false,
        int8: false,
        q8: false,
        profile: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        let number = |text: String| text.parse::<usize>().expect("a number");
        match arg.as_str() {
            "--model" => {
                (o.layers, o.width, o.heads) = match value().as_str() {
                    "minilm" => (6, 384, 12),
                    "bert-base" => (12, 768, 12),
                    other => panic!("no model {other:?}"),
                };
            }
            "--batch" => o.batch = number(value()),
            "--tokens" => o.tokens = number(value()),
            "--threads" => o.threads = number(value()),
            "--runs" => o.runs = number(value()).max(1),
            "--primitive" => o.primitive = true,
            "--int8" => o.int8 = true,
            "--q8" => o.q8 = true,
            "--profile" => o.profile = true,
            _ => panic!("unknown option {arg}"),
        }
    }
    o
}

struct Encoder<'a> {
    o: &'a Options,
    graph: Graph,
    seed: u64,
}

fn rows() -> Vec<Dim> {
    vec![Dim::sym("batch"), Dim::sym("tokens")]
}

impl Encoder<'_> {
    fn random(&mut self, shape: &[usize], scale: f32) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|_| {
                self.seed ^= self.seed << 13;
                self.seed ^= self.seed >> 7;
                self.seed ^= self.seed << 17;
                ((self.seed >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale
            })
            .collect();
        Tensor::from_slice(shape, &values).expect("a tensor")
    }

    fn weight(&mut self, name: &str, shape: &[usize], scale: f32) -> ValueId {
        let tensor = self.random(shape, scale);
        self.graph.weight(name, Weight::stored(tensor))
    }

    fn scalar(&mut self, name: &str, value: f32) -> ValueId {
        self.graph.weight(name, Weight::stored(Tensor::from_slice(&[], &[value]).expect("a scalar")))
    }

    fn linear(&mut self, name: &str, x: ValueId, n: usize, k: usize) -> Result<ValueId, GraphError> {
        let scale = (3.0 / k as f32).sqrt();
        let bias = self.weight(&format!("{name}.bias"), &[n], 0.1);
        let weight = if self.o.int8 {
            let tensor = self.random(&[k, n], 127.0).to_f32().expect("floats");
            let tensor: Vec<i8> = tensor.iter().map(|x| *x as i8).collect();
            let tensor = Tensor::from_slice(&[k, n], &tensor).expect("a tensor");
            let quantized = self.graph.weight(&format!("{name}.weight"), Weight::stored(tensor));
            let scales = self.weight(&format!("{name}.scale"), &[n], scale / 127.0);
            let op = DequantizeLinear { granularity: Granularity::Axis(1) };
            self.graph.add(&format!("{name}.dequantized"), Op::DequantizeLinear(op), &[quantized, scales])?
        } else {
            self.weight(&format!("{name}.weight"), &[k, n], scale)
        };
        let op = MatMul { transpose_b: false };
        let y = self.graph.add(&format!("{name}.product"), Op::MatMul(op), &[x, weight])?;
        self.graph.add(name, Op::Binary(Binary::Add), &[y, bias])
    }

    fn norm(&mut self, name: &str, x: ValueId) -> Result<ValueId, GraphError> {
        let w = self.weight(&format!("{name}.weight"), &[self.o.width], 1.0);
        let b = self.weight(&format!("{name}.bias"), &[self.o.width], 0.1);
        if !self.o.primitive {
            return self.graph.add(name, Op::LayerNormalization(LayerNormalization { epsilon: 1e-12 }), &[x, w, b]);
        }
        let part = |part: &str| format!("{name}.{part}");
        let mean = Op::Reduce(Reduce { kind: ReduceKind::Mean });
        let one = || vec![Dim::sym("batch"), Dim::sym("tokens"), Dim::Num(1)];
        let m = self.graph.add(&part("mean"), mean.clone(), &[x])?;
        let m = self.graph.add(&part("mean.column"), Op::Reshape(Reshape { shape: one() }), &[m])?;
        let d = self.graph.add(&part("difference"), Op::Binary(Binary::Sub), &[x, m])?;
        let two = self.scalar(&part("two"), 2.0);
        let square = self.graph.add(&part("square"), Op::Binary(Binary::Pow), &[d, two])?;
        let v = self.graph.add(&part("variance"), mean, &[square])?;
        let v = self.graph.add(&part("variance.column"), Op::Reshape(Reshape { shape: one() }), &[v])?;
        let epsilon = self.scalar(&part("epsilon"), 1e-12);
        let v = self.graph.add(&part("shifted"), Op::Binary(Binary::Add), &[v, epsilon])?;
        let v = self.graph.add(&part("root"), Op::Unary(Unary::Sqrt), &[v])?;
        let y = self.graph.add(&part("normal"), Op::Binary(Binary::Div), &[d, v])?;
        let y = self.graph.add(&part("weighted"), Op::Binary(Binary::Mul), &[y, w])?;
        self.graph.add(name, Op::Binary(Binary::Add), &[y, b])
    }

    fn gelu(&mut self, name: &str, x: ValueId) -> Result<ValueId, GraphError> {
        if !self.o.primitive {
            return self.graph.add(name, Op::Unary(Unary::Gelu), &[x]);
        }
        let part = |part: &str| format!("{name}.{part}");
        let (root, one, half) =
            (self.scalar(&part("root"), 2f32.sqrt()), self.scalar(&part("1"), 1.0), self.scalar(&part("h"), 0.5));
        let y = self.graph.add(&part("scaled"), Op::Binary(Binary::Div), &[x, root])?;
        let y = self.graph.add(&part("erf"), Op::Unary(Unary::Erf), &[y])?;
        let y = self.graph.add(&part("shifted"), Op::Binary(Binary::Add), &[y, one])?;
        let y = self.graph.add(&part("product"), Op::Binary(Binary::Mul), &[x, y])?;
        self.graph.add(name, Op::Binary(Binary::Mul), &[y, half])
    }

    fn attention(&mut self, name: &str, x: ValueId, seen: ValueId) -> Result<ValueId, GraphError> {
        let (width, heads) = (self.o.width, self.o.heads);
        let scale = ((width / heads) as f32).sqrt().recip();
        let split: Vec<Dim> = rows().into_iter().chain([heads.into(), (width / heads).into()]).collect();
        let mut qkv = Vec::new();
        for part in ["q", "k", "v"] {
            let y = self.linear(&format!("{name}.{part}"), x, width, width)?;
            let op = Op::Reshape(Reshape { shape: split.clone() });
            qkv.push(self.graph.add(&format!("{name}.{part}.heads"), op, &[y])?);
        }
        let y = if self.o.primitive {
            let mut move_heads = |name: &str, x: ValueId, perm: [usize; 4]| {
                self.graph.add(name, Op::Transpose(Transpose { perm: perm.to_vec() }), &[x])
            };
            let q = move_heads(&format!("{name}.q.moved"), qkv[0], [0, 2, 1, 3])?;
            let k = move_heads(&format!("{name}.k.moved"), qkv[1], [0, 2, 3, 1])?;
            let v = move_heads(&format!("{name}.v.moved"), qkv[2], [0, 2, 1, 3])?;
            let op = Op::MatMul(MatMul { transpose_b: false });
            let scores = self.graph.add(&format!("{name}.scores"), op.clone(), &[q, k])?;
            let factor = self.scalar(&format!("{name}.factor"), scale);
            let scores = self.graph.add(&format!("{name}.scaled"), Op::Binary(Binary::Mul), &[scores, factor])?;
            let scores = self.graph.add(&format!("{name}.masked"), Op::Binary(Binary::Add), &[scores, seen])?;
            let p = self.graph.add(&format!("{name}.softmax"), Op::Softmax(Softmax), &[scores])?;
            let y = self.graph.add(&format!("{name}.weighted"), op, &[p, v])?;
            let op = Op::Transpose(Transpose { perm: vec![0, 2, 1, 3] });
            self.graph.add(&format!("{name}.moved"), op, &[y])?
        } else {
            let op = TensorAttention { scale, causal: false, softcap: None };
            self.graph.add(name, Op::TensorAttention(op), &[qkv[0], qkv[1], qkv[2], seen])?
        };
        let shape = rows().into_iter().chain([width.into()]).collect();
        let y = self.graph.add(&format!("{name}.joined"), Op::Reshape(Reshape { shape }), &[y])?;
        self.linear(&format!("{name}.output"), y, width, width)
    }

    fn build(mut self) -> Result<Graph, GraphError> {
        let width = self.o.width;
        let ids = self.graph.input("ids", DType::I64, &rows());
        let mask = self.graph.input("mask", DType::I64, &rows());
        let words = self.weight("words", &[1000, width], 1.0);
        let places = self.weight("positions", &[512, width], 1.0);
        let shape = vec![Dim::sym("batch"), Dim::Num(1), Dim::Num(1), Dim::sym("tokens")];
        let seen = if self.o.primitive {
            let seen = self.graph.add("mask.floats", Op::Cast(Cast { to: DType::F32 }), &[mask])?;
            let (one, least) = (self.scalar("one", 1.0), self.scalar("least", f32::MIN));
            let seen = self.graph.add("mask.hidden", Op::Binary(Binary::Sub), &[one, seen])?;
            self.graph.add("mask.added", Op::Binary(Binary::Mul), &[seen, least])?
        } else {
            self.graph.add("mask.seen", Op::Cast(Cast { to: DType::Bool }), &[mask])?
        };
        let seen = self.graph.add("mask.heads", Op::Reshape(Reshape { shape }), &[seen])?;
        let x = self.graph.add("words.of", Op::Gather(Gather::rows()), &[words, ids])?;
        let op = Slice { axis: 0, start: Dim::Num(0), len: Dim::sym("tokens"), step: 1 };
        let places = self.graph.add("positions.of", Op::Slice(op), &[places])?;
        let x = self.graph.add("embedded", Op::Binary(Binary::Add), &[x, places])?;
        let mut x = self.norm("embedded.norm", x)?;
        for layer in 0..self.o.layers {
            let name = |part: &str| format!("{layer}.{part}");
            let h = self.attention(&name("attention"), x, seen)?;
            let h = self.graph.add(&name("attention.sum"), Op::Binary(Binary::Add), &[h, x])?;
            x = self.norm(&name("attention.norm"), h)?;
            let h = self.linear(&name("up"), x, 4 * width, width)?;
            let h = self.gelu(&name("gelu"), h)?;
            let h = self.linear(&name("down"), h, width, 4 * width)?;
            let h = self.graph.add(&name("sum"), Op::Binary(Binary::Add), &[h, x])?;
            x = self.norm(&name("norm"), h)?;
        }
        self.graph.output(x);
        Ok(self.graph)
    }
}

/// Seconds: of this thread's processor time if it works alone, else of the wall clock.
fn clock(threads: usize) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let id = if threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    // SAFETY: `time` is writable.
    unsafe { libc::clock_gettime(id, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn main() {
    let o = options();
    let encoder = Encoder { o: &o, graph: Graph::new("encoder"), seed: 0x1234_5678_9abc_def1 };
    let graph = Arc::new(encoder.build().expect("a graph"));
    let kind = if o.q8 { ActivationKind::Q8 } else { ActivationKind::F32 };
    let options = CpuOptions::default()
        .with_threads(o.threads)
        .with_profile(o.profile)
        .with_activations(kind)
        .with_dequantized(kind);
    let cpu = CpuBackend::new(options);
    let bounds = Bindings::new().with("batch", o.batch).with("tokens", o.tokens);
    let weights = cpu.load_weights(&graph, &mut |_, _| ControlFlow::Continue(())).expect("weights");
    let program = cpu.compile(&graph, &weights, &bounds).expect("a program");
    let mut session = cpu.new_session(&graph, 1, &bounds).expect("a session");
    let shape = [o.batch, o.tokens];
    let ids: Vec<i64> = (0..o.batch * o.tokens).map(|i| (i * 97 % 1000) as i64).collect();
    let inputs = [
        Tensor::from_slice(&shape, &ids).expect("ids"),
        Tensor::from_slice(&shape, &vec![1i64; ids.len()]).expect("a mask"),
    ];
    for _ in 0..3 {
        program.run(&mut *session, &inputs).expect("a run");
    }
    let mut times: Vec<f64> = (0..o.runs)
        .map(|_| {
            let start = clock(o.threads);
            program.run(&mut *session, &inputs).expect("a run");
            (clock(o.threads) - start) * 1e3
        })
        .collect();
    if o.profile {
        println!("{}\n{}", program.to_text(), program.plan());
    }
    times.sort_by(f64::total_cmp);
    println!("{:.2} ms least, {:.2} ms median of {}", times[0], times[times.len() / 2], times.len());
}
