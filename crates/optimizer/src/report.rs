//! What the passes did.

use std::fmt;

/// What one pass did, summed over its rounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassReport {
    /// The pass.
    pub name: &'static str,
    /// Nodes that it removed or rewrote.
    pub changed: usize,
}

/// What all passes did, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One entry per pass.
    pub passes: Vec<PassReport>,
    /// Nodes before.
    pub nodes_before: usize,
    /// Nodes after.
    pub nodes_after: usize,
    /// How often the whole list ran.
    pub rounds: usize,
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
