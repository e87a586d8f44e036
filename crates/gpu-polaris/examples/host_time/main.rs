//! What a decoded token costs the host: processor time of the thread that asks for it, and its allocations, with a model in the shape of SmolLM2 135M.
//!
//! `cargo run --release -p gpu-polaris --example host_time [LAYERS [STEPS]]`. Waiting for the device takes no processor time; a software driver
//! computes on threads of its own.

#![cfg_attr(not(unix), allow(unused))]

mod counting;
mod decoder;

use std::ops::ControlFlow;
use std::sync::Arc;

use core_tensor::op::{Op, Unary};
use core_tensor::{Backend, Bindings, DType, Graph, Tensor};
use gpu_polaris::{GpuOptions, VulkanBackend};

use counting::{Counting, allocations};
use decoder::{Decoder, Shape};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Processor time of this thread, microseconds.
#[cfg(unix)]
fn thread_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock writes one timespec, which is there.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// What a run of a graph with a single small kernel takes: the cost of submitting and waiting.
#[cfg(unix)]
fn floor(backend: &VulkanBackend, steps: usize) -> Result<f64, Box<dyn std::error::Error>> {
    let mut graph = Graph::new("floor");
    let x = graph.input("x", DType::F32, &[4.into()]);
    let y = graph.add("y", Op::Unary(Unary::Silu), &[x])?;
    graph.output(y);
    let (graph, bounds) = (Arc::new(graph), Bindings::new());
    let weights = backend.load_weights(&graph, &mut |_, _| ControlFlow::Continue(()))?;
    let program = backend.compile(&graph, &weights, &bounds)?;
    let mut session = backend.new_session(&graph, 1, &bounds)?;
    let x = [Tensor::from_slice(&[4], &[1.0f32; 4])?];
    let mut times = Vec::new();
    for _ in 0..steps.max(10) {
        let before = thread_time();
        program.run(&mut *session, &x)?;
        times.push(thread_time() - before);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[cfg(unix)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let layers = arguments.next().transpose()?.unwrap_or(30);
    let steps = arguments.next().transpose()?.unwrap_or(30);
    let backend = VulkanBackend::open(&GpuOptions::default())?;
    println!("{}", backend.description());
    println!(
        "a program of one kernel: {:.1} us, nearly all of it the driver's submitting and waiting",
        floor(&backend, steps)?
    );
    for greedy in [true, false] {
        let (width, heads, kv_heads, hidden, vocabulary) = (576, 9, 3, 1536, 49_152);
        let shape = Shape { layers, width, heads, kv_heads, hidden, vocabulary, greedy };
        let mut decoder = Decoder::load(&backend, shape, steps + 4)?;
        let mut times = Vec::new();
        let mut most = (0, 0);
        for step in 0..steps + 3 {
            let inputs = decoder.inputs();
            let (before, counted) = (thread_time(), allocations());
            let outputs = decoder.step(&inputs)?;
            let (after, now) = (thread_time(), allocations());
            drop(outputs);
            // The first steps record, and find their memory cold.
            if step >= 3 {
                times.push(after - before);
                most = most.max((now.0 - counted.0, now.1 - counted.1));
            }
        }
        times.sort_by(f64::total_cmp);
        let what = if greedy { "the token's number comes back" } else { "all logits come back" };
        println!(
            "{layers} layers, {what}: {:.1} us of the host per token (median of {steps}; {:.1} to {:.1}), {} allocations of {} bytes",
            times[times.len() / 2],
            times[0],
            times[times.len() - 1],
            most.0,
            most.1
        );
    }
    Ok(())
}

#[cfg(not(unix))]
fn main() {
    println!("there is no clock for threads here");
}
