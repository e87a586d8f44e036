//! Weights of integers in the new graph.

use std::collections::HashMap;
use std::sync::Arc;

use core_tensor::{BlockFormat, DType, Tensor, ValueId};

use super::bytes::{ByteRounding, I8Rows, encode_i8};
use super::correction::of_outputs;
use super::gptq::{gptq_i4, gptq_i8};
use super::integers::{I4Groups, Matrix, encode_i4, encode_i4_for, transpose};
use super::opened::Trained;
use super::rewrite::Rewriting;
use super::site::{Kind, Site};
use super::{Change, GraphQuantError, GraphType};

/// A weight of signed bytes in the new graph.
#[derive(Clone, Debug)]
pub(super) struct Bytes {
    pub(super) weight: ValueId,
    pub(super) scale: ValueId,
    /// The codes of 0; none where all are 0.
    pub(super) zero: Option<ValueId>,
    /// What rounding takes from the mean of each output; none where it is to stay.
    pub(super) lost: Option<Vec<f32>>,
}

impl Bytes {
    /// The inputs of DequantizeLinear.
    pub(super) fn operands(&self) -> Vec<ValueId> {
        [Some(self.weight), Some(self.scale), self.zero].into_iter().flatten().collect()
    }
}

/// A weight of 4-bit blocks, `[outputs, inputs]`, in the new graph.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    pub(super) weight: ValueId,
    /// What rounding takes from the mean of each output; none where it is to stay.
    pub(super) lost: Option<Vec<f32>>,
}

/// What a weight became, and its integers.
type Made<New, Integers> = (New, Option<Arc<Integers>>);

/// Weights that were made already. Their integers are there where other nodes read the same weight, of which the means are others.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// By the old weight and how it is read.
    bytes: HashMap<(ValueId, Kind), Made<Bytes, I8Rows>>,
    /// By these, and what it meets where it was rounded for that.
    blocks: HashMap<(ValueId, Kind, Option<ValueId>), Made<ValueId, I4Groups>>,
}

impl Rewriting<'_> {
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

    /// What rounding takes from the mean of each output, where it is to be made up for.
    fn lost(
        &self,
        site: &Site,
        matrix: &Matrix,
        decoded: impl FnOnce() -> Vec<f32>,
    ) -> Result<Option<Vec<f32>>, GraphQuantError> {
        if !self.options.bias_correction || site.kind == Kind::Table {
            return Ok(None);
        }
        let means = self.calibration.channels(self.old, site)?.means();
        let found = of_outputs(matrix, &decoded(), &means, site.groups(self.old));
        found.map(Some).ok_or_else(|| GraphQuantError::Observation {
            name: self.old.value(site.input).name.clone(),
            reason: format!("means of {} channels do not fit rows of {}", means.len(), matrix.columns),
        })
    }

    /// Whether what rounding takes will be asked for again by another node.
    fn shared(&self, site: &Site) -> bool {
        let same = |other: &&Site| other.weight == site.weight && other.kind == site.kind;
        self.options.bias_correction && site.kind != Kind::Table && self.sites.values().filter(same).count() > 1
    }

    /// A weight of signed bytes with its scales: `[inputs, outputs]` for products, as it was for others. `floor` is the least scale of each output.
    pub(super) fn bytes(&mut self, site: &Site, floor: Option<&[f32]>) -> Result<Bytes, GraphQuantError> {
        let key = (site.weight, site.kind);
        if floor.is_none()
            && let Some((made, rows)) = self.done.bytes.get(&key).cloned()
        {
            let Some(rows) = rows else { return Ok(made) };
            let matrix = site.matrix(self.old)?;
            let lost = self.lost(site, &matrix, || rows.decode(matrix.columns))?;
            return Ok(Bytes { lost, ..made });
        }
        let mut matrix = site.matrix(self.old)?;
        let mut how = self.options.bytes();
        let table = site.kind == Kind::Table;
        how.per_tensor &= !table;
        // Rows of tables are multiplied by their scale alone; runtimes know ConvInteger with one zero point for all.
        let integers = site.kind == Kind::Convolution && self.options.ty == GraphType::Int8Dynamic;
        how.asymmetric &= !table && !integers;
        let rows = if let Some(rows) = self.trained_bytes(site, &matrix, &how, floor) {
            rows
        } else if self.options.gptq && matches!(site.kind, Kind::Product { .. }) {
            let feedback = self.feedback(site)?;
            let rounded = gptq_i8(&matrix, &feedback, &how);
            let name = || self.old.value(site.weight).name.clone();
            rounded.map_err(|source| GraphQuantError::Gptq { name: name(), source })?
        } else {
            encode_i8(&matrix, &how, floor, None)
        };
        let loss = rows.loss(&matrix);
        let lost = self.lost(site, &matrix, || rows.decode(matrix.columns))?;
        matrix.values = Vec::new();
        let kept = (floor.is_none() && self.shared(site)).then(|| Arc::new(rows.clone()));
        let made = Bytes { lost, ..self.store(site, &matrix, rows, loss)? };
        if floor.is_none() {
            self.done.bytes.insert(key, (made.clone(), kept));
        }
        Ok(made)
    }

    /// The bytes that a site's weight was trained to; on scales of the floor at least.
    fn trained_bytes(
        &mut self,
        site: &Site,
        matrix: &Matrix,
        how: &ByteRounding,
        floor: Option<&[f32]>,
    ) -> Option<I8Rows> {
        let Some(Trained::Bytes(rows)) = self.trained(site) else { return None };
        // One scale may be that of all outputs.
        let scale = |i: usize| rows.scales.get(if rows.scales.len() == 1 { 0 } else { i });
        let low = |floor: &&[f32]| floor.iter().enumerate().any(|(i, floor)| scale(i).is_some_and(|x| x < floor));
        match floor.filter(low) {
            None => Some(rows),
            Some(_) => Some(encode_i8(&Matrix { values: rows.decode(matrix.columns), ..*matrix }, how, floor, None)),
        }
    }

    /// What a site's weight was trained to.
    fn trained(&mut self, site: &Site) -> Option<Trained> {
        if site.kind == Kind::Table { None } else { self.host.trained(site.weight) }
    }

    fn store(
        &mut self,
        site: &Site,
        matrix: &Matrix,
        rows: I8Rows,
        loss: (f64, f64),
    ) -> Result<Bytes, GraphQuantError> {
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
        let weight = self.kept(&format!("{name}.i8"), Tensor::from_slice(&shape, &codes)?)?;
        let scale = self.constant(&format!("{name}.scale"), Tensor::from_slice(&scale_shape, &rows.scales)?);
        let zero = match rows.zeros.is_empty() {
            true => None,
            false => Some(self.constant(&format!("{name}.zero"), Tensor::from_slice(&scale_shape, &rows.zeros)?)),
        };
        let new = self.rewriter.graph().value(weight).name.clone();
        self.changed(site, new, &shape, "i8".into(), loss);
        Ok(Bytes { weight, scale, zero, lost: None })
    }

    /// A weight of 4-bit blocks.
    pub(super) fn blocks(&mut self, site: &Site, group: usize) -> Result<Blocks, GraphQuantError> {
        let threads = self.options.threads;
        let product = matches!(site.kind, Kind::Product { .. });
        let trained = match self.trained(site) {
            Some(Trained::Groups(groups)) => Some(groups),
            _ => None,
        };
        // What was rounded for one input is not what another one needs.
        let meets = product && trained.is_none() && (self.options.gptq || self.options.clip);
        let key = (site.weight, site.kind, meets.then_some(site.input));
        if let Some((weight, groups)) = self.done.blocks.get(&key).cloned() {
            let Some(groups) = groups else { return Ok(Blocks { weight, lost: None }) };
            let lost = self.lost(site, &site.matrix(self.old)?, || groups.decode())?;
            return Ok(Blocks { weight, lost });
        }
        let matrix = site.matrix(self.old)?;
        // A group ends where a row ends: rows that are shorter than it are one group.
        let group = if matrix.columns.is_multiple_of(group) { group } else { 32 };
        let groups = if let Some(groups) = trained {
            groups
        } else if product && self.options.gptq {
            let feedback = self.feedback(site)?;
            let rounded = gptq_i4(&matrix, &feedback, group, threads);
            let name = || self.old.value(site.weight).name.clone();
            rounded.map_err(|source| GraphQuantError::Gptq { name: name(), source })?
        } else if product && self.options.clip {
            encode_i4_for(&matrix, group, self.calibration.channels(self.old, site)?.examples(), threads)
        } else {
            encode_i4(&matrix, group, None, threads)
        };
        let lost = self.lost(site, &matrix, || groups.decode())?;
        let (name, _) = self.of(site);
        let shape = [matrix.rows, matrix.columns];
        let tensor = Tensor::from_bytes(DType::Block(BlockFormat::Q4_0), &shape, &groups.blocks())?;
        let weight = self.kept(&format!("{name}.i4"), tensor)?;
        let new = self.rewriter.graph().value(weight).name.clone();
        self.changed(site, new, &shape, format!("i4-g{group}"), groups.loss(&matrix));
        let kept = self.shared(site).then(|| Arc::new(groups));
        self.done.blocks.insert(key, (weight, kept));
        Ok(Blocks { weight, lost })
    }
}
