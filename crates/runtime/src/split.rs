//! Which part of a graph runs where.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use core_tensor::{Backend, Bindings, DType, Dim, Graph, GraphError, Node, ValueId, ValueSource, ValueType};

use crate::RuntimeError;

/// Refused nodes that are named for each backend.
const NAMED: usize = 3;

/// What runs nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The host, by the reference implementation or as control flow.
    Host,
    /// A backend.
    Backend(usize),
}

/// Nodes that run together.
pub(crate) struct Part {
    pub(crate) place: Place,
    /// In order of execution; one if the host runs it.
    pub(crate) nodes: Vec<usize>,
    /// Symbols that have values when it runs.
    pub(crate) known: BTreeSet<Arc<str>>,
}

/// A graph cut into parts.
pub(crate) struct Split {
    pub(crate) pieces: Vec<Part>,
    /// Why backends do not run some nodes.
    pub(crate) refused: Vec<String>,
}

/// A part as a graph of its own.
pub(crate) struct Subgraph {
    pub(crate) graph: Graph,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) carried: Vec<Arc<str>>,
}

fn symbols(types: impl IntoIterator<Item = ValueType>, into: &mut BTreeSet<Arc<str>>) {
    for ty in types {
        if let ValueType::Tensor { shape, .. } = ty {
            for dim in &shape {
                dim.symbols(&mut |symbol| {
                    into.insert(symbol.clone());
                });
            }
        }
    }
}

/// Cuts a graph: each node runs on the first backend that supports it; control flow and nodes that give symbols their values run on the host. Nodes
/// are taken out of order where that keeps together what runs in one place.
pub(crate) fn split(
    graph: &Graph,
    backends: &[Arc<dyn Backend>],
    outer: &BTreeSet<Arc<str>>,
) -> Result<Split, RuntimeError> {
    let mut known = outer.clone();
    symbols(graph.inputs().iter().map(|id| graph.value(*id).ty.clone()), &mut known);
    let mut refused = Vec::new();
    let mut named: HashMap<usize, usize> = HashMap::new();
    let mut places = Vec::with_capacity(graph.nodes().len());
    // What each node makes known; in the graph's order, each symbol is introduced by the first node that shows it.
    let mut introduced: Vec<BTreeSet<Arc<str>>> = Vec::with_capacity(graph.nodes().len());
    let mut uses: Vec<BTreeSet<Arc<str>>> = Vec::with_capacity(graph.nodes().len());
    let mut seen = known.clone();
    for node in graph.nodes() {
        let mut own = BTreeSet::new();
        symbols(node.outputs.iter().map(|id| graph.value(*id).ty.clone()), &mut own);
        own.retain(|symbol| !seen.contains(symbol));
        uses.push(attribute_symbols(node, &seen));
        seen.extend(own.iter().cloned());
        let place = if !node.op.subgraphs().is_empty() || !own.is_empty() {
            Place::Host
        } else {
            Place::Backend(choose(graph, node, backends, &mut refused, &mut named)?)
        };
        places.push(place);
        introduced.push(own);
    }
    for (backend, count) in named {
        if count > NAMED {
            refused.push(format!("{} refuses {} more", backends[backend].name(), count - NAMED));
        }
    }
    let mut producer: Vec<Option<usize>> = vec![None; graph.values().len()];
    for (i, node) in graph.nodes().iter().enumerate() {
        node.outputs.iter().for_each(|id| producer[id.index()] = Some(i));
    }
    let mut introducer: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
    for (i, own) in introduced.iter().enumerate() {
        own.iter().for_each(|symbol| {
            introducer.insert(symbol, i);
        });
    }
    // What must have run before a node: whoever makes its inputs, and whoever gives its symbols values.
    let needs: Vec<Vec<usize>> = graph
        .nodes()
        .iter()
        .enumerate()
        .map(|(i, node)| {
            let mut shown = uses[i].clone();
            symbols(node.outputs.iter().map(|id| graph.value(*id).ty.clone()), &mut shown);
            let by_value = node.inputs.iter().flatten().filter_map(|id| producer[id.index()]);
            let by_symbol = shown.iter().filter_map(|symbol| introducer.get(symbol).copied());
            by_value.chain(by_symbol).filter(|need| *need != i).collect()
        })
        .collect();
    let mut done = vec![false; graph.nodes().len()];
    let mut pieces: Vec<Part> = Vec::new();
    let mut first = 0;
    while let Some(start) = (first..done.len()).find(|i| !done[*i]) {
        first = start;
        // The first node that is not done is always ready: nodes stand in order of execution.
        let place = places[start];
        let mut part = Part { place, nodes: Vec::new(), known: known.clone() };
        for i in start..done.len() {
            if done[i] || places[i] != place || !needs[i].iter().all(|need| done[*need]) {
                continue;
            }
            done[i] = true;
            part.nodes.push(i);
            known.extend(introduced[i].iter().cloned());
            if place == Place::Host {
                break;
            }
        }
        pieces.push(part);
    }
    Ok(Split { pieces, refused })
}

/// The first backend that supports a node.
fn choose(
    graph: &Graph,
    node: &Node,
    backends: &[Arc<dyn Backend>],
    refused: &mut Vec<String>,
    named: &mut HashMap<usize, usize>,
) -> Result<usize, RuntimeError> {
    let mut reasons = Vec::new();
    for (i, backend) in backends.iter().enumerate() {
        match backend.supports(graph, node) {
            Ok(()) => return Ok(i),
            Err(reason) => {
                let text = format!("{} refuses node {:?} ({}): {reason}", backend.name(), node.name, node.op.name());
                let count = named.entry(i).or_default();
                *count += 1;
                if *count <= NAMED {
                    refused.push(text.clone());
                }
                reasons.push(text);
            }
        }
    }
    Err(RuntimeError::Unsupported { graph: graph.name().to_owned(), refusals: reasons })
}

/// Symbols that a node's attributes name, and those that its subgraphs do.
fn attribute_symbols(node: &Node, all: &BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
    if !node.op.subgraphs().is_empty() {
        return all.clone();
    }
    let text = node.op.attributes();
    let named = |symbol: &&Arc<str>| {
        // Most attributes do not even contain the name.
        text.contains(&***symbol) && node.op.bind(&Bindings::new().with(symbol, 1)).attributes() != text
    };
    all.iter().filter(named).cloned().collect()
}

impl Part {
    /// The nodes as a graph: what comes from outside is an input, what is needed outside an output.
    pub(crate) fn subgraph(&self, whole: &Graph) -> Result<Subgraph, GraphError> {
        let inside: BTreeSet<usize> = self.nodes.iter().copied().collect();
        let made: BTreeSet<ValueId> = self.nodes.iter().flat_map(|i| whole.nodes()[*i].outputs.clone()).collect();
        let mut needed: BTreeSet<ValueId> = whole.outputs().iter().copied().collect();
        for (i, node) in whole.nodes().iter().enumerate() {
            if !inside.contains(&i) {
                needed.extend(node.inputs.iter().flatten());
            }
        }
        let mut graph = Graph::new(whole.name());
        let mut map: HashMap<ValueId, ValueId> = HashMap::new();
        let mut inputs = Vec::new();
        let (mut given, mut shown) = (BTreeSet::new(), BTreeSet::new());
        for i in &self.nodes {
            for id in whole.nodes()[*i].inputs.iter().flatten() {
                if made.contains(id) || map.contains_key(id) {
                    continue;
                }
                let value = whole.value(*id);
                match (&value.source, &value.ty) {
                    (ValueSource::Weight(weight), _) => {
                        map.insert(*id, graph.weight(&value.name, weight.clone()));
                    }
                    (_, ValueType::Tensor { dtype, shape }) => {
                        map.insert(*id, graph.input(&value.name, *dtype, shape));
                        inputs.push(*id);
                        for dim in shape {
                            if let Dim::Sym(symbol) = dim {
                                given.insert(symbol.clone());
                            }
                        }
                        symbols([value.ty.clone()], &mut shown);
                    }
                    (_, ValueType::Token(_)) => {
                        return Err(GraphError::Token { value: *id });
                    }
                }
            }
        }
        for i in &self.nodes {
            let node = &whole.nodes()[*i];
            symbols(node.outputs.iter().map(|id| whole.value(*id).ty.clone()), &mut shown);
            shown.extend(attribute_symbols(node, &self.known));
        }
        let carried: Vec<Arc<str>> = shown.difference(&given).cloned().collect();
        for symbol in &carried {
            graph.input(&format!("extent {symbol}"), DType::U8, &[Dim::Sym(symbol.clone()), Dim::Num(0)]);
        }
        for i in &self.nodes {
            let node = &whole.nodes()[*i];
            let inputs = node.inputs.iter().map(|id| id.and_then(|id| map.get(&id).copied())).collect();
            let outputs = graph.add_node(&node.name, node.op.clone(), inputs)?;
            for (old, new) in node.outputs.iter().zip(outputs) {
                map.insert(*old, new);
            }
        }
        let outputs: Vec<ValueId> = made.into_iter().filter(|id| needed.contains(id)).collect();
        for id in &outputs {
            let new = map.get(id).copied().ok_or(GraphError::Output { value: *id })?;
            graph.output(new);
        }
        Ok(Subgraph { graph, inputs, outputs, carried })
    }
}
