//! Which Unicode classes a character belongs to, as far as pre-tokenizer patterns ask.

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// A set of character classes; a character is in every class that its bits name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class(u8);

impl Class {
    /// `\p{L}`
    pub(super) const LETTER: Class = Class(1);
    /// `\p{N}`
    pub(super) const NUMBER: Class = Class(2);
    /// `\p{P}`
    pub(super) const PUNCTUATION: Class = Class(4);
    /// `\p{S}`
    pub(super) const SYMBOL: Class = Class(8);
    /// `\p{M}`
    pub(super) const MARK: Class = Class(16);
    /// `\s`, that is the property `White_Space`
    pub(super) const SPACE: Class = Class(32);
    /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`: may stand before the lower-case part of a word
    pub(super) const UPPER: Class = Class(64);
    /// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`: may stand in the lower-case part of a word
    pub(super) const LOWER: Class = Class(128);

    /// The union of both sets.
    pub(super) const fn or(self, other: Class) -> Class {
        Class(self.0 | other.0)
    }

    /// Whether both sets have a class in common.
    pub(super) const fn meets(self, other: Class) -> bool {
        self.0 & other.0 != 0
    }

    /// The classes of `c`.
    pub(super) fn of(c: char) -> Class {
        match ASCII.get(c as usize) {
            Some(class) => *class,
            None => of_category(c),
        }
    }
}

/// Text is mostly ASCII, and a search in the tables of Unicode costs ten times an array access.
static ASCII: [Class; 128] = {
    let mut table = [Class(0); 128];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = match byte as u8 {
            b'A'..=b'Z' => Class::LETTER.or(Class::UPPER),
            b'a'..=b'z' => Class::LETTER.or(Class::LOWER),
            b'0'..=b'9' => Class::NUMBER,
            b'\t'..=b'\r' | b' ' => Class::SPACE,
            b'$' | b'+' | b'<' | b'=' | b'>' | b'^' | b'`' | b'|' | b'~' => Class::SYMBOL,
            0..=31 | 127 => Class(0),
            _ => Class::PUNCTUATION,
        };
        byte += 1;
    }
    table
};

fn of_category(c: char) -> Class {
    use GeneralCategory as G;
    let class = match c.general_category() {
        G::UppercaseLetter | G::TitlecaseLetter => Class::LETTER.or(Class::UPPER),
        G::LowercaseLetter => Class::LETTER.or(Class::LOWER),
        G::ModifierLetter | G::OtherLetter => Class::LETTER.or(Class::UPPER).or(Class::LOWER),
        G::NonspacingMark | G::SpacingMark | G::EnclosingMark => Class::MARK.or(Class::UPPER).or(Class::LOWER),
        G::DecimalNumber | G::LetterNumber | G::OtherNumber => Class::NUMBER,
        G::ConnectorPunctuation
        | G::DashPunctuation
        | G::OpenPunctuation
        | G::ClosePunctuation
        | G::InitialPunctuation
        | G::FinalPunctuation
        | G::OtherPunctuation => Class::PUNCTUATION,
        G::MathSymbol | G::CurrencySymbol | G::ModifierSymbol | G::OtherSymbol => Class::SYMBOL,
        _ => Class(0),
    };
    if c.is_whitespace() { class.or(Class::SPACE) } else { class }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_table_agrees_with_the_unicode_tables() {
        for c in (0u8..128).map(char::from) {
            assert_eq!(Class::of(c), of_category(c), "{c:?}");
        }
    }

    #[test]
    fn classes_of_characters_beyond_ascii() {
        assert_eq!(Class::of('É'), Class::LETTER.or(Class::UPPER));
        assert_eq!(Class::of('中'), Class::LETTER.or(Class::UPPER).or(Class::LOWER));
        assert_eq!(Class::of('½'), Class::NUMBER);
        assert_eq!(Class::of('\u{301}'), Class::MARK.or(Class::UPPER).or(Class::LOWER));
        assert_eq!(Class::of('\u{3000}'), Class::SPACE);
        assert_eq!(Class::of('🦙'), Class::SYMBOL);
        assert_eq!(Class::of('\u{10ffff}'), Class(0));
    }
}
