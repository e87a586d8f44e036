//! Stop strings: texts at which a generation ends, and which are no part of it.

/// Looks for stop strings in text that comes in pieces. Text that may turn out to be the start of
/// a stop string is held back until that is decided.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

/// What [`StopMatcher::push`] makes of a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// The text that is certain now, and was not handed out before.
    pub text: String,
    /// The index of the stop string that was found. `text` ends before it, and nothing comes after.
    pub stop: Option<usize>,
}

impl StopMatcher {
    /// A matcher of these stop strings; empty ones are never found.
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> StopMatcher {
        StopMatcher { stops: stops.into_iter().map(Into::into).collect(), held: String::new(), stopped: false }
    }

    /// Adds a piece of text. The stop string that is complete first counts; of those that end at
    /// one place, the longest. So it does not matter how the text was cut into pieces. After one
    /// was found all further text is ignored.
    pub fn push(&mut self, piece: &str) -> Stopped {
        if self.stopped {
            return Stopped { text: String::new(), stop: None };
        }
        self.held.push_str(piece);
        if let Some((start, stop)) = self.find() {
            self.held.truncate(start);
            self.stopped = true;
            return Stopped { text: std::mem::take(&mut self.held), stop: Some(stop) };
        }
        let certain = self.held.len() - self.possible_start();
        let rest = self.held.split_off(certain);
        Stopped { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// The text that is still held back, when no more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop string that is complete first begins, and which it is.
    fn find(&self) -> Option<(usize, usize)> {
        let stops = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = stops.filter_map(|(at, stop)| Some((self.held.find(stop.as_str())?, stop.len(), at)));
        let first = found.min_by_key(|(start, length, _)| (start + length, *start));
        first.map(|(start, _, at)| (start, at))
    }

    /// How many of the last held bytes may be the start of a stop string.
    fn possible_start(&self) -> usize {
        let longest = |stop: &String| {
            let most = stop.len().saturating_sub(1).min(self.held.len());
            (1..=most).rev().find(|length| self.held.as_bytes().ends_with(&stop.as_bytes()[..*length]))
        };
        // What is held ends with a whole character, and begins so at the start of a stop string:
        // the bytes in common are whole characters, too.
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut matcher = StopMatcher::new(stops.iter().copied());
        let mut texts = Vec::new();
        for piece in pieces {
            let Stopped { text, stop } = matcher.push(piece);
            texts.push(text);
            if stop.is_some() {
                return (texts, stop);
            }
        }
        texts.push(matcher.finish());
        (texts, None)
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_found_and_left_out() {
        let (texts, stop) = run(&["\nUser:"], &["Hi", ".\n", "Us", "er", ": more"]);
        assert_eq!(texts, ["Hi", ".", "", "", ""]);
        assert_eq!(stop, Some(0));
    }

    #[test]
    fn what_only_began_like_a_stop_string_is_handed_out() {
        let (texts, stop) = run(&["###"], &["a#", "#b", "##"]);
        assert_eq!(texts, ["a", "##b", "", "##"]);
        assert_eq!(stop, None);
    }

    #[test]
    fn the_stop_string_that_ends_first_counts_then_the_longest() {
        assert_eq!(run(&["world", "o w"], &["hello world"]), (vec!["hell".into()], Some(1)));
        assert_eq!(run(&["ab", "a"], &["xab"]), (vec!["x".into()], Some(1)));
        assert_eq!(run(&["b", "ab"], &["xab"]), (vec!["x".into()], Some(1)));
        assert_eq!(run(&["abcd", "bc"], &["abcd"]), (vec!["a".into()], Some(1)));
        assert_eq!(run(&["abcd", "bc"], &["ab", "c", "d"]), (vec!["".into(), "a".into()], Some(1)));
    }

    #[test]
    fn nothing_comes_after_a_stop_string() {
        let mut matcher = StopMatcher::new(["x"]);
        assert_eq!(matcher.push("axb"), Stopped { text: "a".into(), stop: Some(0) });
        assert_eq!(matcher.push("c"), Stopped { text: String::new(), stop: None });
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn empty_stop_strings_stop_nothing_and_none_hold_nothing() {
        assert_eq!(run(&[""], &["abc"]), (vec!["abc".into(), "".into()], None));
        assert_eq!(run(&[], &["é", "中"]), (vec!["é".into(), "中".into(), "".into()], None));
    }

    proptest! {
        #[test]
        fn pieces_give_the_text_before_the_first_stop_string(
            pieces in prop::collection::vec("[ab中é]{0,4}", 0..12),
            stops in prop::collection::vec("[ab中é]{1,4}", 0..4),
        ) {
            let whole = pieces.concat();
            let found = stops.iter().filter_map(|stop| Some((whole.find(stop.as_str())?, stop.len())));
            let first = found.min_by_key(|(start, length)| (start + length, *start));
            let mut matcher = StopMatcher::new(stops.iter().cloned());
            let mut text = String::new();
            let mut found = false;
            for piece in &pieces {
                let stopped = matcher.push(piece);
                text.push_str(&stopped.text);
                found |= stopped.stop.is_some();
            }
            text.push_str(&matcher.finish());
            prop_assert_eq!(found, first.is_some());
            prop_assert_eq!(text, &whole[..first.map_or(whole.len(), |(start, _)| start)]);
        }
    }
}
