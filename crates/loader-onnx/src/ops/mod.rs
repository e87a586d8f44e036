//! The operators, one file per family: each lowers to the graph's.

mod attention;
mod classic;
mod constant;
mod control;
mod conv;
mod elementwise;
mod gather;
mod loss;
mod matmul;
mod microsoft;
mod norm;
mod pool;
mod quantize;
mod recurrent;
mod reduce;
mod resize;
mod rope;
mod shape;
mod signal;

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::Res;
use crate::lower::operand::Value;

/// Lowers one node: gives its outputs.
pub(crate) type Lowering = for<'l, 'a> fn(&'l mut Lower<'a>, &'l Call<'a>) -> Res<Vec<Value>>;

/// Name, first version of the domain that it is for, and how it is lowered.
pub(crate) type Entry = (&'static str, i64, Lowering);

/// Domain → its operators, family by family.
const TABLE: &[(&str, &[&[Entry]])] = &[
    (
        "",
        &[
            attention::OPERATORS,
            constant::OPERATORS,
            control::OPERATORS,
            conv::OPERATORS,
            elementwise::OPERATORS,
            gather::OPERATORS,
            loss::OPERATORS,
            matmul::OPERATORS,
            microsoft::norm::STANDARD,
            norm::OPERATORS,
            pool::OPERATORS,
            quantize::OPERATORS,
            recurrent::OPERATORS,
            reduce::OPERATORS,
            resize::OPERATORS,
            rope::OPERATORS,
            shape::OPERATORS,
            signal::OPERATORS,
        ],
    ),
    ("ai.onnx.ml", &[classic::OPERATORS]),
    (
        "com.microsoft",
        &[
            microsoft::attention::OPERATORS,
            microsoft::elementwise::OPERATORS,
            microsoft::matmul::OPERATORS,
            microsoft::norm::OPERATORS,
            microsoft::quantize::OPERATORS,
            recurrent::MICROSOFT,
        ],
    ),
];

type Index = HashMap<(&'static str, &'static str), Vec<(i64, Lowering)>>;

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let mut index = Index::new();
    for (domain, families) in TABLE {
        for (name, since, lowering) in families.iter().copied().flatten() {
            index.entry((domain, name)).or_default().push((*since, *lowering));
        }
    }
    index
});

/// How an operator is lowered in a version of its domain.
pub(crate) fn find(domain: &str, name: &str, opset: i64) -> Option<Lowering> {
    let versions = INDEX.get(&(domain, name))?;
    let fitting = versions.iter().filter(|(since, _)| *since <= opset);
    fitting.max_by_key(|(since, _)| *since).map(|(_, lowering)| *lowering)
}

/// One tensor as a node's outputs.
pub(crate) fn one(operand: crate::lower::operand::Operand) -> Res<Vec<Value>> {
    Ok(vec![Value::Tensor(operand)])
}
