//! The read bandwidth of main memory: the ceiling of a decode that streams its weights.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

/// Far more than any cache holds.
const BYTES: usize = 768 << 20;
const PASSES: usize = 9;

/// What the probe measured, in 10⁹ bytes per second, one figure per pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bandwidth {
    pub(crate) bytes: usize,
    pub(crate) samples: Vec<f64>,
}

impl Bandwidth {
    /// Takes the samples of another probe, too.
    pub(crate) fn add(&mut self, other: Self) {
        self.bytes = other.bytes;
        self.samples.extend(other.samples);
    }
}

/// Reads memory with so many threads at a time, each its own part, and sums it up.
pub(crate) fn probe(threads: usize) -> Result<Bandwidth, String> {
    probe_bytes(threads, BYTES)
}

fn probe_bytes(threads: usize, bytes: usize) -> Result<Bandwidth, String> {
    let words = bytes / 8 / threads / 16 * 16;
    let barrier = Barrier::new(threads);
    let times: Vec<Vec<(Instant, Instant)>> = thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..threads {
            workers.push(scope.spawn(|| {
                // Written by the thread that reads it, so that the pages are near it.
                let part: Vec<u64> = (0..words as u64).collect();
                let mut times = Vec::with_capacity(PASSES);
                for _ in 0..PASSES {
                    barrier.wait();
                    let start = Instant::now();
                    black_box(sum(black_box(&part)));
                    times.push((start, Instant::now()));
                }
                times
            }));
        }
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| "the bandwidth probe failed"))
            .collect::<Result<_, _>>()
    })?;
    let samples = (0..PASSES)
        .filter_map(|pass| {
            let start = times.iter().map(|times| times[pass].0).min()?;
            let end = times.iter().map(|times| times[pass].1).max()?;
            Some((words * 8 * threads) as f64 / (end - start).as_secs_f64() / 1e9)
        })
        .collect();
    Ok(Bandwidth { bytes: words * 8 * threads, samples })
}

/// Independent sums, so that loads do not wait for additions.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0_u64; 16];
    for chunk in words.chunks_exact(16) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |total, sum| total.wrapping_add(*sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_reads_everything_and_gives_a_figure_per_pass() {
        let words: Vec<u64> = (0..1600).collect();
        assert_eq!(sum(&words), 1600 * 1599 / 2);
        let result = probe_bytes(2, 1 << 20).unwrap();
        assert_eq!(result.bytes, 1 << 20);
        assert_eq!(result.samples.len(), PASSES);
        assert!(result.samples.iter().all(|sample| *sample > 0.0));
    }
}
