//! Columns to images.

use crate::op::conv::{Window, places};
use crate::op::{Evaluation, Inference, OpError, Operator, filled, show};
use crate::{DType, Dim, ValueType};

/// Adds overlapping blocks of columns up to an image (ONNX Col2Im): the inverse of what a convolution reads.
///
/// Input: f32 `[batch, channels · Π block, L]`. Output: f32 `[batch, channels, image...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Col2Im {
    /// Extents of the image.
    pub image: Vec<usize>,
    /// Extents of a block.
    pub block: Vec<usize>,
    /// Where blocks stand.
    pub window: Window,
}

impl Col2Im {
    /// Elements per block, and places at which blocks stand.
    fn counts(&self) -> Result<(usize, Vec<usize>), OpError> {
        self.window.check(self.image.len())?;
        let elements = self.block.iter().try_fold(1usize, |n, extent| n.checked_mul(*extent));
        let elements = elements.filter(|n| *n > 0 && self.block.len() == self.image.len());
        let wrong = || OpError::Attribute { name: "block", reason: format!("{:?} in {:?}", self.block, self.image) };
        let elements = elements.ok_or_else(wrong)?;
        let mut counts = Vec::new();
        for (i, (image, block)) in self.image.iter().zip(&self.block).enumerate() {
            counts.push(self.window.places(i, &Dim::Num(*image), &Dim::Num(*block))?.as_num().ok_or_else(wrong)?);
        }
        Ok((elements, counts))
    }
}

impl Operator for Col2Im {
    fn name(&self) -> &'static str {
        "Col2Im"
    }

    fn attributes(&self) -> String {
        format!(" {{image={:?}, block={:?}, {}}}", self.image, self.block, self.window.text())
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let x = cx.f32(0)?;
        let (elements, counts) = self.counts()?;
        let count = counts.iter().try_fold(1usize, |n, count| n.checked_mul(*count));
        let [batch, columns, length] = x else {
            return Err(OpError::Shape(format!("x must be [batch, channels · block, L], it is {}", show(x))));
        };
        let whole = columns.as_num().is_none_or(|n| n.is_multiple_of(elements));
        if !whole || count.is_none_or(|n| length.differs(&Dim::Num(n))) {
            return Err(OpError::Shape(format!("{} is no columns of blocks {:?} at {counts:?}", show(x), self.block)));
        }
        let mut shape = vec![batch.clone(), columns.clone().div(Dim::Num(elements))];
        shape.extend(self.image.iter().map(|n| Dim::Num(*n)));
        Ok(vec![ValueType::Tensor { dtype: DType::F32, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let x = cx.f32(0)?;
        let (elements, counts) = self.counts()?;
        let count: usize = counts.iter().product();
        let plane: usize = self.image.iter().product();
        let mut y = filled(&shape, 0.0f32)?;
        for (i, v) in x.iter().enumerate() {
            let (place, element, channel) = (i % count, i / count % elements, i / count / elements);
            let (block, tap) = (places(place, &counts), places(element, &self.block));
            let at = (0..counts.len()).try_fold(0, |at, d| {
                let to = block[d] * self.window.strides[d] + tap[d] * self.window.dilations[d];
                let to = to.checked_sub(self.window.pads_begin[d]).filter(|to| *to < self.image[d])?;
                Some(at * self.image[d] + to)
            });
            if let Some(at) = at {
                y[channel * plane + at] += v;
            }
        }
        cx.put_f32(0, &y)
    }
}
