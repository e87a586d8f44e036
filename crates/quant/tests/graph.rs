//! Quantized graphs on the reference interpreter: how far they may be from the float graph, and what is observed and rounded how.

use crate::support::{Random, calibrated, first, options, window};
use core_tensor::op::{
    Binary, Conv, Gather, LayerNormalization, MatMul, Op, Pool, PoolKind, Reduce, ReduceKind, Reshape, Unary, Window,
};
use core_tensor::{BlockFormat, DType, Dim, Graph, Tensor, ValueId, Weight};
use polaris_quant::gptq::Feedback;
use polaris_quant::graph::{
    ActivationScale, ByteRounding, Calibration, GraphOptions, GraphQuantError, GraphType, Hessian, Matrix, RangeMethod,
    RangeObserver, encode_i4, encode_i8, gptq_i4, quantize,
};
use proptest::prelude::*;

/// Per row, around 0.
const BYTES: ByteRounding = ByteRounding { per_tensor: false, asymmetric: false, clip: false, threads: 2 };

fn operators(graph: &Graph, name: &str) -> usize {
    graph.nodes().iter().filter(|node| node.op.name() == name).count()
}

fn product(random: &mut Random, k: usize, n: usize, transposed: bool, bias: bool) -> (Graph, Matrix) {
    let mut graph = Graph::new("product");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), k.into()]);
    let shape = if transposed { [n, k] } else { [k, n] };
    let tensor = random.tensor(&shape);
    let stored = Matrix { rows: shape[0], columns: shape[1], values: tensor.to_f32().unwrap() };
    let w = graph.weight("w", Weight::stored(tensor));
    let mut y = graph.add("y", Op::MatMul(MatMul { transpose_b: transposed }), &[x, w]).unwrap();
    if bias {
        let b = graph.weight("b", Weight::stored(random.tensor(&[n])));
        y = graph.add("z", Op::Binary(Binary::Add), &[y, b]).unwrap();
    }
    graph.output(y);
    (graph, if transposed { stored } else { stored.transposed() })
}

fn convolution(random: &mut Random, groups: usize, channels: usize, out: usize) -> (Graph, Matrix) {
    let mut graph = Graph::new("convolution");
    let x = graph.input("x", DType::F32, &[1.into(), channels.into(), 7.into(), 6.into()]);
    let tensor = random.tensor(&[out, channels / groups, 3, 3]);
    let matrix = Matrix { rows: out, columns: channels / groups * 9, values: tensor.to_f32().unwrap() };
    let w = graph.weight("w", Weight::stored(tensor));
    let b = graph.weight("b", Weight::stored(random.tensor(&[out])));
    let y = graph.add("y", Op::Conv(Conv { window: window(1), groups }), &[x, w, b]).unwrap();
    graph.output(y);
    (graph, matrix)
}

/// The largest magnitude.
fn most(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, x| most.max(x.abs()))
}

/// What the product of `count` elements of activations may change by, if activations change by `dx` and weights by `dw` at most each.
fn bound(x: &[f32], w: &[f32], count: usize, dx: f32, dw: f32) -> f32 {
    let (x, w) = (most(x), most(w));
    count as f32 * (x * dw + w * dx + dx * dw) * 1.001 + 1e-4
}

fn assert_within(found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        assert!((x - y).abs() <= bound, "element {i}: {x} instead of {y}, {bound} allowed");
    }
}

/// The step of 8-bit activations of this range, 0 included.
fn step(x: &[f32]) -> f32 {
    let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(low, high), x| (low.min(*x), high.max(*x)));
    (high - low) / 255.0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_of_8_bits_are_within_half_a_step_of_each_factor(
        seed in any::<u64>(), k in 1usize..40, n in 1usize..20, rows in 1usize..5, transposed: bool, bias: bool,
        per_tensor: bool, symmetric: bool, asymmetric: bool,
    ) {
        let mut random = Random(seed);
        let (graph, w) = product(&mut random, k, n, transposed, bias);
        let x = random.tensor(&[rows, k]);
        let values = x.to_f32().unwrap();
        let expected = first(&graph, std::slice::from_ref(&x));
        // A zero point that is rounded cuts half a step at an end, of a range of 255 steps and not of 254 around 0.
        let dw = if asymmetric { 2.0 * most(&w.values) / 255.0 } else { most(&w.values) / 254.0 };
        for ty in [GraphType::Int8Weights, GraphType::Int8Dynamic, GraphType::Int8] {
            let options = GraphOptions { per_tensor, symmetric, asymmetric, ..options(ty) };
            let calibration = calibrated(&graph, &options, &[vec![x.clone()]]);
            let (new, changes) = quantize(&graph, &options, &calibration).unwrap();
            prop_assert_eq!(changes.len(), 1);
            prop_assert_eq!(&changes[0].shape, &vec![k, n]);
            let dx = match ty {
                GraphType::Int8Weights => 0.0,
                // Half a step, and as much again where a rounded zero point cuts an end.
                _ if symmetric && ty == GraphType::Int8 => most(&values) / 127.0,
                _ => step(&values),
            };
            assert_within(&first(&new, std::slice::from_ref(&x)), &expected, bound(&values, &w.values, k, dx, dw));
        }
    }

    #[test]
    fn convolutions_of_8_bits_are_within_half_a_step_of_each_factor(
        seed in any::<u64>(), groups in 1usize..4, per_group in 1usize..3, multiplier in 1usize..3, per_tensor: bool,
    ) {
        let mut random = Random(seed);
        let (graph, w) = convolution(&mut random, groups, groups * per_group, groups * multiplier);
        let x = random.tensor(&[1, groups * per_group, 7, 6]);
        let values = x.to_f32().unwrap();
        let expected = first(&graph, std::slice::from_ref(&x));
        for ty in [GraphType::Int8Weights, GraphType::Int8Dynamic, GraphType::Int8] {
            let options = GraphOptions { per_tensor, ..options(ty) };
            let calibration = calibrated(&graph, &options, &[vec![x.clone()]]);
            let (new, _) = quantize(&graph, &options, &calibration).unwrap();
            let dx = if ty == GraphType::Int8Weights { 0.0 } else { step(&values) };
            let dw = most(&w.values) / 254.0;
            assert_within(&first(&new, std::slice::from_ref(&x)), &expected, bound(&values, &w.values, w.columns, dx, dw));
        }
    }

    #[test]
    fn products_of_4_bits_are_within_the_error_of_their_groups(
        seed in any::<u64>(), blocks in 1usize..6, n in 1usize..9, transposed: bool, group in prop::sample::select(vec![32usize, 64, 128]),
    ) {
        let mut random = Random(seed);
        let k = 32 * blocks;
        let (graph, w) = product(&mut random, k, n, transposed, false);
        let x = random.tensor(&[2, k]);
        let (new, changes) = quantize(&graph, &options(GraphType::Int4 { group }), &Calibration::default()).unwrap();
        let format = DType::Block(BlockFormat::Q4_0);
        prop_assert!(new.weights().any(|(_, weight)| weight.dtype() == format));
        prop_assert_eq!(&changes[0].to, &format!("i4-g{}", if k % group == 0 { group } else { 32 }));
        let (found, expected) = (first(&new, std::slice::from_ref(&x)), first(&graph, std::slice::from_ref(&x)));
        let values = x.to_f32().unwrap();
        // A group whose largest element becomes -8 errs by a step in no element (7 where 8 would be); none of the scales tried may be worse.
        let group = if k % group == 0 { group } else { 32 };
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let (row, column) = (i / n, i % n);
            let parts = w.row(column).chunks(group).zip(values[row * k..][..k].chunks(group));
            let bound: f32 = parts
                .map(|(w, x)| {
                    let step = most(w) / 8.0 * 1.002;
                    let squares: f32 = x.iter().map(|x| x * x).sum();
                    (squares * w.len() as f32).sqrt() * step
                })
                .sum();
            prop_assert!((found - expected).abs() <= bound, "{found} {expected} {bound}");
        }
    }
}

#[test]
fn tables_have_a_scale_for_each_row_or_group() {
    let mut random = Random(7);
    let mut graph = Graph::new("table");
    let ids = graph.input("ids", DType::I64, &[1.into(), Dim::sym("tokens")]);
    // Rows of very different size.
    let table: Vec<f32> =
        (0..20).flat_map(|row| random.normals(64).into_iter().map(move |x| x * 10f32.powi(row % 5 - 2))).collect();
    let w = graph.weight("table", Weight::stored(Tensor::from_slice(&[20, 64], &table).unwrap()));
    let y = graph.add("y", Op::Gather(Gather { axis: 0 }), &[w, ids]).unwrap();
    graph.output(y);
    let ids = Tensor::from_slice(&[1, 4], &[3i64, 0, 19, 7]).unwrap();
    let expected = first(&graph, std::slice::from_ref(&ids));
    for (ty, levels) in
        [(GraphType::Int8Dynamic, 254.0), (GraphType::Int8Weights, 254.0), (GraphType::Int4 { group: 32 }, 6.5)]
    {
        let (new, changes) = quantize(&graph, &options(ty), &Calibration::default()).unwrap();
        assert_eq!(new.tensor_type(new.outputs()[0]), graph.tensor_type(graph.outputs()[0]));
        assert!(changes[0].noise < changes[0].power / 100.0);
        let found = first(&new, std::slice::from_ref(&ids));
        for (found, expected) in found.chunks(64).zip(expected.chunks(64)) {
            assert_within(found, expected, most(expected) / levels * 1.001);
        }
    }
    let kept = GraphOptions { tables: false, ..options(GraphType::Int8Dynamic) };
    assert!(matches!(quantize(&graph, &kept, &Calibration::default()), Err(GraphQuantError::Nothing { .. })));
}

#[test]
fn one_quantization_of_activations_serves_all_products() {
    let mut random = Random(8);
    let mut graph = Graph::new("heads");
    let x = graph.input("x", DType::F32, &[2.into(), 32.into()]);
    for name in ["q", "k", "v"] {
        let w = graph.weight(&format!("{name}.w"), Weight::stored(random.tensor(&[32, 32])));
        let y = graph.add(name, Op::MatMul(MatMul { transpose_b: true }), &[x, w]).unwrap();
        graph.output(y);
    }
    let (new, _) = quantize(&graph, &options(GraphType::Int8Dynamic), &Calibration::default()).unwrap();
    assert_eq!((operators(&new, "DynamicQuantizeLinear"), operators(&new, "MatMulInteger")), (1, 3));
    let names: Vec<&str> = new.outputs().iter().map(|id| new.value(*id).name.as_str()).collect();
    assert_eq!(names, ["q", "k", "v"]);
    let options = options(GraphType::Int8);
    let calibration = calibrated(&graph, &options, &[vec![random.tensor(&[2, 32])]]);
    let (new, _) = quantize(&graph, &options, &calibration).unwrap();
    assert_eq!(operators(&new, "QuantizeLinear"), 1);
}

/// conv → relu → max pool → conv ─ add → relu → mean → reshape → product
///                      └─────────┘
fn network(random: &mut Random) -> Graph {
    let mut graph = Graph::new("network");
    let mut x = graph.input("x", DType::F32, &[1.into(), 3.into(), 12.into(), 12.into()]);
    let conv = |graph: &mut Graph, random: &mut Random, name: &str, x: ValueId, from: usize| {
        let w = graph.weight(&format!("{name}.w"), Weight::stored(random.tensor(&[8, from, 3, 3])));
        let b = graph.weight(&format!("{name}.b"), Weight::stored(random.tensor(&[8])));
        graph.add(name, Op::Conv(Conv { window: window(1), groups: 1 }), &[x, w, b]).unwrap()
    };
    x = conv(&mut graph, random, "first", x, 3);
    x = graph.add("first.relu", Op::Unary(Unary::Relu), &[x]).unwrap();
    let pool = Pool {
        kind: PoolKind::Max,
        kernel: vec![2; 2],
        window: Window { strides: vec![2; 2], dilations: vec![1; 2], pads_begin: vec![0; 2], pads_end: vec![0; 2] },
        ceil_mode: false,
        indices: false,
        column_major: false,
    };
    let pooled = graph.add("pool", Op::Pool(pool), &[x]).unwrap();
    x = conv(&mut graph, random, "second", pooled, 8);
    x = graph.add("sum", Op::Binary(Binary::Add), &[x, pooled]).unwrap();
    x = graph.add("sum.relu", Op::Unary(Unary::Relu), &[x]).unwrap();
    x = graph.add("flat", Op::Reshape(Reshape { shape: vec![1.into(), 8.into(), 36.into()] }), &[x]).unwrap();
    x = graph.add("mean", Op::Reduce(Reduce { kind: ReduceKind::Mean }), &[x]).unwrap();
    x = graph.add("features", Op::Reshape(Reshape { shape: vec![1.into(), 8.into()] }), &[x]).unwrap();
    let w = graph.weight("head.w", Weight::stored(random.tensor(&[8, 10])));
    let y = graph.add("head", Op::MatMul(MatMul { transpose_b: false }), &[x, w]).unwrap();
    graph.output(y);
    graph
}

#[test]
fn a_calibrated_network_is_integers_from_its_input_to_its_last_product() {
    let mut random = Random(9);
    let graph = network(&mut random);
    let runs: Vec<Vec<Tensor>> = (0..8).map(|_| vec![random.tensor(&[1, 3, 12, 12])]).collect();
    let float = first(&graph, &runs[0]);
    for method in [RangeMethod::MinMax, RangeMethod::Percentile(0.9999), RangeMethod::Entropy, RangeMethod::Mse] {
        let options = GraphOptions { method, ..options(GraphType::Int8) };
        let calibration = calibrated(&graph, &options, &runs);
        let (new, changes) = quantize(&graph, &options, &calibration).unwrap();
        // x, first.relu, pool, second, sum.relu, flat, mean, features.
        assert_eq!((operators(&new, "QuantizeLinear"), changes.len()), (8, 3));
        let found = first(&new, &runs[0]);
        let noise: f32 = found.iter().zip(&float).map(|(x, y)| (x - y) * (x - y)).sum();
        let power: f32 = float.iter().map(|x| x * x).sum();
        assert!(noise < power * 2e-3, "{method:?}: {noise} of {power}");
        // No product of floats is left.
        let (optimized, _) = polaris_optimizer::optimize(new.clone()).unwrap();
        assert_eq!((operators(&optimized, "Conv"), operators(&optimized, "MatMul")), (0, 0), "{}", optimized.to_text());
        let again = first(&optimized, &runs[0]);
        let apart: f32 = again.iter().zip(&found).map(|(x, y)| (x - y) * (x - y)).sum();
        assert!(apart < power * 1e-4, "{apart} of {power}");
    }
    let uncalibrated = quantize(&graph, &options(GraphType::Int8), &Calibration::default());
    assert!(matches!(uncalibrated, Err(GraphQuantError::NotObserved { .. })));
}

#[test]
fn residuals_of_transformers_stay_floats() {
    let mut random = Random(10);
    let mut graph = Graph::new("block");
    let x = graph.input("x", DType::F32, &[Dim::sym("tokens"), 32.into()]);
    let ones = graph.weight("norm", Weight::stored(Tensor::from_slice(&[32], &[1.0f32; 32]).unwrap()));
    let norm = Op::LayerNormalization(LayerNormalization { epsilon: 1e-5 });
    let normed = graph.add("normed", norm, &[x, ones]).unwrap();
    let w = graph.weight("w", Weight::stored(random.tensor(&[32, 32])));
    let y = graph.add("product", Op::MatMul(MatMul { transpose_b: false }), &[normed, w]).unwrap();
    let y = graph.add("y", Op::Binary(Binary::Add), &[y, normed]).unwrap();
    graph.output(y);
    let options = options(GraphType::Int8);
    let calibration = calibrated(&graph, &options, &[vec![random.tensor(&[3, 32])]]);
    let (new, _) = quantize(&graph, &options, &calibration).unwrap();
    let sum = new.nodes().iter().find(|node| node.name == "y").unwrap();
    let residual = new.nodes().iter().find(|node| Some(node.outputs[0]) == sum.inputs[1]).unwrap();
    assert_eq!(residual.op.name(), "LayerNormalization");
}

#[test]
fn nodes_that_are_skipped_and_small_weights_stay() {
    let mut random = Random(11);
    let graph = network(&mut random);
    let options = GraphOptions { skip: ["first".to_owned()].into(), minimum: 100, ..options(GraphType::Int8Weights) };
    let (new, changes) = quantize(&graph, &options, &Calibration::default()).unwrap();
    assert_eq!(changes.iter().map(|change| change.node.as_str()).collect::<Vec<_>>(), ["second"]);
    let again = quantize(&new, &GraphOptions { minimum: 1, ..options.clone() }, &Calibration::default()).unwrap().0;
    assert_eq!(operators(&again, "DequantizeLinear"), 2);
    let dynamic = GraphOptions::new(GraphType::Int8Dynamic);
    let (new, _) = quantize(&graph, &GraphOptions { minimum: 1, ..dynamic.clone() }, &Calibration::default()).unwrap();
    assert!(matches!(quantize(&new, &dynamic, &Calibration::default()), Err(GraphQuantError::Quantized { .. })));
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let mut graph = Graph::new("nan");
    let x = graph.input("x", DType::F32, &[1.into(), 32.into()]);
    let mut values = vec![1.0f32; 32 * 32];
    values[5] = f32::NAN;
    let w = graph.weight("w", Weight::stored(Tensor::from_slice(&[32, 32], &values).unwrap()));
    let y = graph.add("y", Op::MatMul(MatMul { transpose_b: false }), &[x, w]).unwrap();
    graph.output(y);
    for ty in [GraphType::Int8Dynamic, GraphType::Int8Weights, GraphType::Int4 { group: 32 }] {
        let found = quantize(&graph, &options(ty), &Calibration::default());
        assert!(matches!(found, Err(GraphQuantError::NotFinite { .. })), "{ty}");
    }
}

#[test]
fn the_names_of_types_are_read_as_they_are_written() {
    for ty in GraphType::ALL {
        assert_eq!(ty.to_string().parse(), Ok(ty));
        assert_eq!(ty.to_string().to_uppercase().parse(), Ok(ty));
    }
    assert!("int4".parse::<GraphType>().is_err());
}

#[test]
fn observers_see_what_sorting_shows() {
    let mut random = Random(12);
    let mut observer = RangeObserver::default();
    assert_eq!(observer.range(RangeMethod::MinMax), None);
    let mut all: Vec<f32> = Vec::new();
    for size in [0.1f32, 1.0, 3.0, 0.5] {
        let values: Vec<f32> = random.normals(5000).iter().map(|x| x * size + 0.2).collect();
        observer.observe(&values);
        all.extend(values);
    }
    observer.observe(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    assert_eq!(observer.count(), 20_000);
    all.sort_by(f32::total_cmp);
    let whole = observer.range(RangeMethod::MinMax).unwrap();
    assert_eq!((whole.low, whole.high), (all[0], all[19_999]));
    let inner = observer.range(RangeMethod::Percentile(0.99)).unwrap();
    // Two bins of 4096 over at most twice the largest magnitude on either side.
    let bin = 4.0 * most(&all) / 4096.0 * 2.0;
    assert!((inner.low - all[100]).abs() <= bin && (inner.high - all[19_899]).abs() <= bin, "{inner:?}");
}

/// The mean squared error of rounding by a range.
fn error(values: &[f32], scale: ActivationScale) -> f64 {
    values.iter().map(|x| f64::from(x - scale.rounded(*x)).powi(2)).sum::<f64>() / values.len() as f64
}

#[test]
fn searched_ranges_cut_outliers_and_lose_less() {
    let mut random = Random(13);
    let mut values = random.normals(80_000);
    values[17] = 60.0;
    let mut observer = RangeObserver::default();
    observer.observe(&values);
    let whole = ActivationScale::asymmetric(observer.range(RangeMethod::MinMax).unwrap());
    // A single element weighs little in a distribution, and its square much in a sum of squares.
    for (method, most) in [(RangeMethod::Mse, 58.0), (RangeMethod::Entropy, 20.0)] {
        let range = observer.range(method).unwrap();
        assert!(range.high < most && range.high > 2.0, "{method:?}: {range:?}");
    }
    let searched = ActivationScale::asymmetric(observer.range(RangeMethod::Mse).unwrap());
    assert!(error(&values, searched) < error(&values, whole));
    // Where there is nothing to cut, next to nothing is.
    let flat: Vec<f32> = (0..80_000).map(|i| i as f32 / 40_000.0 - 1.0).collect();
    let mut observer = RangeObserver::default();
    observer.observe(&flat);
    for method in [RangeMethod::Mse, RangeMethod::Entropy] {
        assert!(observer.range(method).unwrap().high > 0.93, "{method:?}");
    }
}

#[test]
fn bytes_stand_for_zero_exactly() {
    let mut random = Random(14);
    for _ in 0..100 {
        let (a, b) = (random.normal() * 3.0, random.normal() * 3.0);
        let range = polaris_quant::graph::Range { low: a.min(b), high: a.max(b) };
        for scale in [ActivationScale::asymmetric(range), ActivationScale::symmetric(range)] {
            assert_eq!(scale.rounded(0.0), 0.0);
            for x in [range.low, range.high] {
                assert!((scale.rounded(x) - x).abs() <= scale.scale * 1.001, "{x} {scale:?}");
            }
        }
    }
}

#[test]
fn zeros_and_least_scales_are_kept() {
    let matrix = Matrix { rows: 2, columns: 3, values: vec![0.0, 0.0, 0.0, 1.0, -2.0, 0.5] };
    let rows = encode_i8(&matrix, &BYTES, None, None);
    assert_eq!((&rows.codes[..3], rows.codes[4]), (&[0i8; 3][..], -127));
    let rows = encode_i8(&matrix, &BYTES, Some(&[0.0, 1.0]), None);
    assert_eq!((rows.scales[1], &rows.codes[3..]), (1.0, &[1i8, -2, 0][..]));
}

#[test]
fn gptq_changes_products_with_correlated_activations_less_than_rounding() {
    let mut random = Random(15);
    let (k, n, samples) = (96, 24, 400);
    // Eight directions and a little noise, of different size in each column.
    let directions = random.normals(8 * k);
    let mut hessian = Hessian::new(k);
    let mut rows = Vec::new();
    for _ in 0..samples {
        let mix = random.normals(8);
        let row: Vec<f32> = (0..k)
            .map(|j| {
                let x: f32 = mix.iter().enumerate().map(|(d, m)| m * directions[d * k + j]).sum();
                (x + 0.3 * random.normal()) * (1.0 + (j % 7) as f32)
            })
            .collect();
        hessian.observe(&row);
        rows.push(row);
    }
    let matrix = Matrix { rows: n, columns: k, values: random.normals(n * k) };
    let feedback = Feedback::of(&hessian, 0.01).unwrap();
    for group in [32, 96] {
        let plain = encode_i4(&matrix, group, None, 2);
        let careful = gptq_i4(&matrix, &feedback, group, 2).unwrap();
        assert_eq!(gptq_i4(&matrix, &feedback, group, 1).unwrap(), careful);
        let loss = |groups: &polaris_quant::graph::I4Groups| -> f64 {
            let mut sum = 0.0;
            for row in &rows {
                for i in 0..n {
                    let d: f32 = (0..k).map(|j| row[j] * (matrix.values[i * k + j] - groups.decoded(i, j))).sum();
                    sum += f64::from(d) * f64::from(d);
                }
            }
            sum
        };
        let (plain, careful) = (loss(&plain), loss(&careful));
        assert!(careful < 0.5 * plain, "group {group}: {careful} and {plain}");
    }
    let other = Matrix { rows: 1, columns: k - 1, values: vec![1.0; k - 1] };
    assert!(gptq_i4(&other, &feedback, 32, 1).is_err());
}

#[test]
fn gptq_of_independent_activations_is_rounding() {
    let mut random = Random(16);
    let k = 32;
    let mut hessian = Hessian::new(k);
    for i in 0..k {
        let mut row = vec![0.0; k];
        row[i] = 2.0;
        hessian.observe(&row);
    }
    let matrix = Matrix { rows: 5, columns: k, values: random.normals(5 * k) };
    let feedback = Feedback::of(&hessian, 0.01).unwrap();
    assert_eq!(gptq_i4(&matrix, &feedback, 32, 1).unwrap().codes, encode_i4(&matrix, 32, None, 1).codes);
}
