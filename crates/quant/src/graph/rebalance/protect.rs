//! Weights that meet large activations made larger, so that rounding changes them less (Lin et al.: AWQ, activation-aware weight quantization, 2023).

use core_tensor::Graph;

use super::super::bytes::encode_i8;
use super::super::integers::{Matrix, encode_i4};
use super::super::{Calibration, GraphOptions, GraphQuantError, GraphType};
use super::{Edits, Rebalanced, shared_inputs};
use crate::dot::dot;

/// Exponents that are tried, from 0 on.
const EXPONENTS: usize = 10;
/// Outputs of each product that are looked at: rounding treats all alike.
const OUTPUTS: usize = 64;
/// Examples that are looked at.
const EXAMPLES: usize = 96;

/// Multiplies the weights of each input `j` by `mean|xⱼ|^a`, and divides the activations by it, with that `a` of 0 to 1 with which the products change least when
/// their weights are rounded.
///
/// # Errors
/// When the graph cannot be quantized, or the values of [`balance_demands`](super::balance_demands) were not observed.
pub fn protect(
    graph: &Graph,
    options: &GraphOptions,
    calibration: &Calibration,
) -> Result<(Graph, Vec<Rebalanced>), GraphQuantError> {
    let mut edits = Edits::default();
    for shared in shared_inputs(graph, options)? {
        let Some(site) = shared.sites.first() else { continue };
        let seen = calibration.channels(graph, site)?;
        let magnitudes = seen.magnitudes();
        let columns = magnitudes.len();
        let rows = (seen.examples().len() / columns.max(1)).div_ceil(EXAMPLES).max(1);
        let examples: Vec<&[f32]> = seen.examples().chunks_exact(columns.max(1)).step_by(rows).collect();
        let mut parts = Vec::with_capacity(shared.sites.len());
        for site in &shared.sites {
            let matrix = site.matrix(graph)?;
            parts.push(sample(&matrix));
        }
        let mut best = (f64::INFINITY, vec![1.0; columns]);
        for step in 0..EXPONENTS {
            let factors = factors(&magnitudes, step as f32 / EXPONENTS as f32);
            let error: f64 = parts.iter().map(|part| change(part, &factors, &examples, options)).sum();
            if error < best.0 {
                best = (error, factors);
            }
        }
        edits.balance(graph, &shared, &best.1)?;
    }
    edits.apply(graph)
}

/// `magnitude^exponent` around 1.
fn factors(magnitudes: &[f32], exponent: f32) -> Vec<f32> {
    let mut all: Vec<f32> = magnitudes.iter().map(|x| x.max(1e-4).powf(exponent)).collect();
    let (low, high) = all.iter().fold((f32::INFINITY, 0.0f32), |(low, high), x| (low.min(*x), high.max(*x)));
    let middle = (low * high).sqrt();
    if middle > 0.0 && middle.is_finite() {
        all.iter_mut().for_each(|x| *x /= middle);
    }
    all
}

/// Some of the rows, at equal distances.
fn sample(matrix: &Matrix) -> Matrix {
    let distance = matrix.rows.div_ceil(OUTPUTS).max(1);
    let values: Vec<f32> =
        matrix.values.chunks_exact(matrix.columns.max(1)).step_by(distance).flatten().copied().collect();
    Matrix { rows: matrix.rows.div_ceil(distance), columns: matrix.columns, values }
}

/// What rounding with these factors changes of the products with the examples: the sum of squares.
fn change(matrix: &Matrix, factors: &[f32], examples: &[&[f32]], options: &GraphOptions) -> f64 {
    let k = matrix.columns.max(1);
    let values = matrix.values.iter().enumerate().map(|(i, x)| x * factors[i % k]).collect();
    let scaled = Matrix { rows: matrix.rows, columns: matrix.columns, values };
    let decoded = match options.ty {
        GraphType::Int4 { group } => {
            let group = if k.is_multiple_of(group) { group } else { 32 };
            encode_i4(&scaled, group, None, options.threads).decode()
        }
        _ => encode_i8(&scaled, &options.bytes(), None, None).decode(k),
    };
    let mut differences = decoded;
    for (i, (x, w)) in differences.iter_mut().zip(&matrix.values).enumerate() {
        *x = *x / factors[i % k] - w;
    }
    let products = differences.chunks_exact(k).flat_map(|row| examples.iter().map(|x| dot(row, x)));
    products.map(|product| f64::from(product).powi(2)).sum()
}
