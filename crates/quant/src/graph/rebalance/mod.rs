//! Factors that move from activations into weights, or from one weight into the next, so that both suit integers better. What a graph computes stays the same.
//!
//! | | what is balanced | where the factors go | source |
//! | --- | --- | --- | --- |
//! | [`smooth`] | activations' outliers against weights | inputs of a product, and what makes the activations | Xiao et al., SmoothQuant, 2022 |
//! | [`protect`] | weights that meet large activations | the same | Lin et al., AWQ, 2023 |
//! | [`equalize`] | the channels between two convolutions | both | Nagel et al., Data-free quantization, 2019 |
//!
//! What makes the activations is a normalization's scale and bias, or the rows of a product before, seen through additions of constants, ReLU and gates. Where
//! others read the activations as they are, or nothing of the kind makes them, the factors become a multiplication of their own before the products.

mod equalize;
mod fold;
mod protect;
mod smooth;

use std::collections::BTreeMap;
use std::sync::Arc;

use core_tensor::op::{Binary, Op};
use core_tensor::{Graph, Rewriter, Tensor, ValueId, Weight};

pub use equalize::equalize;
pub use protect::protect;
pub use smooth::smooth;

use super::{GraphOptions, GraphQuantError};
use fold::{Shared, shared_inputs};

/// What became of the factors of one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Rebalanced {
    /// The value.
    pub value: String,
    /// Whether the factors went into what makes the value; else the graph has a multiplication more.
    pub folded: bool,
    /// The least and the largest factor.
    pub factors: (f32, f32),
}

/// Changes of weights, by value, and multiplications to be put before products.
#[derive(Debug, Default)]
struct Edits {
    weights: BTreeMap<ValueId, Arc<Weight>>,
    /// For each value its factors, and the nodes that are to read the product.
    products: BTreeMap<ValueId, (Vec<f32>, Vec<usize>)>,
    done: Vec<Rebalanced>,
}

impl Edits {
    /// Multiplies a weight along an extent, after what has been done to it before.
    fn scale(&mut self, graph: &Graph, id: ValueId, axis: usize, factors: &[f32]) -> Result<(), GraphQuantError> {
        let name = || graph.value(id).name.clone();
        let old = self.weights.get(&id).or_else(|| graph.weight_of(id)).cloned();
        let old = old.ok_or_else(|| GraphQuantError::NotObserved { name: name() })?;
        let new = old.scale_along(axis, factors.into());
        let new = new.map_err(|source| GraphQuantError::Weight { name: name(), source })?;
        self.weights.insert(id, new);
        Ok(())
    }

    /// Multiplies the inputs of all products of a value, and divides the value.
    fn balance(&mut self, graph: &Graph, shared: &Shared, factors: &[f32]) -> Result<(), GraphQuantError> {
        let bounds = |(low, high): (f32, f32), x: &f32| (low.min(*x), high.max(*x));
        let (low, high) = factors.iter().fold((f32::INFINITY, 0.0), bounds);
        if low == 1.0 && high == 1.0 {
            return Ok(());
        }
        for site in &shared.sites {
            self.scale(graph, site.weight, site.input_axis(), factors)?;
        }
        let inverse: Vec<f32> = factors.iter().map(|factor| factor.recip()).collect();
        let folded = match &shared.makers {
            Some(makers) => {
                for (weight, axis) in makers {
                    self.scale(graph, *weight, *axis, &inverse)?;
                }
                true
            }
            None => {
                let readers = shared.sites.iter().map(|site| site.node).collect();
                self.products.insert(shared.value, (inverse, readers));
                false
            }
        };
        let value = graph.value(shared.value).name.clone();
        self.done.push(Rebalanced { value, folded, factors: (low, high) });
        Ok(())
    }

    /// The graph with all of it.
    fn apply(self, graph: &Graph) -> Result<(Graph, Vec<Rebalanced>), GraphQuantError> {
        let mut rewriter = Rewriter::new(graph);
        for (id, weight) in &self.weights {
            let new = rewriter.graph().weight(&graph.value(*id).name, weight.clone());
            rewriter.map(*id, new);
        }
        let mut multiplied: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        for (at, node) in graph.nodes().iter().enumerate() {
            let mut inputs = Vec::with_capacity(node.inputs.len());
            for (place, input) in node.inputs.iter().enumerate() {
                let Some(id) = *input else {
                    inputs.push(None);
                    continue;
                };
                let factors = self.products.get(&id).filter(|(_, readers)| place == 0 && readers.contains(&at));
                inputs.push(Some(match (factors, multiplied.get(&id)) {
                    (None, _) => rewriter.get(id),
                    (Some(_), Some(known)) => *known,
                    (Some((factors, _)), None) => {
                        let name = &graph.value(id).name;
                        let constant = Tensor::from_slice(&[factors.len()], factors)?;
                        let x = rewriter.get(id);
                        let new = rewriter.graph();
                        let constant = new.weight(&format!("{name}.factors"), Weight::stored(constant));
                        let y = new.add(&format!("{name}.balanced"), Op::Binary(Binary::Mul), &[x, constant])?;
                        multiplied.insert(id, y);
                        y
                    }
                }));
            }
            let outputs = rewriter.graph().add_node(&node.name, node.op.clone(), inputs)?;
            for (old, new) in node.outputs.iter().zip(outputs) {
                rewriter.graph().rename(new, &graph.value(*old).name);
                rewriter.map(*old, new);
            }
        }
        let new = rewriter.finish();
        new.verify()?;
        Ok((new, self.done))
    }
}

/// The values that [`smooth`] and [`protect`] need to have observed.
///
/// # Errors
/// As [`quantize`](super::quantize).
pub fn balance_demands(
    graph: &Graph,
    options: &GraphOptions,
) -> Result<Vec<(ValueId, super::Demand)>, GraphQuantError> {
    let all = shared_inputs(graph, options)?;
    Ok(all.iter().filter_map(|shared| super::calibration::channels(graph, shared.sites.first()?, true)).collect())
}
