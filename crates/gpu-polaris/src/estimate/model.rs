//! How long kernels take: the arithmetic, and the few constants that it rests on.

use super::card::Card;

/// Part of a card's bandwidth that a kernel reaches which reads weights and little else. Source: llama.cpp's F16 mat-vec on an RX 470, 4096 × 14336 in
/// 648.42 µs (ggml-org/llama.cpp #10991), which is 181 of 211 GB/s.
pub(super) const MEMORY: f64 = 0.858;

/// Part of the vector units' clocks in which they work, in a main loop that keeps them busy. Source: llama.cpp's Q4_0 product of 4096 × 14336 with 512 columns
/// on an RX 470 locked to 900 MHz, 25 039.55 µs (ggml-org/llama.cpp #13016), at 1.16 vector instructions per multiply-add.
pub(super) const VECTOR: f64 = 0.755;

/// Clocks that a wave waits for what it loads, once per trip of a loop; other waves of the SIMD work meanwhile. An assumption, which matters only where there are
/// fewer waves than the card holds.
pub(super) const LATENCY: f64 = 450.0;

/// Seconds from one dispatch to the next. An assumption.
pub(super) const DISPATCH: f64 = 1e-6;

/// Seconds more where a barrier waits for all waves and the caches are written back. An assumption.
pub(super) const BARRIER: f64 = 2e-6;

/// Seconds of a step in which the device waits for the host: submission, fence, sampling. An assumption.
pub(super) const STEP: f64 = 100e-6;

/// What a kernel asks of a card.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Work {
    /// Bytes that go over the memory bus.
    pub(super) bytes: f64,
    /// Waves in all.
    pub(super) waves: f64,
    /// Clocks of the vector unit for one wave.
    pub(super) vector_clocks: f64,
    /// Clocks in which one wave issues its instructions, alone on its SIMD.
    pub(super) issue_clocks: f64,
    /// How often one wave waits for memory.
    pub(super) waits: f64,
    /// Waves that a SIMD holds.
    pub(super) occupancy: f64,
}

/// What bounds a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bound {
    /// The bandwidth of the memory.
    Memory,
    /// The vector units.
    Vector,
    /// A wave's own course: too few waves to hide what it waits for.
    Latency,
}

/// Seconds, and what they are bound by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Time {
    pub(super) seconds: f64,
    pub(super) bound: Bound,
}

/// A card at a clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Model {
    pub(super) card: Card,
    pub(super) hertz: f64,
}

/// Waves that the busiest SIMD runs. What fits the card at once is dealt out in whole waves; more waves follow as others end.
fn busiest(waves: f64, simds: f64, occupancy: f64) -> f64 {
    if waves <= simds * occupancy { (waves / simds).ceil() } else { waves / simds }
}

impl Model {
    pub(super) fn new(card: Card, mhz: f64) -> Model {
        Model { card, hertz: mhz * 1e6 }
    }

    /// A kernel by itself, without what starting it costs.
    pub(super) fn kernel(&self, work: &Work) -> Time {
        self.together(std::slice::from_ref(work))
    }

    /// Kernels between two barriers: they share memory and vector units.
    pub(super) fn together(&self, works: &[Work]) -> Time {
        let simds = self.card.simds();
        let bytes: f64 = works.iter().map(|work| work.bytes).sum();
        let waves: f64 = works.iter().map(|work| work.waves).sum();
        let clocks: f64 = works.iter().map(|work| work.waves * work.vector_clocks).sum();
        let occupancy = works.iter().map(|work| work.occupancy).fold(8.0, f64::min).max(1.0);
        let share = busiest(waves, simds, occupancy) / waves.max(1.0);
        let course = |work: &Work| {
            let rounds = (work.waves / (simds * work.occupancy.max(1.0))).max(1.0);
            rounds * (work.issue_clocks + work.waits * LATENCY) / self.hertz
        };
        let bounds = [
            (bytes / (self.card.bandwidth * 1e9 * MEMORY), Bound::Memory),
            (clocks * share / (VECTOR * self.hertz), Bound::Vector),
            (works.iter().map(course).fold(0.0, f64::max), Bound::Latency),
        ];
        let longest = bounds.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        longest.map_or(Time { seconds: 0.0, bound: Bound::Memory }, |(seconds, bound)| Time { seconds, bound })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        let card = Card::by_name("rx580").expect("a card");
        Model::new(card, card.boost_mhz)
    }

    const WORK: Work =
        Work { bytes: 0.0, waves: 144.0 * 80.0, vector_clocks: 1e5, issue_clocks: 1.5e5, waits: 10.0, occupancy: 4.0 };

    #[test]
    fn what_reads_much_is_bound_by_memory_and_what_computes_much_by_the_vector_units() {
        let reads = Work { bytes: 256e9, ..WORK };
        let time = model().kernel(&reads);
        assert_eq!(time.bound, Bound::Memory);
        assert!((time.seconds - 1.0 / MEMORY).abs() < 1e-9, "{time:?}");
        let time = model().kernel(&WORK);
        assert_eq!(time.bound, Bound::Vector);
        assert!((time.seconds - 80.0 * 1e5 / (VECTOR * 1.34e9)).abs() < 1e-9, "{time:?}");
    }

    #[test]
    fn a_wave_more_than_the_simds_makes_one_of_them_run_two() {
        let time = |waves| model().kernel(&Work { waves, vector_clocks: 1.5e5, waits: 0.0, ..WORK }).seconds;
        assert_eq!(time(144.0), time(1.0));
        assert_eq!(time(145.0), 2.0 * time(144.0));
    }

    #[test]
    fn a_single_wave_waits_for_its_loads() {
        let lone = Work { waves: 1.0, vector_clocks: 100.0, issue_clocks: 200.0, waits: 10.0, ..WORK };
        let time = model().kernel(&lone);
        assert_eq!(time.bound, Bound::Latency);
        assert!((time.seconds - (200.0 + 10.0 * LATENCY) / 1.34e9).abs() < 1e-15);
    }

    #[test]
    fn kernels_between_barriers_share_the_card() {
        let one = model().kernel(&WORK).seconds;
        let both = model().together(&[WORK, WORK]).seconds;
        assert!((both - 2.0 * one).abs() < 1e-9);
        let reads = Work { bytes: 256e9, vector_clocks: 0.0, ..WORK };
        assert!(model().together(&[reads, WORK]).seconds < model().kernel(&reads).seconds + one);
    }
}
