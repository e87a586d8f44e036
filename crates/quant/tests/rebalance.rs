//! Factors that are moved between weights: what a graph computes stays the same, and rounding loses less. And what is given back of what rounding takes.

use crate::support::{Random, calibrated, first, options, seen, window};
use core_tensor::op::{Binary, Conv, GatedActivation, LayerNormalization, MatMul, Op, RmsNormalization, Unary};
use core_tensor::{DType, Dim, Graph, Tensor, ValueId, Weight};
use polaris_quant::gptq::Feedback;
use polaris_quant::graph::{
    ByteRounding, Calibration, GraphOptions, GraphQuantError, GraphType, Hessian, Host, HostError, Matrix,
    balance_demands, demands, encode_i4, encode_i4_for, encode_i8, equalize, gptq_i8, protect, quantize, quantize_with,
    smooth,
};

fn weight(graph: &mut Graph, name: &str, shape: &[usize], values: &[f32]) -> ValueId {
    graph.weight(name, Weight::stored(Tensor::from_slice(shape, values).unwrap()))
}

fn product(graph: &mut Graph, random: &mut Random, name: &str, x: ValueId, n: usize) -> ValueId {
    let k = graph.tensor_type(x).unwrap().1.last().unwrap().as_num().unwrap();
    let w = random.normals(k * n);
    let w = weight(graph, &format!("{name}.w"), &[k, n], &w);
    graph.add(name, Op::MatMul(MatMul { transpose_b: false }), &[x, w]).unwrap()
}

fn biased(graph: &mut Graph, random: &mut Random, name: &str, x: ValueId) -> ValueId {
    let n = graph.tensor_type(x).unwrap().1.last().unwrap().as_num().unwrap();
    let b = random.normals(n);
    let b = weight(graph, &format!("{name}.b"), &[n], &b);
    graph.add(&format!("{name}.sum"), Op::Binary(Binary::Add), &[x, b]).unwrap()
}

/// LayerNormalization → two products, one of them → bias → ReLU → product; RMSNormalization → gate and up → product; and a product of what others read, too.
fn layers(random: &mut Random) -> Graph {
    let mut graph = Graph::new("layers");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 32.into()]);
    let scale: Vec<f32> = random.normals(32).iter().map(|x| x.exp() * 2.0).collect();
    let scale = weight(&mut graph, "ln.scale", &[32], &scale);
    let bias = random.normals(32);
    let bias = weight(&mut graph, "ln.bias", &[32], &bias);
    let norm = Op::LayerNormalization(LayerNormalization { epsilon: 1e-5 });
    let normed = graph.add("ln", norm, &[x, scale, bias]).unwrap();
    let a = product(&mut graph, random, "a", normed, 32);
    let b = product(&mut graph, random, "b", normed, 64);
    let b = biased(&mut graph, random, "b", b);
    let b = graph.add("relu", Op::Unary(Unary::Relu), &[b]).unwrap();
    let b = product(&mut graph, random, "c", b, 32);
    let sum = graph.add("sum", Op::Binary(Binary::Add), &[a, b]).unwrap();
    let scale = random.normals(32);
    let scale = weight(&mut graph, "rms.scale", &[32], &scale);
    let normed = graph.add("rms", Op::RmsNormalization(RmsNormalization { epsilon: 1e-5 }), &[sum, scale]).unwrap();
    let gate = product(&mut graph, random, "gate", normed, 64);
    let up = product(&mut graph, random, "up", normed, 64);
    let gated = Op::GatedActivation(GatedActivation { activation: Unary::Silu });
    let h = graph.add("gated", gated, &[gate, up]).unwrap();
    let down = product(&mut graph, random, "down", h, 32);
    // Read by a product and by the sum after it.
    let sum = graph.add("residual", Op::Binary(Binary::Add), &[down, sum]).unwrap();
    let last = product(&mut graph, random, "last", sum, 32);
    let y = graph.add("y", Op::Binary(Binary::Add), &[last, sum]).unwrap();
    graph.output(y);
    graph
}

/// Inputs of which some columns are large.
fn outliers(random: &mut Random, rows: usize, k: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * k).map(|i| random.normal() * if i % k % 11 == 3 { 30.0 } else { 1.0 }).collect();
    Tensor::from_slice(&[rows, k], &values).unwrap()
}

fn difference(x: &[f32], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len());
    let noise: f64 = x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    (noise / y.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>()).sqrt()
}

#[test]
fn smoothed_and_protected_graphs_compute_the_same() {
    let mut random = Random(21);
    let graph = layers(&mut random);
    let x = random.tensor(&[6, 32]);
    let expected = first(&graph, std::slice::from_ref(&x));
    for ty in [GraphType::Int8Dynamic, GraphType::Int8Weights, GraphType::Int4 { group: 32 }] {
        let options = options(ty);
        let demands = balance_demands(&graph, &options).unwrap();
        // ln, relu, rms, gated, residual.
        assert_eq!(demands.len(), 5);
        let calibration = seen(&graph, &demands, &[vec![x.clone()]]);
        let smoothed = smooth(&graph, &options, 0.5, &calibration).unwrap();
        let protected = protect(&graph, &options, &calibration).unwrap();
        for (new, moved) in [smoothed, protected] {
            let found = difference(&first(&new, std::slice::from_ref(&x)), &expected);
            assert!(found < 1e-5, "{ty}: {found}");
            assert!(moved.iter().all(|moved| moved.factors.0 < moved.factors.1 && moved.factors.0 > 0.0));
            // Only what others read has a multiplication of its own.
            let own: Vec<&str> = moved.iter().filter(|moved| !moved.folded).map(|m| m.value.as_str()).collect();
            assert!(own.is_empty() || own == ["residual"], "{own:?}");
            assert_eq!(new.nodes().len(), graph.nodes().len() + own.len());
        }
        let unseen = smooth(&graph, &options, 0.5, &Calibration::default());
        assert!(matches!(unseen, Err(GraphQuantError::NotObserved { .. })));
    }
}

#[test]
fn smoothed_products_lose_less_where_activations_have_outliers() {
    let mut random = Random(22);
    let mut graph = Graph::new("outliers");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 64.into()]);
    let y = product(&mut graph, &mut random, "y", x, 48);
    graph.output(y);
    let runs: Vec<Vec<Tensor>> = (0..4).map(|_| vec![outliers(&mut random, 32, 64)]).collect();
    let expected = first(&graph, &runs[0]);
    for ty in [GraphType::Int8, GraphType::Int8Dynamic] {
        let options = options(ty);
        let error = |graph: &Graph| {
            let calibration = calibrated(graph, &options, &runs);
            let (new, _) = quantize(graph, &options, &calibration).unwrap();
            difference(&first(&new, &runs[0]), &expected)
        };
        let calibration = seen(&graph, &balance_demands(&graph, &options).unwrap(), &runs);
        let (smoothed, moved) = smooth(&graph, &options, 0.5, &calibration).unwrap();
        assert!(!moved[0].folded);
        let (before, after) = (error(&graph), error(&smoothed));
        assert!(after < 0.6 * before, "{ty}: {after} and {before}");
    }
}

#[test]
fn protected_weights_of_4_bits_lose_less() {
    let mut random = Random(23);
    let mut graph = Graph::new("outliers");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 128.into()]);
    let y = product(&mut graph, &mut random, "y", x, 48);
    graph.output(y);
    let runs: Vec<Vec<Tensor>> = (0..4).map(|_| vec![outliers(&mut random, 32, 128)]).collect();
    let other = outliers(&mut random, 64, 128);
    let expected = first(&graph, std::slice::from_ref(&other));
    let options = GraphOptions { clip: true, ..options(GraphType::Int4 { group: 64 }) };
    let error = |graph: &Graph, options: &GraphOptions| {
        let (new, _) = quantize(graph, options, &calibrated(graph, options, &runs)).unwrap();
        difference(&first(&new, std::slice::from_ref(&other)), &expected)
    };
    let calibration = seen(&graph, &balance_demands(&graph, &options).unwrap(), &runs);
    let (protected, _) = protect(&graph, &options, &calibration).unwrap();
    let plain = error(&graph, &GraphOptions { clip: false, ..options.clone() });
    let (clipped, after) = (error(&graph, &options), error(&protected, &options));
    assert!(clipped < 0.95 * plain && after < 0.6 * plain, "{after}, {clipped} and {plain}");
}

#[test]
fn searched_scales_lose_less_by_what_they_are_searched_for() {
    let mut random = Random(24);
    let mut matrix = Matrix { rows: 12, columns: 96, values: random.normals(12 * 96) };
    matrix.values[7] = 9.0;
    let how = ByteRounding { per_tensor: false, asymmetric: false, clip: false, threads: 2 };
    for (per_tensor, asymmetric) in [(false, false), (false, true), (true, false), (true, true)] {
        let how = ByteRounding { per_tensor, asymmetric, ..how };
        let plain = encode_i8(&matrix, &how, None, None).loss(&matrix).0;
        let searched = encode_i8(&matrix, &ByteRounding { clip: true, ..how }, None, None);
        assert!(searched.loss(&matrix).0 <= plain);
        assert_eq!(searched.scales.len(), if per_tensor { 1 } else { 12 });
        assert_eq!(searched.zeros.len(), if asymmetric { searched.scales.len() } else { 0 });
    }
    let examples = outliers(&mut random, 40, 96).to_f32().unwrap();
    let loss = |decoded: Vec<f32>| -> f64 {
        let rows = decoded.chunks(96).zip(matrix.values.chunks(96));
        rows.flat_map(|(new, old)| {
            examples.chunks(96).map(move |x| {
                let d: f32 = x.iter().zip(new.iter().zip(old)).map(|(x, (new, old))| x * (new - old)).sum();
                f64::from(d).powi(2)
            })
        })
        .sum()
    };
    let plain = encode_i4(&matrix, 32, None, 2);
    let searched = encode_i4_for(&matrix, 32, &examples, 2);
    assert_eq!(encode_i4_for(&matrix, 32, &examples, 1), searched);
    assert!(loss(searched.decode()) < 0.8 * loss(plain.decode()));
    assert_eq!(encode_i4_for(&matrix, 32, &[], 2), plain);
}

#[test]
fn zero_points_suit_weights_that_do_not_lie_around_zero() {
    let mut random = Random(25);
    let values: Vec<f32> = random.normals(8 * 40).iter().map(|x| x + 3.0).collect();
    let matrix = Matrix { rows: 8, columns: 40, values };
    let how = ByteRounding { per_tensor: false, asymmetric: false, clip: false, threads: 1 };
    let around = encode_i8(&matrix, &how, None, None).loss(&matrix).0;
    let rows = encode_i8(&matrix, &ByteRounding { asymmetric: true, ..how }, None, None);
    assert!(rows.loss(&matrix).0 < 0.4 * around);
    // 0 has a code of its own.
    let mut zeros = Matrix { rows: 1, columns: 4, values: vec![0.0, 5.0, 0.0, -1.0] };
    let rows = encode_i8(&zeros, &ByteRounding { asymmetric: true, ..how }, None, None);
    assert_eq!((rows.decode(4)[0], rows.codes[0]), (0.0, rows.zeros[0]));
    zeros.values.fill(0.0);
    assert_eq!(encode_i8(&zeros, &ByteRounding { asymmetric: true, ..how }, None, None).decode(4), [0.0; 4]);
}

/// Convolution → ReLU → depthwise → the activation → convolution.
fn convolutions(random: &mut Random, activation: Unary) -> Graph {
    let mut graph = Graph::new("convolutions");
    let mut x = graph.input("x", DType::F32, &[1.into(), 3.into(), 8.into(), 8.into()]);
    for (name, groups, from, out, after) in
        [("a", 1, 3, 8, Some(Unary::Relu)), ("b", 8, 8, 8, Some(activation)), ("c", 1, 8, 5, None)]
    {
        // Channels of very different size.
        let per_output = from / groups * 9;
        let sizes: Vec<f32> = (0..out).map(|_| (1.5 * random.normal()).exp()).collect();
        let values: Vec<f32> = (0..out * per_output).map(|i| random.normal() * sizes[i / per_output]).collect();
        let w = weight(&mut graph, &format!("{name}.w"), &[out, from / groups, 3, 3], &values);
        let b: Vec<f32> = random.normals(out);
        let b = weight(&mut graph, &format!("{name}.b"), &[out], &b);
        x = graph.add(name, Op::Conv(Conv { window: window(1), groups }), &[x, w, b]).unwrap();
        if let Some(activation) = after {
            x = graph.add(&format!("{name}.activation"), Op::Unary(activation), &[x]).unwrap();
        }
    }
    graph.output(x);
    graph
}

#[test]
fn equalized_convolutions_compute_the_same_and_lose_less_per_tensor() {
    let mut random = Random(26);
    for activation in [Unary::Relu, Unary::LeakyRelu { alpha: core_tensor::op::Scalar::new(0.1) }] {
        let graph = convolutions(&mut random, activation);
        let (equal, moved) = equalize(&graph).unwrap();
        assert_eq!(moved.len(), 2);
        let x = random.tensor(&[1, 3, 8, 8]);
        let expected = first(&graph, std::slice::from_ref(&x));
        assert!(difference(&first(&equal, std::slice::from_ref(&x)), &expected) < 1e-5);
        let options = GraphOptions { per_tensor: true, ..options(GraphType::Int8Weights) };
        let error = |graph: &Graph| {
            let (new, _) = quantize(graph, &options, &Calibration::default()).unwrap();
            difference(&first(&new, std::slice::from_ref(&x)), &expected)
        };
        let (before, after) = (error(&graph), error(&equal));
        assert!(after < 0.7 * before, "{after} and {before}");
    }
    // What cuts all channels at 6 must see them as they were.
    let six = Unary::Clip { min: core_tensor::op::Scalar::new(0.0), max: core_tensor::op::Scalar::new(6.0) };
    let graph = convolutions(&mut random, six);
    assert_eq!(equalize(&graph).unwrap().1.len(), 1);
}

#[test]
fn corrected_biases_give_means_back() {
    let mut random = Random(27);
    let mut products = Graph::new("products");
    let x = products.input("x", DType::F32, &[Dim::sym("rows"), 32.into()]);
    let with = product(&mut products, &mut random, "with", x, 24);
    let with = biased(&mut products, &mut random, "with", with);
    let without = product(&mut products, &mut random, "without", x, 24);
    let y = products.add("y", Op::Binary(Binary::Add), &[with, without]).unwrap();
    products.output(y);
    let mut groups = Graph::new("groups");
    let x = groups.input("x", DType::F32, &[1.into(), 4.into(), 9.into(), 9.into()]);
    let w = random.normals(6 * 2);
    let w = weight(&mut groups, "w", &[6, 2, 1, 1], &w);
    let mut pads = window(1);
    (pads.pads_begin, pads.pads_end) = (vec![0; 2], vec![0; 2]);
    let y = groups.add("y", Op::Conv(Conv { window: pads, groups: 2 }), &[x, w]).unwrap();
    groups.output(y);
    for (graph, shape, n) in [(products, vec![64, 32], 24), (groups, vec![1, 4, 9, 9], 6)] {
        // Means that are not 0.
        let values: Vec<f32> = random.normals(shape.iter().product()).iter().map(|x| x.abs() + 1.0).collect();
        let inputs = vec![Tensor::from_slice(&shape, &values).unwrap()];
        let expected = first(&graph, &inputs);
        let image = shape.len() == 4;
        // Of each channel.
        let shift = |found: &[f32]| -> f64 {
            let mut sums = vec![0.0f64; n];
            for (i, (x, y)) in found.iter().zip(&expected).enumerate() {
                sums[if image { i / 81 % n } else { i % n }] += f64::from(x - y);
            }
            sums.iter().map(|x| x * x).sum::<f64>().sqrt()
        };
        for ty in [GraphType::Int8, GraphType::Int8Dynamic, GraphType::Int8Weights, GraphType::Int4 { group: 32 }] {
            if image && matches!(ty, GraphType::Int4 { .. }) {
                continue;
            }
            // One scale for all, so that there is something to correct.
            let plain = GraphOptions { per_tensor: true, ..options(ty) };
            let corrected = GraphOptions { bias_correction: true, ..plain.clone() };
            let run = |options: &GraphOptions| {
                let calibration = calibrated(&graph, options, std::slice::from_ref(&inputs));
                shift(&first(&quantize(&graph, options, &calibration).unwrap().0, &inputs))
            };
            let (before, after) = (run(&plain), run(&corrected));
            // Rounding of activations stays.
            let part = if matches!(ty, GraphType::Int8 | GraphType::Int8Dynamic) { 0.6 } else { 0.02 };
            assert!(after < part * before, "{ty}, image {image}: {after} and {before}");
        }
    }
}

#[test]
fn gptq_with_bytes_changes_products_less_than_rounding() {
    let mut random = Random(28);
    let (k, n) = (64, 16);
    let mut hessian = Hessian::new(k);
    let directions = random.normals(6 * k);
    let rows: Vec<Vec<f32>> = (0..300)
        .map(|_| {
            let mix = random.normals(6);
            (0..k)
                .map(|j| (0..6).map(|d| mix[d] * directions[d * k + j]).sum::<f32>() + 0.1 * random.normal())
                .collect()
        })
        .collect();
    rows.iter().for_each(|row| hessian.observe(row));
    let feedback = Feedback::of(&hessian, 0.01).unwrap();
    let matrix = Matrix { rows: n, columns: k, values: random.normals(n * k) };
    for (per_tensor, asymmetric) in [(false, false), (true, false), (false, true)] {
        let how = ByteRounding { per_tensor, asymmetric, clip: true, threads: 2 };
        let loss = |decoded: Vec<f32>| -> f64 {
            let parts = decoded.chunks(k).zip(matrix.values.chunks(k));
            parts
                .flat_map(|(new, old)| {
                    rows.iter().map(move |x| {
                        let d: f32 = x.iter().zip(new.iter().zip(old)).map(|(x, (a, b))| x * (a - b)).sum();
                        f64::from(d).powi(2)
                    })
                })
                .sum()
        };
        let careful = gptq_i8(&matrix, &feedback, &how).unwrap();
        assert_eq!(gptq_i8(&matrix, &feedback, &ByteRounding { threads: 1, ..how }).unwrap(), careful);
        let (plain, careful) = (loss(encode_i8(&matrix, &how, None, None).decode(k)), loss(careful.decode(k)));
        assert!(careful < 0.4 * plain, "{careful} and {plain}");
    }
}

/// Gives one value's products at a time and counts what it keeps.
struct Strict<'a> {
    graph: &'a Graph,
    options: &'a GraphOptions,
    runs: &'a [Vec<Tensor>],
    asked: Vec<ValueId>,
    kept: usize,
}

impl Host for Strict<'_> {
    fn hessian(&mut self, upcoming: &[ValueId]) -> Result<Option<std::sync::Arc<Hessian>>, HostError> {
        let id = *upcoming.first().ok_or("nothing to ask for")?;
        self.asked.push(id);
        let all = demands(self.graph, self.options)?;
        let one: Vec<_> = all.into_iter().filter(|(known, _)| *known == id).collect();
        Ok(seen(self.graph, &one, self.runs).hessian(id))
    }

    fn keep(&mut self, tensor: Tensor) -> Result<Tensor, HostError> {
        self.kept += 1;
        Ok(tensor)
    }
}

#[test]
fn products_that_come_one_by_one_give_the_same_graph() {
    let mut random = Random(29);
    let graph = layers(&mut random);
    let runs: Vec<Vec<Tensor>> = (0..3).map(|_| vec![random.tensor(&[40, 32])]).collect();
    for ty in [GraphType::Int8Weights, GraphType::Int4 { group: 32 }] {
        let options = GraphOptions { gptq: true, ..options(ty) };
        let (all, _) = quantize(&graph, &options, &calibrated(&graph, &options, &runs)).unwrap();
        let mut host = Strict { graph: &graph, options: &options, runs: &runs, asked: Vec::new(), kept: 0 };
        let (one_by_one, _) = quantize_with(&graph, &options, &Calibration::default(), &mut host).unwrap();
        // Each value once, though two products read some.
        assert_eq!((host.asked.len(), host.kept), (5, 7));
        assert_eq!(first(&one_by_one, &runs[0]), first(&all, &runs[0]));
    }
}
