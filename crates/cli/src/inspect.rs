//! `polaris inspect`: what is in a model file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use core_tensor::FileAccess;
use loader_gguf::Gguf;
use loader_torch::SafeTensors;
use models::inspect::{Inspection, inspect, inspect_safetensors};
use models::llama::KvDType;

use crate::failure::Failure;
use crate::inspect_graph;
use crate::model;
use crate::output::{self, bytes, count, shown};

const EXAMPLES: &str = "\
Examples:
  polaris inspect model.gguf
  polaris inspect model.gguf --tensors
  polaris inspect model.onnx
  polaris inspect model.safetensors
  polaris inspect model.gguf --json | jq '.metadata[] | select(.key == \"llama.context_length\")'

Works on files whose architecture is not supported, too; it then says so. Nothing but the file's header is read.";

/// Show what is in a model file: metadata, tensors, parameters, memory by context length
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// GGUF file; of a model split over several files, any of them
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Show only the metadata
    #[arg(long)]
    metadata: bool,
    /// Show only the tensors, each on a line
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object with everything
    #[arg(long, conflicts_with_all = ["metadata", "tensors"])]
    json: bool,
    /// Element type of the KV cache that the memory estimate counts with
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = model::kv_dtype())]
    kv_dtype: KvDType,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if inspect_graph::is_graph(&arguments.file) {
        let Arguments { metadata, tensors, json, .. } = *arguments;
        return inspect_graph::run(&arguments.file, inspect_graph::Show { metadata, tensors, json });
    }
    let inspection = if is_safetensors(&arguments.file) {
        inspect_safetensors(&SafeTensors::open(&arguments.file, FileAccess::Map)?)
    } else {
        inspect(&Gguf::open(&arguments.file, FileAccess::Map)?, arguments.kv_dtype)
    };
    if arguments.json {
        return output::write_json(&inspection);
    }
    let all = !arguments.metadata && !arguments.tensors;
    let mut text = String::new();
    if all {
        text.push_str(&summary(&inspection));
        text.push_str("\nmetadata\n");
    }
    if all || arguments.metadata {
        text.push_str(&metadata(&inspection));
    }
    if all {
        text.push_str("\ntensors by type (--tensors lists each)\n");
        text.push_str(&types(&inspection));
        text.push_str(&memory(&inspection));
    }
    if arguments.tensors {
        text.push_str(&tensors(&inspection));
    }
    output::write(&text)
}

/// Whether a file is named as safetensors or as the index of a sharded model.
fn is_safetensors(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
}

fn summary(model: &Inspection) -> String {
    let mut lines = vec![("file", model.path.display().to_string())];
    lines.push(("name", model.name.clone().unwrap_or_else(|| "-".into())));
    let architecture = model.architecture.clone().unwrap_or_else(|| "-".into());
    lines.push(("architecture", architecture));
    let version = model.gguf_version.map(|version| format!(" version {version}")).unwrap_or_default();
    let files = if model.files == 1 { String::new() } else { format!(" in {} files", model.files) };
    lines.push(("format", format!("{}{version}, {}{files}", model.format, bytes(model.file_bytes))));
    let bits = model.tensor_bytes as f64 * 8.0 / model.parameters.max(1) as f64;
    let tensors = format!(
        "{} ({}), {} in {} tensors, {bits:.2} bits each",
        count(model.parameters),
        model.parameters,
        bytes(model.tensor_bytes),
        model.tensors.len()
    );
    lines.push(("parameters", tensors));
    if let Some(reason) = &model.unsupported {
        lines.push(("does not run", reason.clone()));
    }
    lines.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:<13} {}", shown(value));
        text
    })
}

fn metadata(model: &Inspection) -> String {
    let rows = model.metadata.iter().map(|entry| [shown(&entry.key), shown(&entry.value_type), shown(&entry.value)]);
    columns(rows.collect(), [false, false, false])
}

fn types(model: &Inspection) -> String {
    let rows = model.types.iter().map(|entry| {
        [
            entry.element_type.clone(),
            format!("{} tensors", entry.tensors),
            format!("{} elements", count(entry.elements)),
            bytes(entry.bytes),
        ]
    });
    columns(rows.collect(), [false, true, true, true])
}

fn tensors(model: &Inspection) -> String {
    let rows = model.tensors.iter().map(|entry| {
        [shown(&entry.name), entry.element_type.clone(), format!("{:?}", entry.shape), bytes(entry.bytes)]
    });
    columns(rows.collect(), [false, false, false, true])
}

fn memory(model: &Inspection) -> String {
    if model.memory.is_empty() {
        return String::new();
    }
    let head = ["context", "weights", "KV cache", "working", "total"].map(str::to_owned);
    let rows = model.memory.iter().map(|entry| {
        let [weights, states, arena] = [entry.weights, entry.states, entry.arena].map(bytes);
        [entry.context.to_string(), weights, states, arena, bytes(entry.total)]
    });
    let table = columns(std::iter::once(head).chain(rows).collect(), [true; 5]);
    format!("\nmemory by context length (one sequence)\n{table}")
}

/// Rows as columns of equal width, those marked aligned to the right, each line indented.
fn columns<const N: usize>(rows: Vec<[String; N]>, right: [bool; N]) -> String {
    /// Wider cells do not push the other lines' columns away.
    const WIDEST: usize = 48;
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count().min(WIDEST)).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = match right[column] {
                true => write!(line, "  {cell:>width$}"),
                false => write!(line, "  {cell:<width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_to_the_side_they_are_told() {
        let rows = vec![["a".into(), "1".into()], ["long".into(), "22".into()]];
        assert_eq!(columns(rows, [false, true]), "  a      1\n  long  22\n");
    }
}
