//! Rules: a pattern, and what is built in its place.

mod matcher;
mod pattern;
mod rewrite;
mod view;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use core_tensor::{Graph, GraphError, Rewriter, ValueId, ValueSource};

use crate::report::{NearMiss, RuleReport};
use crate::{Context, Rewritten};
use matcher::{Found, Matcher};

pub use pattern::Pattern;
pub use rewrite::Rewrite;
pub(crate) use view::{View, uniform};

/// Why a rule leaves a place alone whose pattern matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject(Option<String>);

impl Reject {
    /// The rule nearly fired: reports show the reason.
    #[must_use]
    pub fn because(reason: impl Into<String>) -> Reject {
        Reject(Some(reason.into()))
    }

    /// The rule has nothing to do here, which is not worth a word.
    #[must_use]
    pub fn nothing_to_do() -> Reject {
        Reject(None)
    }
}

impl From<GraphError> for Reject {
    fn from(error: GraphError) -> Reject {
        Reject::because(error.to_string())
    }
}

type Build = Arc<dyn Fn(&mut Rewrite<'_, '_>) -> Result<ValueId, Reject> + Send + Sync>;

/// A rewrite rule.
///
/// ```
/// use core_tensor::op::{Op, Unary};
/// use core_tensor::{DType, Graph};
/// use polaris_optimizer::{OptimizeOptions, Pattern, Rule, optimize_with_options};
///
/// // exp(ln(x)) is x (for positive x, which whoever adds this rule knows).
/// let rule = Rule::new(
///     "exp-ln",
///     "exp(ln(x)) becomes x",
///     Pattern::unary(Unary::Exp, Pattern::unary(Unary::Log, Pattern::value("x"))),
///     |rewrite| rewrite.input("x"),
/// );
///
/// let mut graph = Graph::new("example");
/// let x = graph.input("x", DType::F32, &[4.into()]);
/// let ln = graph.add("ln", Op::Unary(Unary::Log), &[x])?;
/// let exp = graph.add("exp", Op::Unary(Unary::Exp), &[ln])?;
/// let y = graph.add("y", Op::Unary(Unary::Neg), &[exp])?;
/// graph.output(y);
///
/// let options = OptimizeOptions { rules: vec![rule], ..OptimizeOptions::default() };
/// let (graph, report) = optimize_with_options(graph, &options)?;
/// assert_eq!(graph.nodes().len(), 1);
/// assert_eq!(report.rule("exp-ln").map(|rule| rule.fired), Some(1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Rule {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
    pattern: Pattern,
    build: Build,
    size: usize,
}

impl Rule {
    /// A rule.
    ///
    /// `name` is what reports and options call it; `doc` says in a line what it does. `build` gets what the pattern found, adds nodes, and gives the
    /// value that takes the place of the root's first output (which must be the root's only one, and have the same type), or says why not.
    #[must_use]
    pub fn new(
        name: &'static str,
        doc: &'static str,
        pattern: Pattern,
        build: impl Fn(&mut Rewrite<'_, '_>) -> Result<ValueId, Reject> + Send + Sync + 'static,
    ) -> Rule {
        let size = pattern.node_count();
        Rule { name, doc, pattern, build: Arc::new(build), size }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it does, in a line.
    #[must_use]
    pub fn doc(&self) -> &'static str {
        self.doc
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rule({}: {})", self.name, self.pattern)
    }
}

/// Near misses that are kept per rule.
const MAX_NEAR_MISSES: usize = 16;

/// Goes over a graph once and applies at each node the first of some rules that fires.
pub(crate) fn sweep(graph: &Graph, rules: &[&Rule], cx: &mut Context) -> Result<Rewritten, GraphError> {
    let view = View::new(graph);
    let mut rewriter = Rewriter::new(graph);
    let mut changed = 0;
    for (index, node) in graph.nodes().iter().enumerate() {
        let [output] = node.outputs[..] else {
            rewriter.copy(node)?;
            continue;
        };
        let mut fired = false;
        for rule in rules {
            let report = cx.rules.entry(rule.name).or_insert_with(|| RuleReport::new(rule));
            match apply(&view, &mut rewriter, rule, index, cx.growth, report) {
                Some(new) => {
                    rewriter.map(output, new);
                    report.fired += 1;
                    fired = true;
                    changed += 1;
                    break;
                }
                None => continue,
            }
        }
        if !fired {
            rewriter.copy(node)?;
        }
    }
    Ok((changed > 0).then(|| (rewriter.finish(), changed)))
}

fn apply(
    view: &View<'_>,
    rewriter: &mut Rewriter<'_>,
    rule: &Rule,
    index: usize,
    growth: usize,
    report: &mut RuleReport,
) -> Option<ValueId> {
    let node = &view.graph.nodes()[index];
    let output = *node.outputs.first()?;
    let mut matcher = Matcher::new(view);
    let mut miss = |reason: String| {
        report.near_miss_count += 1;
        if report.near_misses.len() < MAX_NEAR_MISSES {
            report.near_misses.push(NearMiss { node: node.name.clone(), reason });
        }
    };
    let Some(found) = matcher.find(&rule.pattern, output) else {
        let far = matcher.furthest;
        // Most of a large pattern was there: worth a word.
        if far.nodes >= 3
            && rule.size > 3
            && far.nodes * 10 >= rule.size * 6
            && let Some((expected, value)) = far.stopped
        {
            let found = match view.producer(value) {
                Some((_, node)) => format!("{} {:?}", node.op.name(), node.name),
                None => format!("{:?}", view.graph.value(value).name),
            };
            miss(format!(
                "{} of {} nodes are there, then {expected} is expected and {found} found",
                far.nodes, rule.size
            ));
        }
        return None;
    };
    if let Some(reason) = used_elsewhere(view, &found) {
        miss(reason);
        return None;
    }
    let mut rewrite = Rewrite::new(view, rewriter, &found, index, growth);
    match (rule.build)(&mut rewrite) {
        Ok(new) => {
            let (old, new_ty) = (&view.graph.value(output).ty, &rewriter.graph().value(new).ty);
            if old != new_ty {
                miss(format!("{new_ty} would take the place of {old}"));
                return None;
            }
            // What is given back has a name of its own, which an input or a weight cannot take.
            let given = !matches!(rewriter.graph().value(new).source, ValueSource::Node);
            if view.is_output(output) && given {
                return None;
            }
            Some(new)
        }
        Err(Reject(Some(reason))) => {
            miss(reason);
            None
        }
        Err(Reject(None)) => None,
    }
}

/// The matched node whose result others need, too.
fn used_elsewhere(view: &View<'_>, found: &Found) -> Option<String> {
    let inside = |index: &usize| found.nodes.iter().any(|(known, _)| known == index);
    for (index, shared) in found.nodes.iter().skip(1) {
        let node = &view.graph.nodes()[*index];
        let free = node.outputs.iter().all(|id| !view.is_output(*id) && view.consumers(*id).iter().all(inside));
        if !shared && !free {
            return Some(format!("the result of {} {:?} is used elsewhere, too", node.op.name(), node.name));
        }
    }
    None
}

/// Rules by name, with what they did.
pub(crate) type RuleReports = BTreeMap<&'static str, RuleReport>;
