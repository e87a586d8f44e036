//! Pruning, next to what numpy makes of the same matrix (`fixtures/prune.py`).

use polaris_quant::gptq::Feedback;
use polaris_quant::prune::{Pattern, Products, least_squares, sparse_gpt, wanda};
use serde_json::Value;

const ROWS: usize = 24;
const COLUMNS: usize = 256;
const INPUTS: usize = 600;
const DAMPING: f64 = 0.01;

/// SplitMix64, the top 24 bits as a fraction, from -1 to 1.
fn uniforms(mut seed: u64, count: usize) -> Vec<f64> {
    let next = || {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1u32 << 23) - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn matrix() -> Vec<f32> {
    let pairs = uniforms(1, ROWS * COLUMNS).into_iter().zip(uniforms(2, ROWS * COLUMNS));
    pairs.map(|(a, b)| (a * b.abs()) as f32).collect()
}

fn products() -> Products {
    let noise = uniforms(3, INPUTS * COLUMNS);
    let mut sums = vec![0.0f64; COLUMNS * COLUMNS];
    for noise in noise.chunks(COLUMNS) {
        let mut last = 0.0;
        let row: Vec<f64> = noise
            .iter()
            .enumerate()
            .map(|(column, noise)| {
                last = 0.75 * last + noise * if column % 11 == 0 { 5.0 } else { 1.0 };
                last
            })
            .collect();
        for (x, sums) in row.iter().zip(sums.chunks_mut(COLUMNS)) {
            sums.iter_mut().zip(&row).for_each(|(sum, y)| *sum += x * y);
        }
    }
    Products::new(sums.into_iter().map(|sum| sum as f32).collect(), COLUMNS).expect("sums are finite")
}

fn fixture() -> Value {
    serde_json::from_str(include_str!("fixtures/prune.json")).expect("the fixture is JSON")
}

/// How many weights the fixture and a pruned matrix do not agree on whether they go.
fn different(bits: &Value, pruned: &[f32]) -> usize {
    let digits = bits.as_str().expect("digits");
    let bit = |at: usize| {
        let byte = u8::from_str_radix(&digits[at / 8 * 2..][..2], 16).expect("a byte");
        byte >> (7 - at % 8) & 1 == 1
    };
    pruned.iter().enumerate().filter(|(at, w)| bit(*at) != (**w == 0.0)).count()
}

#[test]
fn wanda_takes_the_weights_that_numpy_takes() {
    let products = products();
    for (pattern, expected) in fixture()["patterns"].as_object().expect("patterns") {
        let mut weights = matrix();
        let pattern: Pattern = pattern.parse().expect("a pattern");
        wanda(&mut weights, COLUMNS, &products.squares(), pattern).expect("it is pruned");
        assert_eq!(different(&expected["wanda"], &weights), 0, "{pattern}");
        let error = products.output_error(&matrix(), &weights);
        let expected = expected["wanda_error"].as_f64().expect("a number");
        assert!((error / expected - 1.0).abs() < 1e-4, "{pattern}: {error} {expected}");
    }
}

#[test]
fn sparse_gpt_takes_the_same_weights_and_leaves_no_more_error() {
    let products = products();
    let feedback = Feedback::new(products.values(), COLUMNS, DAMPING).expect("it is positive definite");
    for (pattern, expected) in fixture()["patterns"].as_object().expect("patterns") {
        let mut weights = matrix();
        let pattern: Pattern = pattern.parse().expect("a pattern");
        sparse_gpt(&mut weights, &feedback, pattern, 2).expect("it is pruned");
        // Costs that are nearly equal in f64 may change places in f32.
        let different = different(&expected["sparse_gpt"], &weights);
        assert!(different * 500 < weights.len(), "{pattern}: {different} weights");
        let error = products.output_error(&matrix(), &weights);
        let expected = expected["sparse_gpt_error"].as_f64().expect("a number");
        assert!(error < 1.002 * expected, "{pattern}: {error} {expected}");
    }
}

#[test]
fn cut_columns_are_made_up_for_as_by_the_normal_equations() {
    let (weights, products) = (matrix(), products());
    let kept: Vec<usize> = (0..COLUMNS).filter(|column| column % 4 != 1).collect();
    let left = least_squares(&weights, &products, &kept, DAMPING, 2).expect("it is positive definite");
    let expected = &fixture()["cut"];
    for (found, expected) in left.iter().zip(expected["first_row"].as_array().expect("a row")) {
        let expected = expected.as_f64().expect("a number");
        assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
    }
    let mut whole = vec![0.0; weights.len()];
    for (row, left) in whole.chunks_mut(COLUMNS).zip(left.chunks(kept.len())) {
        kept.iter().zip(left).for_each(|(column, w)| row[*column] = *w);
    }
    let (error, expected) = (products.output_error(&weights, &whole), expected["error"].as_f64().expect("a number"));
    assert!((error / expected - 1.0).abs() < 1e-3, "{error} {expected}");
}
