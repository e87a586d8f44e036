//! Products of rows.

use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};

/// The sum of the products, eight sums side by side.
pub(crate) fn dot<T>(a: &[T], b: &[T]) -> T
where
    T: Copy + Default + Add<Output = T> + Mul<Output = T> + AddAssign + Sum,
{
    let (a_chunks, a_rest) = a.as_chunks::<8>();
    let (b_chunks, b_rest) = b.as_chunks::<8>();
    let mut sums = [T::default(); 8];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.into_iter().sum::<T>() + a_rest.iter().zip(b_rest).map(|(a, b)| *a * *b).sum()
}
