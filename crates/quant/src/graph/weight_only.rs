//! Weights of few bits, activations as they were.

use core_tensor::op::{Gather, MatMul, Op};
use core_tensor::{Graph, Node};

use super::rewrite::Rewriting;
use super::site::{Kind, Site};
use super::weights::Blocks;
use super::{Change, GraphQuantError, GraphType};

pub(super) fn quantize(mut new: Rewriting<'_>) -> Result<(Graph, Vec<Change>), GraphQuantError> {
    for (at, node) in new.old.nodes().iter().enumerate() {
        match (new.site(at), new.options.ty) {
            (Some(site), GraphType::Int4 { group }) => grouped(&mut new, node, &site, group)?,
            (Some(site), _) if site.kind == Kind::Table => new.rows(node, &site)?,
            (Some(site), _) => dequantized(&mut new, node, &site)?,
            (None, _) => new.copy(at, node)?,
        }
    }
    Ok(new.finish())
}

/// The weight as bytes behind DequantizeLinear.
fn dequantized(new: &mut Rewriting<'_>, node: &Node, site: &Site) -> Result<(), GraphQuantError> {
    let bytes = new.bytes(site, None)?;
    let mut inputs: Vec<_> = (0..node.inputs.len()).map(|at| new.input(node, at)).collect();
    let weight = new.dequantized(node, site, &bytes)?;
    if let Some(input) = inputs.get_mut(1) {
        *input = Some(weight);
    }
    if site.kind == Kind::Convolution {
        inputs.truncate(2);
        inputs.extend(new.bias(node, bytes.lost)?.map(Some));
        let y = new.product(node, inputs)?;
        new.replace(node, y);
        return Ok(());
    }
    let y = new.product(node, inputs)?;
    let y = new.restore(node, y, bytes.lost)?;
    new.replace(node, y);
    Ok(())
}

/// The weight in blocks of 4 bits.
fn grouped(new: &mut Rewriting<'_>, node: &Node, site: &Site, group: usize) -> Result<(), GraphQuantError> {
    let Blocks { weight, lost } = new.blocks(site, group)?;
    let input = new.rewriter.get(site.input);
    let (op, inputs) = match site.kind {
        Kind::Table => (Op::Gather(Gather { axis: 0 }), [weight, input]),
        _ => (Op::MatMul(MatMul { transpose_b: true }), [input, weight]),
    };
    let y = new.add(&format!("{}.product", node.name), op, &inputs)?;
    let y = new.restore(node, y, lost)?;
    new.replace(node, y);
    Ok(())
}
