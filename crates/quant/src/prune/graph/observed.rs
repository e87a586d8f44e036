//! What meets the weight of a site.

use core_tensor::op::Window;

use super::sites::{Kind, Site};
use crate::graph::Hessian;

/// Places of an image that are looked at in one run at most, at equal distances.
const PLACES: usize = 512;

/// Sums of products, or of squares alone, of what meets a site's weight.
#[derive(Clone, Debug)]
pub struct Observed {
    kind: Kind,
    columns: usize,
    hessian: Option<Hessian>,
    squares: Vec<f64>,
    rows: u64,
}

impl Observed {
    /// Nothing yet; `products` take `columns²` numbers of 8 bytes, and are not observed where there is no memory for them.
    #[must_use]
    pub fn new(site: &Site, products: bool) -> Observed {
        Observed {
            kind: site.kind.clone(),
            columns: site.columns,
            hessian: products.then(|| Hessian::fitting(site.columns)).flatten(),
            squares: vec![0.0; site.columns],
            rows: 0,
        }
    }

    /// Looks at what the site's input was in a run. Of images, windows at 512 places at most are seen.
    pub fn observe(&mut self, shape: &[usize], elements: &[f32]) {
        match &self.kind {
            Kind::Product { .. } => self.rows(elements),
            Kind::Convolution { window, kernel } => {
                let rows = unfolded(shape, elements, window, kernel);
                self.rows(&rows);
            }
        }
    }

    fn rows(&mut self, elements: &[f32]) {
        if let Some(hessian) = &mut self.hessian {
            hessian.observe(elements);
        }
        for row in elements.chunks_exact(self.columns).filter(|row| row.iter().all(|x| x.is_finite())) {
            self.squares.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x).powi(2));
            self.rows += 1;
        }
    }

    /// Mean squares of the columns; none where nothing was seen.
    #[must_use]
    pub fn mean_squares(&self) -> Option<Vec<f32>> {
        (self.rows > 0).then(|| self.squares.iter().map(|sum| (sum / self.rows as f64) as f32).collect())
    }

    /// Means of the products, `[columns, columns]`; none where they were not asked for or nothing was seen.
    #[must_use]
    pub fn products(&self) -> Option<Vec<f32>> {
        let hessian = self.hessian.as_ref().filter(|hessian| hessian.rows > 0)?;
        let rows = hessian.rows as f64;
        let k = self.columns;
        Some((0..k * k).map(|at| (hessian.product(at / k, at % k) / rows) as f32).collect())
    }
}

/// What windows of an image `[batch, channels, spatial...]` see, a row for each place: `[places, channels, kernel...]`.
fn unfolded(shape: &[usize], elements: &[f32], window: &Window, kernel: &[usize]) -> Vec<f32> {
    let [batch, channels, spatial @ ..] = shape else { return Vec::new() };
    let rank = kernel.len();
    if spatial.len() != rank || [&window.strides, &window.dilations, &window.pads_begin].iter().any(|l| l.len() != rank)
    {
        return Vec::new();
    }
    let places: Vec<usize> = (0..rank)
        .map(|i| {
            let padded = spatial[i] + window.pads_begin[i] + window.pads_end.get(i).copied().unwrap_or(0);
            let reach = window.dilations[i] * (kernel[i].max(1) - 1) + 1;
            padded.checked_sub(reach).map_or(0, |room| room / window.strides[i].max(1) + 1)
        })
        .collect();
    let of_image: usize = places.iter().product();
    let (plane, taps): (usize, usize) = (spatial.iter().product(), kernel.iter().product());
    let total = batch * of_image;
    let mut rows = Vec::new();
    for place in (0..total).step_by(total.div_ceil(PLACES).max(1)) {
        let (image, place) = (place / of_image, place % of_image);
        // Where each tap of the window lies in a channel; none in the padding.
        let tap_places: Vec<Option<usize>> = (0..taps)
            .map(|tap| {
                let (mut tap, mut place, mut at, mut stride) = (tap, place, 0, 1);
                for i in (0..rank).rev() {
                    let from = (place % places[i]) * window.strides[i] + (tap % kernel[i]) * window.dilations[i];
                    let x = from.checked_sub(window.pads_begin[i]).filter(|x| *x < spatial[i])?;
                    at += x * stride;
                    stride *= spatial[i];
                    place /= places[i];
                    tap /= kernel[i];
                }
                Some(at)
            })
            .collect();
        for channel in 0..*channels {
            let start = (image * channels + channel) * plane;
            let seen = |at: &Option<usize>| at.and_then(|at| elements.get(start + at)).copied().unwrap_or(0.0);
            rows.extend(tap_places.iter().map(seen));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_rows_with_zeros_in_the_padding() {
        let window =
            Window { strides: vec![2, 1], dilations: vec![1, 1], pads_begin: vec![1, 0], pads_end: vec![0, 0] };
        // One channel: 1 2 3 / 4 5 6.
        let rows = unfolded(&[1, 1, 2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &window, &[2, 2]);
        assert_eq!(rows, [0.0, 0.0, 1.0, 2.0, /**/ 0.0, 0.0, 2.0, 3.0]);
        let window = Window { strides: vec![1], dilations: vec![2], pads_begin: vec![0], pads_end: vec![0] };
        // Two channels.
        let rows = unfolded(&[1, 2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &window, &[2]);
        assert_eq!(rows, [1.0, 3.0, 4.0, 6.0]);
        assert!(unfolded(&[1, 2], &[1.0, 2.0], &window, &[2]).is_empty());
    }
}
