//! A fixed sequence of numbers, and tensors and weights made of it.

use std::sync::Arc;

use core_tensor::{BlockFormat, DType, Tensor, Weight};
use half::{bf16, f16};

/// A small deterministic generator (xorshift).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        let mut random = Random((seed ^ 0x1234_5678_9abc_def1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.bits();
        random
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }

    /// Uniform in 0..n.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }

    /// Uniform in -1..1.
    pub(crate) fn unit(&mut self) -> f32 {
        self.bits() as f32 / 2_147_483_648.0 - 1.0
    }

    pub(crate) fn f32(&mut self, shape: &[usize]) -> Tensor {
        self.scaled_f32(shape, 1.0)
    }

    /// Uniform in -scale..scale.
    pub(crate) fn scaled_f32(&mut self, shape: &[usize], scale: f32) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.unit() * scale).collect();
        Tensor::from_slice(shape, &values).expect("a small tensor")
    }

    pub(crate) fn i32_below(&mut self, len: usize, n: usize) -> Tensor {
        let values: Vec<i32> = (0..len).map(|_| self.below(n) as i32).collect();
        ints(&values)
    }

    /// A weight of any dtype that weights have, its values of magnitude about 1 or less.
    pub(crate) fn weight(&mut self, dtype: DType, shape: &[usize]) -> Arc<Weight> {
        Weight::stored(self.stored(dtype, shape))
    }

    pub(crate) fn stored(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let count: usize = shape.iter().product();
        let mut floats = || (0..count).map(|_| self.unit()).collect::<Vec<f32>>();
        let tensor = match dtype {
            DType::F64 => Tensor::from_slice(shape, &floats().into_iter().map(f64::from).collect::<Vec<_>>()),
            DType::F32 => Tensor::from_slice(shape, &floats()),
            DType::F16 => Tensor::from_slice(shape, &floats().into_iter().map(f16::from_f32).collect::<Vec<_>>()),
            DType::BF16 => Tensor::from_slice(shape, &floats().into_iter().map(bf16::from_f32).collect::<Vec<_>>()),
            DType::I32 => Tensor::from_slice(shape, &(0..count).map(|_| self.bits().cast_signed()).collect::<Vec<_>>()),
            DType::Block(format) => {
                let blocks = count / format.block_len();
                let bytes: Vec<u8> = (0..blocks).flat_map(|_| self.block(format)).collect();
                Tensor::from_bytes(dtype, shape, &bytes)
            }
            // Whatever the bits mean, but no infinities and no NaNs: exponents stay below the top.
            _ => {
                let bytes = core_tensor::byte_len(dtype, shape).expect("a small tensor");
                Tensor::from_bytes(dtype, shape, &(0..bytes).map(|_| self.bits() as u8 & 0xbb).collect::<Vec<_>>())
            }
        };
        tensor.expect("a small tensor")
    }

    /// A block of random bits, with scales that are finite and of a size so that the weights are about 1 or less.
    fn block(&mut self, format: BlockFormat) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..format.block_bytes()).map(|_| self.bits() as u8).collect();
        let (at, scale): (&[usize], f32) = match format {
            BlockFormat::Q4_0 | BlockFormat::IQ4_NL => (&[0], 0.1),
            BlockFormat::Q4_1 => (&[0, 2], 0.1),
            BlockFormat::Q5_0 => (&[0], 0.05),
            BlockFormat::Q5_1 => (&[0, 2], 0.05),
            BlockFormat::Q8_0 | BlockFormat::Q8_1 => (&[0], 0.01),
            BlockFormat::Q2_K => (&[80, 82], 0.02),
            BlockFormat::Q3_K => (&[108], 0.01),
            BlockFormat::Q4_K | BlockFormat::Q5_K => (&[0, 2], 0.002),
            BlockFormat::Q6_K => (&[208], 0.0005),
            BlockFormat::IQ2_XXS | BlockFormat::IQ2_XS | BlockFormat::IQ2_S => (&[0], 0.005),
            BlockFormat::IQ3_XXS | BlockFormat::IQ3_S => (&[0], 0.002),
            BlockFormat::IQ1_S => (&[0], 0.05),
            BlockFormat::IQ4_XS => (&[0], 0.0005),
            BlockFormat::TQ1_0 => (&[52], 1.0),
            BlockFormat::TQ2_0 => (&[64], 1.0),
            _ => (&[], 1.0),
        };
        for at in at {
            bytes[*at..at + 2].copy_from_slice(&f16::from_f32(self.unit() * scale).to_le_bytes());
        }
        match format {
            BlockFormat::Q8_K => bytes[..4].copy_from_slice(&(self.unit() * 0.01).to_le_bytes()),
            // An 8-bit exponent.
            BlockFormat::MXFP4 => bytes[0] = 120 + self.bits() as u8 % 8,
            // 8-bit floats without sign.
            BlockFormat::NVFP4 => bytes[..4].iter_mut().for_each(|scale| *scale &= 0x37),
            // The f16 scale lies in the high nibbles of the four scale words.
            BlockFormat::IQ1_M => {
                let scale = f16::from_f32(self.unit() * 0.05).to_bits();
                for i in 0..4 {
                    let byte = &mut bytes[48 + 2 * i + 1];
                    *byte = *byte & 15 | ((scale >> (4 * i)) as u8 & 15) << 4;
                }
            }
            _ => {}
        }
        bytes
    }
}

/// A vector of i32.
pub(crate) fn ints(values: &[i32]) -> Tensor {
    Tensor::from_slice(&[values.len()], values).expect("a small tensor")
}

/// Cases are the same in every run (`PROPTEST_RNG_SEED` sets others); no file is written for those that fail.
pub(crate) fn proptest_config(cases: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        cases,
        failure_persistence: None,
        rng_seed: std::env::var("PROPTEST_RNG_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .map_or(proptest::test_runner::RngSeed::Fixed(1), proptest::test_runner::RngSeed::Fixed),
        ..proptest::test_runner::Config::default()
    }
}
