//! The patterns of pre-tokenizers as hand-written matchers.
//!
//! Every pattern is published as a regular expression (quoted at each matcher). A general engine
//! would need milliseconds to compile the Unicode classes and backtracks on the look-aheads; these
//! matchers need no preparation and look at each character a bounded number of times, so that no
//! text, however contrived, takes more than linear time.

use super::class::Class;

/// One step of a pre-tokenizer: cuts a text into the matches of its pattern and what lies between.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pass {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// The pattern that GPT-4's tokenizer introduced, and Llama 3 and Qwen 2 took over.
    Words(Words),
    /// The pattern of GPT-4o: words are cut where lower case turns to upper case.
    CasedWords(CasedWords),
    /// The pattern of DeepSeek V3: punctuation may lead a word of ASCII letters.
    PunctuatedWords(PunctuatedWords),
    /// `[a]{1,longest}|[b]{1,longest}|…`
    Runs {
        /// The sets a, b, …
        sets: &'static [fn(char) -> bool],
        /// The most characters of a match.
        longest: usize,
    },
    /// `\s?[set]+`
    SpacedRuns(fn(char) -> bool),
    /// `[0-9][0-9][0-9]`
    DigitTriples,
    /// `\d{1,3}(?=(?:\d{3})*\b)`: groups of three, counted from the right
    DigitsFromRight,
    /// `\s+$`
    TrailingSpace,
    /// `[^\n]+|[\n]+`
    Lines,
    /// ` ?[^(\s|.,!?…。，、।۔،)]+`
    Phrases,
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
/// and its variants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words {
    /// Whether English contractions are cut off first.
    pub(super) contractions: bool,
    /// What counts as a letter: `\p{L}` or `[\p{L}\p{M}]`.
    pub(super) letters: Class,
    /// The most digits of a number.
    pub(super) digits: usize,
    /// Whether line ends belong to the punctuation before them.
    pub(super) newlines_after_punctuation: bool,
}

/// `[^\r\n\p{L}\p{N}]?[U]*[l]+c?|[^\r\n\p{L}\p{N}]?[U]+[l]*c?|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
/// with `U = \p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}`, `l = \p{Ll}\p{Lm}\p{Lo}\p{M}`, `c` the contractions.
#[derive(Debug, Clone, Copy)]
pub(super) struct CasedWords {
    /// Whether English contractions stay with their word (else they have no rule of their own).
    pub(super) contractions: bool,
    /// The most digits of a number.
    pub(super) digits: usize,
}

/// ``[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+``
#[derive(Debug, Clone, Copy)]
pub(super) struct PunctuatedWords {
    /// Whether line ends come in runs, and belong to punctuation or spaces before them; else
    /// each one stands alone.
    pub(super) newline_runs: bool,
}

impl Pass {
    /// Hands the pieces of `text` to `emit`, in order; together they are `text`, none is empty.
    pub(super) fn split<'t>(&self, text: &'t str, emit: &mut dyn FnMut(&'t str)) {
        match self {
            Pass::TrailingSpace => {
                let (head, tail) = text.split_at(text.trim_end().len());
                for piece in [head, tail].into_iter().filter(|piece| !piece.is_empty()) {
                    emit(piece);
                }
            }
            Pass::DigitsFromRight => split_digits_from_right(text, emit),
            _ => self.split_matches(text, emit),
        }
    }

    fn split_matches<'t>(&self, text: &'t str, emit: &mut dyn FnMut(&'t str)) {
        let mut gap = 0;
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            match self.match_at(&text[at..], c) {
                Some(length) => {
                    if gap < at {
                        emit(&text[gap..at]);
                    }
                    emit(&text[at..at + length]);
                    at += length;
                    gap = at;
                }
                None => at += c.len_utf8(),
            }
        }
        if gap < text.len() {
            emit(&text[gap..]);
        }
    }

    /// The length in bytes of the match at the start of `rest`, whose first character is `c`.
    fn match_at(&self, rest: &str, c: char) -> Option<usize> {
        match self {
            Pass::Gpt2 => gpt2(rest, c),
            Pass::Words(words) => words.match_at(rest, c),
            Pass::CasedWords(words) => words.match_at(rest, c),
            Pass::PunctuatedWords(words) => words.match_at(rest, c),
            Pass::Runs { sets, longest } => {
                let set = sets.iter().find(|set| set(c))?;
                Some(run_up_to(rest, *longest, set))
            }
            Pass::SpacedRuns(set) => spaced_run(rest, c, char::is_whitespace, set),
            Pass::DigitTriples => {
                let digits = rest.as_bytes().get(..3)?;
                digits.iter().all(u8::is_ascii_digit).then_some(3)
            }
            Pass::Lines => Some(match c {
                '\n' => run(rest, |c| c == '\n'),
                _ => run(rest, |c| c != '\n'),
            }),
            Pass::Phrases => spaced_run(rest, c, |c| c == ' ', in_phrase),
            Pass::TrailingSpace | Pass::DigitsFromRight => None,
        }
    }
}

impl Words {
    fn match_at(&self, rest: &str, c: char) -> Option<usize> {
        if self.contractions
            && let Some(length) = contraction(rest, AnyCase::Yes)
        {
            return Some(length);
        }
        let class = Class::of(c);
        let letters = self.letters;
        let is_letter = |c| Class::of(c).meets(letters);
        if class.meets(letters) {
            return Some(run(rest, is_letter));
        }
        if class.meets(Class::NUMBER) {
            return Some(run_up_to(rest, self.digits, is_number));
        }
        let after = &rest[c.len_utf8()..];
        if !is_newline(c) && after.starts_with(is_letter) {
            return Some(c.len_utf8() + run(after, is_letter));
        }
        let not_punctuation = letters.or(Class::SPACE).or(Class::LETTER).or(Class::NUMBER);
        let tail: fn(char) -> bool = match self.newlines_after_punctuation {
            true => is_newline,
            false => |_| false,
        };
        punctuation(rest, c, |c| !Class::of(c).meets(not_punctuation), tail).or_else(|| spaces(rest, true))
    }
}

impl CasedWords {
    fn match_at(&self, rest: &str, c: char) -> Option<usize> {
        let class = Class::of(c);
        if class.meets(Class::NUMBER) {
            return Some(run_up_to(rest, self.digits, is_number));
        }
        if let Some(length) = self.word(rest, c, class) {
            let end = match self.contractions {
                true => contraction(&rest[length..], AnyCase::Yes).unwrap_or(0),
                false => 0,
            };
            return Some(length + end);
        }
        let not_punctuation = Class::SPACE.or(Class::LETTER).or(Class::NUMBER);
        punctuation(rest, c, |c| !Class::of(c).meets(not_punctuation), |c| is_newline(c) || c == '/')
            .or_else(|| spaces(rest, true))
    }

    /// The alternatives for words, in the order in which a backtracking engine tries them.
    fn word(&self, rest: &str, c: char, class: Class) -> Option<usize> {
        let lead = match is_newline(c) || class.meets(Class::LETTER.or(Class::NUMBER)) {
            true => 0,
            false => c.len_utf8(),
        };
        let starts: &[usize] = if lead > 0 { &[lead, 0] } else { &[0] };
        let upper_then_lower = |start: &usize| Some(start + upper_then_lower(&rest[*start..])?);
        let upper_only = |start: &usize| {
            let length = run(&rest[*start..], |c| Class::of(c).meets(Class::UPPER));
            (length > 0).then_some(start + length)
        };
        starts.iter().find_map(upper_then_lower).or_else(|| starts.iter().find_map(upper_only))
    }
}

/// `[U]*[l]+`. Some characters (letters of scripts without case, marks) are in both sets, so that
/// the first repetition may have to give characters back: then the match ends with the last one
/// that is in both.
fn upper_then_lower(rest: &str) -> Option<usize> {
    let mut last_of_both = None;
    let mut end = 0;
    for c in rest.chars() {
        let class = Class::of(c);
        if !class.meets(Class::UPPER) {
            break;
        }
        end += c.len_utf8();
        if class.meets(Class::LOWER) {
            last_of_both = Some(end);
        }
    }
    match run(&rest[end..], |c| Class::of(c).meets(Class::LOWER)) {
        0 => last_of_both,
        lower => Some(end + lower),
    }
}

impl PunctuatedWords {
    fn match_at(&self, rest: &str, c: char) -> Option<usize> {
        let after = &rest[c.len_utf8()..];
        if c.is_ascii_punctuation() && after.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Some(1 + run(after, |c| c.is_ascii_alphabetic()));
        }
        let is_letter = |c| Class::of(c).meets(Class::LETTER.or(Class::MARK));
        let is_punctuation = |c| Class::of(c).meets(Class::PUNCTUATION.or(Class::SYMBOL));
        if is_letter(c) {
            return Some(run(rest, is_letter));
        }
        if !is_newline(c) && !is_punctuation(c) && after.starts_with(is_letter) {
            return Some(c.len_utf8() + run(after, is_letter));
        }
        let tail: fn(char) -> bool = match self.newline_runs {
            true => is_newline,
            false => |_| false,
        };
        punctuation(rest, c, is_punctuation, tail).or_else(|| spaces(rest, self.newline_runs))
    }
}

fn gpt2(rest: &str, c: char) -> Option<usize> {
    if let Some(length) = contraction(rest, AnyCase::No) {
        return Some(length);
    }
    let lead = usize::from(c == ' ');
    let word = &rest[lead..];
    let sort = Class::SPACE.or(Class::LETTER).or(Class::NUMBER);
    if let Some(class) = word.chars().next().map(Class::of) {
        let length = match class {
            _ if class.meets(Class::LETTER) => run(word, |c| Class::of(c).meets(Class::LETTER)),
            _ if class.meets(Class::NUMBER) => run(word, is_number),
            _ => run(word, |c| !Class::of(c).meets(sort)),
        };
        if length > 0 {
            return Some(lead + length);
        }
    }
    last_spaces(rest)
}

/// Whether upper-case contractions count.
#[derive(PartialEq, Eq, Clone, Copy)]
enum AnyCase {
    Yes,
    No,
}

/// `'s|'t|'re|'ve|'m|'ll|'d`
fn contraction(rest: &str, any_case: AnyCase) -> Option<usize> {
    let bytes = rest.as_bytes();
    if bytes.first() != Some(&b'\'') {
        return None;
    }
    let letter = |at: usize| match (bytes.get(at), any_case) {
        (Some(byte), AnyCase::Yes) => byte.to_ascii_lowercase(),
        (Some(byte), AnyCase::No) => *byte,
        (None, _) => 0,
    };
    match (letter(1), letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(2),
        (b'r' | b'v', b'e') | (b'l', b'l') => Some(3),
        _ => None,
    }
}

/// ` ?[set]+[tail]*`
fn punctuation(rest: &str, c: char, set: impl Fn(char) -> bool, tail: impl Fn(char) -> bool) -> Option<usize> {
    let length = spaced_run(rest, c, |c| c == ' ', set)?;
    Some(length + run(&rest[length..], tail))
}

/// `[space]?[set]+`
fn spaced_run(rest: &str, c: char, space: impl Fn(char) -> bool, set: impl Fn(char) -> bool) -> Option<usize> {
    let lead = match space(c) {
        true => c.len_utf8(),
        false => 0,
    };
    match run(&rest[lead..], &set) {
        // The space may itself be of the set.
        0 if lead > 0 && set(c) => Some(lead),
        0 => None,
        length => Some(lead + length),
    }
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+`, or with `[\r\n]` first where line ends stand alone.
fn spaces(rest: &str, newline_runs: bool) -> Option<usize> {
    if newline_runs {
        let all = run(rest, char::is_whitespace);
        if let Some(last) = rest[..all].rfind(is_newline) {
            return Some(last + 1);
        }
    } else if rest.starts_with(is_newline) {
        return Some(1);
    }
    last_spaces(rest)
}

/// `\s+(?!\S)|\s+`: white space up to the end of the text, or without the last one before a word.
fn last_spaces(rest: &str) -> Option<usize> {
    let all = run(rest, char::is_whitespace);
    let last = rest[..all].chars().next_back()?;
    Some(match all - last.len_utf8() {
        0 => all,
        _ if all == rest.len() => all,
        but_one => but_one,
    })
}

/// The length in bytes of the longest start of `rest` with all characters in `set`.
fn run(rest: &str, set: impl Fn(char) -> bool) -> usize {
    rest.find(|c| !set(c)).unwrap_or(rest.len())
}

fn run_up_to(rest: &str, longest: usize, set: impl Fn(char) -> bool) -> usize {
    rest.chars().take(longest).take_while(|c| set(*c)).map(char::len_utf8).sum()
}

fn is_newline(c: char) -> bool {
    c == '\r' || c == '\n'
}

fn is_number(c: char) -> bool {
    Class::of(c).meets(Class::NUMBER)
}

fn in_phrase(c: char) -> bool {
    const STOPS: [char; 15] = ['(', '|', '.', ',', '!', '?', '…', '。', '，', '、', '।', '۔', '،', ')', ' '];
    !c.is_whitespace() && !STOPS.contains(&c)
}

fn split_digits_from_right<'t>(text: &'t str, emit: &mut dyn FnMut(&'t str)) {
    let mut rest = text;
    while !rest.is_empty() {
        let other;
        (other, rest) = rest.split_at(rest.find(is_number).unwrap_or(rest.len()));
        if !other.is_empty() {
            emit(other);
        }
        let mut digits;
        (digits, rest) = rest.split_at(run(rest, is_number));
        let mut left = digits.chars().count();
        while left > 0 {
            let group = match left % 3 {
                0 => 3,
                first => first,
            };
            let piece;
            (piece, digits) = digits.split_at(run_up_to(digits, group, is_number));
            emit(piece);
            left -= group;
        }
    }
}
