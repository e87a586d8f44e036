//! Weights in blocks: ONNX has no such dtype, onnxruntime has operators that take them apart.

use core_tensor::{BlockFormat, DType, Node, Tensor, ValueId};
use half::f16;

use super::ExportError;
use super::nodes::{Writer, int};

/// The domain of onnxruntime's operators.
pub(super) const DOMAIN: &str = "com.microsoft";

/// Weights of a block.
const BLOCK: usize = 32;

/// Most weights that share a scale in the file, where blocks have the same one.
const GROUPS: [usize; 3] = [128, 64, 32];

/// Activations may be rounded to 8 bits in blocks: what kernels for such weights do here, too.
const ACCURACY_LEVEL: i64 = 4;

/// A weight in blocks as onnxruntime has it: whole bytes, low bits first, and floats.
struct Grouped {
    bits: usize,
    group: usize,
    rows: usize,
    columns: usize,
    /// Unsigned numbers around the middle, those of a row side by side.
    packed: Vec<u8>,
    /// `[rows, columns / group]`.
    scales: Vec<f32>,
}

impl Writer<'_> {
    /// Whether a value is a weight in blocks that can be written.
    pub(super) fn in_blocks(&self, id: ValueId) -> bool {
        let dtype = self.graph.weight_of(id).map(|weight| weight.dtype());
        matches!(dtype, Some(DType::Block(BlockFormat::Q4_0 | BlockFormat::Q8_0)))
    }

    /// A product with a weight in blocks, `[n, k]`.
    pub(super) fn matmul_n_bits(&mut self, node: &Node, a: &str, weight: ValueId, y: &str) -> Result<(), ExportError> {
        let grouped = self.grouped(weight)?;
        let (n, k, blocks) = (grouped.rows, grouped.columns, grouped.columns / grouped.group);
        let bytes = grouped.group * grouped.bits / 8;
        let (b, scales) = self.group_constants(weight, &grouped, &[n, blocks, bytes])?;
        let attributes = vec![
            int("K", k as i64),
            int("N", n as i64),
            int("bits", grouped.bits as i64),
            int("block_size", grouped.group as i64),
            int("accuracy_level", ACCURACY_LEVEL),
        ];
        debug_assert!(node.inputs.len() == 2, "a product has two operands");
        self.microsoft_node("MatMulNBits", &[a, &b, &scales], y, attributes);
        Ok(())
    }

    /// Rows of a table in blocks.
    pub(super) fn gather_blocks(&mut self, weight: ValueId, indices: &str, y: &str) -> Result<(), ExportError> {
        let grouped = self.grouped(weight)?;
        let shape = [grouped.rows, grouped.columns * grouped.bits / 8];
        let (data, scales) = self.group_constants(weight, &grouped, &shape)?;
        let attributes = vec![
            int("bits", grouped.bits as i64),
            int("block_size", grouped.group as i64),
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

    fn group_constants(
        &mut self,
        weight: ValueId,
        grouped: &Grouped,
        shape: &[usize],
    ) -> Result<(String, String), ExportError> {
        let name = self.graph.value(weight).name.clone();
        let wrong = |writer: &Writer<'_>, error: core_tensor::TensorError| writer.refuse(error.to_string());
        let packed = Tensor::from_slice(shape, &grouped.packed).map_err(|error| wrong(self, error))?;
        let scales = Tensor::from_slice(&[grouped.rows, grouped.columns / grouped.group], &grouped.scales);
        let scales = scales.map_err(|error| wrong(self, error))?;
        Ok((self.named_constant(&name, packed), self.named_constant(&format!("{name}.scale"), scales)))
    }

    /// Takes the blocks of a weight apart.
    fn grouped(&self, id: ValueId) -> Result<Grouped, ExportError> {
        let name = || self.graph.value(id).name.clone();
        let weight = self.graph.weight_of(id).ok_or_else(|| self.refuse("its weight must be constant"))?;
        let (bits, bytes) = match weight.dtype() {
            DType::Block(BlockFormat::Q4_0) => (4, 18),
            DType::Block(BlockFormat::Q8_0) => (8, 34),
            dtype => return Err(ExportError::DType { value: name(), dtype }),
        };
        let [rows, columns] = *weight.shape() else {
            return Err(self.refuse("a weight in blocks must have two extents"));
        };
        let stored = weight.rows(0..rows).map_err(|source| ExportError::Weight { name: name(), source })?;
        let mut packed = Vec::with_capacity(rows * columns * bits / 8);
        let mut scales = Vec::with_capacity(rows * columns / BLOCK);
        for block in stored.chunks_exact(bytes) {
            scales.push(f16::from_le_bytes([block[0], block[1]]).to_f32());
            let codes = &block[2..];
            if bits == 4 {
                // Halves of a block share bytes here, neighbours there.
                let code = |i: usize| if i < 16 { codes[i] & 15 } else { codes[i - 16] >> 4 };
                packed.extend((0..16).map(|i| code(2 * i) | code(2 * i + 1) << 4));
            } else {
                packed.extend(codes.iter().map(|code| code.wrapping_add(128)));
            }
        }
        // As few scales as say the same.
        let shared = |group: &usize| {
            let same = |scales: &[f32]| scales.iter().all(|scale| scale.to_bits() == scales[0].to_bits());
            columns.is_multiple_of(*group) && scales.chunks(group / BLOCK).all(same)
        };
        let group = GROUPS.into_iter().find(shared).unwrap_or(BLOCK);
        let scales = scales.into_iter().step_by(group / BLOCK).collect();
        Ok(Grouped { bits, group, rows, columns, packed, scales })
    }
}
