//! Selections whose extent depends on the data.

use crate::op::conv::places;
use crate::op::shape::{plain, product};
use crate::op::{Evaluation, Inference, Numbers, Op, OpError, Operator, axis, expect_shape, room, show};
use crate::{Bindings, DType, Dim, Tensor, ValueType};

/// Where elements are not zero, in row-major order (ONNX NonZero). Input: a plain dtype `[rank extents]`. Output: i64 `[rank, count]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonZero {
    /// A symbol that gets its value when the node has run.
    pub count: Dim,
}

/// Boxes chosen by score that do not overlap much (ONNX NonMaxSuppression).
///
/// Inputs: boxes f32 `[batch, n, 4]`; scores f32 `[batch, classes, n]`; optionally max_output_boxes_per_class i64, iou_threshold f32,
/// score_threshold f32, scalars or single elements. Output: i64 `[count, 3]` of (batch, class, box).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonMaxSuppression {
    /// Whether boxes are (x_center, y_center, width, height), and not two corners (y1, x1, y2, x2).
    pub center_point_box: bool,
    /// A symbol that gets its value when the node has run.
    pub count: Dim,
}

/// Different elements, or different slices along an extent (ONNX Unique).
///
/// Input: a plain dtype. Outputs: the unique ones; i64 index of the first occurrence of each; i64 for each element of the input which unique one it
/// is; i64 how often each occurs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unique {
    /// The extent, or the flattened input.
    pub axis: Option<isize>,
    /// Whether in ascending order, and not in that of first occurrence.
    pub sorted: bool,
    /// A symbol that gets its value when the node has run.
    pub count: Dim,
}

impl Operator for NonZero {
    fn name(&self) -> &'static str {
        "NonZero"
    }

    fn attributes(&self) -> String {
        format!(" {{count={}}}", self.count)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = cx.tensor(0)?;
        plain(dtype, 0)?;
        Ok(vec![ValueType::tensor(DType::I64, &[Dim::Num(shape.len()), self.count.clone()])])
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(Op::NonZero(NonZero { count: self.count.bind(bindings) }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let x = cx.tensor(0)?;
        let found: Vec<Vec<usize>> = (Numbers::load(x)?.to_f64().iter().enumerate())
            .filter(|(_, v)| **v != 0.0)
            .map(|(i, _)| places(i, x.shape()))
            .collect();
        let rank = x.shape().len();
        let y: Vec<i64> = (0..rank).flat_map(|d| found.iter().map(move |at| at[d] as i64)).collect();
        cx.put_tensor(0, Tensor::from_slice(&[rank, found.len()], &y)?)
    }
}

impl Operator for NonMaxSuppression {
    fn name(&self) -> &'static str {
        "NonMaxSuppression"
    }

    fn attributes(&self) -> String {
        format!(" {{center_point_box={}, count={}}}", self.center_point_box, self.count)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=5, "2 to 5")?;
        let (boxes, scores) = (cx.f32(0)?, cx.f32(1)?);
        let ([batch, n, four], [scores_batch, _, scores_n]) = (boxes, scores) else {
            let reason = format!("boxes {} and scores {} must have 3 extents", show(boxes), show(scores));
            return Err(OpError::Shape(reason));
        };
        let (found, expected) =
            ([four.clone(), scores_batch.clone(), scores_n.clone()], [4.into(), batch.clone(), n.clone()]);
        expect_shape(&found, &expected, "[coordinates, batch, n]")?;
        for (input, dtype) in [(2, DType::I64), (3, DType::F32), (4, DType::F32)] {
            if cx.has(input) && product(cx.typed(input, &[dtype], dtype.name())?).differs(&Dim::Num(1)) {
                return Err(OpError::Shape(format!("input {input} is no single number")));
            }
        }
        Ok(vec![ValueType::tensor(DType::I64, &[self.count.clone(), Dim::Num(3)])])
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(Op::NonMaxSuppression(NonMaxSuppression { count: self.count.bind(bindings), ..self.clone() }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let (boxes, scores) = (cx.f32(0)?, cx.f32(1)?);
        let [batch, classes, n] = *cx.tensor(1)?.shape() else {
            return Err(OpError::Shape("scores must have 3 extents".into()));
        };
        expect_len(boxes.len(), batch, n)?;
        let most = if cx.has(2) { cx.tensor(2)?.to_vec::<i64>()?.first().copied().unwrap_or(0) } else { 0 };
        let threshold = |input: usize| -> Result<Option<f32>, OpError> {
            Ok(if cx.has(input) { cx.f32(input)?.first().copied() } else { None })
        };
        let (overlap, least) = (threshold(3)?.unwrap_or(0.0), threshold(4)?);
        let mut y = Vec::new();
        for image in 0..if scores.is_empty() { 0 } else { batch } {
            let corners: Vec<[f32; 4]> =
                boxes[image * n * 4..(image + 1) * n * 4].as_chunks().0.iter().map(|b| self.corners(*b)).collect();
            for class in 0..classes {
                let scores = &scores[(image * classes + class) * n..][..n];
                let mut order: Vec<usize> = (0..n).filter(|i| least.is_none_or(|least| scores[*i] > least)).collect();
                order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
                let mut chosen: Vec<usize> = Vec::new();
                for candidate in order {
                    if chosen.len() as i64 >= most {
                        break;
                    }
                    if chosen.iter().all(|other| shared(corners[candidate], corners[*other]) <= overlap) {
                        chosen.push(candidate);
                    }
                }
                chosen.iter().for_each(|i| y.extend([image as i64, class as i64, *i as i64]));
            }
        }
        cx.put_tensor(0, Tensor::from_slice(&[y.len() / 3, 3], &y)?)
    }
}

fn expect_len(found: usize, batch: usize, n: usize) -> Result<(), OpError> {
    if batch.checked_mul(n).and_then(|boxes| boxes.checked_mul(4)) == Some(found) {
        return Ok(());
    }
    Err(OpError::Shape(format!("{found} coordinates for {batch} times {n} boxes")))
}

impl NonMaxSuppression {
    /// Least and largest coordinates of a box.
    fn corners(&self, b: [f32; 4]) -> [f32; 4] {
        if self.center_point_box {
            let [x, y, w, h] = b;
            return [y - h / 2.0, x - w / 2.0, y + h / 2.0, x + w / 2.0];
        }
        [b[0].min(b[2]), b[1].min(b[3]), b[0].max(b[2]), b[1].max(b[3])]
    }
}

/// Intersection over union of two boxes; of boxes without area 0.
fn shared(a: [f32; 4], b: [f32; 4]) -> f32 {
    let area = |b: [f32; 4]| (b[2] - b[0]).max(0.0) * (b[3] - b[1]).max(0.0);
    let both = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    let either = area(a) + area(b) - both;
    if area(a) <= 0.0 || area(b) <= 0.0 || either <= 0.0 { 0.0 } else { both / either }
}

impl Operator for Unique {
    fn name(&self) -> &'static str {
        "Unique"
    }

    fn attributes(&self) -> String {
        let axis = self.axis.map_or(String::new(), |axis| format!("axis={axis}, "));
        format!(" {{{axis}sorted={}, count={}}}", self.sorted, self.count)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = cx.tensor(0)?;
        plain(dtype, 0)?;
        let (unique, slices) = match self.axis {
            None => (vec![self.count.clone()], product(shape)),
            Some(along) => {
                let along = axis(along, shape.len())?;
                let mut unique = shape.to_vec();
                unique[along] = self.count.clone();
                (unique, shape[along].clone())
            }
        };
        let count = ValueType::tensor(DType::I64, std::slice::from_ref(&self.count));
        Ok(vec![ValueType::tensor(dtype, &unique), count.clone(), ValueType::tensor(DType::I64, &[slices]), count])
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(Op::Unique(Unique { count: self.count.bind(bindings), ..self.clone() }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let x = cx.tensor(0)?.clone();
        let keys = Numbers::load(&x)?.keys();
        let mut shape = x.shape().to_vec();
        let (outer, slices, inner): (usize, usize, usize) = match self.axis {
            None => (1, x.len(), 1),
            Some(along) => {
                let along = axis(along, shape.len())?;
                (shape[..along].iter().product(), shape[along], shape[along + 1..].iter().product())
            }
        };
        // Slices without elements are all the same.
        let outer = if x.is_empty() { 0 } else { outer };
        // The keys of each slice.
        let slice = |i: usize| -> Vec<i128> {
            (0..outer).flat_map(|o| keys[(o * slices + i) * inner..][..inner].iter().copied()).collect()
        };
        let mut all: Vec<Vec<i128>> = room(&[slices])?;
        all.extend((0..slices).map(slice));
        let mut order: Vec<usize> = (0..slices).collect();
        order.sort_by(|a, b| all[*a].cmp(&all[*b]));
        // Groups of equal slices; the sort is stable, so the first of each is its first occurrence.
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for i in order {
            match groups.last_mut() {
                Some(group) if all[group[0]] == all[i] => group.push(i),
                _ => groups.push(vec![i]),
            }
        }
        if !self.sorted {
            groups.sort_by_key(|group| group[0]);
        }
        let mut inverse = vec![0i64; slices];
        for (unique, group) in groups.iter().enumerate() {
            group.iter().for_each(|i| inverse[*i] = unique as i64);
        }
        let run = inner * x.dtype().packing().1;
        let mut bytes = Vec::new();
        for o in 0..outer {
            for group in &groups {
                bytes.extend_from_slice(&x.bytes()[(o * slices + group[0]) * run..][..run]);
            }
        }
        match self.axis {
            None => shape = vec![groups.len()],
            Some(along) => {
                let along = axis(along, shape.len())?;
                shape[along] = groups.len();
            }
        }
        let first: Vec<i64> = groups.iter().map(|group| group[0] as i64).collect();
        let counts: Vec<i64> = groups.iter().map(|group| group.len() as i64).collect();
        cx.put_tensor(0, Tensor::from_bytes(x.dtype(), &shape, &bytes)?)?;
        cx.put_tensor(1, Tensor::from_slice(&[first.len()], &first)?)?;
        cx.put_tensor(2, Tensor::from_slice(&[inverse.len()], &inverse)?)?;
        cx.put_tensor(3, Tensor::from_slice(&[counts.len()], &counts)?)
    }
}
