//! Speed of the matrix products, per format: `cargo run --release -p cpu-kernels --example matmul_bench -- [options]`
//!
//! ```text
//! --threads N   threads that share each product (2)
//! --level NAME  scalar, sse4.1, avx2, avx512 (the best there is)
//! --only TEXT   formats whose name contains TEXT
//! --budget MS   time to spend on each figure (300)
//! --no-decode, --no-prefill, --no-pack
//! ```
//!
//! Decode: GB/s of packed weights for one row of activations, over more weights than a cache holds, beside the bandwidth
//! of plain reads. Prefill: 10^9 multiply-adds per second for 512 rows. Packing: GB/s of file bytes. Each the best
//! of several runs: the machine may have other work.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use core_tensor::{BlockFormat, DType};
use cpu_kernels::matmul::{
    ActivationKind, ActivationLayout, ActivationView, Output, PackedMatrix, PackedMatrixBuilder,
};
use cpu_kernels::simd::Level;

struct Options {
    threads: usize,
    level: Level,
    only: String,
    skip: Vec<String>,
    budget: Duration,
}

fn options() -> Options {
    let mut o = Options {
        threads: 2,
        level: Level::best(),
        only: String::new(),
        skip: Vec::new(),
        budget: Duration::from_millis(300),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        match arg.as_str() {
            "--threads" => o.threads = value().parse().expect("a number of threads"),
            "--level" => o.level = Level::from_name(&value()).expect("a level of this machine"),
            "--budget" => o.budget = Duration::from_millis(value().parse().expect("milliseconds")),
            "--only" => o.only = value(),
            "--no-decode" | "--no-prefill" | "--no-pack" => o.skip.push(arg[5..].to_owned()),
            _ => panic!("unknown option {arg}"),
        }
    }
    o
}

/// Seconds: of this thread's processor time if it works alone (which other work on the machine does not count in), else of
/// the wall clock.
fn clock(threads: usize) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let id = if threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    // SAFETY: `time` is writable.
    unsafe { libc::clock_gettime(id, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Runs `work(thread)` on all threads at once, again and again for `budget`, and answers the seconds of the best run.
fn best_seconds(threads: usize, budget: Duration, work: impl Fn(usize) + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let more = AtomicBool::new(true);
    let mut best = f64::INFINITY;
    std::thread::scope(|scope| {
        for t in 1..threads {
            let (barrier, more, work) = (&barrier, &more, &work);
            scope.spawn(move || {
                loop {
                    barrier.wait();
                    if !more.load(Ordering::Acquire) {
                        break;
                    }
                    work(t);
                    barrier.wait();
                }
            });
        }
        let begin = Instant::now();
        loop {
            barrier.wait();
            let start = clock(threads);
            work(0);
            barrier.wait();
            best = best.min(clock(threads) - start);
            if begin.elapsed() > budget {
                more.store(false, Ordering::Release);
                barrier.wait();
                break;
            }
        }
    });
    best
}

fn share(total: usize, threads: usize, t: usize) -> std::ops::Range<usize> {
    total * t / threads..total * (t + 1) / threads
}

/// Random file bytes whose f16 fields are small numbers.
fn random_rows(dtype: DType, n: usize, k: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def1u64;
    let bytes = dtype.row_bytes(k).expect("whole blocks") * n;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Exponents of halves, floats and bfloats alike stay small: no infinities, no NaN.
        out.extend_from_slice(&(state & 0x2fff_2fff_2fff_2fff).to_le_bytes());
    }
    out.truncate(bytes);
    out
}

fn pack(o: &Options, dtype: DType, n: usize, k: usize, rows: &[u8]) -> PackedMatrix {
    let builder = PackedMatrixBuilder::new(dtype, n, k).expect("a matrix");
    best_seconds(o.threads, Duration::ZERO, |t| {
        let groups = share(builder.groups(), o.threads, t);
        let outputs = groups.start * 16..(groups.end * 16).min(n);
        let bytes = &rows[outputs.start * builder.row_bytes()..outputs.end * builder.row_bytes()];
        builder.pack_groups(groups, bytes).expect("packed");
    });
    builder.finish().expect("all groups")
}

/// One thread's pointer into a result that all share.
#[derive(Clone, Copy)]
struct Shared(*mut u8);
// SAFETY: each thread writes its own part.
unsafe impl Sync for Shared {}

fn read_bandwidth(o: &Options, bytes: &[u8]) -> f64 {
    let seconds = best_seconds(o.threads, o.budget, |t| {
        let part =
            &bytes[share(bytes.len() / 64, o.threads, t).start * 64..share(bytes.len() / 64, o.threads, t).end * 64];
        let mut sums = [0u64; 8];
        for line in part.chunks_exact(64) {
            for (sum, word) in sums.iter_mut().zip(line.chunks_exact(8)) {
                *sum = sum.wrapping_add(u64::from_le_bytes(word.try_into().expect("eight bytes")));
            }
        }
        black_box(sums);
    });
    bytes.len() as f64 / seconds / 1e9
}

/// GB/s of weights for `rows` rows of activations (they are packed by each thread, as a decode step does).
fn decode(o: &Options, w: &PackedMatrix, rows: usize) -> f64 {
    let x = vec![0.25f32; w.k() * rows];
    let layout = ActivationLayout::new(w.fastest_kind(), rows, w.k());
    let mut y = vec![0.0f32; w.n() * rows];
    let out = Shared(y.as_mut_ptr().cast());
    let seconds = best_seconds(o.threads, o.budget, |t| {
        let out = &out;
        let groups = share(w.groups(), o.threads, t);
        let mut packed = vec![0u8; layout.bytes()];
        // SAFETY: the buffers are as long as the layout and the matrix say; each thread has its own groups.
        unsafe {
            layout.pack_rows(o.level, packed.as_mut_ptr(), 0..rows, x.as_ptr(), w.k());
            let view = ActivationView::from_raw(layout, packed.as_ptr());
            let y = out.0.cast::<f32>().add(groups.start * 16);
            w.matmul(o.level, groups, &view, 0..rows, Output::new(y, w.n()));
        }
    });
    black_box(&y);
    w.bytes() as f64 / seconds / 1e9
}

/// 10^9 multiply-adds per second with `rows` rows of activations, packing of activations included.
fn prefill(o: &Options, w: &PackedMatrix, kind: ActivationKind, rows: usize) -> f64 {
    let x: Vec<f32> = (0..rows * w.k()).map(|i| ((i * 37) % 101) as f32 * 0.01 - 0.5).collect();
    let layout = ActivationLayout::new(kind, rows, w.k());
    let mut packed = vec![0u8; layout.bytes()];
    let packed = Shared(packed.as_mut_ptr());
    let mut y = vec![0.0f32; w.n() * rows];
    let out = Shared(y.as_mut_ptr().cast());
    let barrier = Barrier::new(o.threads);
    let seconds = best_seconds(o.threads, o.budget, |t| {
        let (packed, out) = (&packed, &out);
        let own = share(rows / 4, o.threads, t);
        let groups = share(w.groups(), o.threads, t);
        // SAFETY: as in `decode`; the rows are divided, too.
        unsafe {
            let own = own.start * 4..own.end * 4;
            layout.pack_rows(o.level, packed.0, own.clone(), x.as_ptr().add(own.start * w.k()), w.k());
            barrier.wait();
            let view = ActivationView::from_raw(layout, packed.0);
            let y = out.0.cast::<f32>().add(groups.start * 16);
            w.matmul(o.level, groups, &view, 0..rows, Output::new(y, w.n()));
        }
    });
    black_box(&y);
    (w.n() * w.k() * rows) as f64 / seconds / 1e9
}

fn main() {
    use BlockFormat::*;
    let o = options();
    let block = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4, TQ1_0, TQ2_0];
    let block = block.map(DType::Block);
    let formats: Vec<DType> = block.into_iter().chain([DType::F16, DType::BF16, DType::F32]).collect();
    let formats: Vec<DType> = formats.into_iter().filter(|f| f.name().contains(&o.only)).collect();
    println!("level {}, {} threads", o.level, o.threads);
    if !o.skip.iter().any(|s| s == "decode") {
        let bytes = vec![1u8; 256 << 20];
        println!("plain reads: {:.1} GB/s", read_bandwidth(&o, &bytes));
    }
    println!("{:<6} {:>9} | decode GB/s: 1 row, 2 rows | prefill GMAC/s {:?}", "", "pack GB/s", SHAPES);
    for dtype in formats {
        print!("{:<6}", dtype.name());
        if !o.skip.iter().any(|s| s == "decode") {
            let k = 2048;
            let n = ((200 << 20) / dtype.row_bytes(k).expect("whole blocks")).next_multiple_of(16);
            let rows = random_rows(dtype, n, k);
            let mut w = pack(&o, dtype, n, k, &rows);
            let mut best = f64::INFINITY;
            for _ in 0..if o.skip.iter().any(|s| s == "pack") { 0 } else { 3 } {
                let start = clock(o.threads);
                w = pack(&o, dtype, n, k, &rows);
                best = best.min(clock(o.threads) - start);
            }
            print!(" {:>9.1} | {:>6.1} {:>6.1}", rows.len() as f64 / best / 1e9, decode(&o, &w, 1), decode(&o, &w, 2));
        }
        if !o.skip.iter().any(|s| s == "prefill") {
            print!(" |");
            for (n, k) in SHAPES {
                if dtype.row_bytes(k).is_none() {
                    print!(" {:>7}", "-");
                    continue;
                }
                let w = pack(&o, dtype, n, k, &random_rows(dtype, n, k));
                print!(" {:>7.1}", prefill(&o, &w, w.fastest_kind(), 512));
                if w.fastest_kind() != ActivationKind::F32 && (n, k) == SHAPES[3] {
                    print!(" (f32 {:.1})", prefill(&o, &w, ActivationKind::F32, 512));
                }
            }
        }
        println!();
    }
}

/// Outputs × k of the prefill products.
const SHAPES: [(usize, usize); 5] = [(576, 576), (1536, 576), (576, 1536), (2048, 2048), (5632, 2048)];
