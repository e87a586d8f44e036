//! What all types share when they rebuild a graph.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use core_tensor::op::{Binary, Cast, Gather, Op, Reshape};
use core_tensor::{BlockFormat, DType, Dim, Graph, Node, Rewriter, Tensor, ValueId, Weight};

use super::integers::{I4Groups, I8Rows, Matrix, encode_i8, transpose};
use super::site::{Kind, Site};
use super::{Change, GraphOptions, GraphQuantError};

/// A graph that is being rebuilt with other weights.
pub(super) struct Rewriting<'a> {
    pub(super) old: &'a Graph,
    pub(super) options: &'a GraphOptions,
    pub(super) rewriter: Rewriter<'a>,
    pub(super) changes: Vec<Change>,
    /// Sites by their nodes.
    sites: HashMap<usize, Site>,
    names: HashSet<String>,
    /// Weights that were made already, by the old one and how it is read.
    done: HashMap<(ValueId, Kind), (ValueId, ValueId)>,
}

impl<'a> Rewriting<'a> {
    pub(super) fn new(old: &'a Graph, sites: &[Site], options: &'a GraphOptions) -> Rewriting<'a> {
        Rewriting {
            old,
            options,
            rewriter: Rewriter::new(old),
            changes: Vec::new(),
            sites: sites.iter().map(|site| (site.node, *site)).collect(),
            names: old.values().iter().map(|value| value.name.clone()).collect(),
            done: HashMap::new(),
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

    /// The old weight's name and dtype.
    fn of(&self, site: &Site) -> (String, DType) {
        let value = self.old.value(site.weight);
        (value.name.clone(), value.ty.as_tensor().map_or(DType::F32, |(dtype, _)| dtype))
    }

    fn changed(&mut self, site: &Site, name: String, shape: &[usize], to: String, (noise, power): (f64, f64)) {
        let node = self.old.nodes().get(site.node).map(|node| node.name.clone()).unwrap_or_default();
        let from = self.of(site).1;
        self.changes.push(Change { name, node, shape: shape.to_vec(), from, to, noise, power });
    }

    /// A weight of signed bytes with its scales: `[inputs, outputs]` for products, as it was for others. `floor` is the least scale of each output.
    pub(super) fn bytes(&mut self, site: &Site, floor: Option<&[f32]>) -> Result<(ValueId, ValueId), GraphQuantError> {
        let key = (site.weight, site.kind);
        if floor.is_none()
            && let Some(done) = self.done.get(&key)
        {
            return Ok(*done);
        }
        let mut matrix = site.matrix(self.old)?;
        let rows = encode_i8(&matrix, self.options.per_tensor && site.kind != Kind::Table, floor);
        let loss = rows.loss(&matrix);
        matrix.values = Vec::new();
        let pair = self.store(site, &matrix, rows, loss)?;
        if floor.is_none() {
            self.done.insert(key, pair);
        }
        Ok(pair)
    }

    fn store(
        &mut self,
        site: &Site,
        matrix: &Matrix,
        rows: I8Rows,
        loss: (f64, f64),
    ) -> Result<(ValueId, ValueId), GraphQuantError> {
        let (name, _) = self.of(site);
        let old = self.old.weight_of(site.weight).map(|weight| weight.shape().to_vec()).unwrap_or_default();
        let (shape, codes) = match site.kind {
            Kind::Product { .. } => {
                (vec![matrix.columns, matrix.rows], transpose(&rows.codes, matrix.rows, matrix.columns))
            }
            Kind::Convolution | Kind::Table => (old, rows.codes),
        };
        let scale_shape = match (site.kind, rows.scales.len()) {
            (_, 1) if matrix.rows != 1 => vec![],
            (Kind::Table, count) => vec![count, 1],
            (_, count) => vec![count],
        };
        let weight = self.constant(&format!("{name}.i8"), Tensor::from_slice(&shape, &codes)?);
        let scale = self.constant(&format!("{name}.scale"), Tensor::from_slice(&scale_shape, &rows.scales)?);
        let new = self.rewriter.graph().value(weight).name.clone();
        self.changed(site, new, &shape, "i8".into(), loss);
        Ok((weight, scale))
    }

    /// A weight of 4-bit blocks, `[outputs, inputs]`.
    pub(super) fn blocks(
        &mut self,
        site: &Site,
        matrix: &Matrix,
        groups: &I4Groups,
        to: String,
    ) -> Result<ValueId, GraphQuantError> {
        let (name, _) = self.of(site);
        let shape = [matrix.rows, matrix.columns];
        let tensor = Tensor::from_bytes(DType::Block(BlockFormat::Q4_0), &shape, &groups.blocks())?;
        let weight = self.constant(&format!("{name}.i4"), tensor);
        let new = self.rewriter.graph().value(weight).name.clone();
        self.changed(site, new, &shape, to, groups.loss(matrix));
        Ok(weight)
    }

    /// Rows of a table of bytes, and then times their scales: only what is taken becomes floats.
    pub(super) fn rows(&mut self, node: &Node, site: &Site) -> Result<(), GraphQuantError> {
        let (table, scale) = self.bytes(site, None)?;
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
