//! Outliers of activations moved into weights (Xiao, Lin, Seznec, Wu, Demouth, Han: SmoothQuant, 2022).

use core_tensor::{Graph, ValueId};

use super::super::site::Site;
use super::super::{Calibration, GraphOptions, GraphQuantError};
use super::{Edits, Rebalanced, shared_inputs};

/// Factors that are farther from 1 change more than rounding does.
const FARTHEST: f32 = 1e4;

/// Divides each channel `j` of what products read by `max|xⱼ|^alpha / max|Wⱼ|^(1-alpha)`, and multiplies the weights by it: with `alpha` of 1 all activations are
/// equally large, with 0 all weights. 0.5 is usual.
///
/// # Errors
/// When the graph cannot be quantized, or the values of [`balance_demands`](super::balance_demands) were not observed.
pub fn smooth(
    graph: &Graph,
    options: &GraphOptions,
    alpha: f32,
    calibration: &Calibration,
) -> Result<(Graph, Vec<Rebalanced>), GraphQuantError> {
    let mut edits = Edits::default();
    for shared in shared_inputs(graph, options)? {
        let Some(site) = shared.sites.first() else { continue };
        let activations = calibration.channels(graph, site)?.most();
        let mut weights = vec![0.0f32; activations.len()];
        for site in &shared.sites {
            largest_of_inputs(graph, site, &mut weights)?;
        }
        let factors: Vec<f32> = activations.iter().zip(&weights).map(|(x, w)| factor(*x, *w, alpha)).collect();
        edits.balance(graph, &shared, &factors)?;
    }
    edits.apply(graph)
}

fn factor(x: f32, w: f32, alpha: f32) -> f32 {
    if x <= 0.0 || w <= 0.0 {
        return 1.0;
    }
    let factor = x.powf(alpha) / w.powf(1.0 - alpha);
    if factor.is_finite() { factor.clamp(1.0 / FARTHEST, FARTHEST) } else { 1.0 }
}

/// The largest magnitude of each input's weights, no less than what is there already.
fn largest_of_inputs(graph: &Graph, site: &Site, most: &mut [f32]) -> Result<(), GraphQuantError> {
    let id: ValueId = site.weight;
    let Some(weight) = graph.weight_of(id) else { return Ok(()) };
    let failed = |source| GraphQuantError::Weight { name: graph.value(id).name.clone(), source };
    for row in 0..weight.row_count() {
        let values = weight.rows_f32(row..row + 1).map_err(failed)?;
        if site.input_axis() == 0 {
            most[row] = values.iter().fold(most[row], |most, x| most.max(x.abs()));
        } else {
            most.iter_mut().zip(&values).for_each(|(most, x)| *most = most.max(x.abs()));
        }
    }
    Ok(())
}
