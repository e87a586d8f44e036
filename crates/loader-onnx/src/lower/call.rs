//! One node with its inputs.

use super::Opsets;
use super::attributes::Attributes;
use super::fail::{Res, fail};
use super::operand::{Operand, Value};
use crate::proto::NodeProto;

/// A node with its inputs and attributes resolved.
pub(crate) struct Call<'a> {
    pub(crate) proto: &'a NodeProto,
    /// The version of the node's domain.
    pub(crate) opset: i64,
    /// The versions of all domains, for graphs within the node.
    pub(crate) opsets: Opsets,
    pub(crate) attributes: Attributes<'a>,
    /// Inputs; `None` where one is left out.
    pub(crate) inputs: Vec<Option<Value>>,
}

impl<'a> Call<'a> {
    /// An input, if it is there.
    pub(crate) fn value(&self, input: usize) -> Option<&Value> {
        self.inputs.get(input).and_then(Option::as_ref)
    }

    /// A tensor that may be left out.
    pub(crate) fn optional(&self, input: usize) -> Res<Option<&Operand>> {
        match self.value(input) {
            None | Some(Value::Optional(None)) => Ok(None),
            Some(value) => match value.operand() {
                Some(operand) => Ok(Some(operand)),
                None => fail(format!("input {input} is {}, it must be a tensor", value.kind())),
            },
        }
    }

    /// A tensor that must be there.
    pub(crate) fn input(&self, input: usize) -> Res<&Operand> {
        self.optional(input)?.ok_or_else(|| format!("input {input} is missing").into())
    }

    /// All inputs, which must be tensors.
    pub(crate) fn all(&self) -> Res<Vec<Operand>> {
        (0..self.inputs.len()).map(|i| self.input(i).cloned()).collect()
    }

    /// Whether an output is used.
    pub(crate) fn wants(&self, output: usize) -> bool {
        self.proto.output.get(output).is_some_and(|name| !name.is_empty())
    }

    /// Outputs that the node names.
    pub(crate) fn outputs(&self) -> usize {
        self.proto.output.len()
    }

    /// An integer that is an attribute up to some version and an input from then on.
    pub(crate) fn axes(&self, name: &str, input: usize, input_since: i64) -> Res<Option<Vec<i64>>> {
        if self.opset < input_since {
            return Ok(self.attributes.ints(name)?.map(<[i64]>::to_vec));
        }
        self.optional(input)?.map(|operand| operand.numbers(name)).transpose()
    }
}

/// An axis that may count from the end, as an index.
pub(crate) fn axis(axis: i64, rank: usize) -> Res<usize> {
    let index = if axis < 0 { axis.checked_add_unsigned(rank as u64) } else { Some(axis) };
    let index = index.and_then(|index| usize::try_from(index).ok()).filter(|index| *index < rank);
    index.ok_or_else(|| format!("axis {axis} is outside of a rank of {rank}").into())
}

/// Axes that may count from the end, as indices in the order given, none twice.
pub(crate) fn axes(all: &[i64], rank: usize) -> Res<Vec<usize>> {
    let mut found: Vec<usize> = Vec::with_capacity(all.len());
    for one in all {
        let index = axis(*one, rank)?;
        if found.contains(&index) {
            return fail(format!("axis {one} is given twice"));
        }
        found.push(index);
    }
    Ok(found)
}
