//! The arguments of one subcommand: flags, options with a value, and names.

use std::collections::VecDeque;

/// What is left to read of a subcommand's arguments.
///
/// Flags and options are taken out one by one; [`Arguments::names`] takes what is left and refuses
/// anything that still looks like an option, so that a misspelt one is never ignored.
#[derive(Debug)]
pub(crate) struct Arguments {
    rest: VecDeque<String>,
}

impl Arguments {
    pub(crate) fn new(arguments: impl IntoIterator<Item = String>) -> Self {
        Self { rest: arguments.into_iter().collect() }
    }

    /// Takes the first argument if it is a name, not an option.
    pub(crate) fn subcommand(&mut self) -> Option<String> {
        if self.rest.front()?.starts_with('-') {
            return None;
        }
        self.rest.pop_front()
    }

    /// Takes every occurrence of a flag; true if there was one.
    pub(crate) fn flag(&mut self, names: &[&str]) -> bool {
        let before = self.rest.len();
        self.rest.retain(|argument| !names.contains(&argument.as_str()));
        self.rest.len() != before
    }

    /// Takes an option with its value, `--name VALUE` or `--name=VALUE`.
    pub(crate) fn value(&mut self, names: &[&str]) -> Result<Option<String>, String> {
        let mut found = None;
        let mut kept = VecDeque::with_capacity(self.rest.len());
        while let Some(argument) = self.rest.pop_front() {
            let joined = argument.split_once('=').filter(|(name, _)| names.contains(name));
            let value = if let Some((_, value)) = joined {
                value.to_owned()
            } else if names.contains(&argument.as_str()) {
                self.rest.pop_front().ok_or_else(|| format!("{argument} needs a value"))?
            } else {
                kept.push_back(argument);
                continue;
            };
            if found.replace(value).is_some() {
                return Err(format!("{} is given twice", names[0]));
            }
        }
        self.rest = kept;
        Ok(found)
    }

    /// Takes `--against` with the name of the one program that there is to be compared with; true if it was given.
    pub(crate) fn peer(&mut self, name: &str) -> Result<bool, String> {
        match self.value(&["--against"])? {
            None => Ok(false),
            Some(given) if given == name => Ok(true),
            Some(other) => Err(format!("no peer {other}; there is {name}")),
        }
    }

    /// Takes an option whose value is a whole number of at least one.
    pub(crate) fn count(&mut self, names: &[&str]) -> Result<Option<usize>, String> {
        let Some(text) = self.value(names)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if number > 0 => Ok(Some(number)),
            _ => Err(format!("{} needs a positive number, not {text}", names[0])),
        }
    }

    /// Takes an option whose value is a whole number.
    pub(crate) fn number(&mut self, names: &[&str]) -> Result<Option<usize>, String> {
        let Some(text) = self.value(names)? else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| format!("{} needs a number, not {text}", names[0]))
    }

    /// The names that are left; an option among them is unknown.
    pub(crate) fn names(self) -> Result<Vec<String>, String> {
        if let Some(unknown) = self.rest.iter().find(|argument| argument.starts_with('-')) {
            return Err(format!("unknown option {unknown}"));
        }
        Ok(self.rest.into())
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), String> {
        match self.names()?.first() {
            None => Ok(()),
            Some(name) => Err(format!("unexpected argument {name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str) -> Arguments {
        Arguments::new(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_taken_in_both_spellings_and_names_are_left() {
        let mut a = arguments("x --json f --threads=2 --quick y");
        assert_eq!(a.value(&["--json"]), Ok(Some("f".into())));
        assert_eq!(a.count(&["--threads", "-t"]), Ok(Some(2)));
        assert!(a.flag(&["--quick"]));
        assert!(!a.flag(&["--quick"]));
        assert_eq!(a.names(), Ok(vec!["x".into(), "y".into()]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(arguments("--json").value(&["--json"]), Err("--json needs a value".into()));
        assert_eq!(arguments("-t 0").count(&["-t"]), Err("-t needs a positive number, not 0".into()));
        assert_eq!(arguments("-p a --p=b -p c").value(&["-p"]), Err("-p is given twice".into()));
        assert_eq!(arguments("--fast").end(), Err("unknown option --fast".into()));
        assert_eq!(arguments("fast").end(), Err("unexpected argument fast".into()));
    }
}
