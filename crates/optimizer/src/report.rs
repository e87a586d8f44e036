//! What the passes and rules did.

use std::fmt;
use std::sync::Arc;

use core_tensor::Graph;
use serde::Serialize;

use crate::rule::Rule;

/// What one pass did, summed over its rounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PassReport {
    /// The pass.
    pub name: &'static str,
    /// Nodes that it removed or rewrote.
    pub changed: usize,
}

/// A place where a rule's pattern was there, or most of it, and the rule did not fire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NearMiss {
    /// The node, by name.
    pub node: String,
    /// Why not.
    pub reason: String,
}

/// What one rule did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleReport {
    /// The rule.
    pub name: &'static str,
    /// What it does, in a line.
    pub doc: &'static str,
    /// How often it fired.
    pub fired: usize,
    /// Where it nearly fired in the last round: the first few of them.
    pub near_misses: Vec<NearMiss>,
    /// How many there are.
    pub near_miss_count: usize,
}

impl RuleReport {
    pub(crate) fn new(rule: &Rule) -> RuleReport {
        RuleReport { name: rule.name, doc: rule.doc, fired: 0, near_misses: Vec::new(), near_miss_count: 0 }
    }
}

/// What all passes did, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One entry per pass.
    pub passes: Vec<PassReport>,
    /// One entry per rule that was tried, by name.
    pub rules: Vec<RuleReport>,
    /// Nodes before.
    pub nodes_before: usize,
    /// Nodes after.
    pub nodes_after: usize,
    /// Bytes of the weights before.
    pub weight_bytes_before: u64,
    /// Bytes of the weights after.
    pub weight_bytes_after: u64,
    /// How often the whole list ran.
    pub rounds: usize,
}

impl Report {
    /// What a rule did, if it was tried.
    #[must_use]
    pub fn rule(&self, name: &str) -> Option<&RuleReport> {
        self.rules.iter().find(|rule| rule.name == name)
    }

    /// Adds what was done to a graph within this one.
    pub(crate) fn include(&mut self, inner: &Report) {
        for pass in &inner.passes {
            if let Some(known) = self.passes.iter_mut().find(|known| known.name == pass.name) {
                known.changed += pass.changed;
            }
        }
        for rule in &inner.rules {
            match self.rules.iter_mut().find(|known| known.name == rule.name) {
                Some(known) => {
                    known.fired += rule.fired;
                    known.near_miss_count += rule.near_miss_count;
                    known.near_misses.extend(rule.near_misses.iter().cloned());
                }
                None => self.rules.push(rule.clone()),
            }
        }
    }

    /// Everything, for people: which rules fired, which nearly did and why not.
    #[must_use]
    pub fn explain(&self) -> String {
        use fmt::Write;
        let mut text = format!(
            "nodes {} -> {}, weights {} -> {} bytes, {} rounds\n",
            self.nodes_before, self.nodes_after, self.weight_bytes_before, self.weight_bytes_after, self.rounds
        );
        text += "passes\n";
        for pass in self.passes.iter().filter(|pass| pass.changed > 0) {
            let _ = writeln!(text, "{:>7} {}", pass.changed, pass.name);
        }
        text += "rules that fired\n";
        for rule in self.rules.iter().filter(|rule| rule.fired > 0) {
            let _ = writeln!(text, "{:>7} {:<28} {}", rule.fired, rule.name, rule.doc);
        }
        let near: Vec<&RuleReport> = self.rules.iter().filter(|rule| rule.near_miss_count > 0).collect();
        if !near.is_empty() {
            text += "rules that nearly fired\n";
        }
        for rule in near {
            let _ = writeln!(text, "{:>7} {}", rule.near_miss_count, rule.name);
            for miss in &rule.near_misses {
                let _ = writeln!(text, "          node {:?}: {}", miss.node, miss.reason);
            }
            if rule.near_miss_count > rule.near_misses.len() {
                let _ = writeln!(text, "          and {} more", rule.near_miss_count - rule.near_misses.len());
            }
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} nodes -> {} in {} rounds", self.nodes_before, self.nodes_after, self.rounds)?;
        for pass in self.passes.iter().filter(|pass| pass.changed > 0) {
            write!(f, "; {} {}", pass.name, pass.changed)?;
        }
        Ok(())
    }
}

/// Bytes of a graph's weights; one that occurs under several values counts once.
pub(crate) fn weight_bytes(graph: &Graph) -> u64 {
    let mut seen = std::collections::HashSet::new();
    graph
        .weights()
        .filter(|(_, weight)| seen.insert(Arc::as_ptr(weight)))
        .map(|(_, weight)| weight.byte_len() as u64)
        .sum()
}
