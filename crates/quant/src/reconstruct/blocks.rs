//! What happens to the blocks of a matrix.

use super::adam::Update;
use super::scales::Scales;
use crate::block::Codes;

/// The values of a format's codes from the lowest to the highest, each once.
#[derive(Clone, Debug)]
pub(super) struct Ladder {
    /// Ascending.
    values: Vec<f32>,
    /// Their codes.
    codes: Vec<u8>,
    /// Whether they are neighbouring whole numbers.
    whole: bool,
    /// Two codes with different values, and these.
    pub(super) apart: [(u8, f32); 2],
}

impl Ladder {
    pub(super) fn of<B: Scales>() -> Ladder {
        let mut steps: Vec<(f32, u8)> = B::values().into_iter().zip(0..).collect();
        steps.sort_by(|a, b| a.0.total_cmp(&b.0));
        // Of both zeros of a float, one will do.
        steps.dedup_by(|a, b| a.0 == b.0);
        let (values, codes): (Vec<f32>, Vec<u8>) = steps.into_iter().unzip();
        let whole = values.windows(2).all(|pair| pair[1] - pair[0] == 1.0);
        let last = values.len() - 1;
        Ladder { apart: [(codes[0], values[0]), (codes[last], values[last])], whole, values, codes }
    }

    /// The step nearest to a place.
    #[inline(always)]
    pub(super) fn nearest(&self, place: f32) -> usize {
        let last = self.values.len() - 1;
        if self.whole {
            return (place - self.values[0]).round_ties_even().clamp(0.0, last as f32) as usize;
        }
        let low = self.below(place);
        let middle = (self.values[low] + self.values[low + 1]) * 0.5;
        low + usize::from(place > middle)
    }

    /// The step below a place, with one above it.
    #[inline(always)]
    pub(super) fn below(&self, place: f32) -> usize {
        let last = self.values.len() - 2;
        if self.whole {
            return (place - self.values[0]).floor().clamp(0.0, last as f32) as usize;
        }
        self.values[1..=last].iter().take_while(|value| **value <= place).count()
    }

    #[inline(always)]
    pub(super) fn value(&self, step: usize) -> f32 {
        self.values[step]
    }

    #[inline(always)]
    pub(super) fn code(&self, step: usize) -> u8 {
        self.codes[step]
    }

    /// A place is of no use far outside of the ladder.
    #[inline(always)]
    fn within(&self, place: f32) -> f32 {
        place.clamp(self.values[0] - 0.5, self.values[self.values.len() - 1] + 0.5)
    }
}

/// `a` and `b` of each weight of a block.
#[inline(always)]
pub(super) fn line<B: Codes<LEN>, const LEN: usize>(mut block: B, ladder: &Ladder) -> ([f32; LEN], [f32; LEN]) {
    let [(low_code, low), (high_code, high)] = ladder.apart;
    let (mut at_low, mut at_high) = ([0.0; LEN], [0.0; LEN]);
    block.set_codes(&[low_code; LEN]);
    block.decode(&mut at_low);
    block.set_codes(&[high_code; LEN]);
    block.decode(&mut at_high);
    let a: [f32; LEN] = std::array::from_fn(|j| (at_high[j] - at_low[j]) / (high - low));
    let b = std::array::from_fn(|j| at_low[j] - a[j] * low);
    (a, b)
}

/// Rectified sigmoid (AdaRound, equation 23): from 0 to 1, both of which it reaches.
pub(super) mod rectified {
    const ZETA: f32 = 1.1;
    const GAMMA: f32 = -0.1;

    fn sigmoid(v: f32) -> f32 {
        1.0 / (1.0 + (-v).exp())
    }

    pub(in super::super) fn value(v: f32) -> f32 {
        (sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)
    }

    pub(in super::super) fn slope(v: f32) -> f32 {
        let s = sigmoid(v);
        let inside = (0.0..=1.0).contains(&(s * (ZETA - GAMMA) + GAMMA));
        if inside { s * (1.0 - s) * (ZETA - GAMMA) } else { 0.0 }
    }

    /// Where it has a value.
    pub(in super::super) fn inverse(value: f32) -> f32 {
        let s = ((value.clamp(0.0, 1.0) - GAMMA) / (ZETA - GAMMA)).clamp(1e-4, 1.0 - 1e-4);
        (s / (1.0 - s)).ln()
    }
}

/// The blocks of one thread, with what belongs to their weights.
pub(super) struct Share<'a, B> {
    pub(super) blocks: &'a mut [B],
    pub(super) places: &'a mut [f32],
    /// For choices between two steps: the lower one; else empty.
    pub(super) steps: &'a [u8],
    pub(super) scales: &'a mut [ScaleState],
}

/// The learned factors of a block's scales, as logarithms.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ScaleState {
    /// As the encoder chose them.
    pub(super) start: [f32; 2],
    pub(super) log: [f32; 2],
    pub(super) moments: [[f32; 2]; 2],
}

impl ScaleState {
    fn now(&self) -> [f32; 2] {
        [0, 1].map(|i| self.start[i] * self.log[i].exp())
    }
}

/// How weights come from places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mode {
    Nearest,
    /// Between two steps.
    Soft,
    /// The one of two steps that is nearer.
    Chosen,
}

impl<B: Scales> Share<'_, B> {
    /// Brings scales and codes into the blocks, and gives their weights.
    pub(super) fn decode<const LEN: usize>(self, ladder: &Ladder, mode: Mode, out: &mut [f32])
    where
        B: Codes<LEN>,
    {
        for at in 0..self.blocks.len() {
            let mut block = self.blocks[at];
            let range = at * LEN..(at + 1) * LEN;
            block.set_scales(self.scales[at].now());
            let places = &self.places[range.clone()];
            let steps = self.steps.get(range.clone());
            let step = |j: usize| match (mode, steps) {
                (Mode::Nearest, _) | (_, None) => ladder.nearest(places[j]),
                (_, Some(steps)) => usize::from(steps[j]) + usize::from(rectified::value(places[j]) >= 0.5),
            };
            let q: [u8; LEN] = std::array::from_fn(|j| ladder.code(step(j)));
            block.set_codes(&q);
            self.blocks[at] = block;
            let mut decoded = [0.0; LEN];
            if let (Mode::Soft, Some(steps)) = (mode, steps) {
                let (a, b) = line(block, ladder);
                for j in 0..LEN {
                    let (low, high) = (ladder.value(steps[j].into()), ladder.value(usize::from(steps[j]) + 1));
                    decoded[j] = a[j] * (low + rectified::value(places[j]) * (high - low)) + b[j];
                }
            } else {
                block.decode(&mut decoded);
            }
            out[range].copy_from_slice(&decoded);
        }
    }

    /// One step against the gradient. `regularizer` are its weight and exponent.
    pub(super) fn step<const LEN: usize>(
        self,
        ladder: &Ladder,
        gradient: &[f32],
        moments: &mut [[f32; 2]],
        [codes, scales]: [Update; 2],
        regularizer: Option<[f32; 2]>,
    ) where
        B: Codes<LEN>,
    {
        for at in 0..self.blocks.len() {
            let range = at * LEN..(at + 1) * LEN;
            let (a, b) = line(self.blocks[at], ladder);
            let gradient = &gradient[range.clone()];
            let (mut by_scale, mut by_minimum) = (0.0, 0.0);
            let steps = self.steps.get(range.clone());
            let places = &mut self.places[range.clone()];
            for (j, (place, moment)) in places.iter_mut().zip(&mut moments[range]).enumerate() {
                let by_value = gradient[j] * a[j];
                by_minimum += gradient[j] * b[j];
                match (regularizer, steps) {
                    (Some([weight, beta]), Some(steps)) => {
                        let (low, high) = (ladder.value(steps[j].into()), ladder.value(usize::from(steps[j]) + 1));
                        let h = rectified::value(*place);
                        by_scale += by_value * (low + h * (high - low));
                        // Of 1 - |2h - 1|^beta.
                        let off = 2.0 * h - 1.0;
                        let pull = -2.0 * beta * off.abs().powf(beta - 1.0) * off.signum();
                        let slope = (by_value * (high - low) + weight * pull) * rectified::slope(*place);
                        *place -= codes.of(moment, slope);
                    }
                    _ => {
                        by_scale += by_value * ladder.value(ladder.nearest(*place));
                        *place = ladder.within(*place - codes.of(moment, by_value));
                    }
                }
            }
            let state = &mut self.scales[at];
            for (i, slope) in [by_scale, by_minimum].into_iter().enumerate() {
                if state.start[i] != 0.0 {
                    // A block is not to vanish, nor to leave the range of its scale.
                    state.log[i] = (state.log[i] - scales.of(&mut state.moments[i], slope)).clamp(-1.5, 1.5);
                }
            }
        }
    }
}
