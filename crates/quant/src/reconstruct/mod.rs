//! Weights that are trained while they are quantized: fake quantization with gradients that pass straight through, and AdaRound.
//!
//! A [`Latent`] stands for one matrix in a block format. Its [`decode`](Latent::decode) gives the weights as the file will hold them; its
//! [`step`](Latent::step) takes the gradient by these and moves what lies behind them: a place on the format's ladder of codes for each weight, and the
//! blocks' scales. What it ends with are the bytes of the format ([`Latent::bytes`]), and they decode to what the last `decode` gave.
//!
//! *Places* are in units of codes, so that one rate serves all formats: `w = a·place + b` with the block's own `a` and `b`. With [`Rounding::Straight`] the
//! weight is the ladder's value nearest to the place, and the gradient goes through the rounding as if it were not there (Bengio, Léonard and Courville 2013). With
//! [`Rounding::Adaptive`] the choice is between the two values around the weight as it was, by a rectified sigmoid, and a regularizer with an
//! annealed exponent drives it to either side (AdaRound: Nagel et al. 2020, equations 22 to 24).
//!
//! *Scales* are learned as factors of the scale of scales (and of that of minima), which are then rounded as in the file; the small scales within a block stay as the
//! encoder chose them (compare LSQ: Esser et al. 2020).
//!
//! The crate runs nothing: whoever has the model gives gradients.
//!
//! ```
//! use core_tensor::{BlockFormat, DType};
//! use polaris_quant::reconstruct::{Latent, Rates, Rounding};
//!
//! // A matrix of one row: its product with x is to stay what it was.
//! let weights: Vec<f32> = (0..32).map(|i| (i as f32 * 0.37).sin()).collect();
//! let x: Vec<f32> = (0..32).map(|i| (i as f32 * 0.3).cos()).collect();
//! let product = |w: &[f32]| -> f32 { w.iter().zip(&x).map(|(w, x)| w * x).sum() };
//! let mut latent = Latent::new(DType::Block(BlockFormat::Q4_0), &weights, 32, None, Rounding::Straight, 1)?;
//! let mut decoded = vec![0.0; 32];
//! latent.decode(&mut decoded)?;
//! let before = (product(&decoded) - product(&weights)).abs();
//! for step in 0..100 {
//!     let error = product(&decoded) - product(&weights);
//!     let gradient: Vec<f32> = x.iter().map(|x| error * x).collect();
//!     let left = 1.0 - step as f32 / 100.0;
//!     latent.step(&gradient, Rates { codes: 0.02 * left, scales: 1e-3 * left })?;
//!     latent.decode(&mut decoded)?;
//! }
//! assert!((product(&decoded) - product(&weights)).abs() < 0.5 * before);
//! # Ok::<(), polaris_quant::block::EncodeError>(())
//! ```

mod adam;
mod blocks;
mod latent;
mod scales;

pub use adam::Adam;
pub use latent::{Latent, Rates, Rounding, can_train};
