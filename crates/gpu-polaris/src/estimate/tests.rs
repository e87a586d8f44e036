use core_tensor::op::{MatMul, Op};
use core_tensor::{BlockFormat, DType, Dim, Tensor, Weight};

use super::*;

/// `layers` products of a square matrix, one after the other.
fn stack(width: usize, layers: usize) -> Arc<Graph> {
    let mut graph = Graph::new("stack");
    let rows = Dim::sym("rows");
    let mut x = graph.input("x", DType::F32, &[rows, width.into()]);
    let dtype = DType::Block(BlockFormat::Q4_0);
    for i in 0..layers {
        let tensor = Tensor::zeroed(dtype, &[width, width]).expect("whole blocks");
        let w = graph.weight(&format!("w{i}"), Weight::stored(tensor));
        x = graph.add(&format!("y{i}"), Op::MatMul(MatMul { transpose_b: true }), &[x, w]).expect("shapes that fit");
    }
    graph.output(x);
    Arc::new(graph)
}

fn predicted(card: &str, graph: &Arc<Graph>, rows: usize) -> Prediction {
    let card = Card::by_name(card).expect("a card");
    let estimator = Estimator::new(card, graph).expect("weights that fit");
    estimator.step(&Bindings::new().with("rows", rows), rows, 0).expect("kernels for all")
}

#[test]
fn a_single_row_takes_at_least_the_time_of_reading_the_weights() {
    let graph = stack(4096, 4);
    let step = predicted("rx580", &graph, 1);
    let bytes = 4.0 * 4096.0 * 4096.0 * 18.0 / 32.0;
    assert!((bytes..bytes * 1.02).contains(&step.bytes), "{step:?}");
    assert!(step.seconds - step.overhead > bytes / 256e9, "{step:?}");
    assert!(step.range.0 <= step.seconds && step.seconds <= step.range.1, "{step:?}");
    // Products and the copy of the output for the host, each after what it reads.
    assert_eq!((step.dispatches, step.barriers), (5, 4));
}

#[test]
fn many_rows_share_what_is_read_and_are_bound_by_arithmetic() {
    let graph = stack(4096, 2);
    let (one, many) = (predicted("rx580", &graph, 1), predicted("rx580", &graph, 512));
    assert!(many.seconds < 200.0 * one.seconds, "{one:?} {many:?}");
    assert_eq!(many.kernels[0].bound, Bound::Vector);
    let macs = 512.0 * 2.0 * 4096.0 * 4096.0;
    assert!(many.seconds > macs / (36.0 * 64.0 * 1.34e9), "{many:?}");
}

#[test]
fn a_slower_card_takes_longer() {
    let graph = stack(2048, 2);
    for rows in [1, 512] {
        assert!(predicted("rx470", &graph, rows).seconds > predicted("rx590", &graph, rows).seconds);
    }
}

#[test]
fn kernels_add_up_to_the_step() {
    let step = predicted("rx580", &stack(2048, 3), 64);
    let kernels: f64 = step.kernels.iter().map(|kernel| kernel.seconds).sum();
    assert!((kernels + step.overhead - step.seconds).abs() < 1e-12, "{step:?}");
    assert_eq!(step.kernels.iter().map(|kernel| kernel.dispatches).sum::<usize>(), step.dispatches);
}

#[test]
fn memory_counts_the_weights_as_they_lie_on_the_card() {
    let graph = stack(2048, 2);
    let estimator = Estimator::new(Card::by_name("rx580").expect("a card"), &graph).expect("weights that fit");
    let bounds = Bindings::new().with("rows", 1);
    let step = estimator.step(&bounds, 1, 0).expect("kernels for all");
    let memory = estimator.memory(&bounds, &[&step]).expect("states that fit");
    assert_eq!(memory.weights, 2 * 2048 * 2048 / 32 * 18);
    assert_eq!(memory.states, 0);
    assert!(memory.working >= 2048 * 4, "{memory:?}");
}
