//! Values that share a set of channels or neurons.

use std::collections::{BTreeSet, HashMap};

use core_tensor::op::{Op, Pool};
use core_tensor::{Dim, Graph, ValueId, ValueSource};

use super::sites::{Kind, Site};

/// Where channels lie in the values of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// The second extent: channels of images.
    Channels,
    /// The last extent: neurons.
    Neurons,
}

/// All values that share a set of channels, and what makes and reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// What they are.
    pub axis: Axis,
    /// How many there are.
    pub width: usize,
    /// Nodes whose outputs they are: rows of their weights go.
    pub producers: BTreeSet<usize>,
    /// Nodes that read them: columns of their weights go.
    pub consumers: BTreeSet<usize>,
    /// Depthwise convolutions on the way.
    pub(super) depthwise: BTreeSet<usize>,
    /// Constants on the way that have a number for each: node, input, and the extent that is theirs, from the last.
    pub(super) constants: BTreeSet<(usize, usize, usize)>,
}

/// All regions of a graph in which channels or neurons can go, in the order of their first producers.
#[must_use]
pub fn regions(graph: &Graph, sites: &[Site]) -> Vec<Region> {
    let map = Map::new(graph, sites);
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for site in sites {
        if seen.contains(&site.node) {
            continue;
        }
        if let Some(region) = map.region(site) {
            seen.extend(region.producers.iter().copied());
            if !region.consumers.is_empty() {
                all.push(region);
            }
        }
    }
    all
}

/// Who makes and who reads each value.
struct Map<'a> {
    graph: &'a Graph,
    sites: HashMap<usize, &'a Site>,
    makers: HashMap<ValueId, usize>,
    readers: HashMap<ValueId, Vec<(usize, usize)>>,
}

/// A region cannot be cut.
struct Unsound;

impl<'a> Map<'a> {
    fn new(graph: &'a Graph, sites: &'a [Site]) -> Map<'a> {
        let (mut makers, mut readers) = (HashMap::new(), HashMap::<ValueId, Vec<(usize, usize)>>::new());
        for (at, node) in graph.nodes().iter().enumerate() {
            makers.extend(node.outputs.iter().map(|id| (*id, at)));
            for (input, id) in node.inputs.iter().enumerate() {
                if let Some(id) = id {
                    readers.entry(*id).or_default().push((at, input));
                }
            }
        }
        Map { graph, sites: sites.iter().map(|site| (site.node, site)).collect(), makers, readers }
    }

    /// The region that a site's output lies in; none where it cannot be cut.
    fn region(&self, site: &Site) -> Option<Region> {
        let axis = axis(site);
        let mut region = Region {
            axis,
            width: site.rows,
            producers: BTreeSet::new(),
            consumers: BTreeSet::new(),
            depthwise: BTreeSet::new(),
            constants: BTreeSet::new(),
        };
        let mut open = self.graph.nodes().get(site.node)?.outputs.clone();
        let mut known: BTreeSet<ValueId> = open.iter().copied().collect();
        while let Some(value) = open.pop() {
            let neighbours = self.visit(value, &mut region).ok()?;
            open.extend(neighbours.into_iter().filter(|id| known.insert(*id)));
        }
        Some(region)
    }

    /// Takes a value into a region; gives the values beside it.
    fn visit(&self, value: ValueId, region: &mut Region) -> Result<Vec<ValueId>, Unsound> {
        self.fits(value, region)?;
        if self.graph.outputs().contains(&value) {
            return Err(Unsound);
        }
        let mut beside = Vec::new();
        let maker = *self.makers.get(&value).ok_or(Unsound)?;
        match self.sites.get(&maker) {
            Some(site) if axis(site) == region.axis && self.constant_bias(maker) => {
                region.producers.insert(maker);
            }
            Some(_) => return Err(Unsound),
            None => self.through(maker, region, &mut beside)?,
        }
        for (reader, input) in self.readers.get(&value).map_or(&[][..], Vec::as_slice) {
            match self.sites.get(reader) {
                Some(site) if *input == 0 && axis(site) == region.axis => drop(region.consumers.insert(*reader)),
                Some(_) => return Err(Unsound),
                None => self.through(*reader, region, &mut beside)?,
            }
        }
        Ok(beside)
    }

    /// A node on the way: its computed inputs and its outputs are of the region.
    fn through(&self, at: usize, region: &mut Region, beside: &mut Vec<ValueId>) -> Result<(), Unsound> {
        let node = self.graph.nodes().get(at).ok_or(Unsound)?;
        let inputs: Vec<ValueId> = node.inputs.iter().copied().flatten().collect();
        match &node.op {
            Op::Unary(_) | Op::GatedActivation(_) => beside.extend(&inputs),
            Op::Binary(_) => {
                for (input, id) in inputs.iter().enumerate() {
                    if matches!(self.graph.value(*id).source, ValueSource::Weight(_)) {
                        self.constant(at, input, *id, region)?;
                    } else {
                        beside.push(*id);
                    }
                }
            }
            Op::Pool(Pool { indices: false, .. }) if region.axis == Axis::Channels => beside.extend(&inputs),
            Op::Conv(op) if region.axis == Axis::Channels && op.groups == region.width => {
                self.depthwise(at, region.width)?;
                region.depthwise.insert(at);
                beside.extend(inputs.first());
            }
            _ => return Err(Unsound),
        }
        beside.extend(&node.outputs);
        Ok(())
    }

    /// Whether a constant has one number for all channels, or one for each, which then go with them.
    fn constant(&self, at: usize, input: usize, id: ValueId, region: &mut Region) -> Result<(), Unsound> {
        let node = self.graph.nodes().get(at).ok_or(Unsound)?;
        let rank = node.outputs.first().and_then(|id| self.graph.tensor_type(*id)).ok_or(Unsound)?.1.len();
        let shape = self.graph.weight_of(id).ok_or(Unsound)?.shape();
        let from_last = match region.axis {
            Axis::Channels => rank.checked_sub(2).ok_or(Unsound)?,
            Axis::Neurons => 0,
        };
        match shape.len().checked_sub(from_last + 1).and_then(|at| shape.get(at)) {
            None | Some(1) => Ok(()),
            Some(extent) if *extent == region.width => {
                region.constants.insert((at, input, from_last));
                Ok(())
            }
            Some(_) => Err(Unsound),
        }
    }

    /// Whether a convolution's bias, where it has one, can be cut.
    fn constant_bias(&self, at: usize) -> bool {
        let bias = self.graph.nodes().get(at).and_then(|node| node.inputs.get(2).copied().flatten());
        bias.is_none_or(|id| self.graph.weight_of(id).is_some())
    }

    /// Whether each channel of a convolution in groups meets itself alone.
    fn depthwise(&self, at: usize, width: usize) -> Result<(), Unsound> {
        let node = self.graph.nodes().get(at).ok_or(Unsound)?;
        let weight = node.inputs.get(1).copied().flatten().ok_or(Unsound)?;
        let weight = self.graph.weight_of(weight).ok_or(Unsound)?;
        match weight.shape() {
            [outputs, 1, ..] if *outputs == width && self.constant_bias(at) => Ok(()),
            _ => Err(Unsound),
        }
    }

    /// Whether a value has the region's channels.
    fn fits(&self, value: ValueId, region: &Region) -> Result<(), Unsound> {
        let (_, shape) = self.graph.tensor_type(value).ok_or(Unsound)?;
        let extent = match region.axis {
            Axis::Channels if shape.len() >= 3 => shape.get(1),
            Axis::Neurons if shape.len() >= 2 => shape.last(),
            _ => None,
        };
        if extent.and_then(Dim::as_num) == Some(region.width) { Ok(()) } else { Err(Unsound) }
    }
}

fn axis(site: &Site) -> Axis {
    match site.kind {
        Kind::Product { .. } => Axis::Neurons,
        Kind::Convolution { .. } => Axis::Channels,
    }
}
