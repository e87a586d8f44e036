//! Labels for texts and for their tokens.

use std::path::Path;

use serde::Serialize;

use super::encoder::Encoder;
use super::graph::name;
use super::labels::Scored;
use super::options::{BertOptions, TextProgress};
use super::tokens::{Text, Tokens};
use crate::Error;
use crate::llama::LoadProgress;

/// A classifier of texts or of tokens.
#[derive(Debug)]
pub struct Classifier {
    encoder: Encoder,
    per_token: bool,
}

/// What a classifier says of a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Classification {
    /// All labels of the text, the best first; empty for a classifier of tokens.
    pub labels: Vec<Scored>,
    /// The text's tokens with their best labels; empty for a classifier of texts.
    pub tokens: Vec<TokenLabel>,
    /// Whether the text was too long and was cut.
    pub truncated: bool,
}

/// A token, or a run of them, with its label.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLabel {
    /// The text that it stands for.
    pub text: String,
    /// Its label.
    pub label: String,
    /// The label's score; of a run, the mean.
    pub score: f32,
    /// Where it begins in the text, in bytes of UTF-8.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

impl Classifier {
    /// Opens a model (see [`Encoder::open`]).
    ///
    /// # Errors
    /// As [`Encoder::open`]; also when the model is no classifier.
    pub fn open(
        path: impl AsRef<Path>,
        options: &BertOptions,
        progress: &mut LoadProgress<'_>,
    ) -> Result<Classifier, Error> {
        Classifier::new(Encoder::open(path, options, progress)?)
    }

    /// A classifier of an encoder that is open already.
    ///
    /// # Errors
    /// When the encoder has no logits.
    pub fn new(encoder: Encoder) -> Result<Classifier, Error> {
        let output = encoder.output(&[name::LOGITS]).ok_or_else(|| encoder.lacks(name::LOGITS))?;
        let per_token = output.rank == 3;
        Ok(Classifier { encoder, per_token })
    }

    /// The encoder.
    #[must_use]
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Whether tokens are labelled, and not the text as a whole.
    #[must_use]
    pub fn labels_tokens(&self) -> bool {
        self.per_token
    }

    /// Classifies texts, or pairs of texts, evaluated in batches of similar length.
    ///
    /// # Errors
    /// When the tokenizer or the backend fails, the labels do not fit the model, or `progress` breaks.
    pub fn classify<'a, T: Copy + Into<Text<'a>>>(
        &self,
        texts: &[T],
        progress: &mut TextProgress<'_>,
    ) -> Result<Vec<Classification>, Error> {
        let texts: Vec<Text<'_>> = texts.iter().map(|text| (*text).into()).collect();
        let tokens = self.encoder.tokenize(&texts)?;
        let output = self.encoder.output(&[name::LOGITS]).ok_or_else(|| self.encoder.lacks(name::LOGITS))?;
        let mut results: Vec<Classification> = tokens
            .iter()
            .map(|tokens| Classification { labels: Vec::new(), tokens: Vec::new(), truncated: tokens.truncated })
            .collect();
        self.encoder.run(&tokens, output, progress, &mut |number, logits, width| {
            if let (Some(result), Some(text), Some(tokens)) =
                (results.get_mut(number), texts.get(number), tokens.get(number))
            {
                match self.per_token {
                    true => result.tokens = self.label_tokens(*text, tokens, logits, width),
                    false => result.labels = self.rank(logits),
                }
            }
            Ok(())
        })?;
        Ok(results)
    }

    /// All labels, the best first.
    fn rank(&self, logits: &[f32]) -> Vec<Scored> {
        let labels = self.encoder.labels();
        let mut scores = logits.to_vec();
        labels.scores(scores.len()).apply(&mut scores);
        let scored = scores.into_iter().enumerate();
        let mut scored: Vec<Scored> =
            scored.map(|(label, score)| Scored { label: labels.name(label), score }).collect();
        scored.sort_by(|a, b| b.score.total_cmp(&a.score));
        scored
    }

    fn label_tokens(&self, text: Text<'_>, tokens: &Tokens, logits: &[f32], width: usize) -> Vec<TokenLabel> {
        let rows = logits.chunks_exact(width.max(1));
        let all = rows.zip(&tokens.offsets).zip(&tokens.special).zip(&tokens.types);
        all.filter(|(((_, (start, end)), special), kind)| !**special && start < end && **kind == 0)
            .filter_map(|(((row, (start, end)), _), _)| {
                let best = self.rank(row).into_iter().next()?;
                let (start, end) = (*start, *end);
                let text = text.first.get(start..end).unwrap_or_default().to_owned();
                Some(TokenLabel { text, label: best.label, score: best.score, start, end })
            })
            .collect()
    }
}

/// Joins the tokens of a text that belong together: runs of one label, where a label that begins with `B-` begins anew. What is labelled `O`
/// is left out; `B-` and `I-` are cut off.
#[must_use]
pub fn entities(text: &str, tokens: &[TokenLabel]) -> Vec<TokenLabel> {
    let mut runs: Vec<(TokenLabel, usize)> = Vec::new();
    let mut last_end = None;
    for token in tokens {
        let (begins, label) = match token.label.split_at_checked(2) {
            Some(("B-", label)) => (true, label),
            Some(("I-", label)) => (false, label),
            _ => (false, token.label.as_str()),
        };
        if label == "O" {
            last_end = None;
            continue;
        }
        match runs.last_mut() {
            Some((run, count)) if !begins && run.label == label && last_end == Some(run.end) => {
                run.end = token.end;
                run.score += token.score;
                *count += 1;
            }
            _ => runs.push((TokenLabel { label: label.to_owned(), ..token.clone() }, 1)),
        }
        last_end = Some(token.end);
    }
    let whole = |(run, count): (TokenLabel, usize)| TokenLabel {
        text: text.get(run.start..run.end).unwrap_or(&run.text).to_owned(),
        score: run.score / count as f32,
        ..run
    };
    runs.into_iter().map(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_label_become_one_entity() {
        let text = "New York and Paris Texas";
        let token = |start: usize, end: usize, label: &str, score| TokenLabel {
            text: text[start..end].into(),
            label: label.into(),
            score,
            start,
            end,
        };
        let tokens = [
            token(0, 3, "B-LOC", 0.5),
            token(4, 8, "I-LOC", 1.0),
            token(9, 12, "O", 0.9),
            token(13, 18, "I-LOC", 0.8),
            token(19, 24, "B-LOC", 0.7),
        ];
        let found = entities(text, &tokens);
        let found: Vec<(&str, &str, f32)> =
            found.iter().map(|e| (e.text.as_str(), e.label.as_str(), e.score)).collect();
        assert_eq!(found, [("New York", "LOC", 0.75), ("Paris", "LOC", 0.8), ("Texas", "LOC", 0.7)]);
    }
}
