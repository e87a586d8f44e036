//! What the encoders lose, next to ggml's quantizers on the same weights (`fixtures/ggml_errors.py`).

use core_tensor::{BlockFormat, DType, decode_f32};
use polaris_quant::block::{ENCODED, encode};

const ROWS: usize = 16;
const COLUMNS: usize = 1536;

/// SplitMix64, the top 24 bits as a fraction.
fn uniforms(mut seed: u64, count: usize) -> Vec<f64> {
    let mut next = || {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = seed;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) >> 40) as f64 / f64::from(1 << 24)
    };
    (0..count).map(|_| next()).collect()
}

/// Sums of four uniform numbers: nearly normal.
fn bell(seed: u64) -> Vec<f64> {
    uniforms(seed, 4 * ROWS * COLUMNS).as_chunks::<4>().0.iter().map(|u| (u.iter().sum::<f64>() - 2.0) * 0.05).collect()
}

fn matrix(name: &str) -> Vec<f32> {
    match name {
        "bell" => bell(1).iter().map(|x| *x as f32).collect(),
        "heavy_tails" => bell(1).iter().map(|x| (x * x * x * 400.0) as f32).collect(),
        "shifted" => bell(2).iter().map(|x| (x + 0.08) as f32).collect(),
        "smollm2" => {
            let bytes = include_bytes!("fixtures/smollm2_rows.bf16");
            decode_f32(DType::BF16, bytes, ROWS * COLUMNS).expect("the file has these rows")
        }
        _ => panic!("there is no matrix {name}"),
    }
}

fn importance() -> Vec<f32> {
    uniforms(3, COLUMNS).iter().map(|u| (u + 0.05).powi(-2) as f32).collect()
}

/// The squared error relative to the squares, weighted by what the encoder minimizes: importances; without them the squares of
/// the weights for some, and nothing for all others.
fn error(dtype: DType, weights: &[f32], columns: usize, importance: Option<&[f32]>) -> f64 {
    let mut bytes = vec![0; weights.len() / columns * dtype.row_bytes(columns).expect("whole blocks")];
    encode(dtype, weights, columns, importance, &mut bytes).expect("it has an encoder");
    let decoded = decode_f32(dtype, &bytes, weights.len()).expect("it has a decoder");
    let (mut noise, mut power) = (0.0, 0.0);
    // What an error of a weight counts where nothing is known of its column.
    let by_squares = matches!(dtype, DType::Block(BlockFormat::Q4_0 | BlockFormat::IQ4_NL | BlockFormat::IQ4_XS));
    let unknown = |x: f32| if by_squares { f64::from(x).powi(2) } else { 1.0 };
    for (i, (x, y)) in weights.iter().zip(&decoded).enumerate() {
        let w = importance.map_or(unknown(*x), |w| f64::from(w[i % columns]));
        noise += w * (f64::from(*x) - f64::from(*y)).powi(2);
        power += w * f64::from(*x).powi(2);
    }
    noise / power
}

#[test]
fn no_encoder_loses_more_than_ggmls_quantizer() {
    let reference: serde_json::Value =
        serde_json::from_str(include_str!("fixtures/ggml_errors.json")).expect("the reference is JSON");
    let matrices = reference["errors"].as_object().expect("it has errors");
    let importance = importance();
    let (mut compared, mut worse) = (0, Vec::new());
    for (name, types) in matrices {
        let weights = matrix(name);
        for dtype in ENCODED.into_iter().filter(|dtype| dtype.is_block()) {
            let ggml = &types[&dtype.to_string()];
            for (i, importance) in [None, Some(&*importance)].into_iter().enumerate() {
                let (ours, ggml) = (error(dtype, &weights, COLUMNS, importance), ggml[i].as_f64().expect("a number"));
                compared += 1;
                let with = ["without", "with"][i];
                let line =
                    format!("{name} {dtype} {with} importances: {ours:.6e}, ggml {ggml:.6e}, {:.3}", ours / ggml);
                println!("{line}");
                // Sums of the same errors in another order differ by a rounding: Q5_0 without importances is ggml's.
                if ours > ggml * (1.0 + 1e-9) {
                    worse.push(line);
                }
            }
        }
    }
    assert_eq!(compared, 4 * 15 * 2, "the reference lacks some");
    assert!(worse.is_empty(), "{worse:#?}");
}

#[test]
fn what_a_format_can_hold_exactly_stays_as_it_is() {
    // A Q4_1 of every code, scale and minimum exact in f16.
    let affine: Vec<f32> = (0..32).map(|i| (i * 5 % 16) as f32 * 0.25 - 1.5).collect();
    assert_eq!(error(DType::Block(BlockFormat::Q4_1), &affine, 32, None), 0.0);
    // Ternary weights, as BitNet's files have them.
    let ternary: Vec<f32> = (0..256).map(|i| ((i * 7 % 3) as f32 - 1.0) * 0.125).collect();
    for format in [BlockFormat::TQ1_0, BlockFormat::TQ2_0] {
        assert_eq!(error(DType::Block(format), &ternary, 256, None), 0.0, "{format}");
    }
    // All values of E2M1 under one power of two, and of a signed byte.
    let e2m1: Vec<f32> =
        core_tensor::block::E2M1_DOUBLED.iter().cycle().take(32).map(|v| f32::from(*v) * 0.03125).collect();
    assert_eq!(error(DType::Block(BlockFormat::MXFP4), &e2m1, 32, None), 0.0);
    let bytes: Vec<f32> = (0..32).map(|i| (i * 8 - 127) as f32 * 0.5).collect();
    assert_eq!(error(DType::Block(BlockFormat::Q8_0), &bytes, 32, None), 0.0);
}

#[test]
fn sixteen_bit_floats_are_the_nearest() {
    let weights: Vec<f32> = bell(4).iter().map(|x| *x as f32).take(515).collect();
    for (dtype, bound) in [(DType::F16, 2.0f64.powi(-22)), (DType::BF16, 2.0f64.powi(-16))] {
        let loss = error(dtype, &weights, 515, None);
        assert!(loss > 0.0 && loss < bound / 3.0, "{dtype}: {loss}");
    }
    assert_eq!(error(DType::F32, &weights, 515, None), 0.0);
}
