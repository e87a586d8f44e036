//! What calibration is to look at, and what it saw.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use core_tensor::{Graph, Tensor, ValueId};

use super::channels::ChannelObserver;
use super::observer::{Hessian, Range, RangeMethod, RangeObserver};
use super::opened::Trained;
use super::placement::Placement;
use super::site::{Kind, Site, sites};
use super::{GraphOptions, GraphQuantError, GraphType};

/// What is to be remembered of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Its distribution.
    Range,
    /// How large the indices of an extent are, and examples.
    Channels {
        /// The extent's number.
        axis: usize,
        /// Its indices.
        channels: usize,
    },
    /// The sums of products of its last extent, which has so many elements.
    Hessian {
        /// The last extent.
        columns: usize,
    },
}

impl Demand {
    /// Bytes that are held for it.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Demand::Hessian { columns } => (columns as u64).pow(2) * 8,
            Demand::Range | Demand::Channels { .. } => 0,
        }
    }
}

/// What a type needs to have observed, in the graph's order; of a value it may be more than one thing. None: the type needs no calibration.
///
/// # Errors
/// As [`quantize`](super::quantize).
pub fn demands(graph: &Graph, options: &GraphOptions) -> Result<Vec<(ValueId, Demand)>, GraphQuantError> {
    let sites = sites(graph, options)?;
    let mut all = Vec::new();
    if options.ty == GraphType::Int8 {
        let placement = Placement::new(graph, &sites);
        all.extend(graph.value_ids().filter(|id| placement.needs_range(*id)).map(|id| (id, Demand::Range)));
    }
    let mut seen = HashSet::new();
    for site in sites.iter().filter(|site| site.kind != Kind::Table && seen.insert(site.input)) {
        if options.gptq
            && matches!(site.kind, Kind::Product { .. })
            && let Some(columns) = site.channels(graph)
        {
            all.push((site.input, Demand::Hessian { columns }));
        }
        let examples = options.clip && matches!(options.ty, GraphType::Int4 { .. });
        if options.bias_correction || examples {
            all.extend(channels(graph, site));
        }
    }
    Ok(all)
}

/// The demand for a site's channels, where it is known how many there are.
pub(super) fn channels(graph: &Graph, site: &Site) -> Option<(ValueId, Demand)> {
    let rank = graph.tensor_type(site.input)?.1.len();
    let axis = if site.kind == Kind::Convolution { 1 } else { rank.checked_sub(1)? };
    Some((site.input, Demand::Channels { axis, channels: site.channels(graph)? }))
}

/// The graph with values as outputs after its own.
#[must_use]
pub fn observed(graph: &Graph, values: &[ValueId]) -> Graph {
    let mut graph = graph.clone();
    values.iter().for_each(|id| graph.output(*id));
    graph
}

/// What was seen of the values of one graph.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    ranges: BTreeMap<ValueId, RangeObserver>,
    channels: BTreeMap<ValueId, ChannelObserver>,
    hessians: BTreeMap<ValueId, Arc<Hessian>>,
}

impl Calibration {
    /// For what [`demands`] gave.
    #[must_use]
    pub fn new(demands: &[(ValueId, Demand)]) -> Calibration {
        let mut calibration = Calibration::default();
        for (id, demand) in demands {
            match demand {
                Demand::Range => drop(calibration.ranges.insert(*id, RangeObserver::default())),
                Demand::Channels { axis, channels } => {
                    drop(calibration.channels.insert(*id, ChannelObserver::new(*axis, *channels)));
                }
                Demand::Hessian { columns } => drop(calibration.hessians.insert(*id, Arc::new(Hessian::new(*columns)))),
            }
        }
        calibration
    }

    /// Looks at what a value was in a run. Values that nothing demands are left out.
    pub fn observe(&mut self, value: ValueId, shape: &[usize], elements: &[f32]) {
        if let Some(channels) = self.channels.get_mut(&value) {
            channels.observe(shape, elements);
        }
        if let Some(range) = self.ranges.get_mut(&value) {
            range.observe(elements);
        }
        if let Some(hessian) = self.hessians.get_mut(&value) {
            Arc::make_mut(hessian).observe(elements);
        }
    }

    /// The sums of products, without the rest.
    #[must_use]
    pub fn split_hessians(&mut self) -> Calibration {
        Calibration { hessians: std::mem::take(&mut self.hessians), ..Calibration::default() }
    }

    /// The range of a value.
    ///
    /// # Errors
    /// When it was not observed.
    pub(super) fn range(&self, graph: &Graph, id: ValueId, method: RangeMethod) -> Result<Range, GraphQuantError> {
        let found = self.ranges.get(&id).and_then(|observer| observer.range(method));
        found.ok_or_else(|| GraphQuantError::NotObserved { name: graph.value(id).name.clone() })
    }

    /// The channels of a value.
    ///
    /// # Errors
    /// When they were not observed.
    pub(super) fn channels(&self, graph: &Graph, id: ValueId) -> Result<&ChannelObserver, GraphQuantError> {
        let found = self.channels.get(&id).filter(|channels| channels.count() > 0);
        found.ok_or_else(|| GraphQuantError::NotObserved { name: graph.value(id).name.clone() })
    }

    /// The products of a value; none where they were not observed.
    #[must_use]
    pub fn hessian(&self, id: ValueId) -> Option<Arc<Hessian>> {
        self.hessians.get(&id).filter(|hessian| hessian.rows > 0).cloned()
    }
}

/// What quantization leaves to its caller.
pub trait Host {
    /// The sums of products of the first of some values, which have been demanded; those of the others are asked for later, in this order.
    ///
    /// # Errors
    /// When they cannot be had.
    fn hessian(&mut self, upcoming: &[ValueId]) -> Result<Option<Arc<Hessian>>, HostError>;

    /// A weight's integers, where they have been trained ([`super::open`]).
    fn trained(&mut self, _weight: ValueId) -> Option<Trained> {
        None
    }

    /// Takes a new weight in and gives it back, perhaps from a place that is not memory.
    ///
    /// # Errors
    /// When there is no room for it.
    fn keep(&mut self, tensor: Tensor) -> Result<Tensor, HostError> {
        Ok(tensor)
    }
}

/// Why a [`Host`] cannot do what it is asked for.
pub type HostError = Box<dyn std::error::Error + Send + Sync>;

/// Everything in memory.
impl Host for Calibration {
    fn hessian(&mut self, upcoming: &[ValueId]) -> Result<Option<Arc<Hessian>>, HostError> {
        Ok(upcoming.first().and_then(|id| self.hessians.get(id)).filter(|found| found.rows > 0).cloned())
    }
}
