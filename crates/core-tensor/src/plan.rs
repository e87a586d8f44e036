//! The memory plan: where the values of a program lie in one arena.

use std::fmt;

/// A buffer that a program needs from one of its steps to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferRequest {
    /// Name for the report.
    pub name: String,
    /// Bytes, at the declared upper bounds.
    pub bytes: usize,
    /// The step that writes it first.
    pub first_step: usize,
    /// The last step that reads or writes it.
    pub last_step: usize,
}

/// Offsets of buffers in an arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The buffers, as requested.
    pub buffers: Vec<BufferRequest>,
    /// Offset of each buffer in bytes.
    pub offsets: Vec<usize>,
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Alignment of every offset.
    pub alignment: usize,
}

impl MemoryPlan {
    /// Places buffers so that those which live at the same time do not overlap: largest first, each at the lowest offset that is free for its
    /// whole life (greedy by size, Pisarchyk and Lee 2020).
    ///
    /// `alignment` is a power of two. Sizes past `usize` saturate, so that the report says what cannot be had.
    #[must_use]
    pub fn new(buffers: Vec<BufferRequest>, alignment: usize) -> MemoryPlan {
        let alignment = alignment.max(1).next_power_of_two();
        let round = |bytes: usize| bytes.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
        let mut order: Vec<usize> = (0..buffers.len()).collect();
        order.sort_by_key(|i| (std::cmp::Reverse(buffers[*i].bytes), buffers[*i].first_step, *i));
        let mut offsets = vec![0usize; buffers.len()];
        let mut placed: Vec<usize> = Vec::with_capacity(buffers.len());
        let mut arena_bytes = 0usize;
        for i in order {
            let buffer = &buffers[i];
            // The placed buffers that live at the same time, by offset: the first gap that is wide enough.
            let mut rivals: Vec<(usize, usize)> = placed
                .iter()
                .filter(|j| buffers[**j].first_step <= buffer.last_step && buffer.first_step <= buffers[**j].last_step)
                .map(|j| (offsets[*j], round(offsets[*j].saturating_add(buffers[*j].bytes))))
                .collect();
            rivals.sort_unstable();
            let mut offset = 0usize;
            for (start, end) in rivals {
                if offset.saturating_add(buffer.bytes) <= start {
                    break;
                }
                offset = offset.max(end);
            }
            offsets[i] = offset;
            arena_bytes = arena_bytes.max(offset.saturating_add(buffer.bytes));
            placed.push(i);
        }
        MemoryPlan { buffers, offsets, arena_bytes: round(arena_bytes), alignment }
    }

    /// Bytes that all buffers would take side by side.
    #[must_use]
    pub fn unshared_bytes(&self) -> usize {
        self.buffers.iter().fold(0, |sum: usize, buffer| sum.saturating_add(buffer.bytes))
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "arena {} bytes for {} buffers ({} bytes side by side)",
            self.arena_bytes,
            self.buffers.len(),
            self.unshared_bytes()
        )?;
        for (buffer, offset) in self.buffers.iter().zip(&self.offsets) {
            let (first, last) = (buffer.first_step, buffer.last_step);
            writeln!(f, "{offset:>12} +{:<12} steps {first:>4}..={last:<4} {}", buffer.bytes, buffer.name)?;
        }
        Ok(())
    }
}

/// What a device can hold: filled in from the device at run time, or from the built-in table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// The device's name.
    pub name: String,
    /// Bytes of memory that a program may use.
    pub bytes: u64,
    /// Largest single allocation.
    pub max_allocation: u64,
}

impl DeviceMemory {
    /// A Radeon RX 580 with 8 GB: about 7.75 GiB of its memory are free for a program, one allocation is below 4 GiB.
    #[must_use]
    pub fn rx580() -> DeviceMemory {
        DeviceMemory {
            name: "AMD Radeon RX 580 8 GB".into(),
            bytes: 7_936 << 20,
            max_allocation: u64::from(u32::MAX) - 3,
        }
    }
}

/// What a model needs, told before anything is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Bytes of the weights in the backend's layout.
    pub weights: u64,
    /// Bytes of the states at their full capacity.
    pub states: u64,
    /// Bytes of the largest arena.
    pub arena: u64,
}

impl MemoryEstimate {
    /// The sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.states).saturating_add(self.arena)
    }

    /// Whether it fits the device.
    #[must_use]
    pub fn fits(&self, device: &DeviceMemory) -> bool {
        self.total() <= device.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: usize, first_step: usize, last_step: usize) -> BufferRequest {
        BufferRequest { name: String::new(), bytes, first_step, last_step }
    }

    #[test]
    fn buffers_that_live_at_the_same_time_do_not_overlap() {
        // A fixed pseudo-random sequence: 200 buffers over 50 steps.
        let mut seed = 1u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        let buffers: Vec<_> = (0..200)
            .map(|_| {
                let first = next(50) as usize;
                request(next(5000) as usize, first, first + next(8) as usize)
            })
            .collect();
        let plan = MemoryPlan::new(buffers, 64);
        for i in 0..200 {
            assert_eq!(plan.offsets[i] % 64, 0);
            for j in 0..i {
                let (a, b) = (&plan.buffers[i], &plan.buffers[j]);
                let together = a.first_step <= b.last_step && b.first_step <= a.last_step;
                let apart =
                    plan.offsets[i] + a.bytes <= plan.offsets[j] || plan.offsets[j] + b.bytes <= plan.offsets[i];
                assert!(!together || apart, "{i} and {j} overlap");
            }
        }
        assert!(plan.arena_bytes < plan.unshared_bytes() / 3);
    }

    #[test]
    fn a_chain_takes_the_room_of_its_two_largest_neighbours() {
        let plan = MemoryPlan::new(vec![request(100, 0, 1), request(200, 1, 2), request(100, 2, 3)], 1);
        assert_eq!(plan.arena_bytes, 300);
        assert_eq!(plan.offsets[0], plan.offsets[2]);
    }
}
