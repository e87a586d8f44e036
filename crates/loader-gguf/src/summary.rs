//! What is in a file, for people.

use std::collections::BTreeMap;
use std::fmt;

use crate::gguf::Gguf;
use crate::value::Value;

/// Characters shown of a string.
const TEXT: usize = 60;

/// Shows keys, tensors and totals of a model, one per line. See [`Gguf::summary`].
#[derive(Clone, Copy, Debug)]
pub struct Summary<'a> {
    model: &'a Gguf,
}

impl<'a> Summary<'a> {
    pub(crate) fn new(model: &'a Gguf) -> Summary<'a> {
        Summary { model }
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let model = self.model;
        writeln!(f, "GGUF version {}, alignment {}", model.version().number(), model.alignment())?;
        if model.shards().len() > 1 {
            for shard in model.shards() {
                writeln!(f, "file {}", shard.path().display())?;
            }
        }
        let key_width = model.keys().map(|key| key.chars().count()).max().unwrap_or(0).min(48);
        for (key, value) in model.metadata() {
            let value_type = match value {
                Value::Array(array) => format!("{} {}", array.len(), array.value_type()),
                other => other.value_type().to_string(),
            };
            writeln!(
                f,
                "key    {:key_width$}  {value_type:>12}  {}",
                key.escape_debug().to_string(),
                value.show(TEXT)
            )?;
        }
        let name_width = model.tensors().iter().map(|info| info.name().chars().count()).max().unwrap_or(0).min(48);
        let mut types: BTreeMap<_, (usize, u64, u64)> = BTreeMap::new();
        for info in model.tensors() {
            let (name, shape) = (info.name().escape_debug().to_string(), format!("{:?}", info.shape()));
            let (ggml_type, bytes, at) = (info.ggml_type(), info.byte_len(), info.range().start);
            writeln!(f, "tensor {name:name_width$}  {ggml_type:>7}  {shape:<16}  {bytes:>11} bytes at {at}")?;
            let (count, elements, sum) = types.entry(ggml_type).or_default();
            *count += 1;
            *elements += info.elements() as u64;
            *sum += bytes as u64;
        }
        for (ggml_type, (count, elements, bytes)) in &types {
            writeln!(f, "type   {ggml_type:>7}  {count} tensors, {elements} elements, {bytes} bytes")?;
        }
        let bytes: u64 = types.values().map(|(_, _, bytes)| bytes).sum();
        write!(f, "total  {} tensors, {} parameters, {bytes} bytes", model.tensors().len(), model.parameters())
    }
}
