//! What calibration is to look at, and what it saw.

use std::collections::BTreeMap;
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
    /// How large the indices of an extent are.
    Channels {
        /// The extent's number.
        axis: usize,
        /// Its indices.
        channels: usize,
        /// Whether rows are kept as examples, too.
        examples: bool,
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
            Demand::Hessian { columns } => (columns as u64).saturating_pow(2).saturating_mul(8),
            Demand::Range => RangeObserver::BYTES,
            Demand::Channels { channels, examples, .. } => ChannelObserver::bytes(channels, examples),
        }
    }

    /// Bytes that it takes beside these to make something of it: of products the factor of their inverse, and what leads there.
    #[must_use]
    pub fn work(self) -> u64 {
        match self {
            Demand::Hessian { columns } => (columns as u64).saturating_pow(2).saturating_mul(20),
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
    for site in sites.iter().filter(|site| site.kind != Kind::Table) {
        let product = matches!(site.kind, Kind::Product { .. });
        if options.gptq
            && product
            && let Some(columns) = site.channels(graph)
        {
            if columns > MOST_COLUMNS {
                return Err(too_wide(graph, site, columns));
            }
            demand(&mut all, (site.input, Demand::Hessian { columns }));
        }
        let examples = product && options.clip && !options.gptq && matches!(options.ty, GraphType::Int4 { .. });
        if (options.bias_correction || examples)
            && let Some(channels) = channels(graph, site, examples)
        {
            demand(&mut all, channels);
        }
    }
    Ok(all)
}

/// Inputs of a product whose products are summed at most: 2 GiB, and 5 more while they are factored.
const MOST_COLUMNS: usize = 1 << 14;

fn too_wide(graph: &Graph, site: &Site, columns: usize) -> GraphQuantError {
    let name = graph.nodes().get(site.node).map(|node| node.name.clone()).unwrap_or_default();
    let gib = (columns as f64).powi(2) * 8.0 / f64::from(1 << 30);
    let reason = format!(
        "it has {columns} inputs, whose sums of products take {gib:.1} GiB; GPTQ does up to {MOST_COLUMNS}. Skip this node, or do without GPTQ"
    );
    GraphQuantError::Observation { name, reason }
}

/// Takes a demand in, once.
fn demand(all: &mut Vec<(ValueId, Demand)>, (id, new): (ValueId, Demand)) {
    for (_, old) in all.iter_mut().filter(|(known, _)| *known == id) {
        match (old, new) {
            (Demand::Channels { axis, examples, .. }, Demand::Channels { axis: of, examples: more, .. })
                if *axis == of =>
            {
                *examples |= more;
                return;
            }
            (old, new) if *old == new => return,
            _ => {}
        }
    }
    all.push((id, new));
}

/// The demand for a site's channels, where it is known how many there are.
pub(super) fn channels(graph: &Graph, site: &Site, examples: bool) -> Option<(ValueId, Demand)> {
    let channels = site.channels(graph)?;
    Some((site.input, Demand::Channels { axis: site.axis(graph)?, channels, examples }))
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
    /// By the extent, too: a product and a convolution may read the same value.
    channels: BTreeMap<(ValueId, usize), ChannelObserver>,
    hessians: BTreeMap<ValueId, Arc<Hessian>>,
}

impl Calibration {
    /// For what [`demands`] gave. Products that there is no memory for are not observed.
    #[must_use]
    pub fn new(demands: &[(ValueId, Demand)]) -> Calibration {
        let mut calibration = Calibration::default();
        for (id, demand) in demands {
            match demand {
                Demand::Range => drop(calibration.ranges.insert(*id, RangeObserver::default())),
                Demand::Channels { axis, channels, examples } => {
                    let observer = ChannelObserver::new(*axis, *channels, *examples);
                    drop(calibration.channels.insert((*id, *axis), observer));
                }
                Demand::Hessian { columns } => {
                    if let Some(hessian) = Hessian::fitting(*columns) {
                        calibration.hessians.insert(*id, Arc::new(hessian));
                    }
                }
            }
        }
        calibration
    }

    /// Looks at what a value was in a run. Values that nothing demands are left out.
    pub fn observe(&mut self, value: ValueId, shape: &[usize], elements: &[f32]) {
        for (_, channels) in self.channels.range_mut((value, 0)..=(value, usize::MAX)) {
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

    /// The channels of what a site's weight is applied to.
    ///
    /// # Errors
    /// When they were not observed.
    pub(super) fn channels(&self, graph: &Graph, site: &Site) -> Result<&ChannelObserver, GraphQuantError> {
        let found = site.axis(graph).and_then(|axis| self.channels.get(&(site.input, axis)));
        let found = found.filter(|channels| channels.count() > 0);
        found.ok_or_else(|| GraphQuantError::NotObserved { name: graph.value(site.input).name.clone() })
    }

    /// The products of a value; none where they were not observed.
    #[must_use]
    pub fn hessian(&self, id: ValueId) -> Option<Arc<Hessian>> {
        self.hessians.get(&id).filter(|hessian| hessian.rows > 0).cloned()
    }
}

/// What quantization leaves to its caller.
pub trait Host {
    /// The sums of products of the first of some values, which have been demanded. Those of the others may be asked for later, mostly in this order; of what is not
    /// among them no more is asked.
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
