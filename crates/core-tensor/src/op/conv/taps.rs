//! Which elements a window meets.

use super::Window;

/// The coordinates of element `index` of a shape.
pub(crate) fn places(index: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = index;
    let mut coordinates = vec![0; shape.len()];
    for (coordinate, extent) in coordinates.iter_mut().zip(shape).rev() {
        *coordinate = rest % extent;
        rest /= extent;
    }
    coordinates
}

/// The elements of a kernel that lie inside of the input where the window stands at `place`: pairs of an index into the kernel and an index into
/// the spatial extents of the input. (No more of them are looked at than the input has, however large the kernel is.)
pub(crate) fn taps(
    window: &Window,
    place: usize,
    places_shape: &[usize],
    kernel: &[usize],
    spatial: &[usize],
) -> Vec<(usize, usize)> {
    let mut taps = vec![(0usize, 0usize)];
    for (i, at) in places(place, places_shape).into_iter().enumerate() {
        let (start, step) =
            (at as i128 * window.strides[i] as i128 - window.pads_begin[i] as i128, window.dilations[i] as i128);
        let (kernel, extent) = (kernel[i] as i128, spatial[i] as i128);
        // start + k * step in 0..extent
        let first = if start < 0 { (-start + step - 1) / step } else { 0 };
        let end = if start < extent { ((extent - start + step - 1) / step).min(kernel) } else { 0 };
        let mut next = Vec::new();
        for (k, x) in &taps {
            for tap in first..end {
                next.push((
                    k.wrapping_mul(kernel as usize).wrapping_add(tap as usize),
                    x * extent as usize + (start + tap * step) as usize,
                ));
            }
        }
        taps = next;
    }
    taps
}
