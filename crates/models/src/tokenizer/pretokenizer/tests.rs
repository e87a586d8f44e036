//! Every pre-tokenizer against the regular expressions that define it.

use fancy_regex::Regex;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const CJK: &str = "[一-龥\u{800}-一가-\u{d7ff}]+";
const CJK_AND_KANA: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";

/// A name of each pre-tokenizer, and its patterns. DeepSeek's list of letters is shortened to
/// what [`text`] draws from.
const PATTERNS: &[(&str, &[&str])] = &[
    ("default", &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    ("gpt-2", &[GPT2]),
    ("smollm", &[r"\p{N}", GPT2]),
    ("llama-bpe", &[LLAMA3]),
    ("dbrx", &[LLAMA3]),
    ("glm4", &[LLAMA3]),
    ("qwen2", &[QWEN2]),
    ("laguna", &[r"[^\n]+|[\n]+", QWEN2]),
    ("qwen35", &[QWEN35]),
    ("ufakzeka", &[r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]),
    (
        "bailingmoe",
        &[
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
    ),
    (
        "seed-coder",
        &[
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    (
        "minicpm5",
        &[
            r"\p{N}{1,3}",
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    ("gpt-4o", &[GPT4O]),
    ("tiny_aya", &[r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", GPT4O]),
    ("tekken", &[TEKKEN]),
    ("deepseek-llm", &[r"[\r\n]", r"\s?[A-Za-zÉßжǅ]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", CJK, r"\p{N}+"]),
    ("deepseek-coder", &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"]),
    ("deepseek-v3", &[r"\p{N}{1,3}", CJK_AND_KANA, DEEPSEEK3]),
    (
        "spark2_5",
        &[
            r"\p{N}{1,3}",
            CJK_AND_KANA,
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##,
            r"\p{N}",
        ],
    ),
    (
        "afmoe",
        &[
            r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
            "[一-鿿㐀-䶿\u{8c48}-\u{faff}\u{3040}-ゟ゠-ヿ･-ﾟ\u{2f00}-\u{2fdf}\u{e40}-\u{e7f}\u{e80}-\u{eff}\u{1780}-\u{17ff}က-႟ꩠ-ꩿꧠ-\u{a9ff}가-\u{d7af}ᄀ-ᇿ]+",
            DEEPSEEK3,
        ],
    ),
    ("falcon", &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    ("bloom", &[r" ?[^(\s|.,!?…。，、।۔،)]+"]),
    ("viking", &[r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"]),
    ("gemma4", &[r"[^\n]+|[\n]+"]),
];

/// Cuts as a general regular expression engine does it.
fn split_by_regex<'t>(patterns: &[Regex], text: &'t str) -> Vec<&'t str> {
    patterns.iter().fold(vec![text], |pieces, pattern| {
        let mut refined = Vec::new();
        for piece in pieces {
            let mut end = 0;
            for found in pattern.find_iter(piece) {
                let found = found.unwrap();
                refined.extend([&piece[end..found.start()], found.as_str()]);
                end = found.end();
            }
            refined.push(&piece[end..]);
        }
        refined.retain(|piece| !piece.is_empty());
        refined
    })
}

fn split_by_name<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
    let mut pieces = Vec::new();
    Pretokenizer::named(name).unwrap().split(text, &mut |piece| pieces.push(piece));
    pieces
}

/// Short texts of characters at which patterns decide differently.
fn text() -> impl Strategy<Value = String> {
    let characters = concat!(
        "aabesdtmlvrSTRELL''''ZÉßж中文あ가ไ\u{1d2c}ǅ\u{301}\u{93f}",
        "0123456789½²٣ \u{a0}\u{3000}      \t\r\n\n\r\n\u{b}\u{85}",
        "!?.,,;:(-/_/$+<=>^`|~…。，「🦙€\u{200b}\u{0}\u{feff}\u{e000}"
    );
    let characters: Vec<char> = characters.chars().collect();
    prop::collection::vec(prop::sample::select(characters), 0..24)
        .prop_map(|characters| characters.into_iter().collect())
}

#[test]
fn every_pretokenizer_has_its_patterns_in_this_test() {
    for (names, pretokenizer) in TABLE {
        let tested = PATTERNS.iter().find(|(name, _)| names.contains(name));
        let (_, patterns) = tested.unwrap_or_else(|| panic!("{names:?} have no test"));
        assert_eq!(pretokenizer.passes.len(), patterns.len(), "{names:?}");
    }
}

#[test]
fn no_name_is_given_twice() {
    let mut names: Vec<_> = Pretokenizer::names().collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn matchers_cut_any_text_as_their_regular_expressions_do() {
    for (name, patterns) in PATTERNS {
        let patterns: Vec<Regex> = patterns.iter().map(|p| Regex::new(p).unwrap()).collect();
        let config = ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() };
        // One runner for each: a runner that has had its cases runs no more.
        TestRunner::new(config)
            .run(&text(), |text| {
                let expected = split_by_regex(&patterns, &text);
                prop_assert_eq!(split_by_name(name, &text), expected, "{}", name);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn words_of_a_sentence() {
    assert_eq!(
        split_by_name("llama-bpe", "I'LL pay  $1234.50\n\nok "),
        ["I", "'LL", " pay", " ", " $", "123", "4", ".", "50", "\n\n", "ok", " "]
    );
    assert_eq!(
        split_by_name("gpt-2", "I'll pay  $1234.50\n\nok "),
        ["I", "'ll", " pay", " ", " $", "1234", ".", "50", "\n", "\n", "ok", " "]
    );
    assert_eq!(split_by_name("gpt-4o", "parseHTTPRequest's"), ["parse", "HTTPRequest's"]);
    assert_eq!(split_by_name("tiny_aya", "1234567"), ["1", "234", "567"]);
}

#[test]
fn a_long_text_takes_no_more_than_linear_time() {
    // Each of these makes a backtracking engine, or a matcher that looks ahead again and again,
    // go quadratic: half a minute at this length instead of milliseconds.
    let units = [" ", " \n", "\n", "7", "a", "Aa", "中A", "'", "\u{301}", " .", "<|", "\u{3000}"];
    let start = std::time::Instant::now();
    for unit in units {
        let text = unit.repeat(100_000) + "x";
        for (name, _) in PATTERNS {
            let joined: usize = split_by_name(name, &text).iter().map(|piece| piece.len()).sum();
            assert_eq!(joined, text.len());
        }
    }
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}
