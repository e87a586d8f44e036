//! The arithmetic, checked: fed with the figures of llama.cpp's shaders, against what users of the cards measured with them.
//!
//! Sources. Instructions: llama.cpp's shaders (ggml 0.25.3), compiled for Polaris 10 by RADV of Mesa 22.3.6. Llama-2-7B Q4_0: the RX 470 and RX 480 in
//! llama.cpp's collection of Vulkan results. Single products of 4096 × 14336 on an RX 470: ggml-org/llama.cpp #10991 (mat-vec; its owner
//! says in #10665 that it runs them at about 1100 MHz) and #13016 (512 columns, locked to 900 MHz).
//!
//! The cards' clocks in these reports are not known, but for the two that say so. That is the better part of the uncertainty: the RX 470 and the RX 480 decode
//! equally fast, which neither their bandwidths (211 and 256 GB/s) nor their vector units (1.18 times more in the RX 480, at boost) explain, and yet differ
//! by 1.5 in prefill, which is more than either. Both are what cards do that run into their power limits (120 and 150 W) at different points; reports
//! from months apart with other versions add to it.

use super::card::Card;
use super::model::{BARRIER, DISPATCH, Model, STEP, Work};
use super::sustained;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantity {
    /// Tokens per second of single rows.
    Decode,
    /// Tokens per second of 512 rows.
    Prefill,
    /// Microseconds of one product.
    Kernel,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// The card.
    pub card: &'static str,
    /// What ran on it.
    pub what: &'static str,
    /// What was measured.
    pub quantity: Quantity,
    /// What users measured.
    pub measured: f64,
    /// What the arithmetic gives.
    pub predicted: f64,
    /// The same at the card's base and boost clock; for a kernel whose clock is known, twice the same.
    pub range: (f64, f64),
    /// Whether a constant of the arithmetic was fitted to this measurement.
    pub fitted: bool,
}

impl Check {
    /// How far the prediction is off: 0.1 is ten percent faster than measured.
    #[must_use]
    pub fn error(&self) -> f64 {
        match self.quantity {
            Quantity::Kernel => self.measured / self.predicted - 1.0,
            Quantity::Decode | Quantity::Prefill => self.predicted / self.measured - 1.0,
        }
    }
}

/// A format in llama.cpp's mat-vec.
struct Format {
    /// Bytes of a weight.
    bytes: f64,
    /// Vector instructions per weight.
    instructions: f64,
    /// Waves that a SIMD holds.
    waves: f64,
}

const F32: Format = Format { bytes: 4.0, instructions: 3.4, waves: 7.0 };
const F16: Format = Format { bytes: 2.0, instructions: 3.81, waves: 7.0 };
const Q8_0: Format = Format { bytes: 34.0 / 32.0, instructions: 5.0, waves: 5.0 };
const Q4_0: Format = Format { bytes: 18.0 / 32.0, instructions: 6.75, waves: 5.0 };
const Q4_1: Format = Format { bytes: 20.0 / 32.0, instructions: 7.37, waves: 7.0 };
const Q5_0: Format = Format { bytes: 22.0 / 32.0, instructions: 10.61, waves: 5.0 };
const Q6_K: Format = Format { bytes: 210.0 / 256.0, instructions: 6.84, waves: 4.0 };

/// Rows that a wave of its mat-vec takes.
const ROWS: f64 = 2.0;
/// Outputs of a thread of its products, of tiles of 64 × 64.
const OUTPUTS: f64 = 16.0;
/// Vector instructions per multiply-add of its product with Q4_0 weights.
const GEMM: f64 = 1.16;
/// The same with F16 "weights", as attention without its fused kernel has it.
const GEMM_F16: f64 = 1.08;

fn mat_vec(format: &Format, rows: f64, k: f64) -> Work {
    let weights = rows * k;
    let vector_clocks = ROWS * k / 64.0 * format.instructions * 4.0;
    Work {
        bytes: weights * format.bytes,
        waves: rows / ROWS,
        vector_clocks,
        issue_clocks: vector_clocks * 1.25,
        waits: ROWS * k / 64.0 / 32.0,
        occupancy: format.waves,
    }
}

fn product(instructions: f64, weight_bytes: f64, rows: f64, k: f64, columns: f64) -> Work {
    let tiles = (rows / 64.0).ceil() * (columns / 64.0).ceil();
    let vector_clocks = OUTPUTS * k * instructions * 4.0;
    Work {
        // Each row of tiles reads the weights once; activations stay in the cache.
        bytes: rows * k * weight_bytes * (columns / 64.0).ceil() + (rows + k) * columns * 4.0,
        waves: tiles * 64.0 * 64.0 / OUTPUTS / 64.0,
        vector_clocks,
        issue_clocks: vector_clocks * 1.25,
        waits: k / 32.0,
        occupancy: 4.0,
    }
}

/// A kernel over elements: so many of 4 bytes read and as many written.
fn elements(count: f64) -> Work {
    let waves = (count / 1024.0).ceil().max(1.0) * 4.0;
    let vector_clocks = count / waves / 64.0 * 16.0 * 4.0;
    let waits = (count / waves / 64.0).ceil() + 1.0;
    Work { bytes: count * 8.0, waves, vector_clocks, issue_clocks: 2.0 * vector_clocks, waits, occupancy: 8.0 }
}

/// The dispatches between barriers of a step of Llama-2-7B in Q4_0 (its output matrix in Q6_K): one row or 512, `past` positions before.
fn llama_7b(rows: f64, past: f64) -> Vec<Vec<Work>> {
    const LAYERS: usize = 32;
    const WIDTH: f64 = 4096.0;
    const HIDDEN: f64 = 11008.0;
    const VOCABULARY: f64 = 32000.0;
    let weights = |out: f64, k: f64| {
        if rows == 1.0 { mat_vec(&Q4_0, out, k) } else { product(GEMM, Q4_0.bytes, out, k, rows) }
    };
    let seen = past + rows;
    // All heads: keys and values are read as matrices of all positions.
    let attention = || {
        if rows == 1.0 { mat_vec(&F16, seen * 32.0, 128.0) } else { product(GEMM_F16, 2.0, seen * 32.0, 128.0, rows) }
    };
    let row = || elements(rows * WIDTH);
    let mut phases = Vec::new();
    for _ in 0..LAYERS {
        phases.extend([
            vec![row()],
            vec![weights(WIDTH, WIDTH), weights(WIDTH, WIDTH), weights(WIDTH, WIDTH)],
            vec![row(), row()],
            vec![row(), row()],
            vec![attention()],
            vec![elements(32.0 * rows * seen)],
            vec![attention()],
            vec![row()],
            vec![weights(WIDTH, WIDTH)],
            vec![row()],
            vec![row()],
            vec![weights(HIDDEN, WIDTH), weights(HIDDEN, WIDTH)],
            vec![elements(rows * HIDDEN)],
            vec![weights(WIDTH, HIDDEN)],
            vec![row()],
        ]);
    }
    phases.push(vec![elements(WIDTH)]);
    phases.push(vec![mat_vec(&Q6_K, VOCABULARY, WIDTH)]);
    phases
}

fn seconds(model: &Model, phases: &[Vec<Work>]) -> f64 {
    let dispatches: usize = phases.iter().map(Vec::len).sum();
    let kernels: f64 = phases.iter().map(|phase| model.together(phase).seconds).sum();
    kernels + dispatches as f64 * DISPATCH + phases.len() as f64 * BARRIER + STEP
}

/// Compares predictions for llama.cpp with what users measured.
#[must_use]
pub fn validate() -> Vec<Check> {
    let mut checks = Vec::new();
    let models = [
        ("rx470", Quantity::Decode, 37.7),
        ("rx480", Quantity::Decode, 37.8),
        ("rx470", Quantity::Prefill, 198.0),
        ("rx480", Quantity::Prefill, 295.0),
    ];
    for (name, quantity, measured) in models {
        let Some(card) = Card::by_name(name) else { continue };
        // 128 tokens from an empty context: 64 positions on average.
        let (rows, past) = if quantity == Quantity::Decode { (1.0, 63.0) } else { (512.0, 0.0) };
        let phases = llama_7b(rows, past);
        let speed = |mhz: f64| rows / seconds(&Model::new(card, mhz), &phases);
        checks.push(Check {
            card: card.title,
            what: "Llama-2-7B Q4_0",
            quantity,
            measured,
            predicted: speed(sustained(&card)),
            range: (speed(card.base_mhz), speed(card.boost_mhz)),
            fitted: false,
        });
    }
    let (rows, k) = (4096.0, 14336.0);
    let kernels = [
        ("Q4_0, 512 columns, at 900 MHz", product(GEMM, Q4_0.bytes, rows, k, 512.0), 900.0, 25_039.55, true),
        ("F16 mat-vec", mat_vec(&F16, rows, k), 1100.0, 648.42, true),
        ("F32 mat-vec", mat_vec(&F32, rows, k), 1100.0, 1216.30, false),
        ("Q8_0 mat-vec", mat_vec(&Q8_0, rows, k), 1100.0, 341.83, false),
        ("Q4_0 mat-vec", mat_vec(&Q4_0, rows, k), 1100.0, 219.79, false),
        ("Q4_1 mat-vec", mat_vec(&Q4_1, rows, k), 1100.0, 263.19, false),
        ("Q5_0 mat-vec", mat_vec(&Q5_0, rows, k), 1100.0, 315.26, false),
    ];
    if let Some(card) = Card::by_name("rx470") {
        for (what, work, mhz, measured, fitted) in kernels {
            let predicted = Model::new(card, mhz).kernel(&work).seconds * 1e6;
            let range = (predicted, predicted);
            checks.push(Check {
                card: card.title,
                what,
                quantity: Quantity::Kernel,
                measured,
                predicted,
                range,
                fitted,
            });
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_those_of_the_measurements_that_they_name() {
        for check in validate().iter().filter(|check| check.fitted) {
            assert!(check.error().abs() < 0.005, "{check:?}");
        }
        assert_eq!(validate().iter().filter(|check| check.fitted).count(), 2);
    }

    #[test]
    fn llama_cpps_speed_on_rx_470_and_480_is_predicted_within_15_percent() {
        for check in validate() {
            println!(
                "{} {} {:?}: measured {:.1}, predicted {:.1} ({:.1} to {:.1}), {:+.1} %",
                check.card,
                check.what,
                check.quantity,
                check.measured,
                check.predicted,
                check.range.0,
                check.range.1,
                check.error() * 100.0
            );
            assert!(check.error().abs() < 0.15, "{check:?}");
        }
    }

    #[test]
    fn a_token_of_llama_2_7b_reads_its_weights_once() {
        let bytes: f64 = llama_7b(1.0, 0.0).iter().flatten().map(|work| work.bytes).sum();
        assert!((3.7e9..3.9e9).contains(&bytes), "{bytes}");
    }
}
