use core_tensor::op::{Cell, Direction, Op, Recurrent, Scalar, Unary};
use core_tensor::{Bindings, evaluate};

use super::{assert_close, refusal, run, tensor, wave};

fn lstm() -> Recurrent {
    Recurrent {
        cell: Cell::Lstm { input_forget: false },
        hidden: 2,
        direction: Direction::Bidirectional,
        activations: [Unary::Sigmoid, Unary::Tanh, Unary::Tanh].repeat(2),
        clip: None,
    }
}

#[test]
fn an_lstm_with_everything_as_onnx_runtime_has_it() {
    let inputs = [
        wave(&[3, 2, 2], 5),
        wave(&[2, 8, 2], 1),
        wave(&[2, 8, 2], 2),
        wave(&[2, 16], 3),
        tensor(&[2], &[3i32, 2]),
        wave(&[2, 2, 2], 4),
        wave(&[2, 2, 2], 6),
        wave(&[2, 6], 8),
    ];
    let outputs = run(&Op::Recurrent(lstm()), &inputs);
    let y = [
        -0.6844854,
        -0.5392764,
        -0.5475076,
        -0.3846447,
        -0.2867606,
        -0.4953653,
        -0.2428542,
        -0.3487369,
        -0.1275312,
        -0.3574612,
        -0.05586637,
        -0.2149632,
        0.1059768,
        -0.006113566,
        -0.002229496,
        -0.1030929,
        -0.03794559,
        -0.2403235,
        0.0,
        0.0,
        0.03591252,
        -0.05912179,
        0.0,
        0.0,
    ];
    let h = [-0.03794559, -0.2403235, -0.05586637, -0.2149632, -0.2867606, -0.4953653, -0.2428542, -0.3487369];
    let c = [-0.284291, -0.6139066, -0.4839098, -0.5477009, -0.3391451, -0.769039, -0.3708651, -0.6490985];
    assert_eq!(outputs[0].shape(), [3, 2, 2, 2]);
    assert_close(&outputs[0].to_f32().unwrap(), &y);
    assert_close(&outputs[1].to_f32().unwrap(), &h);
    assert_close(&outputs[2].to_f32().unwrap(), &c);
}

#[test]
fn a_clipped_gru_backwards_as_onnx_runtime_has_it() {
    let op = Op::Recurrent(Recurrent {
        cell: Cell::Gru { linear_before_reset: true },
        hidden: 2,
        direction: Direction::Reverse,
        activations: vec![Unary::Sigmoid, Unary::Tanh],
        clip: Some(Scalar::new(0.4)),
    });
    let outputs = run(&op, &[wave(&[3, 2, 2], 5), wave(&[1, 6, 2], 1), wave(&[1, 6, 2], 2), wave(&[1, 12], 3)]);
    let y = [
        -0.01845154,
        0.000325948,
        0.008956403,
        0.038358,
        0.2238675,
        0.2552319,
        0.2696475,
        0.3187576,
        0.2139155,
        0.2274708,
        0.1685183,
        0.2274708,
    ];
    assert_close(&outputs[0].to_f32().unwrap(), &y);
    assert_close(&outputs[1].to_f32().unwrap(), &y[..4]);
}

#[test]
fn a_plain_cell_adds_up() {
    let op = Op::Recurrent(Recurrent {
        cell: Cell::Rnn,
        hidden: 1,
        direction: Direction::Forward,
        activations: vec![Unary::Relu],
        clip: None,
    });
    let inputs =
        [tensor(&[3, 1, 1], &[1.0f32, 2.0, 3.0]), tensor(&[1, 1, 1], &[1.0f32]), tensor(&[1, 1, 1], &[2.0f32])];
    assert_eq!(run(&op, &inputs)[0].to_f32().unwrap(), [1.0, 4.0, 11.0]);
    let inputs: Vec<_> = inputs.into_iter().map(Some).chain([None, Some(tensor(&[1], &[4i32]))]).collect();
    assert!(evaluate(&op, &inputs, &Bindings::new()).is_err(), "a sequence longer than the steps");
}

#[test]
fn attributes_that_do_not_fit_are_refused() {
    let inputs = [wave(&[3, 2, 2], 5), wave(&[2, 8, 2], 1), wave(&[2, 8, 2], 2)];
    for hidden in [0, 1, 3, usize::MAX] {
        refusal(&Op::Recurrent(Recurrent { hidden, ..lstm() }), &inputs);
    }
    refusal(&Op::Recurrent(Recurrent { activations: vec![Unary::Tanh], ..lstm() }), &inputs);
    refusal(&Op::Recurrent(Recurrent { activations: vec![Unary::Not; 6], ..lstm() }), &inputs);
    refusal(&Op::Recurrent(Recurrent { direction: Direction::Forward, ..lstm() }), &inputs);
}
