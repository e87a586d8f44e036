use proptest::prelude::*;

use super::byte_pairs::byte_to_char;
use super::*;

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };

/// The owned parts of a vocabulary.
struct Parts {
    model: &'static str,
    pre: Option<&'static str>,
    tokens: Vec<String>,
    types: Vec<i32>,
    scores: Vec<f32>,
    merges: Vec<String>,
}

impl Parts {
    fn vocabulary(&self) -> Vocabulary<'_> {
        Vocabulary {
            model: self.model,
            pre: self.pre,
            tokens: self.tokens.iter().map(String::as_bytes).collect(),
            token_types: self.types.clone(),
            scores: self.scores.clone(),
            merges: self.merges.iter().map(String::as_bytes).collect(),
            ..Vocabulary::default()
        }
    }

    fn push(&mut self, text: &str, kind: i32, score: f32) -> u32 {
        self.tokens.push(text.to_owned());
        self.types.push(kind);
        if self.model == "llama" {
            self.scores.push(score);
        }
        self.tokens.len() as u32 - 1
    }
}

/// Token n is byte n, then "he" (256), "ll", "hell", "hello", "Ġhello" (260), "<|user|>" a control
/// token, "<b>" a user-defined one, "<|im_end|>" with the wrong type.
fn byte_pairs(pre: &'static str) -> Parts {
    let mut parts = Parts {
        model: "gpt2",
        pre: Some(pre),
        tokens: (0..=255).map(|byte| byte_to_char(byte).to_string()).collect(),
        types: vec![1; 256],
        scores: Vec::new(),
        merges: ["h e", "l l", "he ll", "hell o", "Ġ hello"].map(String::from).to_vec(),
    };
    for merge in parts.merges.clone() {
        parts.push(&merge.replace(' ', ""), 1, 0.0);
    }
    parts.push("<|user|>", 3, 0.0);
    parts.push("<b>", 4, 0.0);
    parts.push("<|im_end|>", 1, 0.0);
    parts
}

/// "<unk>", "<s>", "</s>", the bytes (3..=258), then words by descending score.
fn sentencepiece() -> Parts {
    let mut parts = Parts {
        model: "llama",
        pre: None,
        tokens: Vec::new(),
        types: Vec::new(),
        scores: Vec::new(),
        merges: Vec::new(),
    };
    parts.push("<unk>", 2, 0.0);
    parts.push("<s>", 3, 0.0);
    parts.push("</s>", 3, 0.0);
    for byte in 0..=255 {
        parts.push(&format!("<0x{byte:02X}>"), 6, 0.0);
    }
    for (at, text) in ["▁a", "ab", "▁ab", "▁", "a", "b", "é"].iter().enumerate() {
        parts.push(text, 1, -(at as f32));
    }
    parts
}

fn id(tokenizer: &Tokenizer, text: &str) -> u32 {
    tokenizer.token_id(text).unwrap()
}

fn texts<'t>(tokenizer: &'t Tokenizer, ids: &[u32]) -> Vec<&'t str> {
    ids.iter().map(|id| tokenizer.token_text(*id).unwrap()).collect()
}

#[test]
fn byte_pairs_join_by_rank_within_words() {
    let tokenizer = Tokenizer::new(&byte_pairs("gpt-2").vocabulary()).unwrap();
    let ids = tokenizer.encode("hello hello hel\n", PLAIN);
    assert_eq!(texts(&tokenizer, &ids), ["hello", "Ġhello", "Ġ", "he", "l", "Ċ"]);
    assert_eq!(tokenizer.decode(&ids), "hello hello hel\n");
}

#[test]
fn ignore_merges_takes_words_of_the_vocabulary_whole() {
    let mut parts = byte_pairs("llama-bpe");
    let word = parts.push("abc", 1, 0.0);
    let tokenizer = Tokenizer::new(&parts.vocabulary()).unwrap();
    assert_eq!(tokenizer.encode("abc", PLAIN), [word]);
    parts.pre = Some("dbrx");
    let tokenizer = Tokenizer::new(&parts.vocabulary()).unwrap();
    assert_eq!(tokenizer.encode("abc", PLAIN), [97, 98, 99]);
}

#[test]
fn merges_without_a_token_fall_back_to_single_bytes() {
    let mut parts = byte_pairs("gpt-2");
    parts.merges.push("x y".into());
    let tokenizer = Tokenizer::new(&parts.vocabulary()).unwrap();
    let expected = [b'x', b'y'].map(u32::from);
    assert_eq!(tokenizer.encode("xy", PLAIN), expected);
}

#[test]
fn sentencepiece_joins_by_score_and_writes_unknown_characters_as_bytes() {
    let tokenizer = Tokenizer::new(&sentencepiece().vocabulary()).unwrap();
    let ids = tokenizer.encode("ab é中", PLAIN);
    // "▁a" has the best score, so that "▁ab" comes of "▁a" + "b".
    assert_eq!(texts(&tokenizer, &ids), ["▁ab", "▁", "é", "<0xE4>", "<0xB8>", "<0xAD>"]);
    assert_eq!(tokenizer.decode(&ids), "ab é中");
}

#[test]
fn without_byte_tokens_a_character_is_one_unknown_token() {
    let mut parts = sentencepiece();
    for byte in 0..=255 {
        parts.tokens[3 + byte] = format!("unused{byte}");
    }
    let tokenizer = Tokenizer::new(&parts.vocabulary()).unwrap();
    let ids = tokenizer.encode("a中a", PLAIN);
    assert_eq!(texts(&tokenizer, &ids), ["▁a", "<unk>", "a"]);
}

#[test]
fn sentencepiece_puts_a_space_before_text_and_after_special_tokens() {
    let parts = sentencepiece();
    let tokenizer = Tokenizer::new(&parts.vocabulary()).unwrap();
    let ids = tokenizer.encode("ab</s>ab", EncodeOptions::default());
    assert_eq!(texts(&tokenizer, &ids), ["<s>", "▁ab", "</s>", "▁ab"]);
    let vocabulary = Vocabulary { add_space_prefix: Some(false), ..parts.vocabulary() };
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    let ids = tokenizer.encode("ab</s>ab", EncodeOptions::default());
    assert_eq!(texts(&tokenizer, &ids), ["<s>", "ab", "</s>", "ab"]);
    assert!(tokenizer.encode("", PLAIN).is_empty());
}

#[test]
fn control_tokens_are_found_only_on_request_and_user_defined_ones_always() {
    let tokenizer = Tokenizer::new(&byte_pairs("gpt-2").vocabulary()).unwrap();
    let text = "hello<|user|><b>hello<|im_end|>";
    let ids = tokenizer.encode(text, EncodeOptions::default());
    let expected = ["hello", "<|user|>", "<b>", "hello", "<|im_end|>"];
    assert_eq!(texts(&tokenizer, &ids), expected);
    assert_eq!(tokenizer.decode(&ids), "hello<b>hello");

    let ids = tokenizer.encode(text, PLAIN);
    assert!(!ids.contains(&id(&tokenizer, "<|user|>")));
    assert!(!ids.contains(&id(&tokenizer, "<|im_end|>")));
    assert!(ids.contains(&id(&tokenizer, "<b>")));
    assert_eq!(tokenizer.decode(&ids), text);
}

#[test]
fn of_special_tokens_at_one_place_the_longest_is_found() {
    let mut parts = byte_pairs("gpt-2");
    for text in ["<", "<<<", "<<"] {
        // "<" is a byte token, too, and gets its kind changed.
        match parts.tokens.iter().position(|token| token == text) {
            Some(at) => parts.types[at] = 4,
            None => _ = parts.push(text, 4, 0.0),
        }
    }
    let tokenizer = Tokenizer::new(&parts.vocabulary()).unwrap();
    let ids = tokenizer.encode("<<<<<<", PLAIN);
    assert_eq!(texts(&tokenizer, &ids), ["<<<", "<<<"]);
    let ids = tokenizer.encode("<<<<<h<", PLAIN);
    assert_eq!(texts(&tokenizer, &ids), ["<<<", "<<", "h", "<"]);
}

#[test]
fn texts_begin_and_end_with_what_the_file_says() {
    let parts = byte_pairs("gpt-2");
    let user = 261;
    let encode = |add_bos, add_eos, pre| {
        let vocabulary =
            Vocabulary { pre: Some(pre), bos: Some(user), eos: Some(user + 2), add_bos, add_eos, ..parts.vocabulary() };
        let tokenizer = Tokenizer::new(&vocabulary).unwrap();
        tokenizer.encode("h", EncodeOptions::default())
    };
    let h = u32::from(b'h');
    assert_eq!(encode(None, None, "gpt-2"), [h]);
    assert_eq!(encode(None, None, "llama-bpe"), [user, h]);
    assert_eq!(encode(Some(false), None, "llama-bpe"), [h]);
    assert_eq!(encode(Some(true), Some(true), "gpt-2"), [user, h, user + 2]);
}

#[test]
fn generations_end_with_named_and_with_well_known_tokens() {
    let parts = byte_pairs("gpt-2");
    let vocabulary = Vocabulary { eos: Some(7), other_ends: vec![9, 1_000_000], ..parts.vocabulary() };
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    let im_end = id(&tokenizer, "<|im_end|>");
    assert_eq!(tokenizer.end_of_generation_ids(), [7, 9, im_end]);
    assert_eq!(tokenizer.token_kind(im_end), Some(TokenKind::Control));
    assert!(tokenizer.is_end_of_generation(im_end));
    assert!(!tokenizer.is_end_of_generation(8));
}

#[test]
fn the_end_of_a_message_is_no_end_where_there_are_channels() {
    let mut parts = byte_pairs("gpt-4o");
    let end = parts.push("<|end|>", 3, 0.0);
    let tokenizer = Tokenizer::new(&parts.vocabulary()).unwrap();
    assert!(tokenizer.is_end_of_generation(end));
    let back = parts.push("<|return|>", 3, 0.0);
    parts.push("<|call|>", 3, 0.0);
    let channel = parts.push("<|channel|>", 3, 0.0);
    let tokenizer = Tokenizer::new(&parts.vocabulary()).unwrap();
    assert!(!tokenizer.is_end_of_generation(end));
    assert!(tokenizer.is_end_of_generation(back));
    assert_eq!(tokenizer.token_kind(channel), Some(TokenKind::UserDefined));
}

#[test]
fn a_stream_holds_back_half_a_character_and_hides_control_tokens() {
    let tokenizer = Tokenizer::new(&byte_pairs("gpt-2").vocabulary()).unwrap();
    let ids = tokenizer.encode("é<|user|>🦙", EncodeOptions::default());
    let mut decoder = StreamDecoder::new();
    let pieces: Vec<String> = ids.iter().map(|id| decoder.push(&tokenizer, *id)).collect();
    assert_eq!(pieces, ["", "é", "", "", "", "", "🦙"]);
    assert_eq!(decoder.finish(), "");

    let mut decoder = StreamDecoder::with_special();
    let pieces: Vec<String> = ids[..5].iter().map(|id| decoder.push(&tokenizer, *id)).collect();
    assert_eq!(pieces.concat(), "é<|user|>");
    assert_eq!(decoder.finish(), "\u{fffd}");
    assert_eq!(decoder.push(&tokenizer, u32::MAX), "");
}

#[test]
fn broken_vocabularies_are_refused_with_their_fault() {
    let good = byte_pairs("gpt-2");
    let error = |change: &dyn Fn(&mut Vocabulary<'_>)| {
        let mut vocabulary = good.vocabulary();
        change(&mut vocabulary);
        Tokenizer::new(&vocabulary).unwrap_err().to_string()
    };
    let tokens = good.tokens.len();
    assert_eq!(
        error(&|v| v.model = "bert"),
        r#"tokenizer model "bert" is not supported (supported: gpt2, llama, gemma4)"#
    );
    const LONG: &str = include_str!("tests.rs");
    assert!(error(&|v| v.model = LONG).len() < 300);
    assert!(
        error(&|v| v.pre = Some("klingon"))
            .starts_with(r#"pre-tokenizer "klingon" is not known (known: default, gpt-2, "#)
    );
    assert_eq!(error(&|v| v.tokens.clear()), "the vocabulary has no tokens");
    assert!(error(&|v| v.merges.clear()).contains("no merges"));
    assert!(error(&|v| v.model = "llama").contains("no scores"));
    assert_eq!(error(&|v| v.scores = vec![0.0; 3]), format!("3 scores for {tokens} tokens"));
    assert_eq!(error(&|v| v.token_types.push(1)), format!("{} token types for {tokens} tokens", tokens + 1));
    assert_eq!(error(&|v| v.tokens[9] = b"h"), r#"tokens 9 and 104 are the same text "h""#);
    assert_eq!(error(&|v| v.tokens[9] = b"\xff"), "token 9 is not UTF-8");
    assert_eq!(error(&|v| v.merges[1] = b"\xff f"), "merge 1 is not UTF-8");
    assert!(error(&|v| v.merges[1] = b"ff").starts_with("merge 1 is \"ff\""));
    let long = "x".repeat((4 << 20) + 1);
    let mut parts = byte_pairs("gpt-2");
    parts.push(&long, 3, 0.0);
    let long = Tokenizer::new(&parts.vocabulary()).unwrap_err().to_string();
    assert!(long.starts_with("the special tokens are too many"), "{long}");
    assert_eq!(
        error(&|v| v.eos = Some(999)),
        format!("the end-of-text token has id 999, but there are {tokens} tokens")
    );
    assert!(error(&|v| v.add_bos = Some(true)).contains("names none"));
    assert_eq!(
        error(&|v| {
            v.model = "llama";
            v.scores = vec![0.0; tokens];
            v.scores[5] = f32::NAN;
        }),
        "the score of token 5 is not a number"
    );
}

#[test]
fn oddities_of_real_files_are_accepted() {
    let parts = byte_pairs("gpt-2");
    let mut vocabulary = parts.vocabulary();
    vocabulary.padding = Some(vocabulary.tokens.len() as u32);
    vocabulary.tokens.extend([&b""[..], b""]);
    vocabulary.token_types.extend([5, 77]);
    vocabulary.merges.push(vocabulary.merges[0]);
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    assert_eq!(tokenizer.vocabulary_size(), parts.tokens.len() + 2);
    assert_eq!(tokenizer.encode("hello", PLAIN), [259]);
    assert_eq!(tokenizer.token_id(""), None);

    let types_absent = Vocabulary { token_types: Vec::new(), padding: None, ..parts.vocabulary() };
    assert!(Tokenizer::new(&types_absent).is_ok());
}

proptest! {
    #[test]
    fn any_text_comes_back_from_byte_pairs(
        text: String,
        pre in prop::sample::select(Pretokenizer::names().filter(|name| *name != "gemma4").collect::<Vec<_>>()),
    ) {
        let tokenizer = Tokenizer::new(&byte_pairs(pre).vocabulary()).unwrap();
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text, PLAIN)), text);
    }

    #[test]
    fn any_text_comes_back_from_sentencepiece(text in "([ab▁ é]|\\PC)*") {
        let tokenizer = Tokenizer::new(&sentencepiece().vocabulary()).unwrap();
        let ids = tokenizer.encode(&text, PLAIN);
        prop_assert_eq!(tokenizer.decode(&ids), text.replace('▁', " "));
    }

    #[test]
    fn a_stream_gives_what_decoding_at_once_gives(ids in prop::collection::vec(0u32..300, 0..40)) {
        let tokenizer = Tokenizer::new(&byte_pairs("gpt-2").vocabulary()).unwrap();
        let mut decoder = StreamDecoder::new();
        let mut text: String = ids.iter().map(|id| decoder.push(&tokenizer, *id)).collect();
        text.push_str(&decoder.finish());
        prop_assert_eq!(text, tokenizer.decode(&ids));
    }

    #[test]
    fn no_vocabulary_makes_a_panic(
        model in prop::sample::select(vec!["gpt2", "llama", "gemma4"]),
        tokens in prop::collection::vec("[ab<>|▁]{0,3}", 0..12),
        types in prop::collection::vec(-1i32..8, 12),
        merges in prop::collection::vec("[ab<>|▁]{0,2} [ab<>|▁]{0,2}", 0..5),
        numbers: [Option<u8>; 4],
        text in "[ab<>|▁ \n]{0,12}",
    ) {
        let vocabulary = Vocabulary {
            model,
            pre: Some("gpt-2"),
            tokens: tokens.iter().map(String::as_bytes).collect(),
            token_types: types[..tokens.len()].to_vec(),
            scores: vec![0.5; tokens.len()],
            merges: merges.iter().map(String::as_bytes).collect(),
            bos: numbers[0].map(u32::from),
            eos: numbers[1].map(u32::from),
            unknown: numbers[2].map(u32::from),
            add_bos: numbers[3].map(|number| number % 2 == 0),
            ..Vocabulary::default()
        };
        if let Ok(tokenizer) = Tokenizer::new(&vocabulary) {
            let ids = tokenizer.encode(&text, EncodeOptions::default());
            prop_assert!(ids.iter().all(|id| (*id as usize) < tokens.len()));
            tokenizer.decode(&ids);
        }
    }
}
