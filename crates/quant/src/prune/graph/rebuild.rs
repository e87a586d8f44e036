//! A graph with other weights, and without what went.

use std::collections::HashMap;

use core_tensor::op::Op;
use core_tensor::{DType, Graph, Node, Rewriter, Tensor, ValueId, Weight};

use super::sites::{Site, floats};
use super::{GraphPruneError, Region};
use crate::block::encode;
use crate::graph::Matrix;

/// The weight that a site gets.
#[derive(Clone, Debug)]
pub struct NewWeight {
    /// `[outputs, inputs that remain]`; outputs that go are cut by [`rebuild`].
    pub matrix: Matrix,
}

/// Builds a graph anew: with the weights of some sites replaced, and what is gone of regions cut out of all others. `kept` has the channels that remain of each region,
/// in order; the new weights' columns are of those alone.
///
/// # Errors
/// When a weight cannot be read, or an operator refuses what its inputs have become.
pub fn rebuild(
    graph: &Graph,
    sites: &[Site],
    weights: &HashMap<usize, NewWeight>,
    regions: &[(&Region, Vec<usize>)],
) -> Result<Graph, GraphPruneError> {
    let sites: HashMap<usize, &Site> = sites.iter().map(|site| (site.node, site)).collect();
    let mut rebuilding = Rebuilding { graph, rewriter: Rewriter::new(graph), made: HashMap::new() };
    for (at, node) in graph.nodes().iter().enumerate() {
        let made = |regions: &[(&Region, Vec<usize>)]| {
            regions.iter().find(|(region, _)| region.producers.contains(&at)).map(|(_, kept)| kept.clone())
        };
        let cut = made(regions);
        let mut inputs: Vec<Option<ValueId>> = Vec::with_capacity(node.inputs.len());
        let mut op = node.op.clone();
        for (number, id) in node.inputs.iter().enumerate() {
            let Some(id) = *id else {
                inputs.push(None);
                continue;
            };
            let site = sites.get(&at).filter(|_| number == 1);
            let new = if let (Some(site), Some(weight)) = (site, weights.get(&at)) {
                Some(rebuilding.weight(site, &weight.matrix, cut.as_deref())?)
            } else if let (Some(site), Some(kept)) = (site, &cut) {
                Some(rebuilding.weight(site, &site.matrix(graph)?, Some(kept))?)
            } else {
                rebuilding.cut(at, number, id, regions)?
            };
            inputs.push(Some(match new {
                Some(new) => new,
                None => rebuilding.rewriter.get(id),
            }));
        }
        if let Op::Conv(conv) = &mut op
            && let Some((_, kept)) = regions.iter().find(|(region, _)| region.depthwise.contains(&at))
        {
            conv.groups = kept.len();
        }
        rebuilding.add(node, op, inputs)?;
    }
    let mut new = rebuilding.rewriter.finish();
    for (old, id) in graph.outputs().iter().zip(new.outputs().to_vec()) {
        new.rename(id, &graph.value(*old).name);
    }
    new.verify()?;
    Ok(new)
}

struct Rebuilding<'a> {
    graph: &'a Graph,
    rewriter: Rewriter<'a>,
    /// How often a weight was made of an old one: names are unique.
    made: HashMap<ValueId, usize>,
}

impl Rebuilding<'_> {
    fn add(&mut self, node: &Node, op: Op, inputs: Vec<Option<ValueId>>) -> Result<(), GraphPruneError> {
        let outputs = self.rewriter.graph().add_node(&node.name, op, inputs)?;
        for (old, new) in node.outputs.iter().zip(outputs) {
            self.rewriter.map(*old, new);
            self.rewriter.graph().rename(new, &self.graph.value(*old).name);
        }
        Ok(())
    }

    /// A site's weight, without the outputs that go.
    fn weight(&mut self, site: &Site, matrix: &Matrix, kept: Option<&[usize]>) -> Result<ValueId, GraphPruneError> {
        let matrix = match kept {
            None => matrix.clone(),
            Some(kept) => {
                let rows =
                    kept.iter().filter_map(|row| matrix.values.get(row * matrix.columns..(row + 1) * matrix.columns));
                Matrix { rows: kept.len(), columns: matrix.columns, values: rows.flatten().copied().collect() }
            }
        };
        let (shape, values) = site.stored(matrix);
        self.constant(site.weight, &shape, &values)
    }

    /// What is left of a bias, of a depthwise convolution's weight, or of another constant of a region; none of what stays as it is.
    fn cut(
        &mut self,
        at: usize,
        number: usize,
        id: ValueId,
        regions: &[(&Region, Vec<usize>)],
    ) -> Result<Option<ValueId>, GraphPruneError> {
        let Some(weight) = self.graph.weight_of(id) else { return Ok(None) };
        let mut shape = weight.shape().to_vec();
        let mut values = None;
        for (region, kept) in regions {
            let of_rows =
                (region.depthwise.contains(&at) && number > 0) || (region.producers.contains(&at) && number == 2);
            let constant = region.constants.iter().find(|(node, input, _)| (*node, *input) == (at, number));
            let axis = match constant {
                Some((.., from_last)) => shape.len().checked_sub(from_last + 1),
                None => of_rows.then_some(0),
            };
            let Some(axis) = axis.filter(|axis| shape.get(*axis) == Some(&region.width)) else { continue };
            let old = match values.take() {
                Some(values) => values,
                None => floats(self.graph, id)?,
            };
            values = Some(cut_axis(&old, &shape, axis, kept));
            shape[axis] = kept.len();
        }
        values.map(|values| self.constant(id, &shape, &values)).transpose()
    }

    /// A constant of the old one's dtype.
    fn constant(&mut self, old: ValueId, shape: &[usize], values: &[f32]) -> Result<ValueId, GraphPruneError> {
        let count = self.made.entry(old).or_insert(0);
        *count += 1;
        let value = self.graph.value(old);
        let name = if *count == 1 { value.name.clone() } else { format!("{}_{count}", value.name) };
        let dtype = self.graph.weight_of(old).map_or(DType::F32, |weight| weight.dtype());
        let tensor = match dtype {
            DType::F16 | DType::BF16 => {
                let mut bytes = vec![0; values.len() * 2];
                let encoded = encode(dtype, values, values.len().max(1), None, &mut bytes);
                if encoded.is_ok() {
                    Tensor::from_bytes(dtype, shape, &bytes)?
                } else {
                    Tensor::from_slice(shape, values)?
                }
            }
            _ => Tensor::from_slice(shape, values)?,
        };
        Ok(self.rewriter.graph().weight(&name, Weight::stored(tensor)))
    }
}

/// The places of an extent that remain.
fn cut_axis(values: &[f32], shape: &[usize], axis: usize, kept: &[usize]) -> Vec<f32> {
    let inner: usize = shape.iter().skip(axis + 1).product();
    let extent = shape.get(axis).copied().unwrap_or(1);
    let blocks = values.chunks_exact((extent * inner).max(1));
    blocks
        .flat_map(|block| kept.iter().filter_map(move |at| block.get(at * inner..(at + 1) * inner)))
        .flatten()
        .copied()
        .collect()
}
