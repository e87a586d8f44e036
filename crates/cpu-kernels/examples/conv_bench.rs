//! Times convolutional networks of the shapes of ResNet-50 and MobileNetV2, with random weights, or one convolution:
//!
//! ```text
//! conv_bench resnet50|mobilenetv2 [--threads N] [--runs N] [--level NAME] [--profile]
//! conv_bench IN,OUT,KERNEL,STRIDE,SIZE[,GROUPS] ...
//! ```
//!
//! Prints the least and the median latency of a run on one image, and for single convolutions the arithmetic per second of the first thread's
//! processor time (meant for `--threads 1`).

use std::error::Error;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use core_tensor::op::{Binary, Conv, MatMul, Op, Pool, PoolKind, Reduce, ReduceKind, Reshape, Scalar, Unary, Window};
use core_tensor::{Backend, Bindings, DType, Graph, Tensor, ValueId, Weight};
use cpu_kernels::simd::Level;
use cpu_kernels::{CpuBackend, CpuOptions};

/// A graph in the making.
struct Net {
    graph: Graph,
    seed: u32,
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

impl Net {
    fn new(name: &str) -> Net {
        Net { graph: Graph::new(name), seed: 1 }
    }

    fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n)
            .map(|_| {
                self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((self.seed >> 8) as f32 / 8_388_608.0 - 1.0) * scale
            })
            .collect()
    }

    fn weight(&mut self, shape: &[usize], scale: f32) -> Result<ValueId> {
        let values = self.values(shape.iter().product(), scale);
        Ok(self.graph.weight("w", Weight::stored(Tensor::from_slice(shape, &values)?)))
    }

    /// Extents of the window, stride, groups and channels: `kernel / 2` of padding on each side.
    fn conv(&mut self, x: ValueId, [out, input, kernel, stride, groups]: [usize; 5]) -> Result<ValueId> {
        let scale = (6.0 / (input / groups * kernel * kernel) as f32).sqrt();
        let w = self.weight(&[out, input / groups, kernel, kernel], scale)?;
        let bias = self.weight(&[out], 0.01)?;
        let window = Window {
            strides: vec![stride; 2],
            dilations: vec![1; 2],
            pads_begin: vec![kernel / 2; 2],
            pads_end: vec![kernel / 2; 2],
        };
        Ok(self.graph.add("conv", Op::Conv(Conv { window, groups }), &[x, w, bias])?)
    }

    fn unary(&mut self, op: Unary, x: ValueId) -> Result<ValueId> {
        Ok(self.graph.add("activation", Op::Unary(op), &[x])?)
    }

    fn head(&mut self, x: ValueId, channels: usize, pixels: usize) -> Result<()> {
        let reshape = |shape: &[usize]| Op::Reshape(Reshape { shape: shape.iter().map(|n| (*n).into()).collect() });
        let x = self.graph.add("flat", reshape(&[1, channels, pixels]), &[x])?;
        let x = self.graph.add("mean", Op::Reduce(Reduce { kind: ReduceKind::Mean }), &[x])?;
        let x = self.graph.add("features", reshape(&[1, channels]), &[x])?;
        let w = self.weight(&[1000, channels], 0.02)?;
        let y = self.graph.add("logits", Op::MatMul(MatMul { transpose_b: true }), &[x, w])?;
        self.graph.output(y);
        Ok(())
    }
}

fn resnet50() -> Result<Graph> {
    let mut net = Net::new("resnet50");
    let input = net.graph.input("input", DType::F32, &[1.into(), 3.into(), 224.into(), 224.into()]);
    let x = net.conv(input, [64, 3, 7, 2, 1])?;
    let x = net.unary(Unary::Relu, x)?;
    let window = Window { strides: vec![2; 2], dilations: vec![1; 2], pads_begin: vec![1; 2], pads_end: vec![1; 2] };
    let pool =
        Pool { kind: PoolKind::Max, kernel: vec![3; 2], window, ceil_mode: false, indices: false, column_major: false };
    let mut x = net.graph.add("pool", Op::Pool(pool), &[x])?;
    let mut channels = 64;
    for (stage, (blocks, middle)) in [(3, 64), (4, 128), (6, 256), (3, 512)].into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let mut y = net.conv(x, [middle, channels, 1, 1, 1])?;
            y = net.unary(Unary::Relu, y)?;
            y = net.conv(y, [middle, middle, 3, stride, 1])?;
            y = net.unary(Unary::Relu, y)?;
            y = net.conv(y, [middle * 4, middle, 1, 1, 1])?;
            if block == 0 {
                x = net.conv(x, [middle * 4, channels, 1, stride, 1])?;
            }
            let sum = net.graph.add("sum", Op::Binary(Binary::Add), &[y, x])?;
            x = net.unary(Unary::Relu, sum)?;
            channels = middle * 4;
        }
    }
    net.head(x, 2048, 49)?;
    Ok(net.graph)
}

fn mobilenetv2() -> Result<Graph> {
    let mut net = Net::new("mobilenetv2");
    let relu6 = Unary::Clip { min: Scalar::new(0.0), max: Scalar::new(6.0) };
    let input = net.graph.input("input", DType::F32, &[1.into(), 3.into(), 224.into(), 224.into()]);
    let x = net.conv(input, [32, 3, 3, 2, 1])?;
    let mut x = net.unary(relu6, x)?;
    let mut channels = 32;
    // Expansion, channels, repetitions, first stride (Sandler et al. 2018, table 2).
    let table =
        [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];
    for (expansion, out, repetitions, first) in table {
        for i in 0..repetitions {
            let stride = if i == 0 { first } else { 1 };
            let wide = channels * expansion;
            let mut y = x;
            if expansion > 1 {
                y = net.conv(y, [wide, channels, 1, 1, 1])?;
                y = net.unary(relu6, y)?;
            }
            y = net.conv(y, [wide, wide, 3, stride, wide])?;
            y = net.unary(relu6, y)?;
            y = net.conv(y, [out, wide, 1, 1, 1])?;
            if stride == 1 && channels == out {
                y = net.graph.add("sum", Op::Binary(Binary::Add), &[x, y])?;
            }
            x = y;
            channels = out;
        }
    }
    let x = net.conv(x, [1280, 320, 1, 1, 1])?;
    let x = net.unary(relu6, x)?;
    net.head(x, 1280, 49)?;
    Ok(net.graph)
}

/// One convolution, and its multiplications and additions.
fn single(spec: &str) -> Result<(Graph, f64)> {
    let numbers: Vec<usize> = spec.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?;
    let (&[input, out, kernel, stride, size], groups) = numbers.split_at(5.min(numbers.len())) else {
        return Err(format!("{spec} is no convolution").into());
    };
    let groups = groups.first().copied().unwrap_or(1);
    let mut net = Net::new("conv");
    let x = net.graph.input("x", DType::F32, &[1.into(), input.into(), size.into(), size.into()]);
    // Channels in blocks on both sides, as between convolutions.
    let x = net.conv(x, [input, input, 1, 1, input])?;
    let mut y = net.conv(x, [out, input, kernel, stride, groups])?;
    y = net.unary(Unary::Relu, y)?;
    let pixels = size.div_ceil(stride).pow(2);
    net.head(y, out, pixels)?;
    Ok((net.graph, (2 * pixels * out * input / groups * kernel * kernel) as f64))
}

/// Milliseconds for which this thread had a processor: a measure that others on the machine disturb less.
fn processor_ms() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the time and nothing else.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn time(graph: Graph, work: Option<f64>, cpu: &CpuBackend, runs: usize, profile: bool) -> Result<()> {
    let name = graph.name().to_owned();
    let graph = Arc::new(graph);
    let weights = cpu.load_weights(&graph, &mut |_, _| ControlFlow::Continue(()))?;
    let program = cpu.compile(&graph, &weights, &Bindings::new())?;
    let mut session = cpu.new_session(&graph, 1, &Bindings::new())?;
    let (_, shape) = graph.tensor_type(graph.inputs()[0]).ok_or("an input")?;
    let shape: Vec<usize> = shape.iter().filter_map(core_tensor::Dim::as_num).collect();
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i % 17) as f32 / 17.0).collect();
    let input = Tensor::from_slice(&shape, &values)?;
    let (mut times, mut busy) = (Vec::new(), f64::INFINITY);
    let mut mean = 0.0;
    for _ in 0..runs {
        let (start, busy_before) = (Instant::now(), processor_ms());
        let out = program.run(&mut *session, std::slice::from_ref(&input))?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        busy = busy.min(processor_ms() - busy_before);
        let out = out[0].to_f32()?;
        mean = out.iter().map(|v| v.abs()).sum::<f32>() / out.len() as f32;
    }
    times.sort_by(f64::total_cmp);
    let speed = work.map(|work| format!(", {:.0} GFLOP/s", work / busy / 1e6)).unwrap_or_default();
    let arena = program.plan().arena_bytes >> 20;
    println!(
        "{name}: least {:.2} ms, median {:.2} ms, least processor time of the first thread {busy:.2} ms{speed}, arena {arena} MiB, weights {} MiB, mean |y| {mean:.4}",
        times[0],
        times[times.len() / 2],
        weights.byte_len() >> 20
    );
    if profile {
        println!("{}", program.to_text());
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut options = CpuOptions::default().with_threads(2);
    let (mut runs, mut profile) = (30, false);
    let mut nets = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--threads" => options = options.with_threads(value()?.parse()?),
            "--runs" => runs = value()?.parse()?,
            "--level" => options = options.with_level(Level::from_name(&value()?).ok_or("no such level")?),
            "--profile" => profile = true,
            _ => nets.push(arg),
        }
    }
    let cpu = CpuBackend::new(options.with_profile(profile));
    println!("{}", cpu.description());
    for net in nets {
        let (graph, work) = match net.as_str() {
            "resnet50" => (resnet50()?, None),
            "mobilenetv2" => (mobilenetv2()?, None),
            spec => single(spec).map(|(graph, work)| (graph, Some(work)))?,
        };
        if work.is_some() {
            print!("{net} ");
        }
        time(graph, work, &cpu, runs, profile)?;
    }
    Ok(())
}
