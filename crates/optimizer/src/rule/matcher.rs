//! Finds patterns in graphs.

use core_tensor::ValueId;

use super::pattern::{Kind, NodePattern, Pattern};
use super::view::View;

/// What a pattern found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Values by name.
    pub(crate) captures: Vec<(&'static str, ValueId)>,
    /// Nodes, and whether each may be used by others; the root first.
    pub(crate) nodes: Vec<(usize, bool)>,
}

impl Found {
    pub(crate) fn get(&self, name: &str) -> Option<ValueId> {
        self.captures.iter().find(|(known, _)| *known == name).map(|(_, id)| *id)
    }
}

/// How far a match came that failed in the end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Furthest {
    /// Nodes that had matched.
    pub(crate) nodes: usize,
    /// What was expected, and the value that is something else.
    pub(crate) stopped: Option<(&'static str, ValueId)>,
}

/// Alternatives that one match may try: patterns of many alternatives must not cost more than the graph is worth.
const MAX_STEPS: usize = 4096;

pub(crate) struct Matcher<'a> {
    view: &'a View<'a>,
    pub(crate) furthest: Furthest,
    steps: usize,
}

impl<'a> Matcher<'a> {
    pub(crate) fn new(view: &'a View<'a>) -> Matcher<'a> {
        Matcher { view, furthest: Furthest::default(), steps: 0 }
    }

    /// Matches a pattern against a value. `None`: [`Matcher::furthest`] says how far it came.
    pub(crate) fn find(&mut self, pattern: &Pattern, value: ValueId) -> Option<Found> {
        self.solve(vec![(pattern.clone(), value)], Found::default())
    }

    fn stop(&mut self, found: &Found, expected: &'static str, value: ValueId) {
        if found.nodes.len() > self.furthest.nodes {
            self.furthest = Furthest { nodes: found.nodes.len(), stopped: Some((expected, value)) };
        }
    }

    fn solve(&mut self, mut goals: Vec<(Pattern, ValueId)>, mut found: Found) -> Option<Found> {
        while let Some((pattern, value)) = goals.pop() {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return None;
            }
            match &*pattern.0 {
                Kind::Any => {}
                Kind::Constant => {
                    if self.view.graph.weight_of(value).is_none() {
                        self.stop(&found, "a constant", value);
                        return None;
                    }
                }
                Kind::Uniform(wanted) => {
                    let fits = self.view.uniform(value).is_some_and(|number| match wanted {
                        None => true,
                        Some((wanted, tolerance)) => (number - wanted).abs() <= wanted.abs() * tolerance,
                    });
                    if !fits {
                        self.stop(&found, if wanted.is_some() { "a certain number" } else { "one number" }, value);
                        return None;
                    }
                }
                Kind::Named(name, inner) => {
                    match found.get(name) {
                        Some(known) if known != value => {
                            self.stop(&found, name, value);
                            return None;
                        }
                        Some(_) => {}
                        None => found.captures.push((name, value)),
                    }
                    goals.push((inner.clone(), value));
                }
                Kind::Either(all) => {
                    return all.iter().find_map(|alternative| {
                        let mut goals = goals.clone();
                        goals.push((alternative.clone(), value));
                        self.solve(goals, found.clone())
                    });
                }
                Kind::Node(node) => return self.node(node, value, goals, found),
            }
        }
        Some(found)
    }

    fn node(
        &mut self,
        pattern: &NodePattern,
        value: ValueId,
        goals: Vec<(Pattern, ValueId)>,
        mut found: Found,
    ) -> Option<Found> {
        let made = self.view.producer(value).filter(|(_, node)| {
            let count = node.inputs.len();
            let arity = if pattern.more_inputs { count >= pattern.inputs.len() } else { count == pattern.inputs.len() };
            arity && node.outputs.first() == Some(&value) && (pattern.predicate)(&node.op)
        });
        let Some((index, node)) = made else {
            self.stop(&found, pattern.what, value);
            return None;
        };
        if let Some(known) = found.nodes.iter_mut().find(|(known, _)| *known == index) {
            known.1 |= pattern.shared;
        } else {
            found.nodes.push((index, pattern.shared));
        }
        let inputs: Option<Vec<ValueId>> = node.inputs[..pattern.inputs.len()].iter().copied().collect();
        let inputs = inputs?;
        let with = |order: &mut dyn Iterator<Item = ValueId>| {
            let mut goals = goals.clone();
            // Goals are taken from the end: the first input comes first.
            let pairs: Vec<_> = pattern.inputs.iter().cloned().zip(order).collect();
            goals.extend(pairs.into_iter().rev());
            goals
        };
        if let Some(matched) = self.solve(with(&mut inputs.iter().copied()), found.clone()) {
            return Some(matched);
        }
        if pattern.any_order && inputs.len() == 2 && inputs[0] != inputs[1] {
            return self.solve(with(&mut inputs.iter().rev().copied()), found);
        }
        None
    }
}
