//! What mixed precision chose, and why.

use core_tensor::DType;
use polaris_quant::Mixture;
use polaris_quant::mixed::Decision;
use polaris_quant::plot::{Bar, Chart};
use serde::{Deserialize, Serialize};

use super::{Candidate, MixedBudget, MixedOptions, Probes, bits};

/// What a tensor gets, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MixedTensor {
    /// Its name.
    pub name: String,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// The type that it had.
    pub from: String,
    /// The type that it gets.
    pub to: String,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Bits of a weight.
    pub bits: f64,
    /// The error's power relative to the weights', weighted by importances.
    pub relative_error: f64,
    /// The divergence (in nats) that a relative error of one would give, if it went on as at the type that was measured and is nearest to the
    /// chosen one; 1 where nothing was measured.
    pub sensitivity: f64,
    /// What the choice loses: the product of both.
    pub cost: f64,
    /// Why not less and not more.
    pub reason: String,
}

/// What was measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MixedData {
    /// The text.
    pub dataset: String,
    /// Tokens of a chunk.
    pub context: usize,
    /// Chunks at most.
    pub chunks: usize,
    /// What was probed together.
    pub probes: Probes,
}

/// The choice for a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MixedReport {
    /// What was to be met, in words.
    pub budget: String,
    /// Every tensor that is quantized, in the file's order.
    pub tensors: Vec<MixedTensor>,
    /// Bytes of all of the file's tensors.
    pub bytes: u64,
    /// The sum of the costs: the divergence in nats where it was measured.
    pub predicted: f64,
    /// The divergence of the whole assignment, measured; none without a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<f64>,
    /// What it was measured on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<MixedData>,
    /// The tensors that there was nothing to choose for, with the types that they keep or that were demanded.
    #[serde(skip)]
    pub(super) settled: Vec<(String, DType)>,
}

/// What was chosen, and why.
pub(super) fn report(
    options: &MixedOptions,
    candidates: &[Candidate],
    decisions: &[Decision],
    kept: u64,
    measured: Option<f64>,
) -> MixedReport {
    let tensors: Vec<MixedTensor> = candidates
        .iter()
        .zip(decisions)
        .map(|(candidate, decision)| {
            let choice = candidate.choices[decision.choice];
            let relative_error = candidate.errors[decision.choice];
            // That of the choice: types coarser than the probe were measured themselves.
            let sensitivity = if relative_error > 0.0 { choice.cost / relative_error } else { candidate.sensitivity };
            MixedTensor {
                name: candidate.name.clone(),
                shape: candidate.shape.clone(),
                from: candidate.from.to_string(),
                to: choice.dtype.to_string(),
                bytes: choice.bytes,
                bits: bits(&candidate.shape, choice.bytes),
                relative_error,
                sensitivity,
                cost: choice.cost,
                reason: reason(candidate, decision),
            }
        })
        .collect();
    let budget = match options.budget {
        MixedBudget::FileBytes(bytes) => format!("a file of {bytes} bytes"),
        MixedBudget::TensorBytes(bytes) => format!("tensors of {bytes} bytes"),
        MixedBudget::Divergence(limit) => format!("a divergence of {limit}"),
    };
    MixedReport {
        budget,
        bytes: kept + tensors.iter().map(|tensor| tensor.bytes).sum::<u64>(),
        predicted: tensors.iter().map(|tensor| tensor.cost).sum(),
        tensors,
        measured,
        data: options.text.as_ref().map(|_| MixedData {
            dataset: options.dataset.clone(),
            context: options.context,
            chunks: options.chunks,
            probes: options.probes,
        }),
        settled: Vec::new(),
    }
}

/// What the last step up saved, and what the next one would.
fn reason(candidate: &Candidate, decision: &Decision) -> String {
    const MEGABYTE: f64 = 1e6;
    let below = match decision.saved {
        Some(rate) => format!("its last step up saves {:.2e} for a MB", rate * MEGABYTE),
        None => "the smallest that is worth having".to_owned(),
    };
    match decision.next {
        Some((next, rate)) => {
            format!("{below}; {} would save {:.2e} for a MB", candidate.choices[next].dtype, rate * MEGABYTE)
        }
        None => format!("{below}; nothing better to choose"),
    }
}

impl MixedReport {
    /// The types of the tensors by their names: those that were chosen, and of a report that comes from [`assign_mixed`](super::assign_mixed) and not from a file, those of all
    /// others.
    #[must_use]
    pub fn types(&self) -> Vec<(String, DType)> {
        let dtype = |tensor: &MixedTensor| {
            crate::quantize::tensor_dtype(&tensor.to).ok().map(|dtype| (tensor.name.clone(), dtype))
        };
        self.tensors.iter().filter_map(dtype).chain(self.settled.iter().cloned()).collect()
    }

    /// The mixture whose main type takes the most bytes: what the file calls itself.
    #[must_use]
    pub fn main_mixture(&self) -> Mixture {
        let of = |mixture: &Mixture| -> u64 {
            let name = mixture.dtype().to_string();
            self.tensors.iter().filter(|tensor| tensor.to == name).map(|tensor| tensor.bytes).sum()
        };
        // Of mixtures with one main type the first, whichever that is, stands for it.
        Mixture::ALL.into_iter().rev().max_by_key(of).unwrap_or(Mixture::Q8_0)
    }

    /// What an error in each tensor costs.
    #[must_use]
    pub fn sensitivity_chart(&self) -> Chart {
        let bar = |tensor: &MixedTensor| Bar {
            label: tensor.name.clone(),
            value: tensor.sensitivity,
            group: kind(&tensor.name).to_owned(),
        };
        Chart {
            title: "Sensitivity: KL divergence for a relative error".into(),
            axis: "nats".into(),
            logarithmic: true,
            bars: self.tensors.iter().map(bar).collect(),
        }
    }

    /// What each tensor takes.
    #[must_use]
    pub fn size_chart(&self) -> Chart {
        let bar = |tensor: &MixedTensor| Bar {
            label: format!("{} {}", tensor.name, tensor.to),
            value: tensor.bits,
            group: tensor.to.clone(),
        };
        Chart {
            title: format!("Size: {:.1} MB of tensors", self.bytes as f64 / 1e6),
            axis: "bits of a weight".into(),
            logarithmic: false,
            bars: self.tensors.iter().map(bar).collect(),
        }
    }
}

/// `attn_q` of `blk.3.attn_q.weight`.
fn kind(name: &str) -> &str {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    name.rsplit('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_a_kind_have_one_colour() {
        assert_eq!(kind("blk.3.attn_q.weight"), "attn_q");
        assert_eq!(kind("token_embd.weight"), "token_embd");
    }
}
