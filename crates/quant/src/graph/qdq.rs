//! Activations with ranges from calibration: QuantizeLinear and DequantizeLinear around what computes with integers.

use std::collections::HashMap;

use core_tensor::op::{DequantizeLinear, Granularity, MatMul, Op, QuantizeLinear};
use core_tensor::{DType, Graph, Node, Tensor, ValueId};

use super::calibration::Calibration;
use super::observer::ActivationScale;
use super::placement::Placement;
use super::rewrite::Rewriting;
use super::site::{Kind, Site};
use super::{Change, GraphOptions, GraphQuantError};

/// A scale with its constants.
#[derive(Clone, Copy, Debug)]
struct Stored {
    is: ActivationScale,
    scale: ValueId,
    zero: ValueId,
}

struct Inserting<'a> {
    new: Rewriting<'a>,
    placement: Placement,
    calibration: &'a Calibration,
    /// Scales by the old value that they were made for.
    scales: HashMap<ValueId, Stored>,
    /// What readers of integers get for an old value.
    dequantized: HashMap<ValueId, ValueId>,
}

pub(super) fn quantize(
    graph: &Graph,
    sites: &[Site],
    options: &GraphOptions,
    calibration: &Calibration,
) -> Result<(Graph, Vec<Change>), GraphQuantError> {
    let mut inserting = Inserting {
        new: Rewriting::new(graph, sites, options),
        placement: Placement::new(graph, sites),
        calibration,
        scales: HashMap::new(),
        dequantized: HashMap::new(),
    };
    for id in graph.inputs() {
        inserting.round(*id)?;
    }
    for (at, node) in graph.nodes().iter().enumerate() {
        inserting.node(at, node)?;
        for id in &node.outputs {
            inserting.round(*id)?;
        }
    }
    Ok(inserting.new.finish())
}

impl Inserting<'_> {
    /// Puts quantization after a value that has just been made, where it has a place.
    fn round(&mut self, id: ValueId) -> Result<(), GraphQuantError> {
        let Some(place) = self.placement.place(id) else { return Ok(()) };
        let stored = self.scale(place.scale_of)?;
        let x = self.new.rewriter.get(id);
        let name = &self.new.old.value(id).name;
        let (quantized, dequantized) = (format!("{name}.quantized"), format!("{name}.dequantized"));
        let op = QuantizeLinear { granularity: Granularity::Tensor, to: stored.is.dtype, saturate: true, bits: None };
        let q = self.new.add(&quantized, Op::QuantizeLinear(op), &[x, stored.scale, stored.zero])?;
        let op = DequantizeLinear { granularity: Granularity::Tensor };
        let y = self.new.add(&dequantized, Op::DequantizeLinear(op), &[q, stored.scale, stored.zero])?;
        self.dequantized.insert(id, y);
        if place.everywhere {
            self.new.rewriter.map(id, y);
        }
        Ok(())
    }

    /// The scale that was chosen for a value.
    fn scale(&mut self, id: ValueId) -> Result<Stored, GraphQuantError> {
        if let Some(known) = self.scales.get(&id) {
            return Ok(*known);
        }
        let (old, options) = (self.new.old, self.new.options);
        let range = self.calibration.range(old, id, options.method)?;
        let is = match options.symmetric {
            true => ActivationScale::symmetric(range),
            false => ActivationScale::asymmetric(range),
        };
        let name = &old.value(id).name;
        let zero = if is.dtype == DType::U8 { is.zero as u8 } else { 0 };
        let scale = self.new.constant(&format!("{name}.scale"), Tensor::from_slice(&[], &[is.scale])?);
        let zero = self.new.constant(&format!("{name}.zero"), Tensor::from_bytes(is.dtype, &[], &[zero])?);
        let stored = Stored { is, scale, zero };
        self.scales.insert(id, stored);
        Ok(stored)
    }

    /// What stands for an operand of a node.
    fn operand(&mut self, at: usize, id: ValueId) -> ValueId {
        match self.dequantized.get(&id).filter(|_| self.placement.reads(at)) {
            Some(dequantized) => *dequantized,
            None => self.new.rewriter.get(id),
        }
    }

    fn node(&mut self, at: usize, node: &Node) -> Result<(), GraphQuantError> {
        let site = self.new.site(at);
        if let Some(site) = site.filter(|site| site.kind == Kind::Table) {
            return self.new.rows(node, &site);
        }
        let Some(site) = site else {
            let inputs = node.inputs.iter().map(|id| id.map(|id| self.operand(at, id))).collect();
            let outputs = self.new.rewriter.graph().add_node(&node.name, node.op.clone(), inputs)?;
            for (old, new) in node.outputs.iter().zip(outputs) {
                self.new.rewriter.graph().rename(new, &self.new.old.value(*old).name);
                self.new.rewriter.map(*old, new);
            }
            return Ok(());
        };
        let x = self.operand(at, site.input);
        let place = self.placement.place(site.input).map_or(site.input, |place| place.scale_of);
        let input = self.scale(place)?;
        let bias = match (&node.op, node.inputs.get(2).copied().flatten()) {
            (Op::Conv(_), Some(id)) => Some(id),
            _ => None,
        };
        let constant = bias.map(|id| self.new.floats(id)).transpose()?.flatten();
        // A bias must fit into 32 bits of products of both scales, with room for the sums.
        let floor: Option<Vec<f32>> = constant.as_ref().map(|bias| {
            let least = |x: &f32| x.abs() / (input.is.scale * (1 << 29) as f32);
            bias.iter().map(least).collect()
        });
        let (weight, scale) = self.new.bytes(&site, floor.as_deref())?;
        let axis = if site.kind == Kind::Convolution { 0 } else { 1 };
        let granularity = if self.new.options.per_tensor { Granularity::Tensor } else { Granularity::Axis(axis) };
        let op = Op::DequantizeLinear(DequantizeLinear { granularity });
        let weight = self.new.add(&format!("{}.weight", node.name), op, &[weight, scale])?;
        let mut inputs = vec![Some(x), Some(weight)];
        match (bias, constant) {
            (Some(_), Some(values)) => {
                let scales = self.new.scales_of(scale)?;
                inputs.push(Some(self.bias(node, &values, &scales, input.is.scale)?));
            }
            (Some(id), None) => inputs.push(Some(self.new.rewriter.get(id))),
            (None, _) => {}
        }
        let op = match node.op {
            Op::MatMul(_) => Op::MatMul(MatMul { transpose_b: false }),
            ref op => op.clone(),
        };
        let name = self.new.fresh(&format!("{}.product", node.name));
        let y = self.new.rewriter.graph().add_node(&name, op, inputs)?[0];
        self.new.replace(node, y);
        Ok(())
    }

    /// A bias of a convolution as i32 in steps of the products of both scales, behind DequantizeLinear: so that a runtime adds it to the sums.
    fn bias(&mut self, node: &Node, values: &[f32], scales: &[f32], input: f32) -> Result<ValueId, GraphQuantError> {
        let steps: Vec<f32> = scales.iter().map(|scale| scale * input).collect();
        let step = |i: usize| steps.get(if steps.len() == 1 { 0 } else { i }).copied().unwrap_or(1.0);
        let codes: Vec<i32> = values
            .iter()
            .enumerate()
            .map(|(i, x)| (f64::from(*x) / f64::from(step(i))).round_ties_even() as i32)
            .collect();
        let shape: Vec<usize> = if steps.len() == 1 && values.len() != 1 { vec![] } else { vec![steps.len()] };
        let granularity = if shape.is_empty() { Granularity::Tensor } else { Granularity::Axis(0) };
        let codes = self.new.constant(&format!("{}.bias", node.name), Tensor::from_slice(&[codes.len()], &codes)?);
        let steps = self.new.constant(&format!("{}.bias_scale", node.name), Tensor::from_slice(&shape, &steps)?);
        let op = Op::DequantizeLinear(DequantizeLinear { granularity });
        self.new.add(&format!("{}.bias_floats", node.name), op, &[codes, steps])
    }
}
