//! What calibration is to look at, and what it saw.

use std::collections::{BTreeMap, HashSet};

use core_tensor::{Dim, Graph, ValueId};

use super::observer::{Hessian, Range, RangeMethod, RangeObserver};
use super::placement::Placement;
use super::site::{Kind, sites};
use super::{GraphOptions, GraphQuantError, GraphType};

/// What is to be remembered of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Its distribution.
    Range,
    /// The sums of products of its last extent, which has so many elements.
    Hessian {
        /// The last extent.
        columns: usize,
    },
}

/// The values that a type needs to have observed, each once, in the graph's order. None: the type needs no calibration.
///
/// # Errors
/// As [`quantize`](super::quantize).
pub fn demands(graph: &Graph, options: &GraphOptions) -> Result<Vec<(ValueId, Demand)>, GraphQuantError> {
    let sites = sites(graph, options)?;
    Ok(match options.ty {
        GraphType::Int8 => {
            let placement = Placement::new(graph, &sites);
            graph.value_ids().filter(|id| placement.needs_range(*id)).map(|id| (id, Demand::Range)).collect()
        }
        GraphType::Int4 { .. } if options.gptq => {
            let mut seen = HashSet::new();
            let products = sites.iter().filter(|site| matches!(site.kind, Kind::Product { .. }));
            products
                .filter(|site| seen.insert(site.input))
                .filter_map(|site| {
                    let columns = graph.tensor_type(site.input)?.1.last().and_then(Dim::as_num)?;
                    Some((site.input, Demand::Hessian { columns }))
                })
                .collect()
        }
        GraphType::Int8Dynamic | GraphType::Int8Weights | GraphType::Int4 { .. } => Vec::new(),
    })
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
    hessians: BTreeMap<ValueId, Hessian>,
}

impl Calibration {
    /// For what [`demands`] gave.
    #[must_use]
    pub fn new(demands: &[(ValueId, Demand)]) -> Calibration {
        let mut calibration = Calibration::default();
        for (id, demand) in demands {
            match demand {
                Demand::Range => drop(calibration.ranges.insert(*id, RangeObserver::default())),
                Demand::Hessian { columns } => drop(calibration.hessians.insert(*id, Hessian::new(*columns))),
            }
        }
        calibration
    }

    /// Looks at what a value was in a run. Values that nothing demands are left out.
    pub fn observe(&mut self, value: ValueId, elements: &[f32]) {
        if let Some(range) = self.ranges.get_mut(&value) {
            range.observe(elements);
        }
        if let Some(hessian) = self.hessians.get_mut(&value) {
            hessian.observe(elements);
        }
    }

    /// The range of a value.
    ///
    /// # Errors
    /// When it was not observed.
    pub(super) fn range(&self, graph: &Graph, id: ValueId, method: RangeMethod) -> Result<Range, GraphQuantError> {
        let found = self.ranges.get(&id).and_then(|observer| observer.range(method));
        found.ok_or_else(|| GraphQuantError::NotObserved { name: graph.value(id).name.clone() })
    }

    /// The products of a value.
    ///
    /// # Errors
    /// When it was not observed.
    pub(super) fn hessian(&self, graph: &Graph, id: ValueId) -> Result<&Hessian, GraphQuantError> {
        let found = self.hessians.get(&id).filter(|hessian| hessian.rows > 0);
        found.ok_or_else(|| GraphQuantError::NotObserved { name: graph.value(id).name.clone() })
    }
}
