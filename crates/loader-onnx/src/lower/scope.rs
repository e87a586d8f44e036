//! Names of values.

use std::collections::HashMap;

use super::operand::Value;

/// Names in force: those of a graph, then those of the graphs around it.
#[derive(Default)]
pub(crate) struct Scopes(Vec<HashMap<String, Option<Value>>>);

impl Scopes {
    /// Begins a graph within the one before.
    pub(crate) fn push(&mut self) {
        self.0.push(HashMap::new());
    }

    /// Ends it.
    pub(crate) fn pop(&mut self) {
        self.0.pop();
    }

    /// Begins a function, which sees nothing of what is around it; gives what is to be restored.
    pub(crate) fn isolate(&mut self) -> Scopes {
        Scopes(std::mem::replace(&mut self.0, vec![HashMap::new()]))
    }

    /// Ends a function.
    pub(crate) fn restore(&mut self, outer: Scopes) {
        self.0 = outer.0;
    }

    /// The value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<Value> {
        self.0.iter().rev().find_map(|scope| scope.get(name)).cloned().flatten()
    }

    /// Whether the name is that of an input that was left out.
    pub(crate) fn is_left_out(&self, name: &str) -> bool {
        self.0.iter().rev().find_map(|scope| scope.get(name)).is_some_and(Option::is_none)
    }

    /// Gives a name a value; false where it has one in this graph.
    pub(crate) fn set(&mut self, name: &str, value: Value) -> bool {
        match self.0.last_mut() {
            Some(scope) => scope.insert(name.to_owned(), Some(value)).is_none(),
            None => false,
        }
    }

    /// An input of a function that the caller leaves out.
    pub(crate) fn leave_out(&mut self, name: &str) {
        if let Some(scope) = self.0.last_mut() {
            scope.insert(name.to_owned(), None);
        }
    }
}
