//! From the hidden states of a text's tokens to one vector.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::files::{Json, ModelFiles, short};
use crate::Error;

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// The vector of the first token.
    Cls,
    /// Their maximum, element by element.
    Max,
    /// Their sum, divided by the square root of their number.
    MeanSqrtLen,
    /// The vector of the last token.
    Last,
}

impl Pooling {
    /// Every kind with the name that commands use.
    pub const ALL: [(&'static str, Pooling); 5] = [
        ("mean", Pooling::Mean),
        ("cls", Pooling::Cls),
        ("max", Pooling::Max),
        ("mean-sqrt-len", Pooling::MeanSqrtLen),
        ("last", Pooling::Last),
    ];

    /// The vector of a text: `hidden` is `[tokens, width]`, without padding.
    #[must_use]
    pub fn pool(self, hidden: &[f32], width: usize) -> Vec<f32> {
        let rows = hidden.chunks_exact(width.max(1));
        let count = rows.len();
        let sum = || {
            let mut sum = vec![0.0_f64; width];
            for row in rows.clone() {
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            sum
        };
        let divided = |by: f64| sum().into_iter().map(|sum| (sum / by) as f32).collect();
        match self {
            Pooling::Mean => divided(count.max(1) as f64),
            Pooling::MeanSqrtLen => divided((count.max(1) as f64).sqrt()),
            Pooling::Cls => rows.clone().next().map_or_else(|| vec![0.0; width], <[f32]>::to_vec),
            Pooling::Last => rows.clone().last().map_or_else(|| vec![0.0; width], <[f32]>::to_vec),
            Pooling::Max => {
                let mut most = vec![f32::NEG_INFINITY; width];
                for row in rows {
                    most.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(*x));
                }
                most
            }
        }
    }
}

/// Divides a vector by its length, as sentence-transformers does: lengths below 1e-12 count as that.
pub fn normalize(vector: &mut [f32]) {
    let squares: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let length = squares.sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
}

/// What follows the encoder in a sentence-transformers model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Modules {
    /// How tokens are pooled; `None` if no module says.
    pub(crate) pooling: Option<Pooling>,
    /// Whether vectors are normalized; `None` if there is no list of modules.
    pub(crate) normalize: Option<bool>,
}

impl Modules {
    /// Reads `modules.json` and the pooling's configuration beside a model.
    ///
    /// # Errors
    /// When a file is malformed, or a module is none that is computed here.
    pub(crate) fn find(files: &ModelFiles) -> Result<Modules, Error> {
        let Some(list) = files.json("modules.json")? else {
            let pooling = files.json("1_Pooling/config.json")?.map(|json| pooling(&json)).transpose()?;
            return Ok(Modules { pooling, normalize: None });
        };
        let mut modules = Modules { pooling: None, normalize: Some(false) };
        for module in list.value.as_array().into_iter().flatten() {
            let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Normalize" => modules.normalize = Some(true),
                "Pooling" => {
                    let folder = module.get("path").and_then(Value::as_str).unwrap_or("1_Pooling");
                    let named = Path::new(folder);
                    if named.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
                        return Err(list.wrong("path", format!("{folder:?} is no folder beside the model")));
                    }
                    let json = files.json(&format!("{folder}/config.json"))?;
                    modules.pooling = json.map(|json| pooling(&json)).transpose()?;
                }
                _ => return Err(list.wrong("type", format!("the module {} is not supported", short(&kind.into())))),
            }
        }
        Ok(modules)
    }
}

/// The kind of pooling that a configuration asks for.
fn pooling(json: &Json) -> Result<Pooling, Error> {
    let kinds = [
        ("pooling_mode_cls_token", "cls", Pooling::Cls),
        ("pooling_mode_mean_tokens", "mean", Pooling::Mean),
        ("pooling_mode_max_tokens", "max", Pooling::Max),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
        ("pooling_mode_lasttoken", "lasttoken", Pooling::Last),
    ];
    if let Some(mode) = json.text("pooling_mode")? {
        let found = kinds.iter().find(|(_, name, _)| *name == mode).map(|(_, _, pooling)| *pooling);
        return found.ok_or_else(|| json.wrong("pooling_mode", format!("{mode:?} is not supported")));
    }
    let set = json.value.as_object().into_iter().flatten();
    let set: Vec<&String> = set
        .filter(|(key, value)| key.starts_with("pooling_mode_") && **value == Value::Bool(true))
        .map(|(key, _)| key)
        .collect();
    match set[..] {
        [] => Ok(Pooling::Mean),
        [key] => {
            let found = kinds.iter().find(|(name, _, _)| name == key).map(|(_, _, pooling)| *pooling);
            found.ok_or_else(|| json.wrong(key, "is not supported"))
        }
        [_, second, ..] => Err(json.wrong(second, "several kinds of pooling side by side are not supported")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_kind_pools_as_its_name_says() {
        let hidden = [1.0, -2.0, 3.0, 4.0, 5.0, -8.0, 7.0, 2.0];
        assert_eq!(Pooling::Mean.pool(&hidden, 2), [4.0, -1.0]);
        assert_eq!(Pooling::MeanSqrtLen.pool(&hidden, 2), [8.0, -2.0]);
        assert_eq!(Pooling::Cls.pool(&hidden, 2), [1.0, -2.0]);
        assert_eq!(Pooling::Last.pool(&hidden, 2), [7.0, 2.0]);
        assert_eq!(Pooling::Max.pool(&hidden, 2), [7.0, 4.0]);
        assert_eq!(Pooling::Mean.pool(&[], 2), [0.0, 0.0]);
    }

    #[test]
    fn a_normalized_vector_has_length_one_and_zero_stays_zero() {
        let mut vector = [3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zero = [0.0; 3];
        normalize(&mut zero);
        assert_eq!(zero, [0.0; 3]);
    }

    #[test]
    fn the_configuration_names_one_kind() {
        let kind = |value| pooling(&Json { path: "config.json".into(), value });
        assert_eq!(
            kind(json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})).unwrap(),
            Pooling::Cls
        );
        assert_eq!(kind(json!({"pooling_mode": "mean"})).unwrap(), Pooling::Mean);
        assert_eq!(kind(json!({"word_embedding_dimension": 3})).unwrap(), Pooling::Mean);
        assert!(kind(json!({"pooling_mode_weightedmean_tokens": true})).is_err());
        assert!(kind(json!({"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true})).is_err());
    }
}
