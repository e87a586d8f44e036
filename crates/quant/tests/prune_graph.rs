//! Pruned graphs on the reference interpreter: what is cut computes what zeros in its place do.

use std::collections::HashMap;

use crate::support::{Random, first, run, window};
use core_tensor::op::{Binary, Conv, LayerNormalization, MatMul, Op, Pool, PoolKind, Unary};
use core_tensor::{DType, Dim, Graph, Tensor, ValueId, Weight};
use polaris_quant::graph::{Matrix, observed};
use polaris_quant::prune::graph::{Axis, NewWeight, Observed, Region, Site, rebuild, regions, sites};
use polaris_quant::prune::{Products, least_squares, select_columns};

/// A graph that is being built.
struct Builder {
    graph: Graph,
    random: Random,
}

impl Builder {
    fn new() -> Builder {
        Builder { graph: Graph::new("g"), random: Random(7) }
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let tensor = self.random.tensor(shape);
        self.graph.weight(name, Weight::stored(tensor))
    }

    fn product(&mut self, name: &str, x: ValueId, k: usize, n: usize, transposed: bool) -> ValueId {
        let w = self.weight(&format!("{name}.w"), &if transposed { [n, k] } else { [k, n] });
        self.graph.add(name, Op::MatMul(MatMul { transpose_b: transposed }), &[x, w]).unwrap()
    }

    fn convolution(&mut self, name: &str, x: ValueId, [inputs, outputs]: [usize; 2], groups: usize) -> ValueId {
        let w = self.weight(&format!("{name}.w"), &[outputs, inputs / groups, 3, 3]);
        let b = self.weight(&format!("{name}.b"), &[outputs]);
        self.graph.add(name, Op::Conv(Conv { window: window(1), groups }), &[x, w, b]).unwrap()
    }

    fn unary(&mut self, name: &str, op: Unary, x: ValueId) -> ValueId {
        self.graph.add(name, Op::Unary(op), &[x]).unwrap()
    }

    fn binary(&mut self, name: &str, op: Binary, a: ValueId, b: ValueId) -> ValueId {
        self.graph.add(name, Op::Binary(op), &[a, b]).unwrap()
    }
}

/// Two products with a bias, a gate and another branch between them: `down(silu(gate(x)) * (up(x) + b))`.
fn feed_forward() -> Graph {
    let mut b = Builder::new();
    let x = b.graph.input("x", DType::F32, &[Dim::sym("rows"), 6.into()]);
    let gate = b.product("gate", x, 6, 16, true);
    let up = b.product("up", x, 6, 16, false);
    let bias = b.weight("bias", &[16]);
    let up = b.binary("biased", Binary::Add, up, bias);
    let gate = b.unary("silu", Unary::Silu, gate);
    let both = b.binary("both", Binary::Mul, gate, up);
    let y = b.product("down", both, 16, 5, false);
    b.graph.output(y);
    b.graph
}

/// Convolutions with a residual, a depthwise one, a scale for each channel and pooling.
fn images() -> Graph {
    let mut b = Builder::new();
    let x = b.graph.input("x", DType::F32, &[Dim::sym("batch"), 3.into(), 8.into(), 7.into()]);
    let a = b.convolution("a", x, [3, 8], 1);
    let a = b.unary("relu", Unary::Relu, a);
    let inner = b.convolution("b", a, [8, 12], 1);
    let scale = b.weight("scale", &[12, 1, 1]);
    let inner = b.binary("scaled", Binary::Mul, inner, scale);
    let inner = b.convolution("depthwise", inner, [12, 12], 12);
    let inner = b.unary("relu2", Unary::Relu, inner);
    let inner = b.convolution("c", inner, [12, 8], 1);
    let sum = b.binary("sum", Binary::Add, inner, a);
    let pool = Pool {
        kind: PoolKind::Max,
        kernel: vec![3, 3],
        window: window(2),
        ceil_mode: false,
        indices: false,
        column_major: false,
    };
    let sum = b.graph.add("pool", Op::Pool(pool), &[sum]).unwrap();
    let y = b.convolution("d", sum, [8, 4], 1);
    b.graph.output(y);
    b.graph
}

/// New weights for the consumers of a region, over columns that remain; zeros elsewhere where nothing is cut.
fn weights(
    graph: &Graph,
    all: &[Site],
    region: &Region,
    kept: &[usize],
    masked: bool,
    products: Option<&HashMap<usize, Products>>,
) -> HashMap<usize, NewWeight> {
    let of_region = all.iter().filter(|site| region.consumers.contains(&site.node));
    of_region
        .map(|site| {
            let mut matrix = site.matrix(graph).unwrap();
            let unit = site.unit();
            let columns: Vec<usize> = kept.iter().flat_map(|c| c * unit..(c + 1) * unit).collect();
            let left = match products {
                Some(products) => least_squares(&matrix.values, &products[&site.node], &columns, 1e-3, 2).unwrap(),
                None => select_columns(&matrix.values, site.columns, &columns),
            };
            if masked {
                let mut values = vec![0.0; matrix.values.len()];
                for (row, left) in values.chunks_mut(site.columns).zip(left.chunks(columns.len())) {
                    columns.iter().zip(left).for_each(|(column, w)| row[*column] = *w);
                }
                matrix.values = values;
            } else {
                matrix = Matrix { rows: matrix.rows, columns: columns.len(), values: left };
            }
            (site.node, NewWeight { matrix })
        })
        .collect()
}

fn parameters(graph: &Graph) -> usize {
    graph.weights().map(|(_, weight)| weight.shape().iter().product::<usize>()).sum()
}

#[test]
fn what_is_cut_computes_what_zeros_in_its_place_do() {
    let mut random = Random(3);
    let cases = [(feed_forward(), random.tensor(&[9, 6]), 1), (images(), random.tensor(&[2, 3, 8, 7]), 2)];
    for (graph, x, count) in cases {
        let all = sites(&graph);
        let found = regions(&graph, &all);
        assert_eq!(found.len(), count, "{found:?}");
        for region in &found {
            let kept: Vec<usize> = (0..region.width).filter(|channel| channel % 3 != 1).collect();
            let masked = weights(&graph, &all, region, &kept, true, None);
            let masked = rebuild(&graph, &all, &masked, &[]).unwrap();
            let cut = weights(&graph, &all, region, &kept, false, None);
            let cut = rebuild(&graph, &all, &cut, &[(region, kept)]).unwrap();
            assert!(parameters(&cut) < parameters(&masked) && parameters(&masked) == parameters(&graph));
            let outputs = [&masked, &cut].map(|graph| first(graph, std::slice::from_ref(&x)));
            for (a, b) in outputs[0].iter().zip(&outputs[1]) {
                assert!((a - b).abs() < 1e-4 * (1.0 + a.abs()), "{a} {b}");
            }
            assert_eq!(cut.value(cut.outputs()[0]).name, graph.value(graph.outputs()[0]).name);
        }
    }
}

#[test]
fn regions_are_what_shares_channels() {
    let graph = feed_forward();
    let all = sites(&graph);
    let named = |nodes: &std::collections::BTreeSet<usize>| -> Vec<String> {
        nodes.iter().map(|node| graph.nodes()[*node].name.clone()).collect()
    };
    let [region] = &regions(&graph, &all)[..] else { panic!("there is one") };
    assert_eq!((region.axis, region.width), (Axis::Neurons, 16));
    assert_eq!(
        (named(&region.producers), named(&region.consumers)),
        (vec!["gate".into(), "up".into()], vec!["down".into()])
    );

    let graph = images();
    let all = sites(&graph);
    let found = regions(&graph, &all);
    let names = |nodes: &std::collections::BTreeSet<usize>| -> Vec<String> {
        nodes.iter().map(|node| graph.nodes()[*node].name.clone()).collect()
    };
    // The residual joins what a and c make.
    assert_eq!(
        (names(&found[0].producers), names(&found[0].consumers)),
        (vec!["a".into(), "c".into()], vec!["b".into(), "d".into()])
    );
    assert_eq!((names(&found[1].producers), names(&found[1].consumers)), (vec!["b".into()], vec!["c".into()]));
}

#[test]
fn what_something_else_reads_or_makes_stays() {
    // A normalization over the neurons, and an output of the graph.
    let mut b = Builder::new();
    let x = b.graph.input("x", DType::F32, &[Dim::sym("rows"), 6.into()]);
    let y = b.product("first", x, 6, 16, false);
    let scale = b.weight("scale", &[16]);
    let y = b.graph.add("norm", Op::LayerNormalization(LayerNormalization { epsilon: 1e-5 }), &[y, scale]).unwrap();
    let y = b.product("second", y, 16, 16, false);
    b.graph.output(y);
    let z = b.product("third", y, 16, 4, false);
    b.graph.output(z);
    assert!(regions(&b.graph, &sites(&b.graph)).is_empty());
    // A sum with an input.
    let mut b = Builder::new();
    let x = b.graph.input("x", DType::F32, &[Dim::sym("rows"), 8.into()]);
    let y = b.product("first", x, 8, 8, false);
    let y = b.binary("sum", Binary::Add, y, x);
    let y = b.product("second", y, 8, 3, false);
    b.graph.output(y);
    assert!(regions(&b.graph, &sites(&b.graph)).is_empty());
    // A bias that is computed; the region behind it can be cut.
    let mut b = Builder::new();
    let x = b.graph.input("x", DType::F32, &[1.into(), 3.into(), 6.into(), 6.into()]);
    let w = b.weight("w", &[8, 3, 3, 3]);
    let bias = b.weight("bias", &[8]);
    let bias = b.unary("computed", Unary::Exp, bias);
    let y = b.graph.add("first", Op::Conv(Conv { window: window(1), groups: 1 }), &[x, w, bias]).unwrap();
    let y = b.convolution("second", y, [8, 6], 1);
    let y = b.convolution("third", y, [6, 4], 1);
    b.graph.output(y);
    let all = sites(&b.graph);
    let found = regions(&b.graph, &all);
    assert_eq!(found.iter().map(|region| region.width).collect::<Vec<_>>(), [6]);
    let kept = vec![0, 2, 5];
    let new = weights(&b.graph, &all, &found[0], &kept, false, None);
    rebuild(&b.graph, &all, &new, &[(&found[0], kept)]).unwrap();
}

#[test]
fn what_is_seen_of_a_convolution_makes_up_for_channels() {
    let graph = images();
    let all = sites(&graph);
    let found = regions(&graph, &all);
    let region = &found[1];
    let consumers: Vec<&Site> = all.iter().filter(|site| region.consumers.contains(&site.node)).collect();
    let mut random = Random(5);
    let runs: Vec<Tensor> = (0..6).map(|_| random.tensor(&[2, 3, 8, 7])).collect();
    let mut seen: HashMap<usize, Observed> =
        consumers.iter().map(|site| (site.node, Observed::new(site, true))).collect();
    let inputs: Vec<ValueId> = consumers.iter().map(|site| site.input).collect();
    let showing = observed(&graph, &inputs);
    for x in &runs {
        let outputs = run(&showing, std::slice::from_ref(x));
        for (site, tensor) in consumers.iter().zip(&outputs[1..]) {
            seen.get_mut(&site.node).unwrap().observe(tensor.shape(), &tensor.to_f32().unwrap());
        }
    }
    let products: HashMap<usize, Products> = consumers
        .iter()
        .map(|site| (site.node, Products::new(seen[&site.node].products().unwrap(), site.columns).unwrap()))
        .collect();
    let squares = seen[&consumers[0].node].mean_squares().unwrap();
    for (a, b) in squares.iter().zip(products[&consumers[0].node].squares()) {
        assert!((a - b).abs() <= 1e-5 * b.abs(), "{a} {b}");
    }
    let kept: Vec<usize> = (0..region.width).filter(|channel| channel % 4 != 0).collect();
    let x = random.tensor(&[2, 3, 8, 7]);
    let whole = first(&graph, std::slice::from_ref(&x));
    let error = |products| {
        let new = weights(&graph, &all, region, &kept, false, products);
        let cut = rebuild(&graph, &all, &new, &[(region, kept.clone())]).unwrap();
        let found = first(&cut, std::slice::from_ref(&x));
        found.iter().zip(&whole).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    };
    let (repaired, plain) = (error(Some(&products)), error(None));
    assert!(repaired < 0.8 * plain, "{repaired} {plain}");
}
