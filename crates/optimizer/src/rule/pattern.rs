//! Patterns: what a rule looks for.

use std::fmt;
use std::sync::Arc;

use core_tensor::op::{Binary, Op, Unary};

/// Whether an operator is one that a pattern wants.
type Predicate = Arc<dyn Fn(&Op) -> bool + Send + Sync>;

/// A pattern over the producers of a value: which operator made it, from what.
///
/// Patterns are built inside out, from the inputs to the node whose output a rule replaces (the *root*). A name stands for one value: where it
/// occurs twice, both places must be the same value. All matched nodes but the root must be used by matched nodes alone, since they
/// go away; [`Pattern::shared`] lifts this for a node that may stay.
///
/// ```
/// use core_tensor::op::{Binary, Unary};
/// use polaris_optimizer::Pattern;
///
/// // x * sigmoid(x), in either order.
/// let silu = Pattern::binary(Binary::Mul, Pattern::value("x"), Pattern::unary(Unary::Sigmoid, Pattern::value("x")));
/// assert_eq!(silu.to_string(), "Mul(x, Sigmoid(x))");
/// ```
#[derive(Clone)]
pub struct Pattern(pub(crate) Arc<Kind>);

pub(crate) enum Kind {
    Any,
    Constant,
    /// A constant all of whose elements are one number within a relative tolerance, or any one number.
    Uniform(Option<(f32, f32)>),
    Named(&'static str, Pattern),
    Either(Vec<Pattern>),
    Node(NodePattern),
}

#[derive(Clone)]
pub(crate) struct NodePattern {
    pub(crate) what: &'static str,
    pub(crate) predicate: Predicate,
    pub(crate) inputs: Vec<Pattern>,
    pub(crate) any_order: bool,
    pub(crate) shared: bool,
    pub(crate) more_inputs: bool,
}

impl Pattern {
    fn new(kind: Kind) -> Pattern {
        Pattern(Arc::new(kind))
    }

    /// Any value.
    #[must_use]
    pub fn any() -> Pattern {
        Pattern::new(Kind::Any)
    }

    /// Any value, under a name.
    #[must_use]
    pub fn value(name: &'static str) -> Pattern {
        Pattern::any().named(name)
    }

    /// A weight or constant, under a name.
    #[must_use]
    pub fn constant(name: &'static str) -> Pattern {
        Pattern::new(Kind::Constant).named(name)
    }

    /// A constant all of whose elements are one number, under a name.
    #[must_use]
    pub fn uniform(name: &'static str) -> Pattern {
        Pattern::new(Kind::Uniform(None)).named(name)
    }

    /// A constant all of whose elements are this number, but for the last bits of an f32.
    #[must_use]
    pub fn scalar(number: f32) -> Pattern {
        Pattern::near(number, 1e-6)
    }

    /// A constant all of whose elements are this number within a relative tolerance: files that were written in half precision hold √2 as 1.4141.
    #[must_use]
    pub fn near(number: f32, tolerance: f32) -> Pattern {
        Pattern::new(Kind::Uniform(Some((number, tolerance))))
    }

    /// The first output of a node of an operator that satisfies `predicate`, with exactly these inputs. `what` names the operator in messages.
    #[must_use]
    pub fn node(
        what: &'static str,
        predicate: impl Fn(&Op) -> bool + Send + Sync + 'static,
        inputs: impl IntoIterator<Item = Pattern>,
    ) -> Pattern {
        Pattern::new(Kind::Node(NodePattern {
            what,
            predicate: Arc::new(predicate),
            inputs: inputs.into_iter().collect(),
            any_order: false,
            shared: false,
            more_inputs: false,
        }))
    }

    /// An element-wise function of two operands; in either order, if it commutes.
    #[must_use]
    pub fn binary(binary: Binary, a: Pattern, b: Pattern) -> Pattern {
        let what = Op::Binary(binary).name();
        let node = Pattern::node(what, move |op| matches!(op, Op::Binary(found) if *found == binary), [a, b]);
        if commutes(binary) { node.in_any_order() } else { node }
    }

    /// An element-wise function of one operand.
    #[must_use]
    pub fn unary(unary: Unary, x: Pattern) -> Pattern {
        let what = Op::Unary(unary).name();
        Pattern::node(what, move |op| matches!(op, Op::Unary(found) if *found == unary), [x])
    }

    /// `a + b`, in either order.
    #[must_use]
    pub fn sum(a: Pattern, b: Pattern) -> Pattern {
        Pattern::binary(Binary::Add, a, b)
    }

    /// `a * b`, in either order.
    #[must_use]
    pub fn product(a: Pattern, b: Pattern) -> Pattern {
        Pattern::binary(Binary::Mul, a, b)
    }

    /// `x * x` or `x ^ 2`.
    #[must_use]
    pub fn square(x: &Pattern) -> Pattern {
        Pattern::either([
            Pattern::binary(Binary::Mul, x.clone(), x.clone()),
            Pattern::binary(Binary::Pow, x.clone(), Pattern::scalar(2.0)),
        ])
    }

    /// The first of several patterns that matches (with what else is wanted: alternatives are tried in turn).
    #[must_use]
    pub fn either(patterns: impl IntoIterator<Item = Pattern>) -> Pattern {
        Pattern::new(Kind::Either(patterns.into_iter().collect()))
    }

    /// A node that may be there or not: `wrap(inner)`, else `inner`.
    #[must_use]
    pub fn optional(inner: Pattern, wrap: impl FnOnce(Pattern) -> Pattern) -> Pattern {
        Pattern::either([wrap(inner.clone()), inner])
    }

    /// The same, under a name.
    #[must_use]
    pub fn named(self, name: &'static str) -> Pattern {
        Pattern::new(Kind::Named(name, self))
    }

    /// The node's inputs may come in any order.
    #[must_use]
    pub fn in_any_order(self) -> Pattern {
        self.map_node(|node| node.any_order = true)
    }

    /// Others may use the node's outputs, too: it stays for them.
    #[must_use]
    pub fn shared(self) -> Pattern {
        self.map_node(|node| node.shared = true)
    }

    /// The node may have more inputs than those that the pattern names.
    #[must_use]
    pub fn and_more_inputs(self) -> Pattern {
        self.map_node(|node| node.more_inputs = true)
    }

    fn map_node(self, change: impl Fn(&mut NodePattern) + Copy) -> Pattern {
        match &*self.0 {
            Kind::Node(node) => {
                let mut node = node.clone();
                change(&mut node);
                Pattern::new(Kind::Node(node))
            }
            Kind::Named(name, inner) => inner.clone().map_node(change).named(name),
            Kind::Either(all) => Pattern::either(all.iter().map(|pattern| pattern.clone().map_node(change))),
            Kind::Any | Kind::Constant | Kind::Uniform(_) => self,
        }
    }

    /// Nodes of the smallest graph that matches.
    pub(crate) fn node_count(&self) -> usize {
        match &*self.0 {
            Kind::Any | Kind::Constant | Kind::Uniform(_) => 0,
            Kind::Named(_, inner) => inner.node_count(),
            Kind::Either(all) => all.iter().map(Pattern::node_count).min().unwrap_or(0),
            Kind::Node(node) => 1 + node.inputs.iter().map(Pattern::node_count).sum::<usize>(),
        }
    }
}

/// Whether operands may change places.
pub(crate) fn commutes(binary: Binary) -> bool {
    matches!(
        binary,
        Binary::Add
            | Binary::Mul
            | Binary::Min
            | Binary::Max
            | Binary::Equal
            | Binary::And
            | Binary::Or
            | Binary::Xor
            | Binary::BitwiseAnd
            | Binary::BitwiseOr
            | Binary::BitwiseXor
    )
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, all: &[Pattern], between: &str| {
            all.iter().enumerate().try_for_each(|(i, pattern)| {
                f.write_str(if i == 0 { "" } else { between })?;
                write!(f, "{pattern}")
            })
        };
        match &*self.0 {
            Kind::Any => f.write_str("_"),
            Kind::Constant => f.write_str("constant"),
            Kind::Uniform(None) => f.write_str("number"),
            Kind::Uniform(Some((number, _))) => write!(f, "{number}"),
            Kind::Named(name, inner) if matches!(*inner.0, Kind::Any) => f.write_str(name),
            Kind::Named(name, inner) => write!(f, "{name}: {inner}"),
            Kind::Either(all) => list(f, all, " | "),
            Kind::Node(node) => {
                write!(f, "{}(", node.what)?;
                list(f, &node.inputs, ", ")?;
                f.write_str(if node.more_inputs { ", ...)" } else { ")" })
            }
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({self})")
    }
}
