//! Weights of few bits, activations as they were.

use core_tensor::op::{DequantizeLinear, Gather, Granularity, MatMul, Op};
use core_tensor::{Graph, Node};

use super::calibration::Calibration;
use super::gptq::gptq;
use super::integers::encode_i4;
use super::rewrite::Rewriting;
use super::site::{Kind, Site};
use super::{Change, GraphOptions, GraphQuantError, GraphType};

pub(super) fn quantize(
    graph: &Graph,
    sites: &[Site],
    options: &GraphOptions,
    calibration: &Calibration,
) -> Result<(Graph, Vec<Change>), GraphQuantError> {
    let mut new = Rewriting::new(graph, sites, options);
    for (at, node) in graph.nodes().iter().enumerate() {
        match (new.site(at), options.ty) {
            (Some(site), GraphType::Int4 { group }) => grouped(&mut new, node, &site, group, calibration)?,
            (Some(site), _) if site.kind == Kind::Table => new.rows(node, &site)?,
            (Some(site), _) => dequantized(&mut new, node, &site)?,
            (None, _) => drop(new.rewriter.copy(node)?),
        }
    }
    Ok(new.finish())
}

/// The weight as bytes behind DequantizeLinear.
fn dequantized(new: &mut Rewriting<'_>, node: &Node, site: &Site) -> Result<(), GraphQuantError> {
    let (weight, scale) = new.bytes(site, None)?;
    let axis = if site.kind == Kind::Convolution { 0 } else { 1 };
    let granularity = if new.options.per_tensor { Granularity::Tensor } else { Granularity::Axis(axis) };
    let op = Op::DequantizeLinear(DequantizeLinear { granularity });
    let weight = new.add(&format!("{}.weight", node.name), op, &[weight, scale])?;
    let mut inputs: Vec<_> = (0..node.inputs.len()).map(|at| new.input(node, at)).collect();
    if let Some(input) = inputs.get_mut(1) {
        *input = Some(weight);
    }
    let op = match node.op {
        // Bytes of products are stored [inputs, outputs].
        Op::MatMul(_) => Op::MatMul(MatMul { transpose_b: false }),
        ref op => op.clone(),
    };
    let name = new.fresh(&format!("{}.product", node.name));
    let y = new.rewriter.graph().add_node(&name, op, inputs)?[0];
    new.replace(node, y);
    Ok(())
}

/// The weight in blocks of 4 bits.
fn grouped(
    new: &mut Rewriting<'_>,
    node: &Node,
    site: &Site,
    group: usize,
    calibration: &Calibration,
) -> Result<(), GraphQuantError> {
    let (options, threads) = (new.options, new.options.threads);
    let matrix = site.matrix(new.old)?;
    let name = || new.old.value(site.weight).name.clone();
    // A group ends where a row ends: rows that are shorter than it are one group.
    let group = if matrix.columns.is_multiple_of(group) { group } else { 32 };
    let groups = match (site.kind, options.gptq) {
        (Kind::Product { .. }, true) => {
            let hessian = calibration.hessian(new.old, site.input)?;
            let rounded = gptq(&matrix, hessian, group, options.damping, threads);
            rounded.map_err(|source| GraphQuantError::Gptq { name: name(), source })?
        }
        _ => encode_i4(&matrix, group, None, threads),
    };
    let weight = new.blocks(site, &matrix, &groups, format!("i4-g{group}"))?;
    let input = new.rewriter.get(site.input);
    let (op, inputs) = match site.kind {
        Kind::Table => (Op::Gather(Gather { axis: 0 }), [weight, input]),
        _ => (Op::MatMul(MatMul { transpose_b: true }), [input, weight]),
    };
    let y = new.add(&format!("{}.product", node.name), op, &inputs)?;
    new.replace(node, y);
    Ok(())
}
