//! The optimizer's step.

/// Of the mean of gradients, what stays from step to step.
const FIRST: f32 = 0.9;
/// Of the mean of their squares.
const SECOND: f32 = 0.95;

/// What a mean of gradients is at most, in roots of the mean of their squares: with these decays it cannot be more than 1.17, but where squares are too small for
/// a number.
const MOST: f32 = 1.2;

/// Adam (Kingma and Ba 2015), with decays of 0.9 and 0.95: runs here are short.
#[derive(Clone, Debug)]
pub struct Adam {
    /// Means of gradients and of their squares.
    moments: Vec<[f32; 2]>,
    steps: i32,
}

impl Adam {
    /// For so many parameters.
    #[must_use]
    pub fn new(parameters: usize) -> Adam {
        Adam { moments: vec![[0.0; 2]; parameters], steps: 0 }
    }

    /// Moves parameters against their gradients, by about `rate` each. As many of both as there are parameters; those that lack either stay.
    pub fn step(&mut self, parameters: &mut [f32], gradient: &[f32], rate: f32) {
        let update = self.begin(rate);
        for ((parameter, moment), gradient) in parameters.iter_mut().zip(&mut self.moments).zip(gradient) {
            *parameter -= update.of(moment, *gradient);
        }
    }

    /// What the next step does.
    pub(super) fn begin(&mut self, rate: f32) -> Update {
        self.steps = self.steps.saturating_add(1);
        // Means begin at 0; what that takes off is put back.
        let missing = |decay: f32| 1.0 - decay.powi(self.steps);
        Update { rate, first: 1.0 / missing(FIRST), second: 1.0 / missing(SECOND) }
    }

    pub(super) fn moments(&mut self) -> &mut [[f32; 2]] {
        &mut self.moments
    }
}

/// One step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Update {
    rate: f32,
    first: f32,
    second: f32,
}

impl Update {
    /// What is taken off a parameter.
    #[inline(always)]
    pub(super) fn of(self, moment: &mut [f32; 2], gradient: f32) -> f32 {
        moment[0] = FIRST * moment[0] + (1.0 - FIRST) * gradient;
        moment[1] = SECOND * moment[1] + (1.0 - SECOND) * gradient * gradient;
        // Gradients are of any size, and tiny ones are not to vanish behind a constant: it is for zeros. The squares of the tiniest do vanish.
        let root = (moment[1] * self.second).sqrt() + f32::MIN_POSITIVE;
        self.rate * (moment[0] * self.first / root).clamp(-MOST, MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_as_long_as_the_rate_whatever_the_gradient() {
        let mut adam = Adam::new(3);
        let mut x = [1.0, 1.0, 1.0];
        adam.step(&mut x, &[1e-12, -5.0, 0.0], 0.25);
        assert!((x[0] - 0.75).abs() < 1e-5 && (x[1] - 1.25).abs() < 1e-5 && x[2] == 1.0, "{x:?}");
    }

    #[test]
    fn no_step_is_much_longer_than_the_rate() {
        for size in [1e-19, 1e-22, 1e-23, 1e-24, 1e-30] {
            let mut adam = Adam::new(1);
            let mut x = [0.0];
            for step in 0..20 {
                let before = x[0];
                adam.step(&mut x, &[if step == 10 { -size } else { size }], 0.25);
                assert!((x[0] - before).abs() <= 0.25 * MOST + 1e-5, "{size}: {before} {x:?}");
            }
            assert!(x[0] < -0.25, "{size}: {x:?}");
        }
    }

    #[test]
    fn a_parabola_is_descended() {
        let mut adam = Adam::new(2);
        let mut x = [4.0, -2.0];
        for step in 0..400 {
            let gradient = [2.0 * (x[0] - 1.0), 20.0 * (x[1] - 3.0)];
            adam.step(&mut x, &gradient, 0.1 * (1.0 - step as f32 / 400.0));
        }
        assert!((x[0] - 1.0).abs() < 1e-2 && (x[1] - 3.0).abs() < 1e-2, "{x:?}");
    }
}
