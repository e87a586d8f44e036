//! Activations that are quantized by the range that they have when the graph runs.

use std::collections::HashMap;

use core_tensor::op::{Binary, Cast, ConvInteger, DynamicQuantizeLinear, MatMulInteger, Op};
use core_tensor::{DType, Graph, Node, ValueId};

use super::rewrite::Rewriting;
use super::site::{Kind, Site};
use super::{Change, GraphOptions, GraphQuantError};

/// `x · W` becomes `float(quantized x · i8 W) * (scale of x * scales of W)`: the form that backends compute in one step, and onnxruntime fuses.
pub(super) fn quantize(
    graph: &Graph,
    sites: &[Site],
    options: &GraphOptions,
) -> Result<(Graph, Vec<Change>), GraphQuantError> {
    let mut new = Rewriting::new(graph, sites, options);
    let mut inputs: HashMap<ValueId, [ValueId; 3]> = HashMap::new();
    for (at, node) in graph.nodes().iter().enumerate() {
        let Some(site) = new.site(at) else {
            new.rewriter.copy(node)?;
            continue;
        };
        if site.kind == Kind::Table {
            new.rows(node, &site)?;
            continue;
        }
        let [x, x_scale, x_zero] = match inputs.get(&site.input) {
            Some(known) => *known,
            None => {
                let made = quantized(&mut new, &site)?;
                inputs.insert(site.input, made);
                made
            }
        };
        let (weight, scale) = new.bytes(&site, None)?;
        let (op, scale) = match &node.op {
            Op::Conv(conv) => {
                let rank = new.rank(site.input);
                let scale = new.over_channels(&format!("{}.weight_scale", node.name), scale, rank)?;
                (Op::ConvInteger(ConvInteger { window: conv.window.clone(), groups: conv.groups }), scale)
            }
            _ => (Op::MatMulInteger(MatMulInteger), scale),
        };
        let y = new.add(&format!("{}.integers", node.name), op, &[x, weight, x_zero])?;
        let y = new.add(&format!("{}.floats", node.name), Op::Cast(Cast { to: DType::F32 }), &[y])?;
        let scale = new.add(&format!("{}.scale", node.name), Op::Binary(Binary::Mul), &[x_scale, scale])?;
        let mut y = new.add(&format!("{}.scaled", node.name), Op::Binary(Binary::Mul), &[y, scale])?;
        if site.kind == Kind::Convolution {
            let rank = new.rank(site.input);
            y = biased(&mut new, node, y, rank)?;
        }
        new.replace(node, y);
    }
    Ok(new.finish())
}

/// The bytes of what a weight is applied to, with scale and zero point.
fn quantized(new: &mut Rewriting<'_>, site: &Site) -> Result<[ValueId; 3], GraphQuantError> {
    let x = new.rewriter.get(site.input);
    let name = new.fresh(&format!("{}.quantized", new.old.value(site.input).name));
    let op = Op::DynamicQuantizeLinear(DynamicQuantizeLinear);
    let outputs = new.rewriter.graph().add_node(&name, op, vec![Some(x)])?;
    match outputs[..] {
        [x, scale, zero] => Ok([x, scale, zero]),
        _ => Err(GraphQuantError::NotObserved { name }),
    }
}

/// With a convolution's bias.
fn biased(new: &mut Rewriting<'_>, node: &Node, y: ValueId, rank: usize) -> Result<ValueId, GraphQuantError> {
    let Some(bias) = new.input(node, 2) else { return Ok(y) };
    let bias = new.over_channels(&format!("{}.bias", node.name), bias, rank)?;
    new.add(&format!("{}.biased", node.name), Op::Binary(Binary::Add), &[y, bias])
}
