//! `polaris inspect` of files that hold a graph.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use core_tensor::{Bindings, FileAccess, Graph};
use models::graph_file::{self, GraphFile, GraphOptions};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{self, bytes, count, shown};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Inspection {
    path: String,
    format: &'static str,
    about: Vec<(String, String)>,
    parameters: u64,
    weight_bytes: u64,
    inputs: Vec<Typed>,
    outputs: Vec<Typed>,
    /// Operators of the graph and how many nodes have them, subgraphs included.
    operators: BTreeMap<String, usize>,
    weights: Vec<WeightEntry>,
}

#[derive(Debug, Serialize)]
struct Typed {
    name: String,
    #[serde(rename = "type")]
    ty: String,
}

#[derive(Debug, Serialize)]
struct WeightEntry {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: u64,
}

/// Whether a file's ending says that it holds a graph.
pub(crate) fn is_graph(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    ending.is_some_and(|ending| graph_file::ENDINGS.contains(&ending.as_str()))
}

/// What to show besides the summary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Show {
    pub(crate) metadata: bool,
    pub(crate) tensors: bool,
    pub(crate) json: bool,
}

pub(crate) fn run(path: &Path, show: Show) -> Result<(), Failure> {
    let file = graph_file::open(path, &GraphOptions { access: FileAccess::Map, extents: Bindings::new() })?;
    let inspection = inspect(&file);
    if show.json {
        return output::write_json(&inspection);
    }
    let mut text = String::new();
    if show.metadata || !show.tensors {
        let _ = writeln!(text, "{}: {}", inspection.path, inspection.format);
        for (name, value) in &inspection.about {
            let _ = writeln!(text, "  {}: {}", shown(name), shown(value));
        }
    }
    if !show.metadata && !show.tensors {
        summary(&inspection, &mut text);
        text.push_str("\ngraph\n");
        text.push_str(&shown_lines(&file.graph));
    }
    if show.tensors {
        for weight in &inspection.weights {
            let _ =
                writeln!(text, "{} {:?} {} {}", weight.dtype, weight.shape, bytes(weight.bytes), shown(&weight.name));
        }
    }
    output::write(&text)
}

fn summary(inspection: &Inspection, text: &mut String) {
    let _ = writeln!(text, "  parameters: {}", count(inspection.parameters));
    let _ = writeln!(text, "  weights: {} in {}", bytes(inspection.weight_bytes), inspection.weights.len());
    for (what, list) in [("inputs", &inspection.inputs), ("outputs", &inspection.outputs)] {
        let _ = writeln!(text, "  {what}:");
        for value in list {
            let _ = writeln!(text, "    {}: {}", shown(&value.name), value.ty);
        }
    }
    let mut operators: Vec<_> = inspection.operators.iter().collect();
    operators.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let operators: Vec<String> = operators.into_iter().map(|(name, count)| format!("{name} {count}")).collect();
    let _ = writeln!(text, "  operators: {}", operators.join(", "));
}

/// The graph's text; names come from the file, so that each line is made safe to show.
fn shown_lines(graph: &Graph) -> String {
    graph.to_text().lines().map(|line| shown(line) + "\n").collect()
}

fn inspect(file: &GraphFile) -> Inspection {
    let graph = &file.graph;
    let typed = |ids: &[core_tensor::ValueId]| {
        ids.iter()
            .map(|id| Typed { name: graph.value(*id).name.clone(), ty: graph.value(*id).ty.to_string() })
            .collect()
    };
    let mut operators = BTreeMap::new();
    count_operators(graph, &mut operators);
    let weights: Vec<WeightEntry> = graph
        .weights()
        .map(|(id, weight)| WeightEntry {
            name: graph.value(id).name.clone(),
            dtype: weight.dtype().to_string(),
            shape: weight.shape().to_vec(),
            bytes: weight.byte_len() as u64,
        })
        .collect();
    Inspection {
        path: file.path.display().to_string(),
        format: file.format,
        about: file.about.clone(),
        parameters: weights.iter().map(|weight| weight.shape.iter().map(|n| *n as u64).product::<u64>()).sum(),
        weight_bytes: weights.iter().map(|weight| weight.bytes).sum(),
        inputs: typed(graph.inputs()),
        outputs: typed(graph.outputs()),
        operators,
        weights,
    }
}

fn count_operators(graph: &Graph, into: &mut BTreeMap<String, usize>) {
    for node in graph.nodes() {
        *into.entry(node.op.name().to_owned()).or_default() += 1;
        for subgraph in node.op.subgraphs() {
            count_operators(subgraph, into);
        }
    }
}
