//! The operators: a closed enum of small plain structs, each with a shape rule and a reference implementation.
//!
//! Names are ONNX's where ONNX has the operator, ggml's where only ggml has it. One file per family; the same family has the
//! same file name in every crate. The enum is exhaustive on purpose: every `match` on it in a backend is complete, so that the
//! compiler lists what a new operator still lacks.

use std::fmt;
use std::sync::Arc;

use crate::dim::{Bindings, Dim, DimError, Shape};
use crate::graph::{StateDecl, StateId, ValueType};
use crate::{DType, TensorError};

mod attention;
mod control;
mod conv;
mod custom;
mod elementwise;
mod gather;
mod matmul;
mod norm;
mod numbers;
mod pool;
mod quantize;
mod random;
mod recurrent;
mod reduce;
mod resize;
mod rope;
mod shape;
mod signal;
mod state;

pub use attention::{Attention, TensorAttention};
pub use control::{If, Loop, truth};
pub use conv::{Conv, ConvInteger, ConvTranspose, DeformConv, Window};
pub use custom::CustomOp;
pub use elementwise::{Binary, GatedActivation, Scalar, Unary, Where};
pub use gather::{
    Gather, GatherElements, GatherNd, NonMaxSuppression, NonZero, ScatterElements, ScatterNd, ScatterReduction, Unique,
};
pub use matmul::{MatMul, MatMulInteger, quantize_row_q8};
pub use norm::{GroupNormalization, LayerNormalization, Lrn, RmsNormalization};
pub use pool::{Pool, PoolKind, RoiAlign};
pub use quantize::{DequantizeLinear, DynamicQuantizeLinear, Granularity, QuantizeLinear};
pub use random::{Distribution, Random};
pub use recurrent::{Cell, Direction, Gate, Recurrent};
pub use reduce::{ArgMax, CumSum, LogSoftmax, Reduce, ReduceKind, Softmax, Sort, TopK};
pub use resize::{Col2Im, CoordinateMode, GridMode, GridPadding, GridSample, NearestMode, Resize, ResizeMode};
pub use rope::{RopeScaling, RotaryEmbedding, rope_table};
pub use shape::{Cast, Concat, Expand, ExtentValues, Pad, PadMode, Range, Reshape, Slice, Transpose, Trilu};
pub use signal::Dft;
pub use state::StateWrite;

pub(crate) use crate::interpreter::Evaluation;
pub(crate) use numbers::Numbers;

/// An operator with its attributes.
#[derive(Clone, Debug)]
pub enum Op {
    /// `A·B` or `A·Bᵀ`; picks its kernel by the dtype of its weight.
    MatMul(MatMul),
    /// Root-mean-square normalization of the last extent, times a weight.
    RmsNormalization(RmsNormalization),
    /// Rotary position embedding.
    RotaryEmbedding(RotaryEmbedding),
    /// Scaled dot-product attention over states, grouped-query heads.
    Attention(Attention),
    /// Writes rows into a state.
    StateWrite(StateWrite),
    /// Takes rows along the first extent.
    Gather(Gather),
    /// Element-wise function of one operand.
    Unary(Unary),
    /// Element-wise function of two operands, broadcast.
    Binary(Binary),
    /// `activation(gate) * up`.
    GatedActivation(GatedActivation),
    /// Softmax along the last extent.
    Softmax(Softmax),
    /// Sum, mean or maximum along the last extent.
    Reduce(Reduce),
    /// Index of the largest element along the last extent.
    ArgMax(ArgMax),
    /// The largest elements along the last extent, with their indices.
    TopK(TopK),
    /// Another shape for the same elements.
    Reshape(Reshape),
    /// Permutes extents.
    Transpose(Transpose),
    /// A range of one extent.
    Slice(Slice),
    /// Joins along one extent.
    Concat(Concat),
    /// Converts the element type.
    Cast(Cast),
    /// Scaled dot-product attention over tensors.
    TensorAttention(TensorAttention),
    /// Product of integer matrices.
    MatMulInteger(MatMulInteger),
    /// Chooses between two operands, element by element.
    Where(Where),
    /// Broadcasts to a shape.
    Expand(Expand),
    /// Adds elements around.
    Pad(Pad),
    /// Extents as numbers.
    ExtentValues(ExtentValues),
    /// Numbers at equal steps.
    Range(Range),
    /// One side of a diagonal.
    Trilu(Trilu),
    /// Takes single elements along one extent.
    GatherElements(GatherElements),
    /// Takes slices at index tuples.
    GatherNd(GatherNd),
    /// Replaces single elements along one extent.
    ScatterElements(ScatterElements),
    /// Replaces slices at index tuples.
    ScatterNd(ScatterNd),
    /// Where elements are not zero.
    NonZero(NonZero),
    /// Boxes that do not overlap much.
    NonMaxSuppression(NonMaxSuppression),
    /// Different elements.
    Unique(Unique),
    /// Logarithm of the softmax along the last extent.
    LogSoftmax(LogSoftmax),
    /// Sorts along the last extent.
    Sort(Sort),
    /// Running sums along one extent.
    CumSum(CumSum),
    /// Normalization to mean 0 and variance 1 of the last extent.
    LayerNormalization(LayerNormalization),
    /// The same over groups of channels.
    GroupNormalization(GroupNormalization),
    /// Local response normalization.
    Lrn(Lrn),
    /// Convolution.
    Conv(Conv),
    /// Convolution of integers.
    ConvInteger(ConvInteger),
    /// Transposed convolution.
    ConvTranspose(ConvTranspose),
    /// Deformable convolution.
    DeformConv(DeformConv),
    /// Pooling over windows.
    Pool(Pool),
    /// Pooling over regions of interest.
    RoiAlign(RoiAlign),
    /// Resampling.
    Resize(Resize),
    /// Samples at given places.
    GridSample(GridSample),
    /// Adds overlapping blocks up.
    Col2Im(Col2Im),
    /// RNN, GRU, LSTM.
    Recurrent(Recurrent),
    /// Quantizes.
    QuantizeLinear(QuantizeLinear),
    /// Undoes it.
    DequantizeLinear(DequantizeLinear),
    /// Quantizes by the range of the data.
    DynamicQuantizeLinear(DynamicQuantizeLinear),
    /// Discrete Fourier transform.
    Dft(Dft),
    /// Pseudo-random numbers.
    Random(Random),
    /// Runs one of two subgraphs.
    If(If),
    /// Runs a subgraph again and again.
    Loop(Loop),
    /// A user's operator.
    Custom(Arc<dyn CustomOp>),
}

/// Why an operator refuses its inputs.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// Too few or too many inputs.
    #[error("takes {expected} inputs, {found} given")]
    Arity {
        /// How many there should be ("2", "3 or 4").
        expected: &'static str,
        /// How many there are.
        found: usize,
    },
    /// An input has the wrong dtype.
    #[error("input {input} is {found}; it must be {expected}")]
    DType {
        /// Which input, from 0.
        input: usize,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// Shapes do not fit.
    #[error("{0}")]
    Shape(String),
    /// An attribute is out of range.
    #[error("attribute {name}: {reason}")]
    Attribute {
        /// The attribute.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// An index lies outside of what it indexes.
    #[error("index {index} is outside of 0..{len} ({what})")]
    Index {
        /// What is indexed.
        what: &'static str,
        /// The index.
        index: i64,
        /// How many there are.
        len: usize,
    },
    /// An extent has no value.
    #[error(transparent)]
    Dim(#[from] DimError),
    /// A tensor could not be made or read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A subgraph failed.
    #[error("subgraph {graph:?}: {reason}")]
    Subgraph {
        /// The subgraph.
        graph: String,
        /// What failed in it.
        reason: String,
    },
    /// A user's operator failed.
    #[error("{0}")]
    Custom(String),
}

/// The error of an input that is left out.
#[must_use]
pub fn missing_input(input: usize) -> OpError {
    OpError::DType { input, expected: "a tensor", found: "left out".into() }
}

/// What a shape rule sees.
pub struct Inference<'a> {
    /// The inputs' types; `None` where an optional input is left out.
    pub inputs: &'a [Option<&'a ValueType>],
    /// The graph's states.
    pub states: &'a [StateDecl],
}

impl<'a> Inference<'a> {
    /// Fails unless the number of inputs is in the range.
    pub(crate) fn arity(&self, range: std::ops::RangeInclusive<usize>, expected: &'static str) -> Result<(), OpError> {
        if range.contains(&self.inputs.len()) {
            return Ok(());
        }
        Err(OpError::Arity { expected, found: self.inputs.len() })
    }

    /// Dtype and shape of a required tensor input.
    pub(crate) fn tensor(&self, input: usize) -> Result<(DType, &'a [Dim]), OpError> {
        match self.inputs.get(input).copied().flatten() {
            Some(ValueType::Tensor { dtype, shape }) => Ok((*dtype, shape)),
            Some(ty @ ValueType::Token(_)) => {
                Err(OpError::DType { input, expected: "a tensor", found: ty.to_string() })
            }
            None => Err(OpError::DType { input, expected: "a tensor", found: "left out".into() }),
        }
    }

    /// Shape of a required input that must have one of these dtypes.
    pub(crate) fn typed(&self, input: usize, dtypes: &[DType], expected: &'static str) -> Result<&'a [Dim], OpError> {
        let (dtype, shape) = self.tensor(input)?;
        if dtypes.contains(&dtype) {
            return Ok(shape);
        }
        Err(OpError::DType { input, expected, found: dtype.to_string() })
    }

    /// Shape of a required f32 input.
    pub(crate) fn f32(&self, input: usize) -> Result<&'a [Dim], OpError> {
        self.typed(input, &[DType::F32], "f32")
    }

    /// Shape of a required input of any float dtype: weights keep the dtype of the file.
    pub(crate) fn float(&self, input: usize) -> Result<&'a [Dim], OpError> {
        let (dtype, shape) = self.tensor(input)?;
        if dtype.is_float() {
            return Ok(shape);
        }
        Err(OpError::DType { input, expected: "a float", found: dtype.to_string() })
    }

    /// Extent of a required i32 vector.
    pub(crate) fn i32_vector(&self, input: usize) -> Result<&'a Dim, OpError> {
        match self.typed(input, &[DType::I32], "an i32 vector")? {
            [extent] => Ok(extent),
            shape => Err(OpError::Shape(format!("input {input} must be a vector, it has {} extents", shape.len()))),
        }
    }

    /// Whether an optional input is there.
    pub(crate) fn has(&self, input: usize) -> bool {
        self.inputs.get(input).copied().flatten().is_some()
    }

    /// The state of a token input.
    pub(crate) fn token(&self, input: usize) -> Result<(StateId, &'a StateDecl), OpError> {
        let found = match self.inputs.get(input).copied().flatten() {
            Some(ValueType::Token(id)) => match self.states.get(id.index()) {
                Some(state) => return Ok((*id, state)),
                None => format!("{id}, which is not declared"),
            },
            Some(ty @ ValueType::Tensor { .. }) => ty.to_string(),
            None => "left out".into(),
        };
        Err(OpError::DType { input, expected: "a state token", found })
    }
}

/// What every operator has.
pub(crate) trait Operator {
    fn name(&self) -> &'static str;

    /// Attributes as `to_text` prints them: ` {axis=0}` or nothing.
    fn attributes(&self) -> String {
        String::new()
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError>;

    /// The same operator with the symbols in its attributes that have values replaced by these; `None` if it has no such attributes.
    fn bind(&self, _: &Bindings) -> Option<Op> {
        None
    }

    /// The reference: plain loops, obviously right, f32 accumulation. Never tuned.
    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError>;
}

impl Op {
    fn operator(&self) -> &dyn Operator {
        match self {
            Op::MatMul(op) => op,
            Op::RmsNormalization(op) => op,
            Op::RotaryEmbedding(op) => op,
            Op::Attention(op) => op,
            Op::StateWrite(op) => op,
            Op::Gather(op) => op,
            Op::Unary(op) => op,
            Op::Binary(op) => op,
            Op::GatedActivation(op) => op,
            Op::Softmax(op) => op,
            Op::Reduce(op) => op,
            Op::ArgMax(op) => op,
            Op::TopK(op) => op,
            Op::Reshape(op) => op,
            Op::Transpose(op) => op,
            Op::Slice(op) => op,
            Op::Concat(op) => op,
            Op::Cast(op) => op,
            Op::TensorAttention(op) => op,
            Op::MatMulInteger(op) => op,
            Op::Where(op) => op,
            Op::Expand(op) => op,
            Op::Pad(op) => op,
            Op::ExtentValues(op) => op,
            Op::Range(op) => op,
            Op::Trilu(op) => op,
            Op::GatherElements(op) => op,
            Op::GatherNd(op) => op,
            Op::ScatterElements(op) => op,
            Op::ScatterNd(op) => op,
            Op::NonZero(op) => op,
            Op::NonMaxSuppression(op) => op,
            Op::Unique(op) => op,
            Op::LogSoftmax(op) => op,
            Op::Sort(op) => op,
            Op::CumSum(op) => op,
            Op::LayerNormalization(op) => op,
            Op::GroupNormalization(op) => op,
            Op::Lrn(op) => op,
            Op::Conv(op) => op,
            Op::ConvInteger(op) => op,
            Op::ConvTranspose(op) => op,
            Op::DeformConv(op) => op,
            Op::Pool(op) => op,
            Op::RoiAlign(op) => op,
            Op::Resize(op) => op,
            Op::GridSample(op) => op,
            Op::Col2Im(op) => op,
            Op::Recurrent(op) => op,
            Op::QuantizeLinear(op) => op,
            Op::DequantizeLinear(op) => op,
            Op::DynamicQuantizeLinear(op) => op,
            Op::Dft(op) => op,
            Op::Random(op) => op,
            Op::If(op) => op,
            Op::Loop(op) => op,
            Op::Custom(op) => op,
        }
    }

    /// The operator's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.operator().name()
    }

    /// The attributes as `to_text` prints them; equal operators print alike.
    #[must_use]
    pub fn attributes(&self) -> String {
        self.operator().attributes()
    }

    /// The shape rule: the outputs' types for these inputs. Returns an error, never panics.
    ///
    /// # Errors
    /// When the operator refuses its inputs.
    pub fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        self.operator().infer(cx)
    }

    /// The same operator with the symbols in its attributes that have values replaced by these.
    #[must_use]
    pub fn bind(&self, bindings: &Bindings) -> Op {
        self.operator().bind(bindings).unwrap_or_else(|| self.clone())
    }

    /// Subgraphs, which the host interprets.
    #[must_use]
    pub fn subgraphs(&self) -> Vec<&Arc<crate::Graph>> {
        match self {
            Op::If(op) => vec![&op.then_branch, &op.else_branch],
            Op::Loop(op) => vec![&op.body],
            _ => Vec::new(),
        }
    }

    /// The reference implementation.
    pub(crate) fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        self.operator().eval(cx)
    }

    /// Whether running the operator does more than give its outputs (it writes a state).
    #[must_use]
    pub fn has_effect(&self) -> bool {
        matches!(self, Op::StateWrite(_))
    }
}

/// Shapes in messages.
pub(crate) fn show(shape: &[Dim]) -> String {
    struct Show<'a>(&'a [Dim]);
    impl fmt::Display for Show<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("[")?;
            for (i, dim) in self.0.iter().enumerate() {
                write!(f, "{}{dim}", if i == 0 { "" } else { ", " })?;
            }
            f.write_str("]")
        }
    }
    Show(shape).to_string()
}

/// The last extent and those before it.
pub(crate) fn split_last(shape: &[Dim]) -> Result<(&[Dim], &Dim), OpError> {
    shape
        .split_last()
        .map(|(last, rest)| (rest, last))
        .ok_or_else(|| OpError::Shape("a scalar has no last extent".into()))
}

/// The shape that NumPy-style broadcasting gives.
pub(crate) fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Shape, OpError> {
    let rank = a.len().max(b.len());
    let one = Dim::Num(1);
    let at = |shape: &[Dim], i: usize| -> Dim {
        (i + shape.len()).checked_sub(rank).and_then(|i| shape.get(i).cloned()).unwrap_or_else(|| one.clone())
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (x, y) if x == one => Ok(y),
            (x, y) if y == one => Ok(x),
            // A symbol may turn out to be 1; what is wrong is found when it has a value.
            (x, y) if !x.differs(&y) => Ok(match (x.as_num(), y.as_num()) {
                (Some(_), None) => x,
                (None, Some(_)) => y,
                _ => x.max(y),
            }),
            _ => Err(OpError::Shape(format!("shapes {} and {} do not broadcast", show(a), show(b)))),
        })
        .collect()
}

/// An axis that may count from the end, as an index.
pub(crate) fn axis(axis: isize, rank: usize) -> Result<usize, OpError> {
    let index = if axis < 0 { axis.checked_add_unsigned(rank) } else { Some(axis) };
    index
        .and_then(|index| usize::try_from(index).ok())
        .filter(|index| *index < rank)
        .ok_or_else(|| OpError::Attribute { name: "axis", reason: format!("{axis} is outside of a rank of {rank}") })
}

/// One of two extents that must be the same: the number, if either is one.
pub(crate) fn same<'a>(a: &'a Dim, b: &'a Dim, what: &str) -> Result<&'a Dim, OpError> {
    if a.differs(b) {
        return Err(OpError::Shape(format!("{what}: {a} and {b} differ")));
    }
    Ok(if a.as_num().is_some() { a } else { b })
}

/// Fails where a shape is known to differ from the one that is expected.
pub(crate) fn expect_shape(shape: &[Dim], expected: &[Dim], what: &str) -> Result<(), OpError> {
    if shape.len() == expected.len() && shape.iter().zip(expected).all(|(a, b)| !a.differs(b)) {
        return Ok(());
    }
    Err(OpError::Shape(format!("{what} is {}, {} is expected", show(shape), show(expected))))
}

/// An empty vector with room for as many elements as a shape has; an error where there is no memory for them.
pub(crate) fn room<T>(shape: &[usize]) -> Result<Vec<T>, OpError> {
    let len = shape.iter().try_fold(1usize, |len, extent| len.checked_mul(*extent));
    let bytes = len.and_then(|len| len.checked_mul(size_of::<T>())).unwrap_or(usize::MAX);
    let mut elements = Vec::new();
    len.filter(|len| elements.try_reserve_exact(*len).is_ok()).ok_or(TensorError::NoMemory { bytes })?;
    Ok(elements)
}

/// A vector of as many elements as a shape has, all the same; an error where there is no memory for them.
pub(crate) fn filled<T: Clone>(shape: &[usize], value: T) -> Result<Vec<T>, OpError> {
    let mut elements = room(shape)?;
    elements.resize(shape.iter().product(), value);
    Ok(elements)
}

/// Concrete extents of a shape under bindings, for messages and evaluation.
pub(crate) fn concrete(shape: &[Dim], bindings: &Bindings) -> Result<Vec<usize>, OpError> {
    Ok(crate::dim::eval_shape(shape, bindings)?)
}
