//! The graph of a model with further outputs: sums of what meets the matrices of its layers.

use std::collections::HashSet;

use core_tensor::op::{
    Attention, Binary, Cast, MatMul, Op, Reduce, ReduceKind, Reshape, RmsNormalization, Softmax, Transpose, Unary,
};
use core_tensor::{DType, Dim, Graph, Tensor, ValueId, Weight, WeightSource};

use super::KvDType;
use super::config::LlamaConfig;
use super::graph::{Assembled, assemble, symbol};
use super::names::{NameTable, Role};
use crate::Error;

/// What meets a matrix, or several that read the same activations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tap {
    /// The names of the matrices' tensors.
    pub(crate) names: Vec<String>,
    /// Columns of the activations.
    pub(crate) columns: usize,
    /// The number of the graph's output with the sums.
    pub(crate) output: usize,
}

/// What is summed up of what meets a matrix, over the rows of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sums {
    /// The squares of the columns, f32 `[columns, 1]`.
    Squares,
    /// The products of the columns with each other, f32 `[columns, columns]`; each row counts by its [`Count`].
    Products,
}

/// How much a row of activations counts in the sums of products.
///
/// The first token of a text is unlike the others: some hundred times as large inside of the layers, and most of what all others attend to. By squares
/// it alone would count; as one token of many it would be lost.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Count {
    /// Every row the same, however large it is: where a normalization came before.
    Alike,
    /// By the root mean square of its elements.
    Size,
    /// By the squares of the weights with which attention reads what is made of it.
    Attention { q: ValueId, k: ValueId, attention: Attention },
}

/// As [`super::build`], with outputs that sum what meets the layers' matrices. What comes behind the last attention is computed for the rows whose logits
/// are asked for alone.
///
/// # Errors
/// As [`super::build`].
pub(crate) fn build_tapped(
    config: &LlamaConfig,
    source: &dyn WeightSource,
    kv_dtype: KvDType,
    context: usize,
    sums: Sums,
) -> Result<(Graph, Vec<Tap>), Error> {
    let Assembled { mut graph, products, last } = assemble(config, source, kv_dtype, context)?;
    let table = NameTable::gguf(config.architecture);
    let present: HashSet<&str> = source.names().into_iter().collect();
    let stored = |layer: usize, role: Role| {
        let entry = table.layer.iter().find(|(other, ..)| *other == role)?;
        Some(entry.1.replacen("{}", &layer.to_string(), 1)).filter(|name| present.contains(name.as_str()))
    };
    let attentions = attentions(&graph);
    let mut met: Vec<(ValueId, Count, String)> = Vec::with_capacity(products.len() + 1);
    for (layer, role, x) in products {
        // Q, K and V may lie in one tensor.
        let own = stored(layer, role);
        let count = match (role, attentions.get(layer)) {
            (Role::V, Some((q, k, attention))) if own.is_some() => {
                Count::Attention { q: *q, k: *k, attention: *attention }
            }
            (Role::AttentionOutput | Role::Down, _) => Count::Size,
            _ => Count::Alike,
        };
        met.extend(own.or_else(|| stored(layer, Role::Qkv)).map(|name| (x, count, name)));
    }
    let output = ["output.weight", "token_embd.weight"].into_iter().find(|name| present.contains(name));
    met.extend(output.map(|name| (last, Count::Alike, name.to_owned())));
    let mut taps: Vec<(ValueId, Option<Count>, Tap)> = Vec::new();
    for (x, count, name) in met {
        let count = (sums == Sums::Products).then_some(count);
        if let Some((.., tap)) = taps.iter_mut().find(|(value, other, _)| (*value, *other) == (x, count)) {
            if !tap.names.contains(&name) {
                tap.names.push(name);
            }
            continue;
        }
        let columns = graph.tensor_type(x).and_then(|(_, shape)| shape.last()?.as_num()).unwrap_or(0);
        let y = match count {
            None => {
                let turned = turn(&mut graph, &name, x)?;
                let op = Op::Reduce(Reduce { kind: ReduceKind::SumSquare });
                graph.add(&format!("{name}.squares"), op, &[turned])?
            }
            Some(count) => counted_products(&mut graph, &name, x, columns, count)?,
        };
        let output = graph.outputs().len();
        graph.output(y);
        taps.push((x, count, Tap { names: vec![name], columns, output }));
    }
    Ok((graph, taps.into_iter().map(|(.., tap)| tap).collect()))
}

/// Queries, keys (of the step's rows) and attention of each layer.
fn attentions(graph: &Graph) -> Vec<(ValueId, ValueId, Attention)> {
    let written = |token: ValueId| {
        let write = graph.nodes().iter().find(|node| node.outputs.contains(&token))?;
        *write.inputs.first()?
    };
    let nodes = graph.nodes().iter().filter_map(|node| match (&node.op, &node.inputs[..]) {
        (Op::Attention(attention), [Some(q), Some(k), ..]) => Some((*q, written(*k)?, *attention)),
        _ => None,
    });
    nodes.collect()
}

fn turn(graph: &mut Graph, name: &str, x: ValueId) -> Result<ValueId, Error> {
    Ok(graph.add(&format!("{name}.columns"), Op::Transpose(Transpose { perm: vec![1, 0] }), &[x])?)
}

/// The sum over rows of their products with themselves, times what they count: `[columns, columns]`.
fn counted_products(graph: &mut Graph, name: &str, x: ValueId, columns: usize, count: Count) -> Result<ValueId, Error> {
    let binary = |graph: &mut Graph, what: &str, op: Binary, a: ValueId, b: ValueId| {
        graph.add(&format!("{name}.{what}"), Op::Binary(op), &[a, b])
    };
    let counted = match count {
        Count::Alike | Count::Size => {
            let ones = graph.weight("ones", Weight::stored(Tensor::from_slice(&[columns], &vec![1.0f32; columns])?));
            let op = Op::RmsNormalization(RmsNormalization { epsilon: 1e-6 });
            graph.add(&format!("{name}.scaled"), op, &[x, ones])?
        }
        Count::Attention { q, k, attention } => {
            let read = received(graph, name, q, k, &attention)?;
            binary(graph, "counted", Binary::Mul, x, read)?
        }
    };
    // Scaled on one side, a row counts by its size; on both, like all others.
    let turned = turn(graph, name, if count == Count::Alike { counted } else { x })?;
    Ok(graph.add(&format!("{name}.products"), Op::MatMul(MatMul { transpose_b: false }), &[turned, counted])?)
}

/// For each row of a step the sum, over all heads and all rows of the step, of the squares of the attention's weights on it: f32 `[tokens, 1]`. `q` is
/// `[tokens, heads, length]`, `k` `[tokens, n_kv, length]`.
fn received(graph: &mut Graph, name: &str, q: ValueId, k: ValueId, attention: &Attention) -> Result<ValueId, Error> {
    let label = |what: &str| format!("{name}.read.{what}");
    let extent = |graph: &Graph, value: ValueId, axis: usize| {
        graph.tensor_type(value).and_then(|(_, shape)| shape.get(axis)?.as_num()).unwrap_or(1)
    };
    let (heads, kv, length) = (extent(graph, q, 1), extent(graph, k, 1), extent(graph, q, 2));
    let rows = Dim::sym(symbol::TOKENS);
    let number = |graph: &mut Graph, value: f32| -> Result<ValueId, Error> {
        Ok(graph.weight(&format!("{name}.read.number"), Weight::stored(Tensor::from_slice(&[1], &[value])?)))
    };
    let reshape = |shape: &[Dim]| Op::Reshape(Reshape { shape: shape.to_vec() });
    let move_axes = |perm: &[usize]| Op::Transpose(Transpose { perm: perm.to_vec() });
    // [n_kv, heads of each, rows, length] times [n_kv, 1, length, rows]
    let grouped = [rows.clone(), Dim::Num(kv), Dim::Num(heads / kv.max(1)), Dim::Num(length)];
    let q = graph.add(&label("q.groups"), reshape(&grouped), &[q])?;
    let q = graph.add(&label("q"), move_axes(&[1, 2, 0, 3]), &[q])?;
    let k = graph.add(&label("k.turned"), move_axes(&[1, 2, 0]), &[k])?;
    let shared = [Dim::Num(kv), Dim::Num(1), Dim::Num(length), rows.clone()];
    let k = graph.add(&label("k"), reshape(&shared), &[k])?;
    let mut scores = graph.add(&label("products"), Op::MatMul(MatMul { transpose_b: false }), &[q, k])?;
    let scale = number(graph, attention.scale / attention.softcap.unwrap_or(1.0))?;
    scores = graph.add(&label("scores"), Op::Binary(Binary::Mul), &[scores, scale])?;
    if let Some(cap) = attention.softcap {
        let cap = number(graph, cap)?;
        scores = graph.add(&label("bent"), Op::Unary(Unary::Tanh), &[scores])?;
        scores = graph.add(&label("capped"), Op::Binary(Binary::Mul), &[scores, cap])?;
    }
    // How far a key lies behind a query; what is not seen gets a score that no weight comes of.
    let positions = graph.inputs()[POSITIONS];
    let positions = graph.add(&label("positions"), Op::Cast(Cast { to: DType::F32 }), &[positions])?;
    let of_query = graph.add(&label("of_query"), reshape(&[rows.clone(), Dim::Num(1)]), &[positions])?;
    let of_key = graph.add(&label("of_key"), reshape(&[Dim::Num(1), rows.clone()]), &[positions])?;
    let distance = graph.add(&label("distance"), Op::Binary(Binary::Sub), &[of_query, of_key])?;
    let mut room = vec![distance];
    if let Some(window) = attention.window {
        let last = number(graph, window as f32 - 1.0)?;
        room.push(graph.add(&label("room"), Op::Binary(Binary::Sub), &[last, distance])?);
    }
    let (zero, far) = (number(graph, 0.0)?, number(graph, 1e30)?);
    for room in room {
        let outside = graph.add(&label("outside"), Op::Binary(Binary::Min), &[room, zero])?;
        let mask = graph.add(&label("mask"), Op::Binary(Binary::Mul), &[outside, far])?;
        scores = graph.add(&label("masked"), Op::Binary(Binary::Add), &[scores, mask])?;
    }
    let weights = graph.add(&label("weights"), Op::Softmax(Softmax), &[scores])?;
    let of_keys = graph.add(&label("of_keys"), move_axes(&[3, 0, 1, 2]), &[weights])?;
    let squares = graph.add(&label("squares"), Op::Reduce(Reduce { kind: ReduceKind::SumSquare }), &[of_keys])?;
    let flat = graph.add(&label("flat"), reshape(&[rows, Dim::Num(heads)]), &[squares])?;
    Ok(graph.add(&label("sum"), Op::Reduce(Reduce { kind: ReduceKind::Sum }), &[flat])?)
}

/// The input of the graph with the rows' positions.
const POSITIONS: usize = 1;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use core_tensor::{Bindings, HostStates, Interpreter};

    use super::*;

    /// What [`received`] says of five rows, four heads and two key heads, and the same by plain loops.
    fn both(attention: Attention) -> (Vec<f32>, Vec<f32>) {
        const ROWS: usize = 5;
        const HEADS: usize = 4;
        const KV: usize = 2;
        const LENGTH: usize = 3;
        let rows = Dim::sym(symbol::TOKENS);
        let mut graph = Graph::new("read");
        let tokens = graph.input("tokens", DType::I32, std::slice::from_ref(&rows));
        graph.input("positions", DType::I32, std::slice::from_ref(&rows));
        let q = graph.input("q", DType::F32, &[rows.clone(), Dim::Num(HEADS), Dim::Num(LENGTH)]);
        let k = graph.input("k", DType::F32, &[rows, Dim::Num(KV), Dim::Num(LENGTH)]);
        let read = received(&mut graph, "v", q, k, &attention).unwrap();
        graph.output(read);
        assert_eq!(graph.inputs()[0], tokens);
        let random = |seed: usize, count: usize| -> Vec<f32> {
            (0..count).map(|at| ((at * 37 + seed * 11) % 23) as f32 / 9.0 - 1.2).collect()
        };
        let (q, k) = (random(1, ROWS * HEADS * LENGTH), random(2, ROWS * KV * LENGTH));
        let positions: Vec<i32> = (0..ROWS as i32).collect();
        let inputs = [
            Tensor::from_slice(&[ROWS], &[0i32; ROWS]).unwrap(),
            Tensor::from_slice(&[ROWS], &positions).unwrap(),
            Tensor::from_slice(&[ROWS, HEADS, LENGTH], &q).unwrap(),
            Tensor::from_slice(&[ROWS, KV, LENGTH], &k).unwrap(),
        ];
        let mut states = HostStates::new(&graph, 1, &Bindings::new()).unwrap();
        let found = Interpreter::new(Arc::new(graph)).run(&mut states, &inputs).unwrap();
        let mut expected = vec![0.0; ROWS];
        for head in 0..HEADS {
            for row in 0..ROWS {
                let keys: Vec<usize> = (attention.first_position(row)..=row).collect();
                let score = |key: &usize| {
                    let q = &q[(row * HEADS + head) * LENGTH..][..LENGTH];
                    let k = &k[(key * KV + head / (HEADS / KV)) * LENGTH..][..LENGTH];
                    let dot = q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>() * attention.scale;
                    attention.softcap.map_or(dot, |cap| cap * (dot / cap).tanh()).exp()
                };
                let scores: Vec<f32> = keys.iter().map(score).collect();
                let sum: f32 = scores.iter().sum();
                keys.iter().zip(scores).for_each(|(key, score)| expected[*key] += (score / sum).powi(2));
            }
        }
        (found[0].elements::<f32>().unwrap().to_vec(), expected)
    }

    #[test]
    fn a_row_counts_by_the_squares_of_the_attention_that_it_gets() {
        for (softcap, window) in [(None, None), (Some(0.7), None), (None, Some(2)), (Some(2.0), Some(3))] {
            let (found, expected) = both(Attention { scale: 0.6, softcap, window });
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5, "{softcap:?} {window:?}: {found} and not {expected}");
            }
        }
    }
}
