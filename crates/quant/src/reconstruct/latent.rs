//! A matrix in training.

use core_tensor::block::{
    BlockIq4Nl, BlockIq4Xs, BlockMxfp4, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1,
    BlockQ5K, BlockQ6K, BlockTq1_0, BlockTq2_0,
};
use core_tensor::{BlockFormat, DType};

use super::adam::{Adam, Update};
use super::blocks::{Ladder, Mode, ScaleState, Share, line, rectified};
use super::scales::Scales;
use crate::block::{self, Codes, EncodeError};
use crate::gptq::{self, Feedback};

/// How places become codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rounding {
    /// To the nearest; gradients pass straight through.
    Straight,
    /// Up or down, softly until [`Latent::harden`].
    Adaptive,
}

/// How far a step goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of places, in codes (with [`Rounding::Adaptive`] of the sigmoid's argument).
    pub codes: f32,
    /// Of the logarithms of scales.
    pub scales: f32,
}

/// Whether a dtype's weights can be trained: block formats with codes and an encoder, of less than eight bits.
#[must_use]
pub fn can_train(dtype: DType) -> bool {
    gptq::has_feedback(dtype)
}

/// The bytes of a matrix that can be trained.
fn room(dtype: DType, values: usize, columns: usize) -> Result<Vec<u8>, EncodeError> {
    if !can_train(dtype) {
        return Err(EncodeError::Unsupported(dtype));
    }
    let row_bytes = dtype.row_bytes(columns).ok_or(EncodeError::PartialBlock { dtype, columns })?;
    Ok(vec![0; values / columns.max(1) * row_bytes])
}

/// A matrix of weights in a block format, and what is learned of them.
#[derive(Clone, Debug)]
pub struct Latent {
    format: BlockFormat,
    rounding: Rounding,
    hard: bool,
    threads: usize,
    /// The blocks as of the last `decode`.
    bytes: Vec<u8>,
    ladder: Ladder,
    places: Vec<f32>,
    /// With [`Rounding::Adaptive`], the lower of the two steps of each weight.
    steps: Vec<u8>,
    adam: Adam,
    scale_adam: Adam,
    scales: Vec<ScaleState>,
    /// Weight and exponent of the regularizer.
    regularizer: [f32; 2],
}

/// Runs an expression with the block type of a format.
macro_rules! with_block {
    ($format:expr, $block:ident, $len:ident => $run:expr, $otherwise:expr) => {{
        macro_rules! arm {
            ($ty:ty, $n:literal) => {{
                type $block = $ty;
                const $len: usize = $n;
                $run
            }};
        }
        match $format {
            BlockFormat::Q4_0 => arm!(BlockQ4_0, 32),
            BlockFormat::Q4_1 => arm!(BlockQ4_1, 32),
            BlockFormat::Q5_0 => arm!(BlockQ5_0, 32),
            BlockFormat::Q5_1 => arm!(BlockQ5_1, 32),
            BlockFormat::IQ4_NL => arm!(BlockIq4Nl, 32),
            BlockFormat::MXFP4 => arm!(BlockMxfp4, 32),
            BlockFormat::Q2_K => arm!(BlockQ2K, 256),
            BlockFormat::Q3_K => arm!(BlockQ3K, 256),
            BlockFormat::Q4_K => arm!(BlockQ4K, 256),
            BlockFormat::Q5_K => arm!(BlockQ5K, 256),
            BlockFormat::Q6_K => arm!(BlockQ6K, 256),
            BlockFormat::IQ4_XS => arm!(BlockIq4Xs, 256),
            BlockFormat::TQ1_0 => arm!(BlockTq1_0, 256),
            BlockFormat::TQ2_0 => arm!(BlockTq2_0, 256),
            _ => $otherwise,
        }
    }};
}

impl Latent {
    /// A matrix `[rows, columns]` (a convolution's weight: `[out, all else]`) as its encoder makes it, with the importances of the columns if they
    /// are known. What is done on `threads` threads depends on none.
    ///
    /// # Errors
    /// As [`block::encode`], and [`EncodeError::Unsupported`] where [`can_train`] says so.
    pub fn new(
        dtype: DType,
        values: &[f32],
        columns: usize,
        importance: Option<&[f32]>,
        rounding: Rounding,
        threads: usize,
    ) -> Result<Latent, EncodeError> {
        let mut bytes = room(dtype, values.len(), columns)?;
        block::encode_with_threads(dtype, values, columns, importance, threads, &mut bytes)?;
        Latent::begun(dtype, bytes, values, rounding, threads)
    }

    /// A matrix as [`gptq::encode`] makes it.
    ///
    /// # Errors
    /// As [`gptq::encode`], and [`EncodeError::Unsupported`] where [`can_train`] says so.
    pub fn with_feedback(
        dtype: DType,
        mut values: Vec<f32>,
        feedback: &Feedback,
        rounding: Rounding,
        threads: usize,
    ) -> Result<Latent, EncodeError> {
        let mut bytes = room(dtype, values.len(), feedback.columns())?;
        gptq::compensate(dtype, &mut values, feedback, threads, &mut bytes)?;
        Latent::begun(dtype, bytes, &values, rounding, threads)
    }

    /// From blocks, and the weights that were rounded to them.
    fn begun(
        dtype: DType,
        bytes: Vec<u8>,
        values: &[f32],
        rounding: Rounding,
        threads: usize,
    ) -> Result<Latent, EncodeError> {
        let DType::Block(format) = dtype else { return Err(EncodeError::Unsupported(dtype)) };
        with_block!(
            format,
            B,
            LEN => Ok(Latent::of::<B, LEN>(format, bytes, values, rounding, threads)),
            Err(EncodeError::Unsupported(dtype))
        )
    }

    fn of<B: Codes<LEN> + Scales, const LEN: usize>(
        format: BlockFormat,
        bytes: Vec<u8>,
        values: &[f32],
        rounding: Rounding,
        threads: usize,
    ) -> Latent {
        let ladder = Ladder::of::<B>();
        let blocks: &[B] = bytemuck::cast_slice(&bytes);
        let scales: Vec<ScaleState> =
            blocks.iter().map(|block| ScaleState { start: block.scales(), ..ScaleState::default() }).collect();
        let mut places = Vec::with_capacity(values.len());
        let mut steps = Vec::new();
        for (block, values) in blocks.iter().zip(values.chunks_exact(LEN)) {
            let (a, b) = line::<B, LEN>(*block, &ladder);
            for j in 0..LEN {
                // A block of zeros has no places.
                let place = if a[j] == 0.0 { 0.0 } else { (values[j] - b[j]) / a[j] };
                if rounding == Rounding::Straight {
                    let lowest = ladder.value(0) - 0.5;
                    places.push(place.clamp(lowest, ladder.apart[1].1 + 0.5));
                    continue;
                }
                let low = ladder.below(place);
                let (below, above) = (ladder.value(low), ladder.value(low + 1));
                places.push(rectified::inverse((place - below) / (above - below)));
                steps.push(low as u8);
            }
        }
        Latent {
            format,
            rounding,
            hard: false,
            threads: threads.clamp(1, 1024),
            adam: Adam::new(places.len()),
            scale_adam: Adam::new(0),
            ladder,
            places,
            steps,
            scales,
            bytes,
            regularizer: [0.0, 2.0],
        }
    }

    /// The dtype.
    #[must_use]
    pub fn dtype(&self) -> DType {
        DType::Block(self.format)
    }

    /// How many weights there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The blocks as the last [`Latent::decode`] made them: what a file holds. Before the first, as the encoder made them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The regularizer of [`Rounding::Adaptive`] in the steps to come: its weight in the loss, and the exponent, which begins high (20) so that most choices
    /// are free, and ends low (2).
    pub fn regularize(&mut self, weight: f32, exponent: f32) {
        self.regularizer = [weight, exponent];
    }

    /// Forgets what the optimizer knows of past gradients: for another loss, whose gradients are of another size.
    pub fn restart(&mut self) {
        self.adam = Adam::new(self.places.len());
        self.scale_adam = Adam::new(0);
        self.scales.iter_mut().for_each(|scale| scale.moments = Default::default());
    }

    /// Ends soft choices: from here on each weight is the nearer one of its two values.
    pub fn harden(&mut self) {
        self.hard = true;
    }

    /// Makes the blocks of places and scales, and gives their weights. Where choices are still soft, weights lie between what the blocks can hold.
    ///
    /// # Errors
    /// [`EncodeError::Length`] when `out` has not as many elements as there are weights.
    pub fn decode(&mut self, out: &mut [f32]) -> Result<(), EncodeError> {
        self.check(out.len())?;
        let mode = match (self.rounding, self.hard) {
            (Rounding::Straight, _) => Mode::Nearest,
            (Rounding::Adaptive, false) => Mode::Soft,
            (Rounding::Adaptive, true) => Mode::Chosen,
        };
        let ladder = self.ladder.clone();
        with_block!(
            self.format,
            B,
            LEN => {
                let share = self.share::<LEN>();
                std::thread::scope(|scope| {
                    for (part, out) in self.parts::<B, LEN>(share).into_iter().zip(out.chunks_mut(share * LEN)) {
                        let ladder = &ladder;
                        scope.spawn(move || part.0.decode::<LEN>(ladder, mode, out));
                    }
                });
            },
            {}
        );
        Ok(())
    }

    /// One step of the optimizer, given the gradient of the loss by the weights that the last [`Latent::decode`] gave.
    ///
    /// # Errors
    /// [`EncodeError::Length`] when the gradient has not as many elements as there are weights.
    pub fn step(&mut self, gradient: &[f32], rates: Rates) -> Result<(), EncodeError> {
        self.check(gradient.len())?;
        let updates: [Update; 2] = [self.adam.begin(rates.codes), self.scale_adam.begin(rates.scales)];
        let regularizer = (self.rounding == Rounding::Adaptive).then_some(self.regularizer);
        let ladder = self.ladder.clone();
        with_block!(
            self.format,
            B,
            LEN => {
                let share = self.share::<LEN>();
                std::thread::scope(|scope| {
                    for (part, gradient) in self.parts::<B, LEN>(share).into_iter().zip(gradient.chunks(share * LEN)) {
                        let (ladder, (part, moments)) = (&ladder, part);
                        scope.spawn(move || part.step::<LEN>(ladder, gradient, moments, updates, regularizer));
                    }
                });
            },
            {}
        );
        Ok(())
    }

    /// Blocks of a thread.
    fn share<const LEN: usize>(&self) -> usize {
        (self.places.len() / LEN).div_ceil(self.threads).max(1)
    }

    /// What each thread works on, with the optimizer's state.
    fn parts<B: Codes<LEN>, const LEN: usize>(&mut self, share: usize) -> Vec<(Share<'_, B>, &mut [[f32; 2]])> {
        let blocks: &mut [B] = bytemuck::cast_slice_mut(&mut self.bytes);
        let mut steps = self.steps.chunks(share * LEN);
        let parts = blocks
            .chunks_mut(share)
            .zip(self.places.chunks_mut(share * LEN))
            .zip(self.scales.chunks_mut(share))
            .zip(self.adam.moments().chunks_mut(share * LEN));
        parts
            .map(|(((blocks, places), scales), moments)| {
                (Share { blocks, places, steps: steps.next().unwrap_or_default(), scales }, moments)
            })
            .collect()
    }

    fn check(&self, found: usize) -> Result<(), EncodeError> {
        if found == self.places.len() {
            return Ok(());
        }
        let (dtype, values, bytes) = (self.dtype(), found, self.bytes.len());
        Err(EncodeError::Length { dtype, values, columns: 1, bytes })
    }
}
