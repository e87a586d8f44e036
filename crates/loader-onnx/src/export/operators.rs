//! The graph's operators as ONNX nodes.

use core_tensor::op::{
    CoordinateMode, Granularity, GridMode, GridPadding, NearestMode, Op, PadMode, PoolKind, Reduce, ReduceKind, Resize,
    ResizeMode, ScatterReduction, Slice, TensorAttention, Window,
};
use core_tensor::{DType, Dim, Node, Tensor, ValueId};

use super::ExportError;
use super::dims::number;
use super::elementwise::binary;
use super::nodes::{Writer, data_type, float, int, ints, text};
use crate::proto::AttributeProto;

impl<'a> Writer<'a> {
    /// Writes all nodes in order.
    pub(super) fn write_nodes(&mut self) -> Result<(), ExportError> {
        self.write_output_weights();
        for node in self.graph.nodes() {
            self.at = Some(node);
            self.write_node(node)?;
        }
        self.at = None;
        Ok(())
    }

    fn input(&mut self, node: &Node, at: usize) -> Result<String, ExportError> {
        match node.inputs.get(at).copied().flatten() {
            Some(id) => Ok(self.name(id)),
            None => Err(self.refuse(format!("input {at} is left out"))),
        }
    }

    /// All inputs, those left out with empty names.
    fn inputs(&mut self, node: &Node) -> Vec<String> {
        node.inputs.iter().map(|id| id.map_or_else(String::new, |id| self.name(id))).collect()
    }

    fn id(&self, node: &Node, at: usize) -> Result<ValueId, ExportError> {
        node.inputs.get(at).copied().flatten().ok_or_else(|| self.refuse(format!("input {at} is left out")))
    }

    fn ty(&self, node: &Node, at: usize) -> Result<(DType, &'a [Dim]), ExportError> {
        let id = self.id(node, at)?;
        self.graph.tensor_type(id).ok_or_else(|| self.refuse("states have no counterpart"))
    }

    /// An operand as f32: weights of half precision are converted in the model.
    fn f32_input(&mut self, node: &Node, at: usize) -> Result<String, ExportError> {
        let (dtype, _) = self.ty(node, at)?;
        let name = self.input(node, at)?;
        if dtype.is_float() && dtype != DType::F32 && dtype != DType::F64 {
            return Ok(self.step("Cast", &[&name], vec![int("to", i64::from(data_type(DType::F32).unwrap_or(1)))]));
        }
        Ok(name)
    }

    fn to(&self, dtype: DType) -> Result<AttributeProto, ExportError> {
        let number = data_type(dtype).ok_or_else(|| self.refuse(format!("{dtype} is none of ONNX's dtypes")))?;
        Ok(int("to", i64::from(number)))
    }

    /// A node of the same inputs and outputs.
    fn same(&mut self, node: &Node, op: &str, attributes: Vec<AttributeProto>) {
        let inputs = self.inputs(node);
        let outputs: Vec<String> = node.outputs.iter().map(|id| self.name(*id)).collect();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        self.node(op, &inputs, &outputs, attributes);
    }

    fn write_node(&mut self, node: &'a Node) -> Result<(), ExportError> {
        let output = node.outputs.first().copied().ok_or_else(|| self.refuse("it has no output"))?;
        let y = self.name(output);
        match &node.op {
            Op::MatMul(_) if self.in_blocks(self.id(node, 1)?) => {
                let a = self.input(node, 0)?;
                self.matmul_n_bits(node, &a, self.id(node, 1)?, &y)?;
            }
            Op::MatMul(op) => {
                let (a, mut b) = (self.input(node, 0)?, self.f32_input(node, 1)?);
                if op.transpose_b {
                    let rank = self.ty(node, 1)?.1.len();
                    let mut perm: Vec<usize> = (0..rank).collect();
                    perm.swap(rank - 1, rank - 2);
                    b = self.transposed(&b, &perm);
                }
                self.node("MatMul", &[&a, &b], &[&y], Vec::new());
            }
            Op::MatMulInteger(_) => self.same(node, "MatMulInteger", Vec::new()),
            Op::TensorAttention(op) => self.attention(node, op, &y)?,
            Op::LayerNormalization(op) => {
                let n = self.ty(node, 0)?.1.last().cloned().unwrap_or(Dim::Num(1));
                let x = self.input(node, 0)?;
                let w = match node.inputs.get(1).copied().flatten() {
                    Some(id) => self.name(id),
                    None => {
                        let n = n.as_num().ok_or_else(|| self.refuse("the last extent is not known"))?;
                        let ones = Tensor::from_slice(&[n], &vec![1.0f32; n]);
                        let ones = ones.map_err(|error| self.refuse(error.to_string()))?;
                        self.constant(ones)
                    }
                };
                let b = node.inputs.get(2).copied().flatten().map_or_else(String::new, |id| self.name(id));
                let attributes = vec![int("axis", -1), float("epsilon", op.epsilon)];
                self.node("LayerNormalization", &[&x, &w, &b], &[&y], attributes);
            }
            Op::RmsNormalization(op) => {
                let (x, w) = (self.input(node, 0)?, self.input(node, 1)?);
                let square = self.step("Mul", &[&x, &x], Vec::new());
                let last = self.ints(&[-1])?;
                let mean = self.step("ReduceMean", &[&square, &last], Vec::new());
                let epsilon = self.float(op.epsilon)?;
                let sum = self.step("Add", &[&mean, &epsilon], Vec::new());
                let root = self.step("Sqrt", &[&sum], Vec::new());
                let quotient = self.step("Div", &[&x, &root], Vec::new());
                self.node("Mul", &[&quotient, &w], &[&y], Vec::new());
            }
            Op::GroupNormalization(op) => {
                let channels = self.ty(node, 0)?.1.get(1).and_then(Dim::as_num);
                let channels = channels.ok_or_else(|| self.refuse("the number of channels is not known"))?;
                let mut inputs = vec![self.input(node, 0)?];
                for (at, neutral) in [(1, 1.0f32), (2, 0.0)] {
                    inputs.push(match node.inputs.get(at).copied().flatten() {
                        Some(id) => self.name(id),
                        None => {
                            let all = Tensor::from_slice(&[channels], &vec![neutral; channels]);
                            let all = all.map_err(|error| self.refuse(error.to_string()))?;
                            self.constant(all)
                        }
                    });
                }
                let attributes = vec![int("num_groups", op.groups as i64), float("epsilon", op.epsilon)];
                self.node("GroupNormalization", &[&inputs[0], &inputs[1], &inputs[2]], &[&y], attributes);
            }
            Op::Lrn(op) => {
                let attributes = vec![
                    int("size", op.size as i64),
                    float("alpha", op.alpha),
                    float("beta", op.beta),
                    float("bias", op.bias),
                ];
                self.same(node, "LRN", attributes);
            }
            Op::Unary(op) => {
                let (dtype, _) = self.ty(node, 0)?;
                let x = self.input(node, 0)?;
                self.unary(*op, dtype, &x, &y)?;
            }
            Op::Binary(op) => {
                let (name, attributes) = binary(*op);
                self.same(node, name, attributes);
            }
            Op::GatedActivation(op) => {
                let (gate, up) = (self.input(node, 0)?, self.input(node, 1)?);
                let activated = self.fresh(&format!("{}.activation", node.name));
                self.unary(op.activation, DType::F32, &gate, &activated)?;
                self.node("Mul", &[&activated, &up], &[&y], Vec::new());
            }
            Op::Where(_) => self.same(node, "Where", Vec::new()),
            Op::Softmax(_) => self.same(node, "Softmax", vec![int("axis", -1)]),
            Op::LogSoftmax(_) => self.same(node, "LogSoftmax", vec![int("axis", -1)]),
            Op::Reduce(op) => self.reduce(node, *op, &y)?,
            Op::ArgMax(_) => {
                let x = self.input(node, 0)?;
                let index = self.step("ArgMax", &[&x], vec![int("axis", -1), int("keepdims", 0)]);
                let to = self.to(DType::I32)?;
                self.node("Cast", &[&index], &[&y], vec![to]);
            }
            Op::TopK(op) => {
                let (x, k) = (self.input(node, 0)?, self.ints(&[op.k as i64])?);
                let second = node.outputs.get(1).copied().ok_or_else(|| self.refuse("it has one output"))?;
                let (indices, index) = (self.name(second), self.fresh(&format!("{}.index", node.name)));
                self.node("TopK", &[&x, &k], &[&y, &index], Vec::new());
                let to = self.to(DType::I32)?;
                self.node("Cast", &[&index], &[&indices], vec![to]);
            }
            Op::CumSum(op) => {
                let x = self.input(node, 0)?;
                let axis =
                    Tensor::from_slice(&[], &[op.axis as i64]).map_err(|error| self.refuse(error.to_string()))?;
                let axis = self.constant(axis);
                let attributes = vec![int("exclusive", op.exclusive.into()), int("reverse", op.reverse.into())];
                self.node("CumSum", &[&x, &axis], &[&y], attributes);
            }
            Op::Reshape(op) => {
                let x = self.input(node, 0)?;
                let shape = match node.inputs.get(1).copied().flatten() {
                    Some(id) => self.name(id),
                    None => self.shape(&op.shape, Some(self.id(node, 0)?))?,
                };
                self.node("Reshape", &[&x, &shape], &[&y], Vec::new());
            }
            Op::Expand(op) => {
                let x = self.input(node, 0)?;
                let shape = match node.inputs.get(1).copied().flatten() {
                    Some(id) => self.name(id),
                    None => self.shape(&op.shape, None)?,
                };
                self.node("Expand", &[&x, &shape], &[&y], Vec::new());
            }
            Op::ExtentValues(op) => {
                let shape = self.shape(&op.dims, None)?;
                self.node("Identity", &[&shape], &[&y], Vec::new());
            }
            Op::Transpose(op) => {
                self.same(node, "Transpose", vec![ints("perm", op.perm.iter().map(|i| *i as i64))]);
            }
            Op::Slice(op) => self.slice(node, op, &y)?,
            Op::Concat(op) => self.same(node, "Concat", vec![int("axis", op.axis as i64)]),
            Op::Cast(op) => {
                let to = self.to(op.to)?;
                self.same(node, "Cast", vec![to]);
            }
            Op::Pad(op) => {
                let mode = match op.mode {
                    PadMode::Constant => "constant",
                    PadMode::Edge => "edge",
                    PadMode::Reflect => "reflect",
                    PadMode::Wrap => "wrap",
                };
                let x = self.input(node, 0)?;
                let all: Vec<Dim> =
                    op.pads.iter().map(|(a, _)| a.clone()).chain(op.pads.iter().map(|(_, b)| b.clone())).collect();
                let pads = self.shape(&all, None)?;
                let value = node.inputs.get(1).copied().flatten().map_or_else(String::new, |id| self.name(id));
                self.node("Pad", &[&x, &pads, &value], &[&y], vec![text("mode", mode)]);
            }
            Op::Range(_) => {
                // Scalars are wanted, single elements may be given.
                let mut scalars = Vec::new();
                for at in 0..3 {
                    let name = self.input(node, at)?;
                    scalars.push(if self.ty(node, at)?.1.is_empty() { name } else { self.reshaped(&name, &[])? });
                }
                self.node("Range", &[&scalars[0], &scalars[1], &scalars[2]], &[&y], Vec::new());
            }
            Op::Trilu(op) => {
                let x = self.input(node, 0)?;
                let k = Tensor::from_slice(&[], &[op.k]).map_err(|error| self.refuse(error.to_string()))?;
                let k = self.constant(k);
                self.node("Trilu", &[&x, &k], &[&y], vec![int("upper", op.upper.into())]);
            }
            Op::Gather(_) if self.in_blocks(self.id(node, 0)?) => {
                let indices = self.input(node, 1)?;
                self.gather_blocks(self.id(node, 0)?, &indices, &y)?;
            }
            Op::Gather(op) => {
                let (dtype, _) = self.ty(node, 0)?;
                let axis = vec![int("axis", op.axis as i64)];
                let inputs = [self.input(node, 0)?, self.input(node, 1)?];
                if matches!(dtype, DType::F16 | DType::BF16) {
                    let rows = self.step("Gather", &[&inputs[0], &inputs[1]], axis);
                    let to = self.to(DType::F32)?;
                    self.node("Cast", &[&rows], &[&y], vec![to]);
                } else {
                    self.node("Gather", &[&inputs[0], &inputs[1]], &[&y], axis);
                }
            }
            Op::GatherElements(op) => self.same(node, "GatherElements", vec![int("axis", op.axis as i64)]),
            Op::GatherNd(op) => self.same(node, "GatherND", vec![int("batch_dims", op.batch_dims as i64)]),
            Op::ScatterElements(op) => {
                let attributes = vec![int("axis", op.axis as i64), text("reduction", reduction(op.reduction))];
                self.same(node, "ScatterElements", attributes);
            }
            Op::ScatterNd(op) => self.same(node, "ScatterND", vec![text("reduction", reduction(op.reduction))]),
            Op::NonZero(_) => self.same(node, "NonZero", Vec::new()),
            Op::NonMaxSuppression(op) => {
                self.same(node, "NonMaxSuppression", vec![int("center_point_box", op.center_point_box.into())]);
            }
            Op::Conv(op) => {
                let mut attributes = window(&op.window);
                attributes.push(int("group", op.groups as i64));
                self.convolution(node, "Conv", attributes, &y)?;
            }
            Op::ConvTranspose(op) => {
                let mut attributes = window(&op.window);
                attributes.push(int("group", op.groups as i64));
                attributes.push(ints("output_padding", op.output_padding.iter().map(|n| *n as i64)));
                self.convolution(node, "ConvTranspose", attributes, &y)?;
            }
            Op::ConvInteger(op) => {
                let mut attributes = window(&op.window);
                attributes.push(int("group", op.groups as i64));
                self.same(node, "ConvInteger", attributes);
            }
            Op::Pool(op) => {
                let mut attributes = window(&op.window);
                attributes.push(ints("kernel_shape", op.kernel.iter().map(|n| *n as i64)));
                attributes.push(int("ceil_mode", op.ceil_mode.into()));
                let name = match op.kind {
                    PoolKind::Max => {
                        attributes.push(int("storage_order", op.column_major.into()));
                        "MaxPool"
                    }
                    PoolKind::Average { count_include_pad } => {
                        attributes.push(int("count_include_pad", count_include_pad.into()));
                        "AveragePool"
                    }
                    PoolKind::Lp { p } => {
                        attributes.push(int("p", p.into()));
                        "LpPool"
                    }
                };
                self.same(node, name, attributes);
            }
            Op::Resize(op) => self.resize(node, op, &y)?,
            Op::GridSample(op) => {
                let mode = match op.mode {
                    GridMode::Linear => "linear",
                    GridMode::Nearest => "nearest",
                    GridMode::Cubic => "cubic",
                };
                let padding = match op.padding {
                    GridPadding::Zeros => "zeros",
                    GridPadding::Border => "border",
                    GridPadding::Reflection => "reflection",
                };
                let attributes = vec![
                    text("mode", mode),
                    text("padding_mode", padding),
                    int("align_corners", op.align_corners.into()),
                ];
                self.same(node, "GridSample", attributes);
            }
            Op::QuantizeLinear(op) if op.bits.is_none() => {
                let mut attributes = granularity(op.granularity);
                let number =
                    data_type(op.to).ok_or_else(|| self.refuse(format!("{} is none of ONNX's dtypes", op.to)))?;
                if node.inputs.get(2).copied().flatten().is_none() {
                    attributes.push(int("output_dtype", i64::from(number)));
                }
                attributes.push(int("saturate", op.saturate.into()));
                self.same(node, "QuantizeLinear", attributes);
            }
            Op::DequantizeLinear(op) => self.same(node, "DequantizeLinear", granularity(op.granularity)),
            Op::DynamicQuantizeLinear(_) => self.same(node, "DynamicQuantizeLinear", Vec::new()),
            Op::QuantizeLinear(_) => return Err(self.refuse("integers of fewer bits than their dtype has")),
            Op::Attention(_) | Op::StateWrite(_) => return Err(self.refuse("states have no counterpart")),
            Op::Custom(_) => return Err(self.refuse("custom operators have no counterpart")),
            Op::RotaryEmbedding(_) => return Err(self.refuse("its angles are computed by the operator")),
            Op::If(_)
            | Op::Loop(_)
            | Op::Unique(_)
            | Op::Sort(_)
            | Op::DeformConv(_)
            | Op::RoiAlign(_)
            | Op::Col2Im(_)
            | Op::Recurrent(_)
            | Op::Dft(_)
            | Op::Random(_) => return Err(self.refuse("this operator is not written yet")),
        }
        Ok(())
    }

    fn convolution(
        &mut self,
        node: &Node,
        op: &str,
        mut attributes: Vec<AttributeProto>,
        y: &str,
    ) -> Result<(), ExportError> {
        let (x, w) = (self.input(node, 0)?, self.f32_input(node, 1)?);
        let kernel = self.ty(node, 1)?.1.iter().skip(2).map(number).collect::<Option<Vec<i64>>>();
        attributes.extend(kernel.map(|kernel| ints("kernel_shape", kernel)));
        let bias =
            if node.inputs.get(2).copied().flatten().is_some() { self.f32_input(node, 2)? } else { String::new() };
        self.node(op, &[&x, &w, &bias], &[y], attributes);
        Ok(())
    }

    /// Along the last extent, which stays as one of 1.
    fn reduce(&mut self, node: &Node, op: Reduce, y: &str) -> Result<(), ExportError> {
        let (dtype, _) = self.ty(node, 0)?;
        if dtype == DType::Bool {
            return Err(self.refuse("truth values are not reduced"));
        }
        let x = self.input(node, 0)?;
        let last = self.ints(&[-1])?;
        let name = match op.kind {
            ReduceKind::Sum => "ReduceSum",
            ReduceKind::Mean => "ReduceMean",
            ReduceKind::Max => "ReduceMax",
            ReduceKind::Min => "ReduceMin",
            ReduceKind::Prod => "ReduceProd",
            ReduceKind::L1 => "ReduceL1",
            ReduceKind::L2 => "ReduceL2",
            ReduceKind::SumSquare => "ReduceSumSquare",
            ReduceKind::LogSum => "ReduceLogSum",
            ReduceKind::LogSumExp => "ReduceLogSumExp",
        };
        self.node(name, &[&x, &last], &[y], vec![int("keepdims", 1)]);
        Ok(())
    }

    fn slice(&mut self, node: &Node, op: &Slice, y: &str) -> Result<(), ExportError> {
        let x = self.input(node, 0)?;
        let (axis, step) = (self.ints(&[op.axis as i64])?, self.ints(&[op.step as i64])?);
        let start = self.dim(&op.start)?;
        let end = if op.step > 0 {
            self.dim(&op.start.clone().add(op.len.clone().mul(Dim::Num(op.step.unsigned_abs()))))?
        } else {
            // What lies before the first element is written as the least integer.
            let step = op.step.unsigned_abs();
            let end = match (op.start.as_num(), op.len.as_num()) {
                (Some(start), Some(len)) => match len.checked_mul(step).map(|run| start.checked_sub(run)) {
                    Some(Some(end)) => i64::try_from(end).ok(),
                    _ => Some(i64::MIN),
                },
                // All from the last one on: it ends before the first.
                _ if step == 1 && op.start.clone().add(Dim::Num(1)) == op.len => Some(i64::MIN),
                _ => None,
            };
            let end = end.ok_or_else(|| self.refuse("it goes backwards between extents that are not known"))?;
            self.ints(&[end])?
        };
        self.node("Slice", &[&x, &start, &end, &axis, &step], &[y], Vec::new());
        Ok(())
    }

    fn resize(&mut self, node: &Node, op: &Resize, y: &str) -> Result<(), ExportError> {
        let (x, roi) = (self.input(node, 0)?, node.inputs.get(1).copied().flatten());
        let roi = roi.map_or_else(String::new, |id| self.name(id));
        let coordinates = match op.coordinates {
            CoordinateMode::HalfPixel => "half_pixel",
            CoordinateMode::HalfPixelSymmetric => "half_pixel_symmetric",
            CoordinateMode::PytorchHalfPixel => "pytorch_half_pixel",
            CoordinateMode::AlignCorners => "align_corners",
            CoordinateMode::Asymmetric => "asymmetric",
            CoordinateMode::TfCropAndResize => "tf_crop_and_resize",
        };
        let mut attributes = vec![
            text("coordinate_transformation_mode", coordinates),
            int("antialias", op.antialias.into()),
            int("exclude_outside", op.exclude_outside.into()),
            float("extrapolation_value", op.extrapolation_value),
        ];
        match op.mode {
            ResizeMode::Nearest(nearest) => {
                let nearest = match nearest {
                    NearestMode::RoundPreferFloor => "round_prefer_floor",
                    NearestMode::RoundPreferCeil => "round_prefer_ceil",
                    NearestMode::Floor => "floor",
                    NearestMode::Ceil => "ceil",
                };
                attributes.extend([text("mode", "nearest"), text("nearest_mode", nearest)]);
            }
            ResizeMode::Linear => attributes.push(text("mode", "linear")),
            ResizeMode::Cubic(a) => attributes.extend([text("mode", "cubic"), float("cubic_coeff_a", a.get())]),
        }
        let (scales, sizes) = match &op.scales {
            Some(scales) => {
                let tensor = Tensor::from_slice(&[scales.len()], scales);
                let tensor = tensor.map_err(|error| self.refuse(error.to_string()))?;
                (self.constant(tensor), String::new())
            }
            None => (String::new(), self.shape(&op.shape, None)?),
        };
        self.node("Resize", &[&x, &roi, &scales, &sizes], &[y], attributes);
        Ok(())
    }

    /// Scaled dot-product attention, spelled out on `[batch, heads, tokens, dim]`.
    fn attention(&mut self, node: &Node, op: &TensorAttention, y: &str) -> Result<(), ExportError> {
        let (q_shape, k_shape) = (self.ty(node, 0)?.1, self.ty(node, 1)?.1);
        let ([_, tokens, heads, _], [_, n, n_kv, _]) = (q_shape, k_shape) else {
            return Err(self.refuse("q and k have no 4 extents"));
        };
        let (q, mut k, mut v) = (self.input(node, 0)?, self.input(node, 1)?, self.input(node, 2)?);
        if heads != n_kv {
            // Each head of k and v is repeated for the queries that share it.
            let (Some(heads), Some(n_kv)) = (heads.as_num(), n_kv.as_num()) else {
                return Err(self.refuse("the numbers of heads are not known"));
            };
            let order: Vec<i64> = (0..heads).map(|head| (head / (heads / n_kv.max(1)).max(1)) as i64).collect();
            let order = self.ints(&order)?;
            k = self.step("Gather", &[&k, &order], vec![int("axis", 2)]);
            v = self.step("Gather", &[&v, &order], vec![int("axis", 2)]);
        }
        let (q, k) = (self.transposed(&q, &[0, 2, 1, 3]), self.transposed(&k, &[0, 2, 3, 1]));
        let v = self.transposed(&v, &[0, 2, 1, 3]);
        let mut scores = self.step("MatMul", &[&q, &k], Vec::new());
        if op.scale != 1.0 {
            let scale = self.float(op.scale)?;
            scores = self.step("Mul", &[&scores, &scale], Vec::new());
        }
        if let Some(cap) = op.softcap {
            let cap = self.float(cap)?;
            let inner = self.step("Div", &[&scores, &cap], Vec::new());
            let tanh = self.step("Tanh", &[&inner], Vec::new());
            scores = self.step("Mul", &[&tanh, &cap], Vec::new());
        }
        if let Some(id) = node.inputs.get(3).copied().flatten() {
            let mask = self.name(id);
            scores = if self.graph.tensor_type(id).is_some_and(|(dtype, _)| dtype == DType::Bool) {
                let unseen = self.float(f32::NEG_INFINITY)?;
                self.step("Where", &[&mask, &scores, &unseen], Vec::new())
            } else {
                self.step("Add", &[&scores, &mask], Vec::new())
            };
        }
        if op.causal {
            // Ones at and below the diagonal that lets the last query see all keys.
            let shape = self.shape(&[tokens.clone(), n.clone()], None)?;
            let one = self.float(1.0)?;
            let ones = self.step("Expand", &[&one, &shape], Vec::new());
            let (n, tokens) = (self.dim(n)?, self.dim(tokens)?);
            let diagonal = self.step("Sub", &[&n, &tokens], Vec::new());
            let diagonal = self.reshaped(&diagonal, &[])?;
            let lower = self.step("Trilu", &[&ones, &diagonal], vec![int("upper", 0)]);
            let to = self.to(DType::Bool)?;
            let seen = self.step("Cast", &[&lower], vec![to]);
            let unseen = self.float(f32::NEG_INFINITY)?;
            scores = self.step("Where", &[&seen, &scores, &unseen], Vec::new());
        }
        let mut p = self.step("Softmax", &[&scores], vec![int("axis", -1)]);
        if op.causal || node.inputs.get(3).copied().flatten().is_some() {
            // Rows that see nothing give zeros.
            let nan = self.step("IsNaN", &[&p], Vec::new());
            let zero = self.float(0.0)?;
            p = self.step("Where", &[&nan, &zero, &p], Vec::new());
        }
        let product = self.step("MatMul", &[&p, &v], Vec::new());
        self.node("Transpose", &[&product], &[y], vec![ints("perm", [0, 2, 1, 3])]);
        Ok(())
    }
}

fn window(window: &Window) -> Vec<AttributeProto> {
    let all = |values: &[usize]| values.iter().map(|n| *n as i64).collect::<Vec<i64>>();
    vec![
        ints("strides", all(&window.strides)),
        ints("dilations", all(&window.dilations)),
        ints("pads", [all(&window.pads_begin), all(&window.pads_end)].concat()),
    ]
}

fn granularity(granularity: Granularity) -> Vec<AttributeProto> {
    match granularity {
        Granularity::Tensor => Vec::new(),
        Granularity::Axis(axis) => vec![int("axis", axis as i64)],
        Granularity::Blocks { axis, block } => vec![int("axis", axis as i64), int("block_size", block as i64)],
    }
}

fn reduction(reduction: ScatterReduction) -> &'static str {
    match reduction {
        ScatterReduction::None => "none",
        ScatterReduction::Add => "add",
        ScatterReduction::Mul => "mul",
        ScatterReduction::Min => "min",
        ScatterReduction::Max => "max",
    }
}
