//! Which values are integers between the products and convolutions of a calibrated graph.

use core_tensor::op::{Binary, NearestMode, Op, Pool, PoolKind, Reduce, ReduceKind, Resize, ResizeMode, Unary};
use core_tensor::{DType, Graph, Node, ValueId, ValueSource};

use super::site::{Kind, Site};

/// How a value is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The value whose scale it has: itself, or what its elements were moved from.
    pub(super) scale_of: ValueId,
    /// Whether all readers see it quantized, and not only those that compute with integers.
    pub(super) everywhere: bool,
}

/// What a node does with integers that it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passing {
    /// Moves or chooses elements: the result has the operand's scale.
    Moves,
    /// Computes new ones from elements of all its operands.
    Computes,
    /// Neither.
    No,
}

/// Which values are quantized, and which nodes read them so.
#[derive(Debug)]
pub(super) struct Placement {
    values: Vec<Option<Place>>,
    /// Nodes that compute with, or pass on, integers.
    reads: Vec<bool>,
}

impl Placement {
    /// What goes into products and convolutions is quantized; so is what comes out of convolutions, after an activation that cuts at 0, and what lies between
    /// these as far as it is moved, pooled, joined or added. What comes out of products stays f32 unless it goes straight into the next: sums,
    /// normalizations and softmax follow it.
    pub(super) fn new(graph: &Graph, sites: &[Site]) -> Placement {
        let mut weighted: Vec<Option<Kind>> = vec![None; graph.nodes().len()];
        for site in sites.iter().filter(|site| site.kind != Kind::Table) {
            weighted[site.node] = Some(site.kind);
        }
        let wanted = wanted(graph, &weighted);
        let mut placement =
            Placement { values: vec![None; graph.values().len()], reads: vec![false; graph.nodes().len()] };
        // Results of convolutions that wait for their activation.
        let mut waiting = vec![false; graph.values().len()];
        for (at, node) in graph.nodes().iter().enumerate() {
            let Some(y) = node.outputs.first().copied() else { continue };
            if let (Some(kind), Some(x)) = (weighted[at], node.inputs.first().copied().flatten()) {
                placement.reads[at] = true;
                let place = &mut placement.values[x.index()];
                place.get_or_insert(Place { scale_of: x, everywhere: false });
                if kind == Kind::Convolution {
                    if next_activation(graph, y) {
                        waiting[y.index()] = true;
                    } else {
                        placement.everywhere(graph, y, y);
                    }
                }
                continue;
            }
            let operands: Vec<ValueId> = operands(node);
            if let Some(x) = operands.first().filter(|x| waiting[x.index()]) {
                // Only such activations wait.
                debug_assert!(cuts_at_zero(node), "{} follows {x}", node.name);
                placement.everywhere(graph, y, y);
                continue;
            }
            let places: Option<Vec<Place>> = operands.iter().map(|x| placement.values[x.index()]).collect();
            let Some(places) = places.filter(|places| !places.is_empty() && wanted[y.index()]) else { continue };
            match passing(graph, node) {
                Passing::Moves => {
                    placement.reads[at] = true;
                    placement.everywhere(graph, y, places[0].scale_of);
                }
                Passing::Computes => {
                    placement.reads[at] = true;
                    if next_activation(graph, y) {
                        waiting[y.index()] = true;
                    } else {
                        placement.everywhere(graph, y, y);
                    }
                }
                Passing::No => {}
            }
        }
        placement
    }

    /// Quantizes a result for all of its readers, unless the graph gives it away.
    fn everywhere(&mut self, graph: &Graph, id: ValueId, scale_of: ValueId) {
        if !graph.outputs().contains(&id) {
            self.values[id.index()] = Some(Place { scale_of, everywhere: true });
        }
    }

    /// How a value is quantized.
    pub(super) fn place(&self, id: ValueId) -> Option<Place> {
        self.values[id.index()]
    }

    /// Whether a node reads its operands as integers.
    pub(super) fn reads(&self, node: usize) -> bool {
        self.reads[node]
    }

    /// Whether a value has a scale of its own.
    pub(super) fn needs_range(&self, id: ValueId) -> bool {
        self.place(id).is_some_and(|place| place.scale_of == id)
    }
}

/// The operands that are computed.
fn operands(node: &Node) -> Vec<ValueId> {
    let count = match node.op {
        Op::Concat(_) => node.inputs.len(),
        Op::Binary(_) => 2,
        _ => 1,
    };
    node.inputs.iter().take(count).flatten().copied().collect()
}

/// Whether a value is read by an activation alone that quantization to a range from 0 on does by itself.
fn next_activation(graph: &Graph, id: ValueId) -> bool {
    let mut readers = graph.nodes().iter().filter(|node| node.inputs.contains(&Some(id)));
    let first = readers.next();
    first.is_some_and(cuts_at_zero) && readers.next().is_none() && !graph.outputs().contains(&id)
}

fn cuts_at_zero(node: &Node) -> bool {
    match node.op {
        Op::Unary(Unary::Relu) => true,
        Op::Unary(Unary::Clip { min, max }) => min.get() == 0.0 && max.get() > 0.0,
        _ => false,
    }
}

fn passing(graph: &Graph, node: &Node) -> Passing {
    let computed = |id: &ValueId| {
        !matches!(graph.value(*id).source, ValueSource::Weight(_))
            && graph.tensor_type(*id).is_some_and(|(dtype, _)| dtype == DType::F32)
    };
    if !operands(node).iter().all(computed) || node.outputs.len() != 1 {
        return Passing::No;
    }
    match &node.op {
        Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) => Passing::Moves,
        Op::Pool(Pool { kind: PoolKind::Max, indices: false, .. }) => Passing::Moves,
        Op::Resize(Resize { mode: ResizeMode::Nearest(NearestMode::Floor), .. }) => Passing::Moves,
        Op::Pool(Pool { kind: PoolKind::Average { .. }, .. }) => Passing::Computes,
        Op::Reduce(Reduce { kind: ReduceKind::Mean, .. }) => Passing::Computes,
        Op::Concat(_) | Op::Binary(Binary::Add) => Passing::Computes,
        _ => Passing::No,
    }
}

/// Values that some product or convolution reads, as they are or passed on.
fn wanted(graph: &Graph, weighted: &[Option<Kind>]) -> Vec<bool> {
    let mut wanted = vec![false; graph.values().len()];
    for (node, kind) in graph.nodes().iter().zip(weighted).rev() {
        let passes = || {
            let read = node.outputs.iter().any(|y| wanted[y.index()]);
            read && (cuts_at_zero(node) || passing(graph, node) != Passing::No)
        };
        if kind.is_some() {
            if let Some(x) = node.inputs.first().copied().flatten() {
                wanted[x.index()] = true;
            }
        } else if passes() {
            operands(node).iter().for_each(|x| wanted[x.index()] = true);
        }
    }
    wanted
}
