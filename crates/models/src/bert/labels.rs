//! What the outputs of a classifier are called, and how they become scores.

use serde::Serialize;

use super::files::{Json, short};
use crate::Error;

/// Labels that are believed.
const MOST_LABELS: usize = 1 << 20;

/// How logits become scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scores {
    /// One of the labels holds: scores sum to 1.
    #[default]
    Softmax,
    /// Each label holds or not: every score lies between 0 and 1.
    Sigmoid,
    /// The logit itself (regression).
    Plain,
}

/// The labels of a classifier (`id2label`, `problem_type`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Labels {
    /// By their numbers; empty if the file names none.
    pub names: Vec<String>,
    /// How logits become scores; `None` if the file does not say.
    pub scores: Option<Scores>,
}

impl Labels {
    /// Reads the labels of a `config.json`.
    pub(crate) fn from_json(json: &Json) -> Result<Labels, Error> {
        let scores = match json.text("problem_type")? {
            None => None,
            Some("single_label_classification") => Some(Scores::Softmax),
            Some("multi_label_classification") => Some(Scores::Sigmoid),
            Some("regression") => Some(Scores::Plain),
            Some(other) => return Err(json.wrong("problem_type", format!("{other:?} is not supported"))),
        };
        let Some(value) = json.get("id2label") else { return Ok(Labels { names: Vec::new(), scores }) };
        let Some(object) = value.as_object().filter(|object| object.len() <= MOST_LABELS) else {
            return Err(json.wrong("id2label", format!("{} (an object of labels expected)", short(value))));
        };
        let mut names = vec![None; object.len()];
        for (id, name) in object {
            let place = id.parse().ok().and_then(|id: usize| names.get_mut(id));
            match (place, name.as_str()) {
                (Some(place), Some(name)) => *place = Some(name.to_owned()),
                _ => {
                    return Err(
                        json.wrong("id2label", format!("{id:?}: {} is no label of {}", short(name), object.len()))
                    );
                }
            }
        }
        // As many keys as places, each in its range: a gap means that two of them were the same number.
        let names: Option<Vec<String>> = names.into_iter().collect();
        let names = names.ok_or_else(|| json.wrong("id2label", "two labels of the same number"))?;
        Ok(Labels { names, scores })
    }

    /// The name of a label.
    #[must_use]
    pub fn name(&self, label: usize) -> String {
        self.names.get(label).cloned().unwrap_or_else(|| format!("LABEL_{label}"))
    }

    /// How the logits of `count` labels become scores: as the file says; else as transformers does, by a sigmoid where there is one label only.
    #[must_use]
    pub fn scores(&self, count: usize) -> Scores {
        self.scores.unwrap_or(if count == 1 { Scores::Sigmoid } else { Scores::Softmax })
    }
}

impl Scores {
    /// Turns logits into scores in place.
    pub fn apply(self, logits: &mut [f32]) {
        match self {
            Scores::Plain => {}
            Scores::Sigmoid => logits.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
            Scores::Softmax => {
                let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                logits.iter_mut().for_each(|x| *x = (*x - most).exp());
                let sum: f32 = logits.iter().sum();
                logits.iter_mut().for_each(|x| *x /= sum);
            }
        }
    }
}

/// A label with its score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scored {
    /// The label's name.
    pub label: String,
    /// Its score.
    pub score: f32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels(value: serde_json::Value) -> Result<Labels, Error> {
        Labels::from_json(&Json { path: "config.json".into(), value })
    }

    #[test]
    fn labels_stand_at_their_numbers_and_wrong_ones_are_refused() {
        let good = labels(json!({"id2label": {"1": "up", "0": "down"}, "problem_type": "multi_label_classification"}))
            .unwrap();
        assert_eq!((good.names, good.scores), (vec!["down".to_owned(), "up".into()], Some(Scores::Sigmoid)));
        for wrong in [json!({"5": "x"}), json!({"-1": "x"}), json!({"0": 1}), json!([]), json!({"0": "a", "00": "b"})] {
            let error = labels(json!({ "id2label": wrong })).unwrap_err().to_string();
            assert!(error.starts_with("config.json: 'id2label': "), "{error}");
        }
        assert_eq!(labels(json!({})).unwrap().name(3), "LABEL_3");
    }

    #[test]
    fn scores_are_finite_for_large_logits() {
        let mut logits = [1000.0, 0.0, 1000.0];
        Scores::Softmax.apply(&mut logits);
        assert_eq!(logits, [0.5, 0.0, 0.5]);
        let mut logits = [0.0, 1000.0, -1000.0];
        Scores::Sigmoid.apply(&mut logits);
        assert_eq!(logits, [0.5, 1.0, 0.0]);
    }
}
