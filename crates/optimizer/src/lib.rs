//! Graph to graph: small passes over [`core_tensor`] graphs, run in a fixed order until nothing changes.
//!
//! Passes keep what a graph means: its inputs, outputs and states, and the order of its effects. In debug builds every result is verified.
//!
//! ```
//! use core_tensor::op::{Op, Reshape, Unary};
//! use core_tensor::{DType, Dim, Graph};
//!
//! let mut graph = Graph::new("example");
//! let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 4.into()]);
//! let same = graph.add("same", Op::Reshape(Reshape { shape: vec![Dim::sym("rows"), 4.into()] }), &[x])?;
//! let y = graph.add("y", Op::Unary(Unary::Neg), &[same])?;
//! graph.output(y);
//! let (graph, report) = polaris_optimizer::optimize(graph)?;
//! assert_eq!(graph.nodes().len(), 1);
//! assert_eq!(report.to_string(), "2 nodes -> 1 in 2 rounds; identities 1");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod common_subexpressions;
mod constant_folding;
mod dead_code;
mod identities;
mod past;
mod report;
mod rule;
mod rules;

use std::collections::BTreeSet;
use std::sync::Arc;

use core_tensor::op::{If, Loop, Op};
use core_tensor::{Graph, GraphError, Node, Rewriter, ValueSource};

use report::weight_bytes;
use rule::RuleReports;

pub use past::{PastError, PastToStates, past_to_states};
pub use report::{NearMiss, PassReport, Report, RuleReport};
pub use rule::{Pattern, Reject, Rewrite, Rule};

/// What a pass gives: the new graph and how many nodes it changed, or nothing if it changed none.
type Rewritten = Option<(Graph, usize)>;

/// What passes share.
pub(crate) struct Context {
    rules: RuleReports,
    growth: usize,
    /// Bytes by which folding may still make the weights grow.
    budget: usize,
}

/// A rewrite of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pass {
    /// Drops nodes that give back what they are given, and joins reshapes.
    Identities,
    /// Factors and transposes go into the weights of products and convolutions, padding into the latter.
    Weights,
    /// Computes what depends on weights alone, as far as it does not grow.
    ConstantFolding,
    /// Computes equal things once.
    CommonSubexpressions,
    /// Fewer and cheaper operators for the same arithmetic and conversions.
    Algebra,
    /// Cancels transposes and reshapes, or moves them towards the outputs until they do.
    Movement,
    /// Activations, softmax and normalizations from primitives.
    Composites,
    /// Attention from products and softmax.
    Attention,
    /// Integer arithmetic where graphs dequantize.
    Quantization,
    /// `activation(gate) * up` becomes one node.
    GatedActivations,
    /// Drops nodes that nothing needs.
    DeadCode,
}

impl Pass {
    /// All passes in the order in which [`optimize`] runs them: what simplifies first, what merges then, what sweeps last.
    pub const ALL: [Pass; 11] = [
        Pass::Identities,
        Pass::Weights,
        Pass::ConstantFolding,
        Pass::CommonSubexpressions,
        Pass::Algebra,
        Pass::Movement,
        Pass::Composites,
        Pass::Attention,
        Pass::Quantization,
        Pass::GatedActivations,
        Pass::DeadCode,
    ];

    /// The name that reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Pass::Identities => "identities",
            Pass::Weights => "weights",
            Pass::ConstantFolding => "constant folding",
            Pass::CommonSubexpressions => "common subexpressions",
            Pass::Algebra => "algebra",
            Pass::Movement => "movement",
            Pass::Composites => "composites",
            Pass::Attention => "attention",
            Pass::Quantization => "quantization",
            Pass::GatedActivations => "gated activations",
            Pass::DeadCode => "dead code",
        }
    }

    /// The rules that a pass is made of; none, if it is a procedure.
    #[must_use]
    pub fn rules(self) -> Vec<Rule> {
        match self {
            Pass::Weights => [rules::convolution::rules(), rules::linear::rules()].concat(),
            Pass::Algebra => [rules::casts::rules(), rules::algebra::rules()].concat(),
            Pass::Movement => rules::movement::rules(),
            Pass::Composites => [
                rules::activations::rules(),
                rules::softmax::rules(),
                rules::normalization::rules(),
                rules::rotary::rules(),
            ]
            .concat(),
            Pass::Attention => rules::attention::rules(),
            Pass::Quantization => rules::quantization::rules(),
            Pass::GatedActivations => rules::gated_activations::rules(),
            Pass::Identities | Pass::ConstantFolding | Pass::CommonSubexpressions | Pass::DeadCode => Vec::new(),
        }
    }

    fn run(self, graph: &Graph, rules: &[Rule], cx: &mut Context) -> Result<Rewritten, GraphError> {
        match self {
            Pass::Identities => identities::run(graph),
            Pass::ConstantFolding => constant_folding::run(graph, cx.growth, &mut cx.budget),
            Pass::CommonSubexpressions => common_subexpressions::run(graph),
            Pass::DeadCode => dead_code::run(graph),
            _ => rule::sweep(graph, &rules.iter().collect::<Vec<_>>(), cx),
        }
    }
}

/// What [`optimize_with_options`] does.
#[derive(Clone, Debug)]
pub struct OptimizeOptions {
    /// The passes, in order.
    pub passes: Vec<Pass>,
    /// Rules that are left out, by name.
    pub without: BTreeSet<String>,
    /// The caller's rules, which run before those of the built-in passes.
    pub rules: Vec<Rule>,
    /// Bytes by which a folded constant may exceed the weights that it is computed from: folding must not turn a small file into a large
    /// program (a broadcast, a dequantized matrix).
    pub growth: usize,
    /// Whether a round trip through half precision, which a file asks for by two conversions, is left out: more precise than the file, and not the same.
    pub drop_half_rounding: bool,
}

impl Default for OptimizeOptions {
    fn default() -> OptimizeOptions {
        OptimizeOptions {
            passes: Pass::ALL.to_vec(),
            without: BTreeSet::new(),
            rules: Vec::new(),
            growth: 64 << 10,
            drop_half_rounding: false,
        }
    }
}

/// The built-in rules by pass.
#[must_use]
pub fn built_in_rules() -> Vec<(Pass, Vec<Rule>)> {
    Pass::ALL.iter().map(|pass| (*pass, pass.rules())).filter(|(_, rules)| !rules.is_empty()).collect()
}

/// Why a pass failed: the graph that it was given, or the one that it made, is wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OptimizerError {
    /// The graph was wrong before any pass ran.
    #[error("the graph to optimize is wrong: {0}")]
    Input(GraphError),
    /// A pass could not rebuild the graph, or made a wrong one.
    #[error("pass {pass:?}: {source}")]
    Pass {
        /// The pass.
        pass: &'static str,
        /// What is wrong.
        source: GraphError,
    },
}

/// Rounds at most: each pass can open the way for another, and a chain of that length is no graph's.
const MAX_ROUNDS: usize = 32;

/// Runs all passes until none changes anything.
///
/// # Errors
/// When the graph is wrong, or (which is a bug) a pass makes a wrong one.
pub fn optimize(graph: Graph) -> Result<(Graph, Report), OptimizerError> {
    optimize_with_options(graph, &OptimizeOptions::default())
}

/// Runs some passes, in the order given, until none changes anything.
///
/// # Errors
/// As [`optimize`].
pub fn optimize_with(graph: Graph, passes: &[Pass]) -> Result<(Graph, Report), OptimizerError> {
    optimize_with_options(graph, &OptimizeOptions { passes: passes.to_vec(), ..OptimizeOptions::default() })
}

/// Runs passes and rules as the options say, until none changes anything. Outputs keep their names.
///
/// # Errors
/// As [`optimize`].
pub fn optimize_with_options(mut graph: Graph, options: &OptimizeOptions) -> Result<(Graph, Report), OptimizerError> {
    graph.verify().map_err(OptimizerError::Input)?;
    let names: Vec<String> = graph.outputs().iter().map(|id| graph.value(*id).name.clone()).collect();
    let mut stages: Vec<(&'static str, Option<Pass>, Vec<Rule>)> = Vec::new();
    if !options.rules.is_empty() {
        stages.push(("added rules", None, options.rules.clone()));
    }
    for pass in &options.passes {
        let mut rules = pass.rules();
        if *pass == Pass::Algebra && options.drop_half_rounding {
            rules.push(rules::casts::half_rounding());
        }
        stages.push((pass.name(), Some(*pass), rules));
    }
    stages.iter_mut().for_each(|(_, _, rules)| rules.retain(|rule| !options.without.contains(rule.name())));
    let mut report = Report {
        passes: stages.iter().map(|(name, _, _)| PassReport { name, changed: 0 }).collect(),
        nodes_before: graph.nodes().len(),
        weight_bytes_before: weight_bytes(&graph),
        ..Report::default()
    };
    let mut cx = Context {
        rules: RuleReports::new(),
        growth: options.growth,
        budget: constant_folding::LARGEST_WEIGHT.max(options.growth),
    };
    let mut changing = true;
    while changing && report.rounds < MAX_ROUNDS {
        changing = false;
        report.rounds += 1;
        // What counts is what is left in the end.
        cx.rules.values_mut().for_each(|rule| {
            rule.near_misses.clear();
            rule.near_miss_count = 0;
        });
        for ((name, pass, rules), counts) in stages.iter().zip(&mut report.passes) {
            let failed = |source| OptimizerError::Pass { pass: name, source };
            let rewritten = match pass {
                Some(pass) => pass.run(&graph, rules, &mut cx),
                None => rule::sweep(&graph, &rules.iter().collect::<Vec<_>>(), &mut cx),
            };
            if let Some((new, changed)) = rewritten.map_err(failed)? {
                if cfg!(debug_assertions) {
                    new.verify().map_err(failed)?;
                }
                graph = new;
                counts.changed += changed;
                changing = true;
            }
        }
    }
    report.rules = cx.rules.into_values().collect();
    graph = with_subgraphs(graph, options, &mut report)?;
    graph = with_output_names(graph, &names).map_err(|source| OptimizerError::Pass { pass: "outputs", source })?;
    report.nodes_after = graph.nodes().len();
    report.weight_bytes_after = weight_bytes(&graph);
    Ok((graph, report))
}

/// Optimizes the graphs within nodes (branches, bodies of loops). What is done there is counted with the rest, but for the nodes.
fn with_subgraphs(graph: Graph, options: &OptimizeOptions, report: &mut Report) -> Result<Graph, OptimizerError> {
    if graph.nodes().iter().all(|node| node.op.subgraphs().is_empty()) {
        return Ok(graph);
    }
    let mut inner = |graph: &Arc<Graph>| -> Result<Arc<Graph>, OptimizerError> {
        let (graph, inner) = optimize_with_options(Graph::clone(graph), options)?;
        report.include(&inner);
        Ok(Arc::new(graph))
    };
    let mut rewriter = Rewriter::new(&graph);
    for node in graph.nodes() {
        let op = match &node.op {
            Op::If(op) => Op::If(If {
                then_branch: inner(&op.then_branch)?,
                else_branch: inner(&op.else_branch)?,
                outputs: op.outputs.clone(),
            }),
            Op::Loop(op) => Op::Loop(Loop { body: inner(&op.body)?, carried: op.carried, outputs: op.outputs.clone() }),
            other => other.clone(),
        };
        let node = Node { op, ..node.clone() };
        rewriter.copy(&node).map_err(|source| OptimizerError::Pass { pass: "subgraphs", source })?;
    }
    Ok(rewriter.finish())
}

/// Gives outputs their names back. Outputs that became one value, or an input or a weight, get a node of their own where the name would be lost.
fn with_output_names(graph: Graph, names: &[String]) -> Result<Graph, GraphError> {
    let named = graph.outputs().iter().zip(names).all(|(id, name)| graph.value(*id).name == *name);
    if named {
        return Ok(graph);
    }
    let mut rewriter = Rewriter::new(&graph);
    for node in graph.nodes() {
        rewriter.copy(node)?;
    }
    let outputs: Vec<_> = graph.outputs().iter().map(|id| rewriter.get(*id)).collect();
    let mut new = std::mem::take(rewriter.graph());
    let mut given = BTreeSet::new();
    for (id, name) in outputs.into_iter().zip(names) {
        let own = matches!(new.value(id).source, ValueSource::Node) && given.insert(id);
        let shape = new.tensor_type(id).map(|(_, shape)| shape.to_vec()).unwrap_or_default();
        let id = match own || new.value(id).name == *name {
            true => id,
            false => new.add(name, Op::Reshape(core_tensor::op::Reshape { shape }), &[id])?,
        };
        new.rename(id, name);
        new.output(id);
    }
    Ok(new)
}

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
