//! Which products read one value, and into which weights factors of that value can go.

use std::collections::BTreeMap;

use core_tensor::op::{Binary, MatMul, Op, Unary};
use core_tensor::{Dim, Graph, Node, ValueId, ValueSource};

use super::super::site::{Kind, Site, sites};
use super::super::{GraphOptions, GraphQuantError};

/// Products of one value.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    /// What they read.
    pub(super) value: ValueId,
    pub(super) sites: Vec<Site>,
    /// Weights and the extents along which factors of the value go into them; none where it must be multiplied itself.
    pub(super) makers: Option<Vec<(ValueId, usize)>>,
}

impl Site {
    /// The extent of the weight that lies along the inputs of a product, or the channels of a convolution.
    pub(super) fn input_axis(&self) -> usize {
        match self.kind {
            Kind::Product { transposed: false } | Kind::Table => 0,
            Kind::Product { transposed: true } | Kind::Convolution => 1,
        }
    }
}

/// How often each value is read: by nodes, and as an output.
pub(super) fn readers(graph: &Graph) -> Vec<usize> {
    let mut counts = vec![0; graph.values().len()];
    let inputs = graph.nodes().iter().flat_map(|node| node.inputs.iter().flatten());
    inputs.chain(graph.outputs()).for_each(|id| counts[id.index()] += 1);
    counts
}

/// The node that makes each value.
pub(super) fn makers(graph: &Graph) -> Vec<Option<usize>> {
    let mut makers = vec![None; graph.values().len()];
    for (at, node) in graph.nodes().iter().enumerate() {
        node.outputs.iter().for_each(|id| makers[id.index()] = Some(at));
    }
    makers
}

/// Values that products with constant weights read, each with all of these products. Values whose weights others read, too, are left out.
///
/// # Errors
/// As [`quantize`](super::super::quantize).
pub(super) fn shared_inputs(graph: &Graph, options: &GraphOptions) -> Result<Vec<Shared>, GraphQuantError> {
    let counts = readers(graph);
    let makers = makers(graph);
    let mut by_value: BTreeMap<ValueId, Vec<Site>> = BTreeMap::new();
    for site in sites(graph, options)?.into_iter().filter(|site| matches!(site.kind, Kind::Product { .. })) {
        by_value.entry(site.input).or_default().push(site);
    }
    let all = by_value.into_iter().filter(|(value, sites)| {
        // Factors are a vector of so many.
        let last = graph.tensor_type(*value).and_then(|(_, shape)| shape.last());
        last.is_some_and(|last| last.as_num().is_some()) && sites.iter().all(|site| counts[site.weight.index()] == 1)
    });
    Ok(all
        .map(|(value, sites)| {
            let n = sites.first().and_then(|site| site.channels(graph)).unwrap_or(0);
            let mut found = Vec::new();
            let way = Way { graph, counts: &counts, makers: &makers, n };
            let folds = counts[value.index()] == sites.len() && way.maker(value, &mut found).is_some();
            Shared { value, sites, makers: folds.then_some(found) }
        })
        .collect())
}

/// The way back from a value to what makes its last extent, of `n` elements.
struct Way<'a> {
    graph: &'a Graph,
    counts: &'a [usize],
    makers: &'a [Option<usize>],
    n: usize,
}

impl Way<'_> {
    /// Finds weights so that factors in all of them are factors of the value.
    fn maker(&self, value: ValueId, found: &mut Vec<(ValueId, usize)>) -> Option<()> {
        let node = self.graph.nodes().get(self.makers[value.index()]?)?;
        let last = self.graph.tensor_type(value)?.1.last()?.as_num()?;
        if last != self.n {
            return None;
        }
        match &node.op {
            Op::LayerNormalization(_) | Op::RmsNormalization(_) => {
                let mut weights = node.inputs.iter().skip(1);
                // Without a scale there is nothing to change.
                self.vector(weights.next().copied().flatten()?, found)?;
                weights.flatten().try_for_each(|bias| self.vector(*bias, found))
            }
            Op::MatMul(MatMul { transpose_b }) => {
                let weight = input(node, 1)?;
                let shape = self.graph.weight_of(weight)?.shape();
                let axis = usize::from(!transpose_b);
                let fits = shape.len() == 2 && shape[axis] == self.n && self.counts[weight.index()] == 1;
                fits.then(|| found.push((weight, axis)))
            }
            Op::Binary(Binary::Add) => {
                let (x, bias) = self.with_constant(node)?;
                self.vector(bias, found)?;
                self.before(x, found)
            }
            Op::Binary(Binary::Mul) => match self.with_constant(node) {
                Some((_, factors)) => self.vector(factors, found),
                None => {
                    let (a, b) = (input(node, 0)?, input(node, 1)?);
                    let mut attempt = Vec::new();
                    let side = [b, a].into_iter().find(|side| {
                        attempt.clear();
                        self.before(*side, &mut attempt).is_some()
                    });
                    side.map(|_| found.append(&mut attempt))
                }
            },
            // Products with the gate: its other factor.
            Op::GatedActivation(_) => self.before(input(node, 1)?, found),
            // f(c x) = c f(x) for c > 0.
            Op::Unary(Unary::Relu | Unary::LeakyRelu { .. }) => self.before(input(node, 0)?, found),
            _ => None,
        }
    }

    /// The way goes on where nobody else reads the value.
    fn before(&self, value: ValueId, found: &mut Vec<(ValueId, usize)>) -> Option<()> {
        (self.counts[value.index()] == 1).then_some(())?;
        self.maker(value, found)
    }

    /// The computed and the constant operand.
    fn with_constant(&self, node: &Node) -> Option<(ValueId, ValueId)> {
        let (a, b) = (input(node, 0)?, input(node, 1)?);
        let constant = |id: ValueId| matches!(self.graph.value(id).source, ValueSource::Weight(_));
        match (constant(a), constant(b)) {
            (false, true) => Some((a, b)),
            (true, false) => Some((b, a)),
            _ => None,
        }
    }

    /// A constant with one number for each element of the last extent, that nobody else reads.
    fn vector(&self, id: ValueId, found: &mut Vec<(ValueId, usize)>) -> Option<()> {
        let shape = self.graph.weight_of(id)?.shape();
        let (last, before) = shape.split_last()?;
        let fits = *last == self.n && before.iter().all(|n| *n == 1) && self.counts[id.index()] == 1;
        fits.then(|| found.push((id, before.len())))
    }
}

fn input(node: &Node, at: usize) -> Option<ValueId> {
    node.inputs.get(at).copied().flatten()
}

/// The number of an extent.
pub(super) fn extent(graph: &Graph, id: ValueId, axis: usize) -> Option<usize> {
    graph.tensor_type(id)?.1.get(axis).and_then(Dim::as_num)
}
