//! Resampling of images: by factors, and at given places.

use core_tensor::op::{CoordinateMode, GridMode, GridPadding, GridSample, NearestMode, Op, Resize, ResizeMode, Scalar};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor};

use crate::compare::Case;
use crate::random::Random;

const COORDINATES: [CoordinateMode; 5] = [
    CoordinateMode::HalfPixel,
    CoordinateMode::HalfPixelSymmetric,
    CoordinateMode::PytorchHalfPixel,
    CoordinateMode::AlignCorners,
    CoordinateMode::Asymmetric,
];

fn resize(mode: ResizeMode, coordinates: CoordinateMode, shape: &[Dim]) -> Resize {
    Resize {
        mode,
        coordinates,
        shape: shape.to_vec(),
        scales: None,
        antialias: false,
        exclude_outside: false,
        extrapolation_value: 0.0,
    }
}

#[test]
fn the_nearest_elements_of_every_size_are_the_references() {
    use NearestMode::{Ceil, Floor, RoundPreferCeil, RoundPreferFloor};
    for dtype in [DType::F32, DType::I64, DType::F16, DType::U8] {
        let mut random = Random::new(1);
        let mut graph = Graph::new("nearest");
        let rows = Dim::sym("rows");
        let x = graph.input("x", dtype, &[2.into(), rows.clone(), 12.into()]);
        for rounding in [Floor, Ceil, RoundPreferFloor, RoundPreferCeil] {
            for coordinates in COORDINATES {
                let mode = ResizeMode::Nearest(rounding);
                // Factors that are whole, have no end as floats, and are 1 in one extent.
                let shapes = [
                    [2.into(), rows.clone().mul(2.into()), 30.into()],
                    [1.into(), rows.clone().add(4.into()), 7.into()],
                    [2.into(), rows.clone(), 1.into()],
                ];
                for shape in shapes {
                    let y = graph.add("y", Op::Resize(resize(mode, coordinates, &shape)), &[x]).expect("a resize");
                    graph.output(y);
                }
            }
        }
        let steps = [1, 9, 5].map(|rows| vec![random.stored(dtype, &[2, rows, 12])]);
        Case::new(graph, Bindings::new().with("rows", 9), steps.into()).everywhere().exact().check();
    }
}

#[test]
fn factors_count_as_given_to_the_last_digit() {
    let mut random = Random::new(2);
    for (factor, from) in [(0.6f32, 50), (1.1, 37), (2.3, 41), (0.8, 35), (0.3, 100), (1.0 / 3.0, 99)] {
        let to = (f64::from(factor) * from as f64).floor() as usize;
        let mut graph = Graph::new("factors");
        let x = graph.input("x", DType::F32, &[from.into()]);
        for coordinates in COORDINATES {
            for rounding in
                [NearestMode::Floor, NearestMode::Ceil, NearestMode::RoundPreferFloor, NearestMode::RoundPreferCeil]
            {
                let op = resize(ResizeMode::Nearest(rounding), coordinates, &[to.into()]);
                let op = Op::Resize(Resize { scales: Some(vec![factor]), ..op });
                let y = graph.add("y", op, &[x]).expect("a resize");
                graph.output(y);
            }
        }
        let steps = vec![vec![random.f32(&[from])]];
        Case::new(graph, Bindings::new(), steps).everywhere().exact().check();
    }
}

#[test]
fn linear_and_cubic_filters_agree_whole_stretched_and_cut() {
    for mode in [ResizeMode::Linear, ResizeMode::Cubic(Scalar::new(-0.75)), ResizeMode::Cubic(Scalar::new(-0.5))] {
        let mut random = Random::new(3);
        let mut graph = Graph::new("filters");
        let rows = Dim::sym("rows");
        let x = graph.input("x", DType::F32, &[2.into(), rows.clone(), 12.into()]);
        for coordinates in COORDINATES {
            for (antialias, exclude_outside) in [(false, false), (true, false), (false, true)] {
                let shapes = [
                    ([2.into(), rows.clone().mul(2.into()), 30.into()], None),
                    ([1.into(), rows.clone().add(4.into()), 5.into()], None),
                    ([2.into(), rows.clone(), 7.into()], Some(vec![1.0, 1.0, 0.6])),
                ];
                for (shape, scales) in shapes {
                    let op = Resize { antialias, exclude_outside, scales, ..resize(mode, coordinates, &shape) };
                    let y = graph.add("y", Op::Resize(op), &[x]).expect("a resize");
                    graph.output(y);
                }
            }
        }
        let steps = [1, 9, 5].map(|rows| vec![random.f32(&[2, rows, 12])]);
        Case::new(graph, Bindings::new().with("rows", 9), steps.into()).everywhere().check();
    }
}

#[test]
fn samples_at_given_places_agree_in_one_to_three_extents() {
    for spatial in [&[9][..], &[5, 8], &[3, 4, 5]] {
        let mut random = Random::new(spatial.len() as u64);
        let mut graph = Graph::new("samples");
        let dims = |shape: &[usize]| shape.iter().map(|n| Dim::Num(*n)).collect::<Vec<_>>();
        let places: Vec<usize> = spatial.iter().map(|n| n + 2).collect();
        let shapes = [[&[2, 3][..], spatial].concat(), [&[2][..], &places, &[spatial.len()]].concat()];
        let x = graph.input("x", DType::F32, &dims(&shapes[0]));
        let grid = graph.input("grid", DType::F32, &dims(&shapes[1]));
        for mode in [GridMode::Linear, GridMode::Nearest, GridMode::Cubic] {
            for padding in [GridPadding::Zeros, GridPadding::Border, GridPadding::Reflection] {
                for align_corners in [false, true] {
                    let op = Op::GridSample(GridSample { mode, padding, align_corners });
                    let y = graph.add("y", op, &[x, grid]).expect("samples");
                    graph.output(y);
                }
            }
        }
        // Inside, and far outside.
        let steps: Vec<Vec<Tensor>> =
            [1.0, 2.5].map(|far| vec![random.f32(&shapes[0]), random.scaled_f32(&shapes[1], far)]).into();
        Case::new(graph, Bindings::new(), steps).everywhere().check();
    }
}
