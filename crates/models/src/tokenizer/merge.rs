//! Joining the best adjacent pair again and again: what byte-pair encoding and SentencePiece share.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The working memory of [`Merger::merge`], kept between words.
#[derive(Debug, Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    pairs: BinaryHeap<Reverse<Pair>>,
}

/// A part of the text, linked to its neighbours. A symbol that was joined to its left neighbour
/// stays in the list with length 0.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    length: usize,
    previous: usize,
    next: usize,
}

/// "No neighbour" in [`Symbol`].
const NONE: usize = usize::MAX;

/// Two neighbours that may be joined; the lowest key first, then the leftmost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    key: u32,
    left: usize,
    right: usize,
    /// The bytes of both when the pair was found; if they differ now, it is outdated.
    length: usize,
}

impl Merger {
    /// Cuts `text` into characters, joins neighbours for as long as `key` has a key for any two of
    /// them (lowest key first, then leftmost), and hands the parts that remain to `emit`.
    ///
    /// `key` gets the text of both neighbours together and the length of the left one.
    /// Takes O(n log n) calls and steps for n characters.
    pub(super) fn merge<'t>(
        &mut self,
        text: &'t str,
        key: impl Fn(&str, usize) -> Option<u32>,
        mut emit: impl FnMut(&'t str),
    ) {
        self.symbols.clear();
        self.pairs.clear();
        for (start, c) in text.char_indices() {
            let at = self.symbols.len();
            self.symbols.push(Symbol {
                start,
                length: c.len_utf8(),
                previous: at.checked_sub(1).unwrap_or(NONE),
                next: at + 1,
            });
        }
        if let Some(last) = self.symbols.last_mut() {
            last.next = NONE;
        }
        for left in 0..self.symbols.len() {
            self.add_pair(text, left, self.symbols[left].next, &key);
        }
        while let Some(Reverse(pair)) = self.pairs.pop() {
            let (left, right) = (self.symbols[pair.left], self.symbols[pair.right]);
            let gone = left.length == 0 || right.length == 0;
            if gone || left.length + right.length != pair.length {
                continue;
            }
            self.symbols[pair.left].length = pair.length;
            self.symbols[pair.left].next = right.next;
            self.symbols[pair.right].length = 0;
            if right.next != NONE {
                self.symbols[right.next].previous = pair.left;
            }
            self.add_pair(text, left.previous, pair.left, &key);
            self.add_pair(text, pair.left, right.next, &key);
        }
        for symbol in self.symbols.iter().filter(|symbol| symbol.length > 0) {
            emit(&text[symbol.start..symbol.start + symbol.length]);
        }
    }

    fn add_pair(&mut self, text: &str, left: usize, right: usize, key: &impl Fn(&str, usize) -> Option<u32>) {
        if left == NONE || right == NONE {
            return;
        }
        let Symbol { start, length, .. } = self.symbols[left];
        let both = length + self.symbols[right].length;
        if let Some(key) = key(&text[start..start + both], length) {
            self.pairs.push(Reverse(Pair { key, left, right, length: both }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'t>(text: &'t str, merges: &[&str]) -> Vec<&'t str> {
        let mut parts = Vec::new();
        let key = |pair: &str, left: usize| {
            let merge = format!("{} {}", &pair[..left], &pair[left..]);
            merges.iter().position(|m| *m == merge).map(|at| at as u32)
        };
        Merger::default().merge(text, key, |part| parts.push(part));
        parts
    }

    #[test]
    fn the_lowest_key_is_joined_first_wherever_it_stands() {
        assert_eq!(parts("abc", &["a b", "b c"]), ["ab", "c"]);
        assert_eq!(parts("abc", &["b c", "a b"]), ["a", "bc"]);
    }

    #[test]
    fn among_equal_keys_the_leftmost_is_joined() {
        assert_eq!(parts("aaaaa", &["a a"]), ["aa", "aa", "a"]);
        assert_eq!(parts("aaaaa", &["a a", "aa aa"]), ["aaaa", "a"]);
    }

    #[test]
    fn outdated_pairs_are_skipped() {
        assert_eq!(parts("abcd", &["b c", "a b", "c d", "bc d"]), ["a", "bcd"]);
    }

    #[test]
    fn characters_are_never_cut() {
        assert_eq!(parts("é中🦙", &["é 中"]), ["é中", "🦙"]);
        assert_eq!(parts("", &[]), [""; 0]);
    }
}
