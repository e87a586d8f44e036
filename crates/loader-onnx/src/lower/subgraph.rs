//! Graphs within nodes: inlined, or made graphs of their own that capture what they use.

use std::sync::Arc;

use core_tensor::op::{If, Loop, Op};
use core_tensor::{DType, Dim, Graph, ValueType};

use super::call::Call;
use super::fail::{Res, fail};
use super::operand::{Operand, Value, held};
use super::{Level, Lower};
use crate::proto::GraphProto;

/// How often the body of a loop is lowered until its extents hold for every iteration, at most.
const MAX_ATTEMPTS: usize = 16;

/// What a value is made of, its tensors aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Structure {
    Tensor,
    Sequence(Vec<Structure>),
    Optional(Option<Box<Structure>>),
}

/// The tensors of a value, in order.
fn flatten(value: &Value, out: &mut Vec<Operand>) -> Res<Structure> {
    Ok(match value {
        Value::Tensor(operand) => {
            out.push(operand.clone());
            Structure::Tensor
        }
        Value::Sequence(all) => Structure::Sequence(all.iter().map(|value| flatten(value, out)).collect::<Res<_>>()?),
        Value::Optional(None) => Structure::Optional(None),
        Value::Optional(Some(value)) => Structure::Optional(Some(Box::new(flatten(value, out)?))),
        Value::Strings => return fail("strings are not supported"),
    })
}

fn rebuild(structure: &Structure, from: &mut impl Iterator<Item = Operand>) -> Res<Value> {
    Ok(match structure {
        Structure::Tensor => match from.next() {
            Some(operand) => operand.into(),
            None => return fail("a value is missing"),
        },
        Structure::Sequence(all) => {
            let all: Res<Vec<Value>> = all.iter().map(|inner| rebuild(inner, from)).collect();
            Value::Sequence(all?.into())
        }
        Structure::Optional(None) => Value::Optional(None),
        Structure::Optional(Some(inner)) => Value::Optional(Some(rebuild(inner, from)?.into())),
    })
}

/// A graph of its own, with what it gives.
struct Finished {
    graph: Graph,
    captures: Vec<Operand>,
    outputs: Vec<Operand>,
}

/// What the body of a loop gives.
pub(crate) struct Iteration {
    /// Whether to go on.
    pub(crate) condition: Operand,
    pub(crate) carried: Vec<Operand>,
    pub(crate) scanned: Vec<Operand>,
}

/// Lowers the body of a loop: takes the iteration, the condition and the carried values.
pub(crate) type Body<'f, 'a> = dyn FnMut(&mut Lower<'a>, &Operand, &Operand, &[Operand]) -> Res<Iteration> + 'f;

impl<'a> Lower<'a> {
    /// Lowers a graph in the place where it is: gives its outputs for these inputs.
    pub(crate) fn inline(&mut self, proto: &'a GraphProto, call: &Call<'a>, inputs: &[Value]) -> Res<Vec<Value>> {
        if inputs.len() != proto.input.len() {
            return fail(format!("its graph takes {} inputs, not {}", proto.input.len(), inputs.len()));
        }
        self.deeper()?;
        let name = self.name.clone();
        self.scopes.push();
        for (info, value) in proto.input.iter().zip(inputs) {
            self.scopes.set(info.name(), value.clone());
        }
        let opsets = call.opsets.clone();
        let result = self.body(proto, &opsets, call.attributes.function()).and_then(|()| {
            if !self.unsupported.is_empty() {
                return Ok(Vec::new());
            }
            let get = |name: &str| {
                self.scopes.get(name).ok_or_else(|| format!("its graph gives no '{}'", name.escape_debug()).into())
            };
            proto.output.iter().map(|output| get(output.name())).collect()
        });
        self.scopes.pop();
        self.depth -= 1;
        self.name = name;
        let outputs = result?;
        if outputs.len() < proto.output.len() {
            return Err(super::fail::Fail::Lacking);
        }
        Ok(outputs)
    }

    /// Makes a graph of its own of what `f` lowers; it gives the outputs.
    fn separate(
        &mut self,
        name: &str,
        captured: &[Operand],
        f: impl FnOnce(&mut Self) -> Res<Vec<Operand>>,
    ) -> Res<Finished> {
        let mut level = Level::new(name);
        for operand in captured {
            level.capture(operand);
        }
        self.levels.push(level);
        let depth = self.levels.len();
        let result = f(self).and_then(|outputs| {
            for output in &outputs {
                let id = self.id(output)?;
                self.level().graph.output(id);
            }
            Ok(outputs)
        });
        self.levels.truncate(depth);
        let level = self.levels.pop();
        match (result, level) {
            (Ok(outputs), Some(Level { graph, captures, .. })) => Ok(Finished { graph, captures, outputs }),
            (Err(error), _) => Err(error),
            (Ok(_), None) => fail("a graph is lost"),
        }
    }

    /// Runs one of two graphs.
    pub(crate) fn branches(
        &mut self,
        call: &Call<'a>,
        condition: &Operand,
        then_graph: &'a GraphProto,
        else_graph: &'a GraphProto,
    ) -> Res<Vec<Value>> {
        let before = self.symbols.clone();
        let mut structures: Vec<Vec<Structure>> = Vec::new();
        let mut branch = |lower: &mut Self, proto: &'a GraphProto, what: &str, captured: &[Operand]| {
            let name = format!("{}.{what}", lower.name);
            let mut structure = Vec::new();
            let finished = lower.separate(&name, captured, |lower| {
                let values = lower.inline(proto, call, &[])?;
                let mut outputs = Vec::new();
                for value in &values {
                    structure.push(flatten(value, &mut outputs)?);
                }
                Ok(outputs)
            })?;
            structures.push(structure);
            Ok::<_, super::fail::Fail>(finished)
        };
        let mut then_part = branch(self, then_graph, "then", &[])?;
        let else_part = branch(self, else_graph, "else", &then_part.captures.clone())?;
        let [structure, other] = &structures[..] else { return fail("a branch is lost") };
        if structure != other || then_part.outputs.len() != else_part.outputs.len() {
            return fail("its branches give values of different structure");
        }
        for operand in &else_part.captures[then_part.captures.len()..] {
            then_part.graph.input(&capture_name(operand), held(operand.dtype()), operand.shape());
        }
        let (mut types, mut declared) = (Vec::new(), Vec::new());
        for (i, (a, b)) in then_part.outputs.iter().zip(&else_part.outputs).enumerate() {
            if a.rank() != b.rank() || held(a.dtype()) != held(b.dtype()) {
                return fail(format!(
                    "its branches give {} with {} extents and {} with {}",
                    a.dtype(),
                    a.rank(),
                    b.dtype(),
                    b.rank()
                ));
            }
            let shape: Vec<Dim> = (0..a.rank())
                .map(|j| match (&a.shape()[j], &b.shape()[j]) {
                    (x, y) if x == y && is_of(x, &before) => x.clone(),
                    _ => self.fresh(&format!("{}.{i}.{j}", self.name)),
                })
                .collect();
            types.push(ValueType::Tensor { dtype: held(a.dtype()), shape });
            declared.push(a.dtype());
        }
        let op = If { then_branch: Arc::new(then_part.graph), else_branch: Arc::new(else_part.graph), outputs: types };
        let condition = self.reshape(condition, &[])?;
        let inputs: Vec<Option<&Operand>> =
            [Some(&condition)].into_iter().chain(else_part.captures.iter().map(Some)).collect();
        let outputs = self.ops(Op::If(op), &inputs)?;
        let outputs: Vec<Operand> =
            outputs.iter().zip(declared).map(|(output, dtype)| self.declare(output, dtype)).collect::<Res<_>>()?;
        let mut outputs = outputs.into_iter();
        structure.clone().iter().map(|inner| rebuild(inner, &mut outputs)).collect()
    }

    /// Runs a body again and again. `len` is how many iterations there are, where that is known. Gives the carried values, then the scanned ones,
    /// stacked along a new first extent.
    pub(crate) fn iterate(
        &mut self,
        most: Option<&Operand>,
        condition: Option<&Operand>,
        first: &[Operand],
        len: Option<Dim>,
        body: &mut Body<'_, 'a>,
    ) -> Res<Vec<Operand>> {
        let before = self.symbols.clone();
        let mut shapes: Vec<Vec<Dim>> = first.iter().map(|operand| operand.shape().to_vec()).collect();
        for _ in 0..MAX_ATTEMPTS {
            let name = format!("{}.body", self.name);
            let mut counts = (0, 0);
            let finished = self.separate(&name, &[], |lower| {
                let input = |lower: &mut Self, name: &str, dtype: DType, shape: &[Dim]| {
                    let id = lower.level().graph.input(name, held(dtype), shape);
                    lower.known(id, dtype, shape.to_vec(), None)
                };
                let iteration = input(lower, "iteration", DType::I64, &[]);
                let going = input(lower, "condition", DType::Bool, &[]);
                let carried: Vec<Operand> = first
                    .iter()
                    .zip(&shapes)
                    .enumerate()
                    .map(|(i, (operand, shape))| input(lower, &format!("carried.{i}"), operand.dtype(), shape))
                    .collect();
                let given = body(lower, &iteration, &going, &carried)?;
                counts = (given.carried.len(), given.scanned.len());
                let condition = lower.reshape(&given.condition, &[])?;
                Ok([condition].into_iter().chain(given.carried).chain(given.scanned).collect())
            })?;
            if counts.0 != first.len() {
                return fail(format!("its body gives {} carried values, not {}", counts.0, first.len()));
            }
            let (carried, scanned) = finished.outputs[1..].split_at(counts.0);
            let mut holds = true;
            for (i, (shape, next)) in shapes.iter_mut().zip(carried).enumerate() {
                if next.rank() != shape.len() || held(next.dtype()) != held(first[i].dtype()) {
                    return fail(format!("carried value {i} changes its type or number of extents"));
                }
                for (j, (dim, next)) in shape.iter_mut().zip(next.shape()).enumerate() {
                    let own = !is_of(dim, &before);
                    if dim != next && !own {
                        *dim = self.fresh(&format!("{}.carried.{i}.{j}", self.name));
                        holds = false;
                    }
                }
            }
            if !holds {
                continue;
            }
            let mut types = Vec::new();
            for (i, (shape, operand)) in shapes.iter().zip(first).enumerate() {
                let shape = shape.iter().enumerate().map(|(j, dim)| self.outside(dim, &before, i, j)).collect();
                types.push(ValueType::Tensor { dtype: held(operand.dtype()), shape });
            }
            for (i, operand) in scanned.iter().enumerate() {
                let i = i + first.len();
                let count = match &len {
                    Some(len) => len.clone(),
                    None => self.fresh(&format!("{}.{i}.iterations", self.name)),
                };
                let rest = operand.shape().iter().enumerate().map(|(j, dim)| self.outside(dim, &before, i, j + 1));
                let shape = [count].into_iter().chain(rest).collect();
                types.push(ValueType::Tensor { dtype: held(operand.dtype()), shape });
            }
            let declared: Vec<DType> = carried.iter().chain(scanned).map(Operand::dtype).collect();
            let op = Loop { body: Arc::new(finished.graph), carried: first.len(), outputs: types };
            let inputs: Vec<Option<&Operand>> = [most, condition]
                .into_iter()
                .chain(first.iter().map(Some))
                .chain(finished.captures.iter().map(Some))
                .collect();
            let outputs = self.ops(Op::Loop(op), &inputs)?;
            return outputs.iter().zip(declared).map(|(output, dtype)| self.declare(output, dtype)).collect();
        }
        fail("the extents of its carried values do not settle")
    }

    /// An extent of a body as its loop's outside sees it.
    fn outside(&mut self, dim: &Dim, before: &std::collections::HashSet<String>, i: usize, j: usize) -> Dim {
        if is_of(dim, before) { dim.clone() } else { self.fresh(&format!("{}.{i}.{j}", self.name)) }
    }
}

/// Whether all symbols of an extent are of these.
fn is_of(dim: &Dim, symbols: &std::collections::HashSet<String>) -> bool {
    let mut all = true;
    dim.symbols(&mut |symbol| all &= symbols.contains(&**symbol));
    all
}

/// The name of an input that captures a value.
pub(crate) fn capture_name(operand: &Operand) -> String {
    format!("capture.{}", operand.key())
}
