//! Graphs with integers: weights of 8 or 4 bits, and activations of 8.
//!
//! ```text
//! graph ─ demands ─▶ values to observe ─ caller runs batches, feeds observers ─▶ Calibration ─┐
//! graph ─────────────────────────────────── quantize ◀─────────────────────────────────────────┘ ─▶ graph, changes
//! ```
//!
//! Nothing is run here: [`demands`] says which values have to be looked at, [`observed`] makes a graph that gives them as further outputs, and
//! the caller feeds what comes out to a [`Calibration`].
//!
//! | [`GraphType`] | weights | activations |
//! | --- | --- | --- |
//! | `int8` | i8 per output | u8 (or i8), ranges from calibration: QuantizeLinear and DequantizeLinear around products and convolutions |
//! | `int8-dynamic` | i8 per output | u8, ranges of the data at each run: DynamicQuantizeLinear, MatMulInteger, ConvInteger |
//! | `int8-weights` | i8 per output, behind DequantizeLinear | f32 |
//! | `int4-g32`, `int4-g64`, `int4-g128` | 4 bits, one scale for 32, 64 or 128 inputs of an output | f32 |
//!
//! Products with 4-bit weights are `MatMul` with a weight of the block format `Q4_0`, in which neighbouring blocks may share a scale: that is the form with
//! kernels of its own in all backends, and ONNX's counterpart (`com.microsoft.MatMulNBits`) is the one that onnxruntime has kernels for, too.
//!
//! ```
//! use core_tensor::op::{MatMul, Op};
//! use core_tensor::{DType, Dim, Graph, Tensor, Weight};
//! use polaris_quant::graph::{Calibration, GraphOptions, GraphType, quantize};
//!
//! let weights: Vec<f32> = (0..64 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
//! let mut graph = Graph::new("example");
//! let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 64.into()]);
//! let w = graph.weight("w", Weight::stored(Tensor::from_slice(&[64, 64], &weights)?));
//! let y = graph.add("y", Op::MatMul(MatMul { transpose_b: false }), &[x, w])?;
//! graph.output(y);
//! let (smaller, changes) = quantize(&graph, &GraphOptions::new(GraphType::Int8Dynamic), &Calibration::default())?;
//! assert_eq!(changes.len(), 1);
//! assert!(smaller.nodes().iter().any(|node| node.op.name() == "MatMulInteger"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bytes;
mod calibration;
mod channels;
mod correction;
mod dynamic;
mod feedback;
mod gptq;
mod integers;
mod latent;
mod observer;
mod opened;
mod placement;
mod qdq;
mod rebalance;
mod rewrite;
mod site;
mod weight_only;
mod weights;

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use core_tensor::{DType, Graph, GraphError, TensorError, WeightError};

pub use bytes::{ByteRounding, I8Rows, encode_i8};
pub use calibration::{Calibration, Demand, Host, HostError, demands, observed};
pub use channels::ChannelObserver;
pub use gptq::{gptq_i4, gptq_i8};
pub use integers::{I4Groups, Matrix, encode_i4, encode_i4_for};
pub use latent::LatentIntegers;
pub use observer::{ActivationScale, Hessian, Range, RangeMethod, RangeObserver};
pub use opened::{Opened, Trained, open};
pub(crate) use site::{read_matrix, weighted};

pub use rebalance::{Rebalanced, balance_demands, equalize, protect, smooth};

use crate::gptq::FeedbackError;

/// What becomes of a graph's weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GraphType {
    /// i8 weights, 8-bit activations with ranges from calibration.
    Int8,
    /// i8 weights, 8-bit activations with the range of the data.
    Int8Dynamic,
    /// i8 weights, f32 activations.
    Int8Weights,
    /// 4-bit weights, f32 activations.
    Int4 {
        /// Weights that share a scale: 32, 64 or 128 of one output.
        group: usize,
    },
}

impl GraphType {
    /// All types.
    pub const ALL: [GraphType; 6] = [
        GraphType::Int8,
        GraphType::Int8Dynamic,
        GraphType::Int8Weights,
        GraphType::Int4 { group: 32 },
        GraphType::Int4 { group: 64 },
        GraphType::Int4 { group: 128 },
    ];
}

impl fmt::Display for GraphType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GraphType::Int8 => f.write_str("int8"),
            GraphType::Int8Dynamic => f.write_str("int8-dynamic"),
            GraphType::Int8Weights => f.write_str("int8-weights"),
            GraphType::Int4 { group } => write!(f, "int4-g{group}"),
        }
    }
}

/// The error of a name that no type has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no type of graphs; there are int8, int8-dynamic, int8-weights, int4-g32, int4-g64 and int4-g128")]
pub struct UnknownGraphType {
    /// What was asked for.
    pub name: String,
}

impl FromStr for GraphType {
    type Err = UnknownGraphType;

    fn from_str(name: &str) -> Result<GraphType, UnknownGraphType> {
        let found = GraphType::ALL.into_iter().find(|ty| ty.to_string().eq_ignore_ascii_case(name));
        found.ok_or_else(|| UnknownGraphType { name: name.to_owned() })
    }
}

/// How a graph is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphOptions {
    /// What becomes of weights and activations.
    pub ty: GraphType,
    /// 8-bit weights: one scale for all of a weight, and not one for each output.
    pub per_tensor: bool,
    /// 8-bit weights: ranges that need not lie around zero, with zero points; tables excepted, and convolutions with dynamic activations.
    pub asymmetric: bool,
    /// Whether scales are searched for that cut outliers where that loses less: of bytes by the squared error of the weights, whatever calibration has seen (with
    /// `gptq`, weighted by the inputs), of 4 bits by what becomes of products with examples, which needs calibration.
    pub clip: bool,
    /// Whether biases make up for what the rounding of weights takes from the mean of outputs. Needs calibration.
    pub bias_correction: bool,
    /// Calibrated activations: i8 around zero, and not u8 with a zero point.
    pub symmetric: bool,
    /// Whether tables that rows are taken from (embeddings) are quantized, too: with a scale for each row, or in groups.
    pub tables: bool,
    /// Whether convolutions are quantized.
    pub convolutions: bool,
    /// Whether the rounding of products' weights follows what the activations need (GPTQ), and not each weight alone. Needs calibration.
    pub gptq: bool,
    /// What GPTQ adds to the diagonal of the Hessian, relative to its mean.
    pub damping: f64,
    /// How ranges are chosen from what was observed.
    pub method: RangeMethod,
    /// Nodes that stay as they are, by name.
    pub skip: HashSet<String>,
    /// Weights of fewer elements stay as they are.
    pub minimum: usize,
    /// Threads; at least one.
    pub threads: usize,
}

impl GraphOptions {
    /// Per output, with zero points, tables and convolutions included, on all threads.
    #[must_use]
    pub fn new(ty: GraphType) -> GraphOptions {
        GraphOptions {
            ty,
            per_tensor: false,
            asymmetric: false,
            clip: false,
            bias_correction: false,
            symmetric: false,
            tables: true,
            convolutions: true,
            gptq: false,
            damping: 0.01,
            method: RangeMethod::MinMax,
            skip: HashSet::new(),
            minimum: 1024,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl GraphOptions {
    /// How weights become bytes.
    pub(crate) fn bytes(&self) -> ByteRounding {
        let GraphOptions { per_tensor, asymmetric, clip, threads, .. } = *self;
        ByteRounding { per_tensor, asymmetric, clip, threads }
    }
}

/// What became of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The name of the new weight: that of the old one.
    pub name: String,
    /// The node that reads it.
    pub node: String,
    /// The extents of the new weight.
    pub shape: Vec<usize>,
    /// What the old one was.
    pub from: DType,
    /// What the new one is: `i8`, `i4-g32`.
    pub to: String,
    /// The sum of the squared differences.
    pub noise: f64,
    /// The sum of the squares.
    pub power: f64,
}

/// Why a graph cannot be quantized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphQuantError {
    /// An operator refuses what it is to be given.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A tensor could not be made.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A weight cannot be read.
    #[error("weight {name:?}: {source}")]
    Weight {
        /// The weight.
        name: String,
        /// Why.
        source: WeightError,
    },
    /// A weight is infinite or no number.
    #[error("weight {name:?} has an element that is infinite or no number")]
    NotFinite {
        /// The weight.
        name: String,
    },
    /// Calibration has not seen a value.
    #[error("value {name:?} was not observed: this type needs calibration")]
    NotObserved {
        /// The value.
        name: String,
    },
    /// What was observed does not fit the graph.
    #[error("value {name:?}: {reason}")]
    Observation {
        /// The value.
        name: String,
        /// Why.
        reason: String,
    },
    /// Blocks of 4 bits hold 32 weights of one scale.
    #[error("groups of {group} weights: they must be 32 or a multiple of it")]
    Group {
        /// The group.
        group: usize,
    },
    /// There is nothing to do.
    #[error("the graph has no products, convolutions or tables with constant weights of {minimum} or more elements")]
    Nothing {
        /// The least number of elements.
        minimum: usize,
    },
    /// GPTQ cannot be done.
    #[error("weight {name:?}: {source}")]
    Gptq {
        /// The weight.
        name: String,
        /// Why.
        source: FeedbackError,
    },
    /// What the caller was asked for is not to be had.
    #[error("{name:?}: {source}")]
    Host {
        /// The value or weight.
        name: String,
        /// Why.
        source: HostError,
    },
    /// The graph has been quantized already.
    #[error("the graph has {op} nodes: it is quantized already")]
    Quantized {
        /// An operator that it has.
        op: &'static str,
    },
}

/// Quantizes a graph. Inputs and outputs stay as they are.
///
/// Batch normalizations should have gone into the convolutions before (the optimizer does that), and what is constant should have been computed.
///
/// # Errors
/// When there is nothing to quantize, the graph is quantized already, a weight cannot be read or is not finite, or calibration lacks what the type needs.
pub fn quantize(
    graph: &Graph,
    options: &GraphOptions,
    calibration: &Calibration,
) -> Result<(Graph, Vec<Change>), GraphQuantError> {
    quantize_with(graph, options, calibration, &mut calibration.clone())
}

/// The same where the caller has the sums of products, which may be too many to be held at once, and keeps the new weights.
///
/// # Errors
/// As [`quantize`], and when the caller cannot do what it is asked for.
pub fn quantize_with(
    graph: &Graph,
    options: &GraphOptions,
    calibration: &Calibration,
    host: &mut dyn Host,
) -> Result<(Graph, Vec<Change>), GraphQuantError> {
    let sites = site::sites(graph, options)?;
    let new = rewrite::Rewriting::new(graph, &sites, options, calibration, host);
    let (new, changes) = match options.ty {
        GraphType::Int8 => qdq::quantize(new, &sites)?,
        GraphType::Int8Dynamic => dynamic::quantize(new)?,
        GraphType::Int8Weights | GraphType::Int4 { .. } => weight_only::quantize(new)?,
    };
    new.verify()?;
    Ok((new, changes))
}
