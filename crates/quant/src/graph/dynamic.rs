//! Activations that are quantized by the range that they have when the graph runs.

use std::collections::HashMap;

use core_tensor::op::{Binary, Cast, ConvInteger, DynamicQuantizeLinear, MatMulInteger, Op};
use core_tensor::{DType, Graph, Node, ValueId};

use super::rewrite::Rewriting;
use super::site::{Kind, Site};
use super::{Change, GraphQuantError};

/// `x · W` becomes `float(quantized x · i8 W) * (scale of x * scales of W)`: the form that backends compute in one step, and onnxruntime fuses.
pub(super) fn quantize(mut new: Rewriting<'_>) -> Result<(Graph, Vec<Change>), GraphQuantError> {
    let mut inputs: HashMap<ValueId, [ValueId; 3]> = HashMap::new();
    for (at, node) in new.old.nodes().iter().enumerate() {
        let Some(site) = new.site(at) else {
            new.copy(at, node)?;
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
        let bytes = new.bytes(&site, None)?;
        let scale = bytes.scale;
        let (op, scale) = match &node.op {
            Op::Conv(conv) => {
                let rank = new.rank(site.input);
                let scale = new.over_channels(&format!("{}.weight_scale", node.name), scale, rank)?;
                (Op::ConvInteger(ConvInteger { window: conv.window.clone(), groups: conv.groups }), scale)
            }
            _ => (Op::MatMulInteger(MatMulInteger), scale),
        };
        let operands: Vec<ValueId> =
            [Some(x), Some(bytes.weight), Some(x_zero), bytes.zero].into_iter().flatten().collect();
        let y = new.add(&format!("{}.integers", node.name), op, &operands)?;
        let y = new.add(&format!("{}.floats", node.name), Op::Cast(Cast { to: DType::F32 }), &[y])?;
        let scale = new.add(&format!("{}.scale", node.name), Op::Binary(Binary::Mul), &[x_scale, scale])?;
        let mut y = new.add(&format!("{}.scaled", node.name), Op::Binary(Binary::Mul), &[y, scale])?;
        y = match site.kind {
            Kind::Convolution => biased(&mut new, node, y, bytes.lost)?,
            _ => new.restore(node, y, bytes.lost)?,
        };
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

/// With a convolution's bias, and what rounding took from the mean of its outputs.
fn biased(
    new: &mut Rewriting<'_>,
    node: &Node,
    y: ValueId,
    lost: Option<Vec<f32>>,
) -> Result<ValueId, GraphQuantError> {
    let Some(bias) = new.bias(node, lost)? else { return Ok(y) };
    let rank = node.outputs.first().map_or(0, |id| new.rank(*id));
    let bias = new.over_channels(&format!("{}.bias", node.name), bias, rank)?;
    new.add(&format!("{}.biased", node.name), Op::Binary(Binary::Add), &[y, bias])
}
