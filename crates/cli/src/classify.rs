//! `polaris classify`: labels of texts or of their tokens.

use std::fmt::Write as _;

use clap::Args;
use models::bert::{Classification, Classifier, Scored, Text, TokenLabel, entities};
use serde::Serialize;

use crate::encoder::{EncoderArguments, Texts, go_on, note_truncated};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output::{self, shown};

const EXAMPLES: &str = "\
Examples:
  polaris classify -m sentiment-model -p 'I loved it.' 'It was far too long.'
  polaris classify -m ner-model -p 'Marie Curie was born in Warsaw.'
  polaris classify -m cross-encoder -p 'Why is the sky blue?' --pair 'Light is scattered by air.'
  polaris classify -m model.onnx --file reviews.txt --json | jq '.results[].labels[0].label'

Classifiers of texts print the best labels of each; classifiers of tokens the entities that they find (B- and I- labels joined).";

/// Label texts, or the names in them, with BERT and its kin
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    encoder: EncoderArguments,
    #[command(flatten)]
    texts: Texts,
    /// For classifiers of pairs: the second texts, as many as there are first ones
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    pair: Vec<String>,
    /// Labels to print of each text
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// Print one JSON object: results, each with text, labels (all), tokens, entities, truncated
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    results: Vec<Labelled<'a>>,
}

#[derive(Serialize)]
struct Labelled<'a> {
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pair: Option<&'a str>,
    labels: Vec<Scored>,
    tokens: Vec<TokenLabel>,
    /// Runs of tokens of one label; `start` and `end` are bytes of UTF-8, as those of tokens.
    entities: Vec<TokenLabel>,
    truncated: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    let texts = arguments.texts.read()?;
    let pairs = &arguments.pair;
    if !pairs.is_empty() && pairs.len() != texts.len() {
        let reason = format!("--pair has {} texts for {} first ones", pairs.len(), texts.len());
        return Err(Failure::Usage(reason));
    }
    let classifier =
        arguments.encoder.open(&interrupt, |path, encoder, progress| Classifier::open(path, encoder, progress))?;
    let _busy = interrupt.busy();
    let inputs: Vec<Text<'_>> = texts
        .iter()
        .enumerate()
        .map(|(number, text)| Text { first: text, second: pairs.get(number).map(String::as_str) })
        .collect();
    let found = classifier.classify(&inputs, &mut |_, _| go_on(&interrupt))?;
    let truncated = found.iter().filter(|one| one.truncated).count();
    let results: Vec<Labelled<'_>> = inputs.iter().zip(found).map(|(input, found)| labelled(*input, found)).collect();
    if arguments.json {
        return output::write_json(&Answer { results });
    }
    output::write(&lines(&results, arguments.top))?;
    note_truncated(truncated, classifier.encoder().tokenizer());
    Ok(())
}

fn labelled<'a>(input: Text<'a>, found: Classification) -> Labelled<'a> {
    Labelled {
        text: input.first,
        pair: input.second,
        entities: entities(input.first, &found.tokens),
        labels: found.labels,
        tokens: found.tokens,
        truncated: found.truncated,
    }
}

fn lines(results: &[Labelled<'_>], top: usize) -> String {
    let mut text = String::new();
    for result in results {
        let _ = writeln!(text, "{}", shown(result.text));
        for Scored { label, score } in result.labels.iter().take(top) {
            let _ = writeln!(text, "  {score:.4}  {}", shown(label));
        }
        for entity in &result.entities {
            let _ = writeln!(text, "  {:.4}  {}: {}", entity.score, shown(&entity.label), shown(&entity.text));
        }
    }
    text
}
