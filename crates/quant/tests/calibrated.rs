//! What quantization asks of calibration, and what it makes of nodes that share weights or inputs.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::support::{self, Given, Random, calibrated, first, options, seen, window};
use core_tensor::op::{Conv, Gather, MatMul, Op};
use core_tensor::{DType, Dim, Graph, Tensor, ValueId, Weight};
use polaris_quant::graph::{
    ByteRounding, Calibration, Demand, GraphOptions, GraphQuantError, GraphType, Hessian, Host, HostError, I8Rows,
    Matrix, Trained, demands, encode_i8, quantize, quantize_with, smooth,
};

const MATMUL: Op = Op::MatMul(MatMul { transpose_b: true });

/// Products of `x` with weights, of which some are the same: `reads` has the number of the input and that of the weight.
fn products(random: &mut Random, inputs: usize, reads: &[(usize, usize)]) -> Graph {
    let mut graph = Graph::new("products");
    let inputs: Vec<ValueId> =
        (0..inputs).map(|i| graph.input(&format!("x{i}"), DType::F32, &[Dim::sym("rows"), 32.into()])).collect();
    let count = reads.iter().map(|(_, weight)| weight + 1).max().unwrap_or(0);
    let weights: Vec<ValueId> =
        (0..count).map(|i| graph.weight(&format!("w{i}"), Weight::stored(random.tensor(&[24, 32])))).collect();
    for (at, (input, weight)) in reads.iter().enumerate() {
        let y = graph.add(&format!("y{at}"), MATMUL, &[inputs[*input], weights[*weight]]).unwrap();
        graph.output(y);
    }
    graph
}

/// Gives each value's products once, in the order in which it first gave them, and never what lies behind.
struct Once<'a> {
    graph: &'a Graph,
    options: &'a GraphOptions,
    runs: &'a [Vec<Tensor>],
    given: Vec<ValueId>,
}

impl Host for Once<'_> {
    fn hessian(&mut self, upcoming: &[ValueId]) -> Result<Option<Arc<Hessian>>, HostError> {
        let id = *upcoming.first().ok_or("nothing to ask for")?;
        if self.given.contains(&id) {
            return Ok(None);
        }
        self.given.push(id);
        let one: Vec<_> = demands(self.graph, self.options)?.into_iter().filter(|(known, _)| *known == id).collect();
        Ok(seen(self.graph, &one, self.runs).hessian(id))
    }
}

#[test]
fn products_that_read_in_turns_ask_once() {
    let mut random = Random(41);
    let graph = products(&mut random, 2, &[(0, 0), (1, 1), (0, 2), (1, 3)]);
    let runs = vec![vec![random.tensor(&[40, 32]), random.tensor(&[40, 32])]];
    for ty in [GraphType::Int8Weights, GraphType::Int4 { group: 32 }] {
        let options = GraphOptions { gptq: true, ..options(ty) };
        let (all, _) = quantize(&graph, &options, &calibrated(&graph, &options, &runs)).unwrap();
        let mut host = Once { graph: &graph, options: &options, runs: &runs, given: Vec::new() };
        let (once, _) = quantize_with(&graph, &options, &Calibration::default(), &mut host).unwrap();
        assert_eq!(host.given.len(), 2);
        assert_eq!(first(&once, &runs[0]), first(&all, &runs[0]));
    }
}

/// The mean of each column of what two graphs differ by.
fn shifts(found: &Tensor, expected: &Tensor) -> Vec<f32> {
    let (found, expected) = (found.to_f32().unwrap(), expected.to_f32().unwrap());
    let mut sums = vec![0.0; 24];
    found
        .iter()
        .zip(&expected)
        .enumerate()
        .for_each(|(i, (x, y))| sums[i % 24] += (x - y) / (expected.len() / 24) as f32);
    sums
}

#[test]
fn what_rounding_takes_is_each_nodes_own() {
    let mut random = Random(42);
    let graph = products(&mut random, 2, &[(0, 0), (1, 0)]);
    // Means of 1 and of -5.
    let near = |random: &mut Random, mean: f32| {
        let values: Vec<f32> = random.normals(64 * 32).iter().map(|x| x + mean).collect();
        Tensor::from_slice(&[64, 32], &values).unwrap()
    };
    let runs = vec![vec![near(&mut random, 1.0), near(&mut random, -5.0)]];
    let expected = support::run(&graph, &runs[0]);
    for ty in [GraphType::Int8Weights, GraphType::Int4 { group: 32 }] {
        let options = GraphOptions { bias_correction: true, ..options(ty) };
        let (new, changes) = quantize(&graph, &options, &calibrated(&graph, &options, &runs)).unwrap();
        assert_eq!(changes.len(), 1, "the weight is stored once");
        for (found, expected) in support::run(&new, &runs[0]).iter().zip(&expected) {
            let most = shifts(found, expected).iter().fold(0.0f32, |most, x| most.max(x.abs()));
            assert!(most < 1e-3, "{ty}: {most}");
        }
    }
}

#[test]
fn weights_that_are_read_alike_are_stored_once() {
    let mut random = Random(43);
    let graph = products(&mut random, 2, &[(0, 0), (1, 0), (0, 0)]);
    let runs = vec![vec![random.tensor(&[40, 32]), random.tensor(&[40, 32])]];
    let plain = options(GraphType::Int4 { group: 32 });
    // Rounded for its inputs, a weight is another for other inputs.
    let with = [
        (plain.clone(), 1),
        (GraphOptions { clip: true, ..plain.clone() }, 2),
        (GraphOptions { gptq: true, ..plain }, 2),
    ];
    for (options, count) in with {
        let calibration = calibrated(&graph, &options, &runs);
        let (new, changes) = quantize(&graph, &options, &calibration).unwrap();
        assert_eq!((changes.len(), new.weights().count()), (count, count));
    }
}

#[test]
fn a_value_has_the_channels_of_all_that_read_it() {
    let mut random = Random(44);
    let mut graph = Graph::new("both");
    let x = graph.input("x", DType::F32, &[1.into(), 4.into(), 8.into(), 32.into()]);
    let w = graph.weight("conv.w", Weight::stored(random.tensor(&[5, 4, 3, 3])));
    let y = graph.add("conv", Op::Conv(Conv { window: window(1), groups: 1 }), &[x, w]).unwrap();
    graph.output(y);
    let w = graph.weight("product.w", Weight::stored(random.tensor(&[24, 32])));
    let y = graph.add("product", MATMUL, &[x, w]).unwrap();
    graph.output(y);
    let options = GraphOptions { gptq: true, bias_correction: true, ..options(GraphType::Int8Weights) };
    let demanded = demands(&graph, &options).unwrap();
    let channels = |axis, channels| Demand::Channels { axis, channels, examples: false };
    assert_eq!(demanded, [(x, channels(1, 4)), (x, Demand::Hessian { columns: 32 }), (x, channels(3, 32))]);
    let values: Vec<f32> = random.normals(4 * 8 * 32).iter().map(|x| x + 2.0).collect();
    let runs = vec![vec![Tensor::from_slice(&[1, 4, 8, 32], &values).unwrap()]];
    let (new, _) = quantize(&graph, &options, &seen(&graph, &demanded, &runs)).unwrap();
    let outputs = [&graph, &new].map(|graph| support::run(graph, &runs[0]));
    let most = shifts(&outputs[1][1], &outputs[0][1]).iter().fold(0.0f32, |most, x| most.max(x.abs()));
    assert!(most < 1e-3, "{most}");
}

#[test]
fn examples_are_kept_where_they_are_needed() {
    let mut random = Random(45);
    let graph = products(&mut random, 1, &[(0, 0), (0, 1)]);
    let int4 = options(GraphType::Int4 { group: 32 });
    let corrected = GraphOptions { bias_correction: true, ..int4.clone() };
    let clipped = GraphOptions { clip: true, bias_correction: true, ..int4 };
    let sizes = [corrected, clipped].map(|options| {
        let demanded = demands(&graph, &options).unwrap();
        assert_eq!(demanded.len(), 1);
        demanded[0].1.bytes()
    });
    assert_eq!(sizes, [32 * 28, 32 * (28 + 1024)]);
    assert!(Demand::Range.bytes() > 1 << 14);
}

#[test]
fn searched_bytes_depend_on_the_options_alone() {
    let mut random = Random(46);
    let graph = products(&mut random, 1, &[(0, 0)]);
    let options = GraphOptions { clip: true, ..options(GraphType::Int8Weights) };
    let values: Vec<f32> = random.normals(40 * 32).iter().enumerate().map(|(i, x)| x * (i % 32) as f32).collect();
    let runs = vec![vec![Tensor::from_slice(&[40, 32], &values).unwrap()]];
    let observed = calibrated(&graph, &GraphOptions { bias_correction: true, ..options.clone() }, &runs);
    let [plain, seen] =
        [Calibration::default(), observed].map(|calibration| quantize(&graph, &options, &calibration).unwrap());
    assert_eq!(plain.1, seen.1);
}

#[test]
fn products_too_wide_for_gptq_are_named() {
    let mut random = Random(47);
    let mut graph = Graph::new("wide");
    let x = graph.input("x", DType::F32, &[1.into(), 25_088.into()]);
    let w = graph.weight("w", Weight::stored(random.tensor(&[1, 25_088])));
    let y = graph.add("classifier", MATMUL, &[x, w]).unwrap();
    graph.output(y);
    let gptq = GraphOptions { gptq: true, ..options(GraphType::Int8Weights) };
    let text = demands(&graph, &gptq).unwrap_err().to_string();
    assert!(text.contains("\"classifier\"") && text.contains("25088 inputs") && text.contains("4.7 GiB"), "{text}");
    assert!(demands(&graph, &options(GraphType::Int8Weights)).unwrap().is_empty());
    assert!(Hessian::fitting(usize::MAX / 2).is_none());
    let demanded = Demand::Hessian { columns: 1_000_000 };
    assert_eq!((demanded.bytes(), demanded.work()), (8 * 1_000_000_000_000, 20 * 1_000_000_000_000));
}

#[test]
fn channels_of_products_are_those_of_their_weights() {
    let mut random = Random(48);
    let mut graph = Graph::new("symbolic");
    let x = graph.input("x", DType::F32, &[4.into(), Dim::sym("k")]);
    let w = graph.weight("w", Weight::stored(random.tensor(&[24, 32])));
    let y = graph.add("y", MATMUL, &[x, w]).unwrap();
    graph.output(y);
    let options = GraphOptions { gptq: true, bias_correction: true, ..options(GraphType::Int8Weights) };
    let demanded = demands(&graph, &options).unwrap();
    let channels = Demand::Channels { axis: 1, channels: 32, examples: false };
    assert_eq!(demanded, [(x, Demand::Hessian { columns: 32 }), (x, channels)]);
    assert!(smooth(&graph, &options, 0.5, &Calibration::default()).unwrap().1.is_empty());
}

#[test]
fn groups_are_whole_blocks() {
    let mut random = Random(49);
    let graph = products(&mut random, 1, &[(0, 0)]);
    for group in [0, 1, 16, 48] {
        let found = quantize(&graph, &options(GraphType::Int4 { group }), &Calibration::default());
        assert!(matches!(found, Err(GraphQuantError::Group { group: refused }) if refused == group));
    }
}

#[test]
fn one_trained_scale_is_that_of_all_biases() {
    let mut random = Random(50);
    let mut graph = Graph::new("biased");
    let x = graph.input("x", DType::F32, &[1.into(), 1.into(), 4.into(), 4.into()]);
    let w = random.normals(2 * 9).iter().map(|x| x * 1e-6).collect::<Vec<f32>>();
    let weight = graph.weight("w", Weight::stored(Tensor::from_slice(&[2, 1, 3, 3], &w).unwrap()));
    // The second output's bias needs more than the scale gives it.
    let bias = graph.weight("b", Weight::stored(Tensor::from_slice(&[2], &[0.0f32, 1e4]).unwrap()));
    let y = graph.add("y", Op::Conv(Conv { window: window(1), groups: 1 }), &[x, weight, bias]).unwrap();
    graph.output(y);
    let options = GraphOptions { per_tensor: true, ..options(GraphType::Int8) };
    let how = ByteRounding { per_tensor: true, asymmetric: false, clip: false, threads: 1 };
    let rows: I8Rows = encode_i8(&Matrix { rows: 2, columns: 9, values: w }, &how, None, None);
    let runs = vec![vec![random.tensor(&[1, 1, 4, 4])]];
    let calibration = calibrated(&graph, &options, &runs);
    let mut host = Given(BTreeMap::from([(weight, Trained::Bytes(rows))]));
    let (new, _) = quantize_with(&graph, &options, &calibration, &mut host).unwrap();
    let found = first(&new, &runs[0]);
    assert!((found[16] - 1e4).abs() < 100.0, "{}", found[16]);
}

#[test]
fn tables_and_products_of_one_weight_are_told_apart() {
    let mut random = Random(51);
    let mut graph = Graph::new("tied");
    let ids = graph.input("ids", DType::I64, &[3.into()]);
    let w = graph.weight("w", Weight::stored(random.tensor(&[24, 32])));
    let x = graph.add("rows", Op::Gather(Gather { axis: 0 }), &[w, ids]).unwrap();
    let y = graph.add("y", MATMUL, &[x, w]).unwrap();
    graph.output(y);
    let ids = vec![Tensor::from_slice(&[3], &[2i64, 0, 23]).unwrap()];
    let options = GraphOptions { bias_correction: true, clip: true, ..options(GraphType::Int4 { group: 32 }) };
    let calibration = calibrated(&graph, &options, std::slice::from_ref(&ids));
    let (new, changes) = quantize(&graph, &options, &calibration).unwrap();
    assert_eq!(changes.len(), 2);
    let (found, expected) = (first(&new, &ids), first(&graph, &ids));
    let noise: f32 = found.iter().zip(&expected).map(|(x, y)| (x - y).powi(2)).sum();
    assert!(noise < 0.05 * expected.iter().map(|x| x * x).sum::<f32>(), "{noise}");
}
