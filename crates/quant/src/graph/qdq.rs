//! Activations with ranges from calibration: QuantizeLinear and DequantizeLinear around what computes with integers.

use std::collections::HashMap;

use core_tensor::op::{DequantizeLinear, Granularity, Op, QuantizeLinear};
use core_tensor::{DType, Graph, Node, Tensor, ValueId};

use super::observer::ActivationScale;
use super::placement::Placement;
use super::rewrite::Rewriting;
use super::site::{Kind, Site};
use super::{Change, GraphQuantError};

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
    /// Scales by the old value that they were made for.
    scales: HashMap<ValueId, Stored>,
    /// What readers of integers get for an old value.
    dequantized: HashMap<ValueId, ValueId>,
}

pub(super) fn quantize(new: Rewriting<'_>, sites: &[Site]) -> Result<(Graph, Vec<Change>), GraphQuantError> {
    let graph = new.old;
    let mut inserting =
        Inserting { new, placement: Placement::new(graph, sites), scales: HashMap::new(), dequantized: HashMap::new() };
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
        let range = self.new.calibration.range(old, id, options.method)?;
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
    fn operand(&mut self, at: usize, place: usize, id: ValueId) -> ValueId {
        match self.dequantized.get(&id).filter(|_| self.placement.reads(at)) {
            Some(dequantized) => *dequantized,
            None => self.new.operand(at, place, id),
        }
    }

    fn node(&mut self, at: usize, node: &Node) -> Result<(), GraphQuantError> {
        let site = self.new.site(at);
        if let Some(site) = site.filter(|site| site.kind == Kind::Table) {
            return self.new.rows(node, &site);
        }
        let Some(site) = site else {
            let inputs = node.inputs.iter().enumerate();
            let inputs = inputs.map(|(place, id)| id.map(|id| self.operand(at, place, id))).collect();
            return self.new.put(node, inputs);
        };
        let x = self.operand(at, 0, site.input);
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
        let bytes = self.new.bytes(&site, floor.as_deref())?;
        let weight = self.new.dequantized(node, &site, &bytes)?;
        let mut inputs = vec![Some(x), Some(weight)];
        if site.kind != Kind::Convolution {
            let y = self.new.product(node, inputs)?;
            let y = self.new.restore(node, y, bytes.lost)?;
            self.new.replace(node, y);
            return Ok(());
        }
        // What rounding takes is a bias where there is none.
        let known = match (bias, constant, &bytes.lost) {
            (_, Some(bias), Some(lost)) => Some(bias.iter().zip(lost).map(|(x, more)| x + more).collect()),
            (_, Some(bias), None) => Some(bias),
            (None, None, Some(lost)) => Some(lost.clone()),
            _ => None,
        };
        match known {
            Some(values) => {
                let scales = self.new.scales_of(bytes.scale)?;
                inputs.push(Some(self.bias(node, &values, &scales, input.is.scale)?));
            }
            None => inputs.extend(self.new.bias(node, bytes.lost)?.map(Some)),
        }
        let y = self.new.product(node, inputs)?;
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
