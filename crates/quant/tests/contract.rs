//! What callers of the encoders can rely on, whatever the weights.

use core_tensor::{BlockFormat, DType, decode_f32};
use polaris_quant::block::{ENCODED, EncodeError, encode, encode_with_threads};

fn round_trip(dtype: DType, weights: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut bytes = vec![0; dtype.row_bytes(weights.len()).expect("whole blocks")];
    encode(dtype, weights, weights.len(), importance, &mut bytes).expect("finite weights are encoded");
    decode_f32(dtype, &bytes, weights.len()).expect("what was encoded is decoded")
}

#[test]
fn odd_weights_stay_finite_and_near() {
    let spike: Vec<f32> = (0..256).map(|i| if i == 77 { -3.0 } else { 0.001 }).collect();
    let ramp: Vec<f32> = (0..256).map(|i| i as f32 * 0.01).collect();
    let cases = [
        ("zeros", vec![0.0; 256]),
        ("minus zeros", vec![-0.0; 256]),
        ("constant", vec![0.75; 256]),
        ("negative constant", vec![-0.75; 256]),
        ("positive", ramp.iter().map(|x| x + 0.01).collect()),
        ("negative", ramp.iter().map(|x| -x - 0.01).collect()),
        ("one spike", spike),
        ("smallest", vec![f32::from_bits(1); 256]),
        ("tiny", ramp.iter().map(|x| x * 1e-12).collect()),
        ("large", ramp.iter().map(|x| x * 1e4).collect()),
        ("largest", vec![f32::MAX; 256]),
    ];
    let importance: Vec<f32> = (0..256).map(|i| (i % 5) as f32).collect();
    for (name, weights) in &cases {
        let largest = weights.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        for dtype in ENCODED {
            for importance in [None, Some(&*importance)] {
                if *name == "largest" && matches!(dtype, DType::F16 | DType::BF16) {
                    // They would become infinite.
                    let refused = encode(dtype, weights, 256, importance, &mut [0; 512]);
                    assert!(matches!(refused, Err(EncodeError::OutOfRange { row: 0, column: 0, .. })), "{refused:?}");
                    continue;
                }
                let decoded = round_trip(dtype, weights, importance);
                for (x, y) in weights.iter().zip(&decoded) {
                    // Never further off than a weight of zero would be from the largest, or what f16 cannot hold.
                    assert!(y.is_finite() && (x - y).abs() <= largest * 1.2, "{name} {dtype}: {x} became {y}");
                }
            }
        }
        if name.contains("constant") {
            for dtype in ENCODED {
                let decoded = round_trip(dtype, weights, None);
                let off = decoded.iter().map(|y| (y - weights[0]).abs()).fold(0.0, f32::max);
                assert!(off < 0.01, "{dtype}: {} became {}", weights[0], decoded[0]);
            }
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for dtype in ENCODED {
        assert_eq!(round_trip(dtype, &[0.0; 256], None), [0.0; 256], "{dtype}");
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let weights: Vec<f32> = (0..7 * 512).map(|i| (i as f32 * 0.7).sin() * 0.1).collect();
    let importance: Vec<f32> = (0..512).map(|i| 1.0 + (i % 9) as f32).collect();
    for dtype in ENCODED {
        let mut one = vec![0; 7 * dtype.row_bytes(512).expect("whole blocks")];
        encode(dtype, &weights, 512, Some(&importance), &mut one).expect("it encodes");
        for threads in [0, 2, 3, 7, 100] {
            let mut many = vec![0; one.len()];
            encode_with_threads(dtype, &weights, 512, Some(&importance), threads, &mut many).expect("it encodes");
            assert_eq!(one, many, "{dtype} on {threads} threads");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    // 9 blocks of 32 a row: groups of eight blocks reach over rows.
    let weights: Vec<f32> = (0..3 * 288).map(|i| (i as f32 * 1.3).cos()).collect();
    let importance: Vec<f32> = (0..288).map(|i| 0.5 + (i % 7) as f32).collect();
    for dtype in ENCODED.into_iter().filter(|dtype| dtype.packing().0 <= 32) {
        let row_bytes = dtype.row_bytes(288).expect("whole blocks");
        let mut all = vec![0; 3 * row_bytes];
        encode(dtype, &weights, 288, Some(&importance), &mut all).expect("it encodes");
        for row in 0..3 {
            let mut alone = vec![0; row_bytes];
            encode(dtype, &weights[row * 288..][..288], 288, Some(&importance), &mut alone).expect("it encodes");
            assert_eq!(alone, all[row * row_bytes..][..row_bytes], "{dtype}, row {row}");
        }
    }
}

#[test]
fn importances_buy_accuracy_where_they_are_high() {
    let weights: Vec<f32> = (0..256).map(|i| (i as f32 * 12.9898).sin() * 0.1).collect();
    let importance: Vec<f32> = (0..256).map(|i| if i % 8 == 0 { 100.0 } else { 1.0 }).collect();
    let noise = |decoded: &[f32]| -> f64 {
        weights.iter().zip(decoded).step_by(8).map(|(x, y)| f64::from(x - y).powi(2)).sum()
    };
    for dtype in ENCODED.into_iter().filter(|dtype| dtype.is_block()) {
        let (plain, weighted) = (round_trip(dtype, &weights, None), round_trip(dtype, &weights, Some(&importance)));
        assert!(noise(&weighted) <= noise(&plain), "{dtype}: {} > {}", noise(&weighted), noise(&plain));
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let q4k = DType::Block(BlockFormat::Q4_K);
    let mut out = vec![0; 144];
    assert_eq!(encode(DType::I8, &[], 0, None, &mut []), Err(EncodeError::Unsupported(DType::I8)));
    assert_eq!(
        encode(q4k, &[0.0; 576], 576, None, &mut out),
        Err(EncodeError::PartialBlock { dtype: q4k, columns: 576 })
    );
    assert_eq!(
        encode(q4k, &[0.0; 512], 256, None, &mut out),
        Err(EncodeError::Length { dtype: q4k, values: 512, columns: 256, bytes: 144 })
    );
    assert_eq!(
        encode(q4k, &[0.0; 256], 256, Some(&[1.0; 3]), &mut out),
        Err(EncodeError::Importances { importances: 3, columns: 256 })
    );
    let mut importance = [1.0; 256];
    importance[9] = -1.0;
    assert_eq!(
        encode(q4k, &[0.0; 256], 256, Some(&importance), &mut out),
        Err(EncodeError::BadImportance { column: 9, value: -1.0 })
    );
    let mut weights = vec![0.0; 5 * 256];
    weights[4 * 256 + 3] = f32::INFINITY;
    let refused = encode_with_threads(q4k, &weights, 256, None, 3, &mut vec![0; 5 * 144]);
    assert_eq!(refused, Err(EncodeError::NotFinite { row: 4, column: 3, value: f32::INFINITY }));
}

#[test]
fn weights_beyond_16_bits_are_refused_by_row_and_column() {
    for (dtype, value) in [(DType::F16, 65_520.0), (DType::BF16, f32::MAX)] {
        let mut weights = vec![1.0; 5 * 300];
        weights[3 * 300 + 270] = -value;
        let refused = encode_with_threads(dtype, &weights, 300, None, 3, &mut vec![0; 5 * 600]);
        let expected = EncodeError::OutOfRange { row: 3, column: 270, value: -value, dtype };
        assert_eq!(refused, Err(expected.clone()));
        assert!(expected.behind_rows(7).to_string().contains("weight 270 of row 10 is -"));
        // The largest that is a number.
        weights[3 * 300 + 270] = if dtype == DType::F16 { 65_504.0 } else { 3.38e38 };
        assert_eq!(encode_with_threads(dtype, &weights, 300, None, 3, &mut vec![0; 5 * 600]), Ok(()));
    }
}
