//! What all types share when they rebuild a graph.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use core_tensor::op::{Binary, Cast, DequantizeLinear, Gather, Granularity, MatMul, Op, Reshape};
use core_tensor::{DType, Dim, Graph, Node, Rewriter, Tensor, ValueId, Weight};

use super::calibration::{Calibration, Host};
use super::feedback::Feedbacks;
use super::site::{Kind, Site};
use super::weights::{Bytes, Done};
use super::{Change, GraphOptions, GraphQuantError};
use crate::gptq::Feedback;

/// A graph that is being rebuilt with other weights.
pub(super) struct Rewriting<'a> {
    pub(super) old: &'a Graph,
    pub(super) options: &'a GraphOptions,
    pub(super) calibration: &'a Calibration,
    pub(super) host: &'a mut dyn Host,
    pub(super) rewriter: Rewriter<'a>,
    pub(super) changes: Vec<Change>,
    /// Sites by their nodes.
    pub(super) sites: HashMap<usize, Site>,
    feedbacks: Feedbacks,
    names: HashSet<String>,
    /// Weights that were made already.
    pub(super) done: Done,
    /// New values for inputs of nodes that are still to come, by node and place.
    corrected: HashMap<(usize, usize), ValueId>,
}

impl<'a> Rewriting<'a> {
    pub(super) fn new(
        old: &'a Graph,
        sites: &[Site],
        options: &'a GraphOptions,
        calibration: &'a Calibration,
        host: &'a mut dyn Host,
    ) -> Rewriting<'a> {
        Rewriting {
            old,
            options,
            calibration,
            host,
            feedbacks: Feedbacks::new(sites),
            corrected: HashMap::new(),
            rewriter: Rewriter::new(old),
            changes: Vec::new(),
            sites: sites.iter().map(|site| (site.node, *site)).collect(),
            names: old.values().iter().map(|value| value.name.clone()).collect(),
            done: Done::default(),
        }
    }

    pub(super) fn site(&self, node: usize) -> Option<Site> {
        self.sites.get(&node).copied()
    }

    pub(super) fn finish(self) -> (Graph, Vec<Change>) {
        let (mut graph, changes) = (self.rewriter.finish(), self.changes);
        // A node in an output's place has its name.
        for (old, new) in self.old.outputs().iter().zip(graph.outputs().to_vec()) {
            graph.rename(new, &self.old.value(*old).name);
        }
        (graph, changes)
    }

    /// A name that no value has.
    pub(super) fn fresh(&mut self, wish: &str) -> String {
        let mut name = wish.to_owned();
        let mut count = 1;
        while !self.names.insert(name.clone()) {
            count += 1;
            name = format!("{wish}_{count}");
        }
        name
    }

    /// A constant of the new graph.
    pub(super) fn constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let name = self.fresh(name);
        self.rewriter.graph().weight(&name, Weight::stored(tensor))
    }

    /// A constant of the new graph that may be large.
    pub(super) fn kept(&mut self, name: &str, tensor: Tensor) -> Result<ValueId, GraphQuantError> {
        let tensor = self.host.keep(tensor);
        let tensor = tensor.map_err(|source| GraphQuantError::Host { name: name.to_owned(), source })?;
        Ok(self.constant(name, tensor))
    }

    /// How the inputs of a site go together.
    pub(super) fn feedback(&mut self, site: &Site) -> Result<Arc<Feedback>, GraphQuantError> {
        self.feedbacks.of(self.old, site, &mut *self.host, self.options.damping)
    }

    /// Gives a product back what rounding took from its mean: in the constant that is added to it next, or else in an addition of its own.
    pub(super) fn restore(
        &mut self,
        node: &Node,
        y: ValueId,
        lost: Option<Vec<f32>>,
    ) -> Result<ValueId, GraphQuantError> {
        let Some(lost) = lost else { return Ok(y) };
        if let Some((at, place, id)) = node.outputs.first().and_then(|y| super::correction::bias_after(self.old, *y))
            && let Some(values) = self.floats(id)?
            && values.len() == lost.len()
        {
            let sums: Vec<f32> = values.iter().zip(&lost).map(|(x, more)| x + more).collect();
            let shape = self.old.weight_of(id).map(|weight| weight.shape().to_vec()).unwrap_or_default();
            let name = self.old.value(id).name.clone();
            let new = self.constant(&name, Tensor::from_slice(&shape, &sums)?);
            self.corrected.insert((at, place), new);
            return Ok(y);
        }
        let lost = self.constant(&format!("{}.lost", node.name), Tensor::from_slice(&[lost.len()], &lost)?);
        self.add(&format!("{}.restored", node.name), Op::Binary(Binary::Add), &[y, lost])
    }

    /// What a node that is not rewritten reads in place of an old value.
    pub(super) fn operand(&mut self, node: usize, place: usize, id: ValueId) -> ValueId {
        match self.corrected.get(&(node, place)) {
            Some(new) => *new,
            None => self.rewriter.get(id),
        }
    }

    /// Copies a node.
    pub(super) fn copy(&mut self, at: usize, node: &Node) -> Result<(), GraphQuantError> {
        let inputs = node.inputs.iter().enumerate();
        let inputs = inputs.map(|(place, id)| id.map(|id| self.operand(at, place, id))).collect();
        self.put(node, inputs)
    }

    /// Copies a node with other inputs.
    pub(super) fn put(&mut self, node: &Node, inputs: Vec<Option<ValueId>>) -> Result<(), GraphQuantError> {
        let outputs = self.rewriter.graph().add_node(&node.name, node.op.clone(), inputs)?;
        for (old, new) in node.outputs.iter().zip(outputs) {
            self.rewriter.graph().rename(new, &self.old.value(*old).name);
            self.rewriter.map(*old, new);
        }
        Ok(())
    }

    /// A node of the new graph with one output.
    pub(super) fn add(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphQuantError> {
        let name = self.fresh(name);
        Ok(self.rewriter.graph().add(&name, op, inputs)?)
    }

    /// Says what stands for a node's first output.
    pub(super) fn replace(&mut self, node: &Node, new: ValueId) {
        if let Some(old) = node.outputs.first() {
            let name = &self.old.value(*old).name;
            self.rewriter.graph().rename(new, name);
            self.rewriter.map(*old, new);
        }
    }

    /// What the new graph has for a node's input.
    pub(super) fn input(&mut self, node: &Node, at: usize) -> Option<ValueId> {
        let id = node.inputs.get(at).copied().flatten()?;
        Some(self.rewriter.get(id))
    }

    /// Rows of a table of bytes, and then times their scales: only what is taken becomes floats.
    pub(super) fn rows(&mut self, node: &Node, site: &Site) -> Result<(), GraphQuantError> {
        let Bytes { weight: table, scale, .. } = self.bytes(site, None)?;
        let indices = self.rewriter.get(site.input);
        let rows = self.add(&format!("{}.rows", node.name), Op::Gather(Gather { axis: 0 }), &[table, indices])?;
        let rows = self.add(&format!("{}.floats", node.name), Op::Cast(Cast { to: DType::F32 }), &[rows])?;
        let scale = self.add(&format!("{}.scales", node.name), Op::Gather(Gather { axis: 0 }), &[scale, indices])?;
        let y = self.add(&format!("{}.scaled", node.name), Op::Binary(Binary::Mul), &[rows, scale])?;
        self.replace(node, y);
        Ok(())
    }

    /// A vector of one number per channel as it broadcasts over an image of `rank` extents.
    pub(super) fn over_channels(
        &mut self,
        name: &str,
        vector: ValueId,
        rank: usize,
    ) -> Result<ValueId, GraphQuantError> {
        let count = self.rewriter.graph().tensor_type(vector).and_then(|(_, shape)| shape.first().cloned());
        let Some(count) = count else { return Ok(vector) };
        let constant = self.rewriter.graph().weight_of(vector).cloned();
        let mut shape = vec![Dim::Num(1); rank];
        if let Some(extent) = shape.get_mut(1) {
            *extent = count;
        }
        match constant {
            // Constants are reshaped here, so that no node is needed.
            Some(weight) => {
                let tensor = weight.to_tensor();
                let tensor = tensor.map_err(|source| GraphQuantError::Weight { name: name.to_owned(), source })?;
                let extents: Vec<usize> = shape.iter().filter_map(Dim::as_num).collect();
                let tensor = tensor.reshaped(&extents)?;
                Ok(self.constant(name, tensor))
            }
            None => self.add(name, Op::Reshape(Reshape { shape }), &[vector]),
        }
    }

    /// The floats of a site's bytes.
    pub(super) fn dequantized(&mut self, node: &Node, site: &Site, bytes: &Bytes) -> Result<ValueId, GraphQuantError> {
        let axis = if site.kind == Kind::Convolution { 0 } else { 1 };
        let granularity = if self.options.per_tensor { Granularity::Tensor } else { Granularity::Axis(axis) };
        let op = Op::DequantizeLinear(DequantizeLinear { granularity });
        self.add(&format!("{}.weight", node.name), op, &bytes.operands())
    }

    /// A site's product or convolution with other inputs, of which a product's weight is `[inputs, outputs]`.
    pub(super) fn product(&mut self, node: &Node, inputs: Vec<Option<ValueId>>) -> Result<ValueId, GraphQuantError> {
        let op = match node.op {
            Op::MatMul(_) => Op::MatMul(MatMul { transpose_b: false }),
            ref op => op.clone(),
        };
        let name = self.fresh(&format!("{}.product", node.name));
        Ok(self.rewriter.graph().add_node(&name, op, inputs)?[0])
    }

    /// A convolution's bias, with what rounding took from the means of its outputs; none where there is neither.
    pub(super) fn bias(&mut self, node: &Node, lost: Option<Vec<f32>>) -> Result<Option<ValueId>, GraphQuantError> {
        let id = node.inputs.get(2).copied().flatten();
        let Some(lost) = lost else { return Ok(id.map(|id| self.rewriter.get(id))) };
        let values = match id {
            Some(id) => self.floats(id)?,
            None => Some(vec![0.0; lost.len()]),
        };
        Ok(match values {
            Some(values) => {
                let sums: Vec<f32> = values.iter().zip(&lost).map(|(x, more)| x + more).collect();
                Some(self.constant(&format!("{}.bias", node.name), Tensor::from_slice(&[sums.len()], &sums)?))
            }
            // A bias that is computed.
            None => {
                let lost = self.constant(&format!("{}.lost", node.name), Tensor::from_slice(&[lost.len()], &lost)?);
                let bias = id.map_or(lost, |id| self.rewriter.get(id));
                Some(self.add(&format!("{}.bias", node.name), Op::Binary(Binary::Add), &[bias, lost])?)
            }
        })
    }

    /// How many extents a value has.
    pub(super) fn rank(&self, id: ValueId) -> usize {
        self.old.tensor_type(id).map_or(0, |(_, shape)| shape.len())
    }

    /// The old weight behind an input, as f32.
    pub(super) fn floats(&self, id: ValueId) -> Result<Option<Vec<f32>>, GraphQuantError> {
        let Some(weight): Option<&Arc<Weight>> = self.old.weight_of(id) else { return Ok(None) };
        let values = weight.rows_f32(0..weight.row_count());
        let name = || self.old.value(id).name.clone();
        values.map(Some).map_err(|source| GraphQuantError::Weight { name: name(), source })
    }

    /// The numbers of a constant of the new graph.
    pub(super) fn scales_of(&mut self, id: ValueId) -> Result<Vec<f32>, GraphQuantError> {
        let graph = self.rewriter.graph();
        let name = graph.value(id).name.clone();
        let Some(weight) = graph.weight_of(id) else { return Ok(Vec::new()) };
        let values = weight.rows_f32(0..weight.row_count());
        values.map_err(|source| GraphQuantError::Weight { name, source })
    }
}
