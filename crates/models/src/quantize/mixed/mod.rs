//! Mixed precision: a type for each tensor, by what the model loses, so that a budget is met.
//!
//! What an error of a tensor costs is measured: each tensor alone (or each part of a layer) is quantized coarsely, and the KL
//! divergence of the model's predictions from the original's taken. For small errors the divergence is proportional to the
//! error's power, so that this one measurement and the errors of all other types, which are cheap, give the cost of every type;
//! and errors of different tensors nearly add up. What they add up to is measured again in the end. Types that are coarser than
//! what was measured are measured before they are taken: beyond small errors divergences grow as they like.

pub(in crate::quantize) mod overlay;
mod sensitivity;

use std::ops::ControlFlow;
use std::path::Path;

use core_tensor::{DType, FileAccess};
use loader_gguf::Gguf;
use polaris_quant::mixed::{Budget, BudgetError, Choice, Decision, spend};
use polaris_quant::plot::{Bar, Chart};
use polaris_quant::{Importances, Mixture};
use serde::{Deserialize, Serialize};

use super::{QuantizeOptions, plan};
use crate::Error;
use crate::backends::BackendOptions;
use sensitivity::Lab;

/// What a mixed model has to meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MixedBudget {
    /// The file takes this many bytes at most.
    FileBytes(u64),
    /// The tensors take this many bytes at most.
    TensorBytes(u64),
    /// The mean KL divergence from the original, on the text, is this at most (in nats).
    Divergence(f64),
}

/// What is probed together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probes {
    /// Each tensor alone: as many loads and evaluations as there are tensors.
    #[default]
    Tensors,
    /// Of each layer what attends and what feeds forward: two loads and evaluations a layer.
    Parts,
}

/// How types are chosen.
#[derive(Clone, Debug)]
pub struct MixedOptions {
    /// What is to be met.
    pub budget: MixedBudget,
    /// The text that divergences are measured on; without one all tensors' relative errors count alike.
    pub text: Option<String>,
    /// Tokens of a chunk of it.
    pub context: usize,
    /// Chunks that probes are evaluated on.
    pub chunks: usize,
    /// What is probed together.
    pub probes: Probes,
    /// Importances of columns; errors are weighted by them.
    pub importances: Option<(Importances, String)>,
    /// The types to choose from; those whose blocks no whole number makes up a tensor's rows are left out for that tensor.
    pub candidates: Vec<DType>,
    /// What runs the model.
    pub backend: BackendOptions,
    /// Threads that encode.
    pub threads: usize,
    /// Mapped or read.
    pub access: FileAccess,
}

impl MixedOptions {
    /// Two chunks of 256 tokens, each tensor probed alone, all types from Q2_K to Q8_0.
    #[must_use]
    pub fn new(budget: MixedBudget) -> MixedOptions {
        use core_tensor::BlockFormat as B;
        let formats = [
            B::Q2_K,
            B::Q3_K,
            B::IQ4_XS,
            B::IQ4_NL,
            B::Q4_K,
            B::Q4_0,
            B::Q4_1,
            B::Q5_K,
            B::Q5_0,
            B::Q5_1,
            B::Q6_K,
            B::Q8_0,
        ];
        MixedOptions {
            budget,
            text: None,
            context: 256,
            chunks: 2,
            probes: Probes::default(),
            importances: None,
            candidates: formats.map(DType::Block).to_vec(),
            backend: BackendOptions::default(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            access: FileAccess::default(),
        }
    }
}

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
    /// The divergence (in nats) that a relative error of one would give, if it went on as it begins; 1 where nothing was measured.
    pub sensitivity: f64,
    /// What the choice loses: the product of both.
    pub cost: f64,
    /// Why not less and not more.
    pub reason: String,
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
}

/// Told what is worked on: things done, things in all, what. `Break` cancels.
pub type MixedProgress<'a> = dyn FnMut(usize, usize, &str) -> ControlFlow<()> + 'a;

/// A tensor with its choices.
struct Candidate {
    name: String,
    shape: Vec<usize>,
    from: DType,
    /// The relative error of each choice.
    errors: Vec<f64>,
    choices: Vec<Choice>,
    /// The choices whose costs were measured, the one that it is probed with first.
    measured: Vec<usize>,
    sensitivity: f64,
}

/// Chooses a type for each tensor of a model.
///
/// # Errors
/// When the model cannot be read or run, no assignment meets the budget, a divergence is to be met and there is no text to
/// measure it on, or `progress` cancels.
pub fn assign_mixed(
    input: &Path,
    options: &MixedOptions,
    progress: &mut MixedProgress<'_>,
) -> Result<MixedReport, Error> {
    let model = Gguf::open(input, options.access)?;
    if matches!(options.budget, MixedBudget::Divergence(_)) && options.text.is_none() {
        return Err(Error::Option { name: "max-kl", reason: "a text is needed to measure it on".into() });
    }
    let lab = Lab::new(&model, options, progress)?;
    let (mut candidates, kept) = candidates(&model, options, &lab, progress)?;
    lab.probe(&mut candidates, options.probes, progress)?;
    let unmet = |error: BudgetError| Error::Option { name: "budget", reason: error.to_string() };
    let (decisions, measured) = match options.budget {
        MixedBudget::Divergence(limit) => meet_divergence(&lab, &mut candidates, limit, progress)?,
        MixedBudget::FileBytes(_) | MixedBudget::TensorBytes(_) => {
            let total = match options.budget {
                MixedBudget::FileBytes(bytes) => bytes.saturating_sub(overhead(&model)),
                MixedBudget::TensorBytes(bytes) => bytes,
                MixedBudget::Divergence(_) => 0,
            };
            let budget = Budget::Bytes(total.saturating_sub(kept));
            let decisions = settle(&lab, &mut candidates, budget, progress)?.map_err(unmet)?;
            let measured = lab.measure(&candidates, &decisions, progress)?;
            (decisions, measured)
        }
    };
    Ok(report(options, &candidates, &decisions, kept, measured))
}

/// What a file has besides its tensors, with room for what alignment may add.
fn overhead(model: &Gguf) -> u64 {
    const ALIGNMENT: u64 = 32;
    let files: u64 = model.shards().map(|file| std::fs::metadata(file.path()).map_or(0, |data| data.len())).sum();
    let tensors: u64 = model.tensors().iter().map(|info| info.byte_len() as u64).sum();
    files.saturating_sub(tensors) + ALIGNMENT * model.tensors().len() as u64
}

/// Every tensor that a mixture would quantize, with its choices; and the bytes of the others.
fn candidates(
    model: &Gguf,
    options: &MixedOptions,
    lab: &Lab<'_>,
    progress: &mut MixedProgress<'_>,
) -> Result<(Vec<Candidate>, u64), Error> {
    let rules =
        QuantizeOptions { allow_requantize: true, access: options.access, ..QuantizeOptions::new(Mixture::Q8_0) };
    let planned = plan(model, &rules)?;
    let (mut found, mut kept) = (Vec::new(), 0);
    let count = planned.len();
    for (i, tensor) in planned.into_iter().enumerate() {
        // What the rules leave alone, and what is quantized already.
        let whole =
            |dtype: &&DType| tensor.shape.last().is_some_and(|columns| columns.is_multiple_of(dtype.packing().0));
        let fitting: Vec<DType> = options.candidates.iter().filter(whole).copied().collect();
        if tensor.to == tensor.from || tensor.from.is_block() || fitting.is_empty() {
            kept += Choice { dtype: tensor.from, bytes: bytes(&tensor.shape, tensor.from), cost: 0.0 }.bytes;
            continue;
        }
        if progress(i, count, &tensor.name).is_break() {
            return Err(Error::Cancelled);
        }
        let errors = lab.errors(&tensor.name, &fitting)?;
        let choice = |(dtype, error): (&DType, &f64)| Choice {
            dtype: *dtype,
            bytes: bytes(&tensor.shape, *dtype),
            cost: *error,
        };
        let choices: Vec<Choice> = fitting.iter().zip(&errors).map(choice).collect();
        let probe = probe(&choices, &tensor.shape);
        let (name, shape, from) = (tensor.name, tensor.shape, tensor.from);
        found.push(Candidate { name, shape, from, errors, choices, measured: vec![probe], sensitivity: 1.0 });
    }
    Ok((found, kept))
}

fn bytes(shape: &[usize], dtype: DType) -> u64 {
    let (len, bytes) = dtype.packing();
    (shape.iter().product::<usize>() / len * bytes) as u64
}

fn bits(shape: &[usize], bytes: u64) -> f64 {
    bytes as f64 * 8.0 / shape.iter().product::<usize>().max(1) as f64
}

/// The coarsest type of three bits or more: an error that is seen well, and not one that breaks the model.
fn probe(choices: &[Choice], shape: &[usize]) -> usize {
    let coarse = |i: &usize| bits(shape, choices[*i].bytes) >= 3.0;
    let by_bytes = |i: &usize| choices[*i].bytes;
    (0..choices.len()).filter(coarse).min_by_key(by_bytes).unwrap_or(0)
}

/// The assignment for a budget, of which no type is coarser than what was measured: where one is, it is measured, and types are chosen again.
fn settle(
    lab: &Lab<'_>,
    candidates: &mut [Candidate],
    budget: Budget,
    progress: &mut MixedProgress<'_>,
) -> Result<Result<Vec<Decision>, BudgetError>, Error> {
    const ROUNDS: usize = 4;
    for _ in 0..ROUNDS {
        let Ok(decisions) = choose(candidates, budget) else { break };
        if !lab.correct(candidates, &decisions, progress)? {
            return Ok(Ok(decisions));
        }
    }
    Ok(choose(candidates, budget))
}

fn choose(candidates: &[Candidate], budget: Budget) -> Result<Vec<Decision>, BudgetError> {
    let choices: Vec<Vec<Choice>> = candidates.iter().map(|candidate| candidate.choices.clone()).collect();
    spend(&choices, budget)
}

/// Assignments whose predicted costs come nearer and nearer to the one that gives the divergence.
fn meet_divergence(
    lab: &Lab<'_>,
    candidates: &mut [Candidate],
    limit: f64,
    progress: &mut MixedProgress<'_>,
) -> Result<(Vec<Decision>, Option<f64>), Error> {
    const ROUNDS: usize = 5;
    let unmet = |reason: String| Error::Option { name: "max-kl", reason };
    let (mut target, mut best) = (limit, None);
    for _ in 0..ROUNDS {
        let decisions = match settle(lab, candidates, Budget::Cost(target), progress)? {
            // As good as it gets: perhaps it is enough.
            Err(BudgetError::Cost { least, .. }) => choose(candidates, Budget::Cost(least)),
            found => found,
        };
        let decisions = decisions.map_err(|error| unmet(error.to_string()))?;
        let predicted: f64 =
            decisions.iter().zip(&*candidates).map(|(d, candidate)| candidate.choices[d.choice].cost).sum();
        let Some(measured) = lab.measure(candidates, &decisions, progress)? else { break };
        if measured <= limit {
            best = Some((decisions, Some(measured)));
            if measured > 0.85 * limit {
                break;
            }
        }
        // A little less than what the limit would be by the ratio that was found.
        let next = predicted * limit / measured.max(1e-12) * 0.97;
        if (next - target).abs() < 0.01 * target {
            break;
        }
        target = next;
    }
    best.ok_or_else(|| unmet(format!("no assignment of the types that there are has a divergence of {limit} or less")))
}

fn report(
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
            MixedTensor {
                name: candidate.name.clone(),
                shape: candidate.shape.clone(),
                from: candidate.from.to_string(),
                to: choice.dtype.to_string(),
                bytes: choice.bytes,
                bits: bits(&candidate.shape, choice.bytes),
                relative_error: candidate.errors[decision.choice],
                sensitivity: candidate.sensitivity,
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
    /// The types that were chosen, by the names of the tensors.
    #[must_use]
    pub fn types(&self) -> Vec<(String, DType)> {
        let dtype =
            |tensor: &MixedTensor| super::tensor_dtype(&tensor.to).ok().map(|dtype| (tensor.name.clone(), dtype));
        self.tensors.iter().filter_map(dtype).collect()
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

    #[test]
    fn probes_are_coarse_but_of_three_bits() {
        let choice = |bytes| Choice { dtype: DType::F16, bytes, cost: 0.0 };
        // 2.6, 3.4, 4.5 and 8.5 bits of 256 weights.
        assert_eq!(probe(&[choice(84), choice(272), choice(110), choice(144)], &[1, 256]), 2);
        assert_eq!(probe(&[choice(84)], &[1, 256]), 0);
    }
}
