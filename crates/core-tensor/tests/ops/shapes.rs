//! Shape rules on symbols: the expressions that they build have the values that numbers give.

use core_tensor::op::{
    Conv, ConvTranspose, Inference, MatMul, NonZero, Op, Pool, PoolKind, Recurrent, Resize, ResizeMode, TensorAttention,
};
use core_tensor::{Bindings, DType, Dim, ValueType, eval_shape};

use super::conv::window;

fn infer(op: &Op, inputs: &[(DType, Vec<Dim>)]) -> Vec<Dim> {
    let types: Vec<ValueType> =
        inputs.iter().map(|(dtype, shape)| ValueType::Tensor { dtype: *dtype, shape: shape.clone() }).collect();
    let given: Vec<Option<&ValueType>> = types.iter().map(Some).collect();
    let outputs = op.infer(&Inference { inputs: &given, states: &[] }).expect("shapes that may fit");
    outputs[0].as_tensor().expect("a tensor").1.to_vec()
}

/// Infers with symbols and gives them values, and infers with these values.
fn agree(op: &Op, inputs: &[&[Dim]], values: &[(&str, usize)]) {
    let bindings = values.iter().fold(Bindings::new(), |bindings, (symbol, n)| bindings.with(symbol, *n));
    let symbolic: Vec<_> = inputs.iter().map(|shape| (DType::F32, shape.to_vec())).collect();
    let bound: Vec<_> =
        inputs.iter().map(|shape| (DType::F32, shape.iter().map(|dim| dim.bind(&bindings)).collect())).collect();
    let late = eval_shape(&infer(op, &symbolic), &bindings).expect("extents with values");
    let early = eval_shape(&infer(&op.bind(&bindings), &bound), &Bindings::new()).expect("numbers");
    assert_eq!(late, early, "{}{}", op.name(), op.attributes());
}

#[test]
fn extents_of_convolutions_and_pools_are_expressions() {
    let (n, h, w) = (Dim::sym("n"), Dim::sym("h"), Dim::sym("w"));
    let x = [n, Dim::Num(4), h, w];
    let window = window(&[2, 3], &[2, 1], &[1, 0], &[1, 2]);
    let kernel = [Dim::Num(6), Dim::Num(2), Dim::Num(3), Dim::Num(2)];
    let back = [Dim::Num(4), Dim::Num(3), Dim::Num(3), Dim::Num(2)];
    for (h, w) in [(5, 4), (17, 9), (18, 10)] {
        let values = [("n", 2), ("h", h), ("w", w)];
        agree(&Op::Conv(Conv { window: window.clone(), groups: 2 }), &[&x, &kernel], &values);
        let op = ConvTranspose { window: window.clone(), groups: 2, output_padding: vec![1, 0] };
        agree(&Op::ConvTranspose(op), &[&x, &back], &values);
        for ceil_mode in [false, true] {
            let window = window.clone();
            let (kind, kernel) = (PoolKind::Max, vec![3, 2]);
            let op = Pool { kind, kernel, window, ceil_mode, indices: false, column_major: false };
            agree(&Op::Pool(op), &[&x], &values);
        }
    }
}

#[test]
fn products_and_attention_keep_symbols_apart_and_prefer_numbers() {
    let (b, t) = (Dim::sym("b"), Dim::sym("t"));
    let mul = Op::MatMul(MatMul { transpose_b: false });
    let f32s = |shape: &[Dim]| (DType::F32, shape.to_vec());
    let heads = Dim::Num(3);
    let shape = infer(
        &mul,
        &[
            f32s(&[b.clone(), heads.clone(), t.clone(), 8.into()]),
            f32s(&[1.into(), heads.clone(), 8.into(), t.clone()]),
        ],
    );
    assert_eq!(shape, [b.clone(), heads.clone(), t.clone(), t.clone()]);
    let op = Op::TensorAttention(TensorAttention { scale: 1.0, causal: false, softcap: None });
    let q = f32s(&[b.clone(), t.clone(), 4.into(), 8.into()]);
    let kv = f32s(&[2.into(), Dim::sym("n"), 4.into(), 8.into()]);
    assert_eq!(infer(&op, &[q, kv.clone(), kv]), [Dim::Num(2), t, 4.into(), 8.into()]);
}

#[test]
fn extents_in_attributes_are_bound() {
    let scales = None;
    let op = Op::Resize(Resize {
        mode: ResizeMode::Linear,
        coordinates: core_tensor::op::CoordinateMode::HalfPixel,
        shape: vec![Dim::sym("h").mul(2.into())],
        scales,
        antialias: false,
        exclude_outside: false,
        extrapolation_value: 0.0,
    });
    agree(&op, &[&[Dim::sym("h")]], &[("h", 5)]);
    let op = Op::NonZero(NonZero { count: Dim::sym("count") });
    agree(&op, &[&[Dim::Num(3)]], &[("count", 2)]);
}

#[test]
fn attributes_tell_operators_apart() {
    let window = window(&[1], &[1], &[0], &[0]);
    let pool = |ceil_mode: bool, kind: PoolKind| {
        let window = window.clone();
        Op::Pool(Pool { kind, kernel: vec![2], window, ceil_mode, indices: false, column_major: false })
    };
    let max = pool(true, PoolKind::Max);
    assert_eq!(max.attributes(), pool(true, PoolKind::Max).attributes());
    assert_ne!(max.attributes(), pool(false, PoolKind::Max).attributes());
    let mean = |count_include_pad| pool(true, PoolKind::Average { count_include_pad });
    assert_ne!(mean(true).attributes(), mean(false).attributes());
    let layer = |clip: Option<f32>| {
        Op::Recurrent(Recurrent {
            cell: core_tensor::op::Cell::Rnn,
            hidden: 1,
            direction: core_tensor::op::Direction::Forward,
            activations: vec![core_tensor::op::Unary::Tanh],
            clip: clip.map(core_tensor::op::Scalar::new),
        })
    };
    assert_ne!(layer(None).attributes(), layer(Some(1.0)).attributes());
    assert_ne!(layer(Some(2.0)).attributes(), layer(Some(1.0)).attributes());
}
