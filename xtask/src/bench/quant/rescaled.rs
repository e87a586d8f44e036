//! The model with its channels rescaled: the same function, of weights that lie on no grid.
//!
//! The only file of it that is free was `Q4_1` once, and types with minima find that out: they lose next to nothing, and types without lose as ever. So
//! factors move between matrices and what is around them (a norm and the matrices that read it, values and the output matrix, up and down), which leaves
//! the function alone and takes the weights of a block off their 16 steps. Factors are within 2^±0.25.

use std::path::Path;

use core_tensor::{DType, FileAccess, Tensor, decode_f32};
use loader_gguf::{Gguf, GgufWriter};

/// Writes a `llama` model in f32 whose function is that of `input`.
pub(super) fn write(input: &Path, output: &Path) -> Result<(), String> {
    let fault = |error: &dyn std::fmt::Display| format!("{}: {error}", input.display());
    let model = Gguf::open(input, FileAccess::Map).map_err(|e| fault(&e))?;
    let count = |key: &str| -> Result<usize, String> {
        let value = model.get(&format!("llama.{key}")).and_then(|value| value.as_integer());
        value.and_then(|value| usize::try_from(value).ok()).ok_or_else(|| fault(&format!("no llama.{key}")))
    };
    let groups = Groups { heads: count("attention.head_count")?, kv_heads: count("attention.head_count_kv")? };
    let mut tensors = Vec::new();
    for info in model.tensors() {
        let tensor = model.tensor(info.name()).map_err(|e| fault(&e))?;
        let mut values = decode_f32(tensor.dtype(), tensor.bytes(), tensor.len()).map_err(|e| fault(&e))?;
        let columns = tensor.shape().last().copied().unwrap_or(1);
        groups.rescale(info.name(), columns, &mut values);
        let tensor = Tensor::from_slice(tensor.shape(), &values).map_err(|e| fault(&e))?;
        tensors.push((info.name().to_owned(), tensor));
    }
    let mut writer = GgufWriter::new();
    writer.set("general.file_type", 0u32).map_err(|e| fault(&e))?;
    writer.copy_metadata(&model).map_err(|e| fault(&e))?;
    for (name, tensor) in &tensors {
        debug_assert_eq!(tensor.dtype(), DType::F32);
        writer.tensor(name, tensor).map_err(|e| fault(&e))?;
    }
    writer.write(output).map_err(|e| fault(&e))
}

/// Which heads of queries read which head of values.
struct Groups {
    heads: usize,
    kv_heads: usize,
}

impl Groups {
    /// Multiplies the weights of a tensor with the factors of its rows and columns; each comes with its inverse elsewhere.
    fn rescale(&self, name: &str, columns: usize, values: &mut [f32]) {
        let Some((layer, tensor)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else { return };
        let factor = |place: &str, i: usize| factor(&format!("{layer}.{place}"), i);
        // A column of the output matrix is a channel of a head, that of a group's values.
        let value = |column: usize| {
            let length = columns / self.heads;
            column / length / (self.heads / self.kv_heads) * length + column % length
        };
        for (i, weight) in values.iter_mut().enumerate() {
            let (row, column) = (i / columns, i % columns);
            *weight *= match tensor {
                "attn_norm.weight" => factor("attn", column),
                "ffn_norm.weight" => factor("ffn", column),
                "attn_q.weight" | "attn_k.weight" => 1.0 / factor("attn", column),
                "attn_v.weight" => factor("value", row) / factor("attn", column),
                "attn_output.weight" => 1.0 / factor("value", value(column)),
                "ffn_gate.weight" => 1.0 / factor("ffn", column),
                "ffn_up.weight" => factor("up", row) / factor("ffn", column),
                "ffn_down.weight" => 1.0 / factor("up", column),
                _ => 1.0,
            };
        }
    }
}

/// The same for the same place on every machine (FNV-1a, then SplitMix64's finish).
fn factor(place: &str, i: usize) -> f32 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in place.bytes().chain(i.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let share = (hash >> 40) as f32 / (1u64 << 24) as f32;
    (0.5 * (share - 0.5)).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_near_one_and_differ() {
        let all: Vec<f32> = (0..1000).map(|i| factor("3.ffn", i)).collect();
        assert!(all.iter().all(|f| (0.84..1.19).contains(f)));
        let mean = all.iter().sum::<f32>() / all.len() as f32;
        assert!((0.99..1.02).contains(&mean), "{mean}");
        assert_ne!(all[0], all[1]);
        assert_ne!(all[0], factor("4.ffn", 0));
    }

    #[test]
    fn what_rows_gain_columns_lose() {
        // Two heads share one head of values of two channels; one row each is enough to see it.
        let groups = Groups { heads: 2, kv_heads: 1 };
        let (mut values, mut output) = (vec![1.0; 2 * 4], vec![1.0; 4]);
        groups.rescale("blk.0.attn_v.weight", 4, &mut values);
        groups.rescale("blk.0.attn_output.weight", 4, &mut output);
        let mut norm = vec![1.0; 4];
        groups.rescale("blk.0.attn_norm.weight", 4, &mut norm);
        for head in 0..2 {
            for channel in 0..2 {
                for column in 0..4 {
                    let through = values[channel * 4 + column] * norm[column] * output[head * 2 + channel];
                    assert!((through - 1.0).abs() < 1e-5, "{through}");
                }
            }
        }
        // Two neurons: what goes up comes down, and the gate undoes the norm alone.
        let (mut up, mut down, mut gate, mut norm) = (vec![1.0; 2 * 4], vec![1.0; 2], vec![1.0; 2 * 4], vec![1.0; 4]);
        groups.rescale("blk.0.ffn_up.weight", 4, &mut up);
        groups.rescale("blk.0.ffn_gate.weight", 4, &mut gate);
        groups.rescale("blk.0.ffn_down.weight", 2, &mut down);
        groups.rescale("blk.0.ffn_norm.weight", 4, &mut norm);
        for (at, (up, gate)) in up.iter().zip(&gate).enumerate() {
            let (neuron, column) = (at / 4, at % 4);
            assert!((up * norm[column] * down[neuron] - 1.0).abs() < 1e-5);
            assert!((gate * norm[column] - 1.0).abs() < 1e-5 && *gate != 1.0);
        }
        let mut embedding = vec![1.0; 4];
        groups.rescale("token_embd.weight", 4, &mut embedding);
        assert_eq!(embedding, [1.0; 4]);
    }
}
