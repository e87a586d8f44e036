//! Attributes and shapes from hostile files: shape rules give types or errors, and never panic.

use core_tensor::op::{
    ArgMax, Cell, Col2Im, Conv, ConvInteger, ConvTranspose, CoordinateMode, CumSum, DeformConv, DequantizeLinear, Dft,
    Direction, DynamicQuantizeLinear, GatherElements, GatherNd, Granularity, GridMode, GridPadding, GridSample,
    GroupNormalization, Inference, LayerNormalization, LogSoftmax, Lrn, MatMul, MatMulInteger, NearestMode,
    NonMaxSuppression, NonZero, Op, Pool, PoolKind, QuantizeLinear, Recurrent, Resize, ResizeMode, RoiAlign,
    ScatterElements, ScatterNd, ScatterReduction, Softmax, Sort, TensorAttention, TopK, Unary, Unique, Window,
};
use core_tensor::{Bindings, DType, Dim, Tensor, ValueType, evaluate};

/// A sequence of numbers without pattern.
struct Draw {
    state: u64,
    /// How many spatial extents the attributes are for, and whether most of them are small; `None`: anything.
    tame: Option<usize>,
}

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % n
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn number(&mut self) -> usize {
        if self.tame.is_some() && self.below(50) > 0 {
            return self.of(&[0, 1, 1, 1, 1, 1, 2]);
        }
        self.of(&[0, 1, 1, 1, 2, 2, 3, 4, 1 << 31, 1 << 62, usize::MAX])
    }

    fn numbers(&mut self) -> Vec<usize> {
        let any = self.of(&[0, 1, 2, 2, 2, 3]);
        let len = self.tame.unwrap_or(any);
        (0..len).map(|_| self.number()).collect()
    }

    fn axis(&mut self) -> isize {
        self.of(&[0, 1, -1, 2, -3, isize::MAX, isize::MIN])
    }

    fn dim(&mut self) -> Dim {
        if self.below(4) == 0 { Dim::sym(self.of(&["a", "b"])) } else { Dim::Num(self.number()) }
    }

    fn window(&mut self) -> Window {
        let (strides, dilations) = (self.numbers(), self.numbers());
        Window { strides, dilations, pads_begin: self.numbers(), pads_end: self.numbers() }
    }

    fn op(&mut self) -> Op {
        let (axis, yes, groups) = (self.axis(), self.below(2) == 0, self.number());
        let reduction = self.of(&[ScatterReduction::None, ScatterReduction::Add]);
        let block = self.number();
        let granularity = self.of(&[Granularity::Tensor, Granularity::Axis(axis), Granularity::Blocks { axis, block }]);
        let window = self.window();
        let count = Dim::sym("count");
        match self.below(31) {
            0 => Op::Conv(Conv { window, groups }),
            1 => Op::ConvInteger(ConvInteger { window, groups }),
            2 => Op::ConvTranspose(ConvTranspose { window, groups, output_padding: self.numbers() }),
            3 => Op::DeformConv(DeformConv { window, groups, offset_groups: self.number() }),
            4 | 5 => {
                let kind =
                    self.of(&[PoolKind::Max, PoolKind::Average { count_include_pad: true }, PoolKind::Lp { p: 0 }]);
                let kernel = self.numbers();
                Op::Pool(Pool { kind, kernel, window, ceil_mode: yes, indices: self.below(2) == 0, column_major: yes })
            }
            6 => Op::RoiAlign(RoiAlign {
                output_height: self.number(),
                output_width: self.number(),
                sampling_ratio: self.number(),
                spatial_scale: self.of(&[1.0, f32::NAN, 1e30]),
                half_pixel: yes,
                max: yes,
            }),
            7 | 8 => Op::Resize(Resize {
                mode: self.of(&[ResizeMode::Linear, ResizeMode::Nearest(NearestMode::Ceil)]),
                coordinates: self.of(&[CoordinateMode::AlignCorners, CoordinateMode::TfCropAndResize]),
                shape: self.numbers().into_iter().map(Dim::Num).collect(),
                scales: None,
                antialias: yes,
                exclude_outside: yes,
                extrapolation_value: f32::NAN,
            }),
            9 => {
                let (mode, padding) = (GridMode::Cubic, GridPadding::Reflection);
                Op::GridSample(GridSample { mode, padding, align_corners: yes })
            }
            10 => Op::Col2Im(Col2Im { image: self.numbers(), block: self.numbers(), window }),
            11 => Op::Recurrent(Recurrent {
                cell: self.of(&[Cell::Rnn, Cell::Lstm { input_forget: yes }]),
                hidden: self.number(),
                direction: Direction::Forward,
                activations: vec![Unary::Tanh; self.below(4)],
                clip: None,
            }),
            12 => Op::QuantizeLinear(QuantizeLinear {
                granularity,
                to: self.of(&[DType::U8, DType::I4, DType::F64]),
                saturate: yes,
                bits: self.of(&[None, Some(0), Some(4), Some(255)]),
            }),
            13 => Op::DequantizeLinear(DequantizeLinear { granularity }),
            14 => Op::DynamicQuantizeLinear(DynamicQuantizeLinear),
            15 => Op::MatMul(MatMul { transpose_b: yes }),
            16 => Op::MatMulInteger(MatMulInteger),
            17 => Op::TensorAttention(TensorAttention { scale: f32::NAN, causal: yes, softcap: Some(0.0) }),
            18 => Op::LayerNormalization(LayerNormalization { epsilon: f32::NAN }),
            19 => Op::GroupNormalization(GroupNormalization { groups, epsilon: 0.0 }),
            20 => Op::Lrn(Lrn { size: groups, alpha: f32::NAN, beta: 1.0, bias: 0.0 }),
            21 => Op::GatherElements(GatherElements { axis }),
            22 => Op::GatherNd(GatherNd { batch_dims: groups }),
            23 => Op::ScatterElements(ScatterElements { axis, reduction }),
            24 => Op::ScatterNd(ScatterNd { reduction }),
            25 => self.of(&[
                Op::NonZero(NonZero { count: count.clone() }),
                Op::NonMaxSuppression(NonMaxSuppression { center_point_box: yes, count: count.clone() }),
            ]),
            26 => Op::Unique(Unique { axis: if yes { Some(axis) } else { None }, sorted: yes, count }),
            27 => self.of(&[Op::Softmax(Softmax), Op::LogSoftmax(LogSoftmax), Op::ArgMax(ArgMax)]),
            28 => self.of(&[Op::TopK(TopK { k: groups }), Op::Sort(Sort { descending: yes })]),
            29 => Op::CumSum(CumSum { axis, exclusive: yes, reverse: yes }),
            _ => Op::Dft(Dft { axis, length: self.dim(), inverse: yes, onesided: self.below(2) == 0 }),
        }
    }

    fn dtype(&mut self) -> DType {
        self.of(&[DType::F32, DType::F32, DType::F32, DType::I64, DType::U8, DType::I32, DType::U4, DType::Bool])
    }
}

#[test]
fn shape_rules_do_not_panic() {
    let mut draw = Draw { state: 1, tame: None };
    let mut accepted = 0;
    for _ in 0..60_000 {
        let op = draw.op();
        let types: Vec<ValueType> = (0..draw.below(5))
            .map(|_| {
                let (dtype, rank) = (draw.dtype(), draw.below(5));
                ValueType::Tensor { dtype, shape: (0..rank).map(|_| draw.dim()).collect() }
            })
            .collect();
        let given: Vec<Option<&ValueType>> =
            types.iter().map(|ty| if draw.below(8) == 0 { None } else { Some(ty) }).collect();
        accepted += usize::from(op.infer(&Inference { inputs: &given, states: &[] }).is_ok());
    }
    assert!(accepted > 1000, "{accepted} were accepted: the draw is too wild to show anything");
}

#[test]
fn small_tensors_end_no_program() {
    let mut draw = Draw { state: 2, tame: None };
    let mut computed = 0;
    for _ in 0..60_000 {
        let rank = draw.below(5);
        draw.tame = if draw.below(2) == 0 { rank.checked_sub(2) } else { None };
        let single = draw.tame.is_some() && draw.below(4) > 0;
        let op = draw.op();
        let inputs: Vec<Option<Tensor>> = (0..draw.below(5))
            .map(|_| {
                let dtype = if single {
                    DType::F32
                } else {
                    draw.of(&[DType::F32, DType::I64, DType::U8, DType::I32, DType::F64])
                };
                let rank = if draw.below(if single { 20 } else { 3 }) == 0 { draw.below(5) } else { rank };
                let mut shape: Vec<usize> =
                    (0..rank)
                        .map(|_| {
                            if single { draw.of(&[0, 1, 2, 2, 2, 2, 2, 2]) } else { draw.of(&[0, 1, 1, 2, 2, 2, 3, 4]) }
                        })
                        .collect();
                // Beside an extent of 0 another one may be anything.
                if shape.contains(&0) && rank > 1 && draw.below(2) == 0 {
                    let at = draw.below(rank);
                    shape[at] = if shape[at] == 0 { 0 } else { draw.of(&[1 << 20, 1 << 40, 1 << 60]) };
                }
                let len = if shape.contains(&0) { 0 } else { shape.iter().product() };
                let bytes: usize = len * dtype.packing().1;
                let bytes: Vec<u8> = (0..bytes).map(|_| draw.of(&[0, 0, 0, 1, 63, 255])).collect();
                Tensor::from_bytes(dtype, &shape, &bytes).ok()
            })
            .collect();
        let sizes = Bindings::new().with("a", 2).with("b", 3);
        // A result as large as the file asks for is no fault of the operator, but too large for a test.
        let types: Vec<Option<ValueType>> = inputs
            .iter()
            .map(|input| {
                let input = input.as_ref()?;
                Some(ValueType::tensor(input.dtype(), &super::dims(input.shape())))
            })
            .collect();
        let given: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
        let Ok(outputs) = op.bind(&sizes).infer(&Inference { inputs: &given, states: &[] }) else { continue };
        let large = outputs.iter().filter_map(ValueType::as_tensor).any(|(_, shape)| {
            let extents: Vec<usize> = shape.iter().filter_map(Dim::as_num).collect();
            extents
                .iter()
                .try_fold(1usize, |n, extent| n.checked_mul(*extent))
                .is_some_and(|n| (1 << 16..1 << 48).contains(&n))
        });
        if !large {
            computed += usize::from(evaluate(&op, &inputs, &sizes).is_ok());
        }
    }
    assert!(computed > 500, "{computed} gave results: the draw is too wild to show anything");
}
