//! A list of strings that can be searched by text.

use std::hash::BuildHasher;
use std::ops::Range;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::error::TokenizerError;

/// Strings in one piece of memory, with a hash table over them. The hash is seeded at random, so
/// that no file can be made to collide.
#[derive(Debug, Default)]
pub(super) struct Strings {
    text: String,
    /// Where each string ends in `text`.
    ends: Vec<u32>,
    index: HashTable<u32>,
    hasher: RandomState,
    longest: usize,
}

/// What [`Strings::new`] does with a string that is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Duplicates {
    /// Searching finds the first one.
    KeepFirst,
    /// They are an error; empty strings are not, and are never found.
    Reject,
}

impl Strings {
    /// Takes over `items`; `what` and `singular` name them in errors.
    pub(super) fn new(
        items: &[&[u8]],
        (singular, what): (&'static str, &'static str),
        duplicates: Duplicates,
    ) -> Result<Strings, TokenizerError> {
        let too_large = || TokenizerError::TooLarge { what };
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(items.len());
        let total = items.iter().try_fold(0usize, |sum, item| sum.checked_add(item.len()));
        u32::try_from(items.len()).map_err(|_| too_large())?;
        let total = total.and_then(|total| u32::try_from(total).ok()).ok_or_else(too_large)?;
        bytes.reserve_exact(total as usize);
        for item in items {
            bytes.extend_from_slice(item);
            ends.push(bytes.len() as u32);
        }
        // One check for all is several times faster than one for each.
        let not_utf8 = || TokenizerError::NotUtf8 {
            what: singular,
            index: items.iter().position(|item| std::str::from_utf8(item).is_err()).unwrap_or(0),
        };
        let text = String::from_utf8(bytes).map_err(|_| not_utf8())?;
        if !ends.iter().all(|end| text.is_char_boundary(*end as usize)) {
            return Err(not_utf8());
        }
        let mut strings = Strings {
            text,
            ends,
            index: HashTable::new(),
            hasher: RandomState::default(),
            longest: items.iter().map(|item| item.len()).max().unwrap_or(0),
        };
        strings.build_index(duplicates)?;
        Ok(strings)
    }

    fn build_index(&mut self, duplicates: Duplicates) -> Result<(), TokenizerError> {
        let Strings { text, ends, index, hasher, .. } = self;
        let get = |at: u32| &text.as_bytes()[range(ends, at)];
        let hash = |at: &u32| hasher.hash_one(get(*at));
        index.reserve(ends.len(), hash);
        for at in 0..ends.len() as u32 {
            let item = get(at);
            if item.is_empty() {
                continue;
            }
            match index.entry(hash(&at), |other| get(*other) == item, hash) {
                hashbrown::hash_table::Entry::Vacant(entry) => {
                    entry.insert(at);
                }
                hashbrown::hash_table::Entry::Occupied(_) if duplicates == Duplicates::KeepFirst => {}
                hashbrown::hash_table::Entry::Occupied(first) => {
                    return Err(TokenizerError::DuplicateToken {
                        first: *first.get() as usize,
                        second: at as usize,
                        text: text[range(ends, at)].to_owned(),
                    });
                }
            }
        }
        Ok(())
    }

    /// How many strings there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of the longest one.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// The string with this index.
    pub(super) fn get(&self, at: u32) -> Option<&str> {
        ((at as usize) < self.ends.len()).then(|| &self.text[range(&self.ends, at)])
    }

    /// All strings, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.ends.len() as u32).map(|at| &self.text[range(&self.ends, at)])
    }

    /// The index of the string that is `item`.
    pub(super) fn find(&self, item: &[u8]) -> Option<u32> {
        if item.len() > self.longest {
            return None;
        }
        let same = |at: &u32| &self.text.as_bytes()[range(&self.ends, *at)] == item;
        self.index.find(self.hasher.hash_one(item), same).copied()
    }
}

/// The bytes of string `at`, which must be below the number of strings.
fn range(ends: &[u32], at: u32) -> Range<usize> {
    let at = at as usize;
    let start = match at {
        0 => 0,
        _ => ends[at - 1] as usize,
    };
    start..ends[at] as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: (&str, &str) = ("token", "tokens");

    #[test]
    fn every_string_is_found_at_its_index() {
        let items: Vec<String> = (0..1000).map(|n| format!("{}", n * 7)).collect();
        let items: Vec<&[u8]> = items.iter().map(|item| item.as_bytes()).collect();
        let strings = Strings::new(&items, NAMES, Duplicates::Reject).unwrap();
        for (at, item) in items.iter().enumerate() {
            assert_eq!(strings.find(item), Some(at as u32));
            assert_eq!(strings.get(at as u32).unwrap().as_bytes(), *item);
        }
        assert_eq!(strings.find(b"5"), None);
        assert_eq!(strings.get(1000), None);
        assert_eq!((strings.len(), strings.longest()), (1000, 4));
    }

    #[test]
    fn the_first_of_equal_strings_is_found_where_they_are_allowed() {
        let items: [&[u8]; 3] = [b"a", b"b", b"a"];
        let strings = Strings::new(&items, NAMES, Duplicates::KeepFirst).unwrap();
        assert_eq!(strings.find(b"a"), Some(0));
        assert_eq!(
            Strings::new(&items, NAMES, Duplicates::Reject).unwrap_err(),
            TokenizerError::DuplicateToken { first: 0, second: 2, text: "a".into() }
        );
    }

    #[test]
    fn a_character_cut_between_two_strings_is_not_utf8() {
        let items: [&[u8]; 3] = [b"a", b"\xc3", b"\xa9"];
        assert_eq!(
            Strings::new(&items, NAMES, Duplicates::Reject).unwrap_err(),
            TokenizerError::NotUtf8 { what: "token", index: 1 }
        );
    }

    #[test]
    fn empty_strings_are_neither_duplicates_nor_found() {
        let items: [&[u8]; 3] = [b"", b"x", b""];
        let strings = Strings::new(&items, NAMES, Duplicates::Reject).unwrap();
        assert_eq!(strings.find(b""), None);
        assert_eq!(strings.get(2), Some(""));
    }
}
