//! The read bandwidth of main memory: the ceiling of a decode that streams its weights.

use std::hint::black_box;
use std::io;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;

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
    let each = bytes / threads / 8 * 8;
    let parts: io::Result<Vec<MmapMut>> = (0..threads).map(|_| reserve(each)).collect();
    let parts = parts.map_err(|error| format!("no memory to probe: {error}"))?;
    let barrier = Barrier::new(threads);
    let read = |mut part: MmapMut| {
        // Written by the thread that reads it, so that the pages are near it.
        part.fill(1);
        let mut times = Vec::with_capacity(PASSES);
        for _ in 0..PASSES {
            barrier.wait();
            let start = Instant::now();
            black_box(sum(black_box(&part)));
            times.push((start, Instant::now()));
        }
        times
    };
    let times: Vec<Vec<(Instant, Instant)>> = thread::scope(|scope| {
        let readers: Vec<_> = parts.into_iter().map(|part| scope.spawn(|| read(part))).collect();
        let times = readers.into_iter().map(|reader| reader.join().map_err(|_| "the bandwidth probe failed"));
        times.collect::<Result<_, _>>()
    })?;
    let samples = (0..PASSES)
        .filter_map(|pass| {
            let start = times.iter().map(|times| times[pass].0).min()?;
            let end = times.iter().map(|times| times[pass].1).max()?;
            Some((each * threads) as f64 / (end - start).as_secs_f64() / 1e9)
        })
        .collect();
    Ok(Bandwidth { bytes: each * threads, samples })
}

/// Memory in large pages where the system has them: the ceiling is not to be that of address translation.
fn reserve(bytes: usize) -> io::Result<MmapMut> {
    let map = MmapMut::map_anon(bytes)?;
    // A kernel without large pages refuses; then ordinary ones have to do.
    #[cfg(target_os = "linux")]
    let _ = map.advise(Advice::HugePage);
    Ok(map)
}

fn sum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(0, |sum, word| sum.wrapping_add(u64::from_ne_bytes(*word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_reads_everything_and_gives_a_figure_per_pass() {
        let words: Vec<u8> = (0..1600_u64).flat_map(u64::to_ne_bytes).collect();
        assert_eq!(sum(&words), 1600 * 1599 / 2);
        let result = probe_bytes(2, 1 << 20).unwrap();
        assert_eq!(result.bytes, 1 << 20);
        assert_eq!(result.samples.len(), PASSES);
        assert!(result.samples.iter().all(|sample| *sample > 0.0));
    }
}
