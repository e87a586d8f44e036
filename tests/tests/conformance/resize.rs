//! Resampling of images.

use core_tensor::op::{CoordinateMode, NearestMode, Op, Resize, ResizeMode, Scalar};
use core_tensor::{Bindings, DType, Dim, Graph};

use crate::compare::Case;
use crate::random::Random;

fn case(from: &[usize], to: &[usize], resize: impl Fn(Resize) -> Resize, seed: u64) -> Case {
    let mut random = Random::new(seed);
    let mut graph = Graph::new("resize");
    let shape: Vec<Dim> = from.iter().copied().map(Dim::from).collect();
    let x = graph.input("x", DType::F32, &shape);
    let op = resize(Resize {
        mode: ResizeMode::Linear,
        coordinates: CoordinateMode::HalfPixel,
        shape: to.iter().copied().map(Dim::from).collect(),
        scales: None,
        antialias: false,
        exclude_outside: false,
        extrapolation_value: 0.0,
    });
    let y = graph.add("y", Op::Resize(op), &[x]).expect("a resize");
    graph.output(y);
    let steps = vec![vec![random.f32(from)]];
    Case::new(graph, Bindings::new(), steps)
}

#[test]
fn every_mode_and_coordinate_agrees() {
    let modes = [
        ResizeMode::Linear,
        ResizeMode::Cubic(Scalar::new(-0.75)),
        ResizeMode::Nearest(NearestMode::RoundPreferFloor),
        ResizeMode::Nearest(NearestMode::RoundPreferCeil),
        ResizeMode::Nearest(NearestMode::Floor),
        ResizeMode::Nearest(NearestMode::Ceil),
    ];
    let coordinates = [
        CoordinateMode::HalfPixel,
        CoordinateMode::HalfPixelSymmetric,
        CoordinateMode::PytorchHalfPixel,
        CoordinateMode::AlignCorners,
        CoordinateMode::Asymmetric,
    ];
    let mut seed = 0;
    for mode in modes {
        for coordinates in coordinates {
            let of = |op| Resize { mode, coordinates, ..op };
            seed += 3;
            case(&[1, 18, 5, 7], &[1, 18, 11, 14], of, seed).check();
            case(&[2, 3, 9, 8], &[2, 3, 4, 1], of, seed + 1).check();
            case(&[1, 16, 6], &[1, 16, 13], of, seed + 2).check();
        }
    }
}

#[test]
fn factors_count_as_given() {
    let scaled = |op| Resize { scales: Some(vec![1.0, 1.0, 2.3, 0.6]), ..op };
    case(&[1, 20, 5, 10], &[1, 20, 11, 6], scaled, 200).check();
    let nearest = |op| Resize {
        mode: ResizeMode::Nearest(NearestMode::Floor),
        coordinates: CoordinateMode::Asymmetric,
        ..scaled(op)
    };
    case(&[1, 20, 5, 10], &[1, 20, 11, 6], nearest, 201).check();
}

#[test]
fn what_has_no_kernel_agrees() {
    case(&[1, 4, 8, 8], &[1, 4, 3, 3], |op| Resize { antialias: true, ..op }, 300).check();
    case(&[1, 4, 8, 8], &[1, 8, 8, 8], |op| op, 301).check();
    let excluded = |op| Resize { mode: ResizeMode::Cubic(Scalar::new(-0.5)), exclude_outside: true, ..op };
    case(&[1, 4, 4, 4], &[1, 4, 9, 9], excluded, 302).check();
}
