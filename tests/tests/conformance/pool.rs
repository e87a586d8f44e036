//! Pooling over windows.

use core_tensor::op::{Op, Pool, PoolKind, Window};
use core_tensor::{Bindings, DType, Dim, Graph};
use proptest::prelude::*;

use crate::compare::Case;
use crate::random::Random;

const PADDED: PoolKind = PoolKind::Average { count_include_pad: true };
const INSIDE: PoolKind = PoolKind::Average { count_include_pad: false };

fn case(image: &[usize], pool: Pool, seed: u64) -> Case {
    let mut random = Random::new(seed);
    let mut graph = Graph::new("pool");
    // The batch is symbolic, and its bound more than it is.
    let mut shape: Vec<Dim> = image.iter().copied().map(Dim::from).collect();
    shape[0] = Dim::sym("batch");
    let x = graph.input("x", DType::F32, &shape);
    let y = graph.add("y", Op::Pool(pool), &[x]).expect("pooling");
    graph.output(y);
    let steps = vec![vec![random.f32(image)]];
    Case::new(graph, Bindings::new().with("batch", image[0] + 1), steps)
}

fn pool(kind: PoolKind, kernel: &[usize], strides: &[usize], begin: &[usize], end: &[usize]) -> Pool {
    let window = Window {
        strides: strides.to_vec(),
        dilations: vec![1; kernel.len()],
        pads_begin: begin.to_vec(),
        pads_end: end.to_vec(),
    };
    Pool { kind, kernel: kernel.to_vec(), window, ceil_mode: false, indices: false, column_major: false }
}

#[test]
fn windows_of_all_kinds_agree() {
    for (i, kind) in [PoolKind::Max, INSIDE, PADDED, PoolKind::Lp { p: 2 }].into_iter().enumerate() {
        let seed = 10 * i as u64;
        case(&[1, 20, 9, 11], pool(kind, &[3, 3], &[2, 2], &[1, 1], &[1, 1]), seed).check();
        case(&[2, 16, 6, 5], pool(kind, &[2, 3], &[1, 2], &[0, 1], &[1, 0]), seed + 1).check();
        case(&[2, 3, 17], pool(kind, &[4], &[3], &[2], &[1]), seed + 2).check();
        let rounded_up = Pool { ceil_mode: true, ..pool(kind, &[3, 3], &[2, 2], &[0, 1], &[0, 1]) };
        case(&[1, 33, 8, 8], rounded_up, seed + 3).check();
        let mut dilated = pool(kind, &[2, 2], &[1, 1], &[1, 1], &[1, 1]);
        dilated.window.dilations = vec![3, 2];
        case(&[1, 5, 7, 6], dilated, seed + 4).check();
    }
}

#[test]
fn places_of_maxima_agree() {
    let pool = Pool { indices: true, ..pool(PoolKind::Max, &[2, 2], &[2, 2], &[0, 0], &[0, 0]) };
    case(&[1, 18, 6, 6], pool, 100).check();
}

#[test]
fn numbers_that_are_none_stay_where_windows_see_them() {
    let mut case = case(&[1, 17, 5, 5], pool(PoolKind::Max, &[3, 3], &[1, 1], &[1, 1], &[1, 1]), 101);
    let mut values = case.steps[0][0].to_f32().expect("floats");
    (values[7], values[60]) = (f32::NAN, f32::NEG_INFINITY);
    case.steps[0][0] = core_tensor::Tensor::from_slice(&[1, 17, 5, 5], &values).expect("an image");
    case.check();
}

proptest! {
    #![proptest_config(crate::random::proptest_config(12))]

    #[test]
    fn pooling_of_any_shape_agrees(
        channels in 1usize..40,
        size in (1usize..12, 1usize..12),
        kernel in (1usize..5, 1usize..5),
        strides in (1usize..4, 1usize..4),
        pads in (0usize..2, 0usize..2),
        which in 0usize..3,
        ceil_mode: bool,
        seed: u64,
    ) {
        prop_assume!(size.0 + 2 * pads.0 >= kernel.0 && size.1 + 2 * pads.1 >= kernel.1);
        prop_assume!(pads.0 < kernel.0 && pads.1 < kernel.1);
        let kind = [PoolKind::Max, INSIDE, PADDED][which];
        let pads = [pads.0, pads.1];
        let pool = pool(kind, &[kernel.0, kernel.1], &[strides.0, strides.1], &pads, &pads);
        case(&[1, channels, size.0, size.1], Pool { ceil_mode, ..pool }, seed).check();
    }
}
