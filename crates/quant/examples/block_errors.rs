//! Errors and speed of every encoder on a matrix of f32 in a file:
//! `cargo run --release -p polaris-quant --example block_errors -- WEIGHTS COLUMNS [IMPORTANCES]`.
//!
//! Prints one line per dtype: nanoseconds per weight on one thread and the relative (weighted) squared error, without
//! importances and with them.

use std::error::Error;
use std::time::Instant;

use core_tensor::{DType, decode_f32};
use polaris_quant::block::{ENCODED, encode};

fn floats(path: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(path), Some(columns)) = (arguments.first(), arguments.get(1)) else {
        return Err("usage: block_errors WEIGHTS COLUMNS [IMPORTANCES]".into());
    };
    let (weights, columns) = (floats(path)?, columns.parse::<usize>()?);
    let importance = arguments.get(2).map(|path| floats(path)).transpose()?;
    for dtype in ENCODED {
        let Some(row_bytes) = dtype.row_bytes(columns) else { continue };
        if dtype == DType::F32 {
            continue;
        }
        let mut line = format!("{:8}", dtype.to_string());
        for importance in [None, importance.as_deref()].into_iter().take(1 + usize::from(importance.is_some())) {
            let mut bytes = vec![0; weights.len() / columns * row_bytes];
            // The best of a few: what else the machine does only slows down.
            let mut nanoseconds = f64::INFINITY;
            for _ in 0..5 {
                let start = Instant::now();
                encode(dtype, &weights, columns, importance, &mut bytes)?;
                nanoseconds = nanoseconds.min(start.elapsed().as_nanos() as f64 / weights.len() as f64);
            }
            let decoded = decode_f32(dtype, &bytes, weights.len())?;
            let (mut noise, mut power) = (0.0f64, 0.0);
            for (i, (x, y)) in weights.iter().zip(&decoded).enumerate() {
                let w = importance.map_or(1.0, |w| f64::from(w[i % columns]));
                noise += w * f64::from(x - y).powi(2);
                power += w * f64::from(*x).powi(2);
            }
            line.push_str(&format!("  {nanoseconds:6.1} ns  {:.9}", noise / power));
        }
        println!("{line}");
    }
    Ok(())
}
