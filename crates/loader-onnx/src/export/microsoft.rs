//! Weights in blocks: ONNX has no such dtype, onnxruntime has operators that take them apart.

use std::sync::Arc;

use core_tensor::{BlockFormat, DType, Node, ValueId, Weight};

use super::ExportError;
use super::content::{Blocks, bits, group_of};
use super::nodes::{Writer, int};

/// The domain of onnxruntime's operators.
pub(super) const DOMAIN: &str = "com.microsoft";

/// Activations may be rounded to 8 bits in blocks: what kernels for such weights do here, too.
const ACCURACY_LEVEL: i64 = 4;

impl Writer<'_> {
    /// Whether a value is a weight in blocks that can be written.
    pub(super) fn in_blocks(&self, id: ValueId) -> bool {
        let dtype = self.graph.weight_of(id).map(|weight| weight.dtype());
        matches!(dtype, Some(DType::Block(BlockFormat::Q4_0 | BlockFormat::Q8_0)))
    }

    /// A product with a weight in blocks, `[n, k]`.
    pub(super) fn matmul_n_bits(&mut self, node: &Node, a: &str, weight: ValueId, y: &str) -> Result<(), ExportError> {
        let stored = self.stored(weight)?;
        let ([n, k], bits) = (extents(&stored), bits(stored.dtype()));
        let (group, scales) = self.scales(weight, &stored)?;
        let name = self.graph.value(weight).name.clone();
        let b = self.part(&name, Blocks::numbers(&stored, &[n, k / group, group * bits / 8]));
        let attributes = vec![
            int("K", k as i64),
            int("N", n as i64),
            int("bits", bits as i64),
            int("block_size", group as i64),
            int("accuracy_level", ACCURACY_LEVEL),
        ];
        debug_assert!(node.inputs.len() == 2, "a product has two operands");
        self.microsoft_node("MatMulNBits", &[a, &b, &scales], y, attributes);
        Ok(())
    }

    /// Rows of a table in blocks.
    pub(super) fn gather_blocks(&mut self, weight: ValueId, indices: &str, y: &str) -> Result<(), ExportError> {
        let stored = self.stored(weight)?;
        let ([rows, columns], bits) = (extents(&stored), bits(stored.dtype()));
        let (group, scales) = self.scales(weight, &stored)?;
        let name = self.graph.value(weight).name.clone();
        let data = self.part(&name, Blocks::numbers(&stored, &[rows, columns * bits / 8]));
        let attributes = vec![
            int("bits", bits as i64),
            int("block_size", group as i64),
            int("gather_axis", 0),
            int("quantize_axis", 1),
        ];
        self.microsoft_node("GatherBlockQuantized", &[&data, indices, &scales], y, attributes);
        Ok(())
    }

    fn microsoft_node(&mut self, op: &str, inputs: &[&str], y: &str, attributes: Vec<crate::proto::AttributeProto>) {
        self.node(op, inputs, &[y], attributes);
        if let Some(node) = self.nodes.last_mut() {
            node.domain = Some(DOMAIN.to_owned());
        }
        self.microsoft = true;
    }

    /// A weight in blocks.
    fn stored(&self, id: ValueId) -> Result<Arc<Weight>, ExportError> {
        let weight = self.graph.weight_of(id).ok_or_else(|| self.refuse("its weight must be constant"))?;
        match (weight.dtype(), weight.shape().len()) {
            (DType::Block(BlockFormat::Q4_0 | BlockFormat::Q8_0), 2) => Ok(weight.clone()),
            (DType::Block(_), 2) => {
                Err(ExportError::DType { value: self.graph.value(id).name.clone(), dtype: weight.dtype() })
            }
            _ => Err(self.refuse("a weight in blocks must have two extents")),
        }
    }

    /// How many neighbours have one scale, and the scales: f16 in the file, as they are, and f32 for the operators, which want them as the activations are.
    fn scales(&mut self, id: ValueId, weight: &Arc<Weight>) -> Result<(usize, String), ExportError> {
        let name = self.graph.value(id).name.clone();
        let group = group_of(weight).map_err(|source| ExportError::Weight { name: name.clone(), source })?;
        let halves = self.part(&format!("{name}.scale"), Blocks::scales(weight, group));
        Ok((group, self.floats(&halves)))
    }
}

/// Rows and columns.
fn extents(weight: &Weight) -> [usize; 2] {
    [weight.row_count(), weight.row_len()]
}
