//! Pre-tokenizers: how text is cut into words before byte-pair merging.
//!
//! Merges never cross the border of a word, so the cut decides the tokens as much as the merges
//! do. GGUF files name it (`tokenizer.ggml.pre`) and leave the pattern to the reader; the names,
//! the groups of names that share a pattern, and the patterns are those that llama.cpp knows.
//! For `gpt-4o` and `tekken` the pattern is the one of the model's original tokenizer, of
//! which llama.cpp has an approximation (it treats letters beyond ASCII as having no case).

mod cased_letters;
mod class;
mod pass;

use cased_letters::is_cased_letter;
use class::Class;
use pass::{CasedWords, Pass, PunctuatedWords, Words};

/// A pre-tokenizer and the habits of the models that use it.
#[derive(Debug)]
pub(super) struct Pretokenizer {
    passes: &'static [Pass],
    /// Whether a word that is in the vocabulary is a token at once, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether a beginning-of-text token is added where the file does not say.
    pub(super) add_bos: bool,
}

impl Pretokenizer {
    /// The pre-tokenizer with this name, if it is known.
    pub(super) fn named(name: &str) -> Option<&'static Pretokenizer> {
        TABLE.iter().find(|(names, _)| names.contains(&name)).map(|(_, pretokenizer)| pretokenizer)
    }

    /// All names that [`Pretokenizer::named`] knows.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        TABLE.iter().flat_map(|(names, _)| names.iter().copied())
    }

    /// Hands the words of `text` to `emit`, in order; together they are `text`, none is empty.
    pub(super) fn split<'t>(&self, text: &'t str, emit: &mut dyn FnMut(&'t str)) {
        split(self.passes, text, emit);
    }
}

/// Each pass cuts the pieces of the one before; the depth is the number of passes.
fn split<'t>(passes: &[Pass], text: &'t str, emit: &mut dyn FnMut(&'t str)) {
    match passes {
        [] => emit(text),
        [last] => last.split(text, emit),
        [first, others @ ..] => first.split(text, &mut |piece| split(others, piece, emit)),
    }
}

type Entry = (&'static [&'static str], Pretokenizer);

const fn entry(names: &'static [&'static str], passes: &'static [Pass]) -> Entry {
    let pretokenizer = Pretokenizer { passes, ignore_merges: false, add_bos: false };
    (names, pretokenizer)
}

const fn ignoring_merges((names, pretokenizer): Entry) -> Entry {
    let ignore_merges = true;
    (names, Pretokenizer { ignore_merges, ..pretokenizer })
}

const fn adding_bos((names, pretokenizer): Entry) -> Entry {
    let add_bos = true;
    (names, Pretokenizer { add_bos, ..pretokenizer })
}

static TABLE: &[Entry] = &[
    entry(
        &["default"],
        &[
            Pass::Runs { sets: &[is_default_punctuation], longest: usize::MAX },
            Pass::Gpt2,
            DIGIT_RUNS,
            Pass::DigitTriples,
        ],
    ),
    entry(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
            "trillion",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "roberta-bpe",
        ],
        &[Pass::Gpt2],
    ),
    entry(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[SINGLE_DIGITS, Pass::Gpt2],
    ),
    adding_bos(ignoring_merges(entry(
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
        LLAMA3,
    ))),
    entry(&["dbrx", "smaug-bpe", "chatglm-bpe"], LLAMA3),
    ignoring_merges(entry(&["glm4", "glm5"], LLAMA3)),
    entry(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
            "bailingmoe",
            "bailingmoe2",
            "llada-moe",
        ],
        &[QWEN2],
    ),
    entry(&["laguna"], &[Pass::Lines, QWEN2]),
    entry(&["qwen35"], &[Pass::Words(Words { letters: Class::LETTER.or(Class::MARK), digits: 1, ..GPT4_WORDS })]),
    entry(&["ufakzeka"], &[Pass::Words(Words { contractions: false, digits: 1, ..GPT4_WORDS })]),
    entry(&["seed-coder"], &[Pass::Words(Words { digits: 1, newlines_after_punctuation: false, ..GPT4_WORDS })]),
    ignoring_merges(entry(&["minicpm5"], &[DIGITS_BY_THREE, Pass::Words(Words { digits: usize::MAX, ..GPT4_WORDS })])),
    entry(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    entry(&["tiny_aya", "cohere2moe"], &[Pass::DigitsFromRight, GPT4O]),
    adding_bos(ignoring_merges(entry(&["tekken"], &[Pass::CasedWords(CasedWords { contractions: false, digits: 1 })]))),
    entry(
        &["deepseek-llm"],
        &[
            SINGLE_NEWLINES,
            Pass::SpacedRuns(is_cased_letter),
            Pass::SpacedRuns(is_deepseek_punctuation),
            Pass::TrailingSpace,
            CJK_RUNS,
            DIGIT_RUNS,
        ],
    ),
    entry(
        &["deepseek-coder"],
        &[
            SINGLE_NEWLINES,
            Pass::SpacedRuns(|c| Class::of(c).meets(Class::LETTER)),
            Pass::SpacedRuns(|c| Class::of(c).meets(Class::PUNCTUATION)),
            CJK_RUNS,
            SINGLE_DIGITS,
        ],
    ),
    entry(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[DIGITS_BY_THREE, CJK_AND_KANA_RUNS, DEEPSEEK3]),
    entry(
        &["spark2_5"],
        &[
            DIGITS_BY_THREE,
            CJK_AND_KANA_RUNS,
            Pass::PunctuatedWords(PunctuatedWords { newline_runs: false }),
            SINGLE_DIGITS,
        ],
    ),
    entry(&["afmoe"], &[Pass::DigitsFromRight, Pass::Runs { sets: &[is_asian], longest: usize::MAX }, DEEPSEEK3]),
    entry(
        &["falcon"],
        &[
            Pass::Runs { sets: &[|c| is_default_punctuation(c) || c == '`'], longest: usize::MAX },
            Pass::Gpt2,
            Pass::DigitTriples,
        ],
    ),
    entry(&["bloom", "poro-chat", "gpt3-finnish"], &[Pass::Phrases]),
    adding_bos(entry(&["gemma4"], &[Pass::Lines])),
    entry(&["viking"], &[Pass::Phrases, SINGLE_DIGITS]),
];

const GPT4_WORDS: Words =
    Words { contractions: true, letters: Class::LETTER, digits: 3, newlines_after_punctuation: true };

const LLAMA3: &[Pass] = &[Pass::Words(GPT4_WORDS)];

const QWEN2: Pass = Pass::Words(Words { digits: 1, ..GPT4_WORDS });

const GPT4O: Pass = Pass::CasedWords(CasedWords { contractions: true, digits: 3 });

const DEEPSEEK3: Pass = Pass::PunctuatedWords(PunctuatedWords { newline_runs: true });

/// `\p{N}`
const SINGLE_DIGITS: Pass = Pass::Runs { sets: &[is_number], longest: 1 };

/// `\p{N}{1,3}`
const DIGITS_BY_THREE: Pass = Pass::Runs { sets: &[is_number], longest: 3 };

/// `\p{N}+`
const DIGIT_RUNS: Pass = Pass::Runs { sets: &[is_number], longest: usize::MAX };

/// `[\r\n]`
const SINGLE_NEWLINES: Pass = Pass::Runs { sets: &[|c| c == '\r' || c == '\n'], longest: 1 };

/// `[一-龥ࠀ-一가-퟿]+`
const CJK_RUNS: Pass =
    Pass::Runs { sets: &[|c| matches!(c, '\u{800}'..='\u{9fa5}' | '\u{ac00}'..='\u{d7ff}')], longest: usize::MAX };

/// `[一-龥぀-ゟ゠-ヿ]+`
const CJK_AND_KANA_RUNS: Pass =
    Pass::Runs { sets: &[|c| matches!(c, '\u{4e00}'..='\u{9fa5}' | '\u{3040}'..='\u{30ff}')], longest: usize::MAX };

fn is_number(c: char) -> bool {
    Class::of(c).meets(Class::NUMBER)
}

/// `[\p{P}\$\+<=>\^~\|]`
fn is_default_punctuation(c: char) -> bool {
    Class::of(c).meets(Class::PUNCTUATION) || matches!(c, '$' | '+' | '<' | '=' | '>' | '^' | '~' | '|')
}

/// The ranges of afmoe: Thai, Lao, Myanmar, Hangul, Khmer, kana, Han and what lies behind it.
fn is_asian(c: char) -> bool {
    matches!(c,
        '\u{e40}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1100}'..='\u{11ff}'
        | '\u{1780}'..='\u{17ff}' | '\u{2f00}'..='\u{2fdf}' | '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{faff}' | '\u{ff65}'..='\u{ff9f}')
}

/// `[!-/:-~！-／：-～‘-‟　-。]`
fn is_deepseek_punctuation(c: char) -> bool {
    matches!(c, '!'..='/' | ':'..='~' | '！'..='／' | '：'..='～' | '‘'..='‟' | '\u{3000}'..='。')
}

#[cfg(test)]
mod tests;
