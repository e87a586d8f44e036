//! The values that a code can stand for, before the scale.

use core_tensor::block::{E2M1_DOUBLED, IQ4_VALUES};

use super::lanes::Lanes;

/// The values of a format whose sub-blocks have a scale and no minimum.
pub(crate) trait Grid {
    /// The nearest value of the grid.
    fn nearest(v: Lanes) -> Lanes;

    /// The code of the nearest value, a whole number.
    fn code(v: Lanes) -> Lanes;
}

/// The integers `−HALF ..= HALF − 1`; code 0 is the lowest.
pub(crate) struct Integers<const HALF: i32>;

impl<const HALF: i32> Grid for Integers<HALF> {
    #[inline(always)]
    fn nearest(v: Lanes) -> Lanes {
        v.clamp(-(HALF as f32), (HALF - 1) as f32).round()
    }

    #[inline(always)]
    fn code(v: Lanes) -> Lanes {
        Self::nearest(v) + Lanes::splat(HALF as f32)
    }
}

/// The sixteen values of IQ4_NL and IQ4_XS.
pub(crate) struct Iq4;

impl Iq4 {
    /// Sums what `step` gives for each value that is passed on the way up to `v`.
    #[inline(always)]
    fn climb(v: Lanes, start: f32, step: impl Fn(f32, f32) -> f32) -> Lanes {
        let mut sum = Lanes::splat(start);
        for pair in IQ4_VALUES.windows(2) {
            let (low, high) = (f32::from(pair[0]), f32::from(pair[1]));
            let middle = (low + high) * 0.5;
            let rise = step(low, high);
            sum = sum + v.map(|v| if v > middle { rise } else { 0.0 });
        }
        sum
    }
}

impl Grid for Iq4 {
    #[inline(always)]
    fn nearest(v: Lanes) -> Lanes {
        Iq4::climb(v, f32::from(IQ4_VALUES[0]), |low, high| high - low)
    }

    #[inline(always)]
    fn code(v: Lanes) -> Lanes {
        Iq4::climb(v, 0.0, |_, _| 1.0)
    }
}

/// The doubled values of E2M1, codes 0 to 7 for what is not negative, 8 more for what is.
pub(crate) struct E2m1;

impl E2m1 {
    #[inline(always)]
    fn climb(v: Lanes, step: impl Fn(f32, f32) -> f32) -> Lanes {
        let v = v.abs();
        let mut sum = Lanes::ZERO;
        for pair in E2M1_DOUBLED[..8].windows(2) {
            let (low, high) = (f32::from(pair[0]), f32::from(pair[1]));
            let middle = (low + high) * 0.5;
            let rise = step(low, high);
            sum = sum + v.map(|v| if v > middle { rise } else { 0.0 });
        }
        sum
    }
}

impl Grid for E2m1 {
    #[inline(always)]
    fn nearest(v: Lanes) -> Lanes {
        E2m1::climb(v, |low, high| high - low).zip(v, f32::copysign)
    }

    #[inline(always)]
    fn code(v: Lanes) -> Lanes {
        let magnitude = E2m1::climb(v, |_, _| 1.0);
        magnitude.zip(v, |code, v| if v < 0.0 && code > 0.0 { code + 8.0 } else { code })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_nearest<G: Grid>(values: &[f32], value_of: impl Fn(u8) -> f32) {
        for i in -1600..=1600 {
            let v = i as f32 * 0.1 + 0.013;
            let found = G::nearest(Lanes::splat(v)).0[0];
            let best = values.iter().map(|value| (value - v).abs()).fold(f32::INFINITY, f32::min);
            assert_eq!((found - v).abs(), best, "{v} became {found}");
            assert_eq!(value_of(G::code(Lanes::splat(v)).0[0] as u8), found, "{v}");
        }
    }

    #[test]
    fn every_grid_gives_the_nearest_of_its_values_and_its_code() {
        let integers: Vec<f32> = (-8..8).map(|v| v as f32).collect();
        assert_nearest::<Integers<8>>(&integers, |code| f32::from(code) - 8.0);
        let iq4 = IQ4_VALUES.map(f32::from);
        assert_nearest::<Iq4>(&iq4, |code| iq4[usize::from(code)]);
        let e2m1 = E2M1_DOUBLED.map(f32::from);
        assert_nearest::<E2m1>(&e2m1, |code| e2m1[usize::from(code)]);
    }
}
