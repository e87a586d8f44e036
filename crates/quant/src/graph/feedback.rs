//! How the inputs of products go together.

use std::collections::BTreeMap;
use std::sync::Arc;

use core_tensor::{Graph, ValueId};

use super::GraphQuantError;
use super::calibration::Host;
use super::site::{Kind, Site};
use crate::gptq::Feedback;

/// What was made of products that the host gave: each is asked for once, and held until the last node that reads it.
#[derive(Debug)]
pub(super) struct Feedbacks {
    /// Products: their nodes and what they read, in order.
    readers: Vec<(usize, ValueId)>,
    held: BTreeMap<ValueId, Arc<Feedback>>,
}

impl Feedbacks {
    pub(super) fn new(sites: &[Site]) -> Feedbacks {
        let products = sites.iter().filter(|site| matches!(site.kind, Kind::Product { .. }));
        Feedbacks { readers: products.map(|site| (site.node, site.input)).collect(), held: BTreeMap::new() }
    }

    /// That of a site, of which those after it come later.
    pub(super) fn of(
        &mut self,
        graph: &Graph,
        site: &Site,
        host: &mut dyn Host,
        damping: f64,
    ) -> Result<Arc<Feedback>, GraphQuantError> {
        let coming =
            self.readers.get(self.readers.partition_point(|(node, _)| *node < site.node)..).unwrap_or_default();
        self.held.retain(|id, _| coming.iter().any(|(_, input)| input == id));
        if let Some(known) = self.held.get(&site.input) {
            return Ok(known.clone());
        }
        let mut upcoming = vec![site.input];
        for (_, input) in coming {
            if !self.held.contains_key(input) && !upcoming.contains(input) {
                upcoming.push(*input);
            }
        }
        let name = || graph.value(site.input).name.clone();
        let found = host.hessian(&upcoming).map_err(|source| GraphQuantError::Host { name: name(), source })?;
        let hessian = found.ok_or_else(|| GraphQuantError::NotObserved { name: name() })?;
        let feedback = Feedback::of(&hessian, damping);
        let weight = || graph.value(site.weight).name.clone();
        let feedback = Arc::new(feedback.map_err(|source| GraphQuantError::Gptq { name: weight(), source })?);
        self.held.insert(site.input, feedback.clone());
        Ok(feedback)
    }
}
