//! Mixed precision: a type for each tensor, by what the model loses, so that a budget is met.
//!
//! What an error of a tensor costs is measured: each tensor alone (or each part of a layer) is quantized coarsely, and the KL
//! divergence of the model's predictions from the original's taken. For small errors the divergence is proportional to the
//! error's power, so that this one measurement and the errors of all other types, which are cheap, give the cost of every type;
//! and errors of different tensors nearly add up. What they add up to is measured again in the end. Types that are coarser than
//! what was measured (by more than a quarter of its error) are measured before they are taken: beyond small errors divergences grow as they like.

pub(in crate::quantize) mod overlay;
mod report;
mod sensitivity;

use std::ops::ControlFlow;
use std::path::Path;

use core_tensor::{DType, FileAccess};
use loader_gguf::Gguf;
use polaris_quant::mixed::{Budget, BudgetError, Choice, Decision, spend};
use polaris_quant::{AssignOptions, Importances, Mixture};
use serde::{Deserialize, Serialize};

use super::plan::{demanded, quantized_already};
use super::{QuantizeOptions, TensorType, plan};
use crate::Error;
use crate::backends::BackendOptions;
use report::report;
use sensitivity::Lab;

pub use report::{MixedData, MixedReport, MixedTensor};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probes {
    /// Each tensor alone: as many loads and evaluations as there are tensors (and one for each type that is coarser and wanted).
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
    /// What the report calls the text (a path).
    pub dataset: String,
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
    /// The types that are demanded of the output matrix and the embeddings, and whether the former stays as it is.
    pub assign: AssignOptions,
    /// Types that are demanded of tensors by their names.
    pub tensor_types: Vec<TensorType>,
    /// Whether tensors that are quantized already may be quantized again; else they stay as they are.
    pub allow_requantize: bool,
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
            dataset: String::new(),
            context: 256,
            chunks: 2,
            probes: Probes::default(),
            importances: None,
            candidates: formats.map(DType::Block).to_vec(),
            assign: AssignOptions::default(),
            tensor_types: Vec::new(),
            allow_requantize: false,
            backend: BackendOptions::default(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            access: FileAccess::default(),
        }
    }
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
    if let MixedBudget::Divergence(limit) = options.budget
        && !(limit > 0.0 && limit.is_finite())
    {
        return Err(Error::Option { name: "max-kl", reason: "it is a number above 0".into() });
    }
    let mut lab = Lab::new(&model, options, progress)?;
    let Sorted { mut candidates, settled, kept } = candidates(&model, options, &mut lab, progress)?;
    if candidates.is_empty() {
        let reason = format!("there is no tensor to choose a type for{}", quantized_stays(&model, options));
        return Err(Error::Unusable { path: input.to_owned(), reason });
    }
    lab.probe(&mut candidates, options.probes, progress)?;
    let (decisions, measured) = match options.budget {
        MixedBudget::Divergence(limit) => meet_divergence(&lab, &mut candidates, limit, progress)?,
        MixedBudget::FileBytes(_) | MixedBudget::TensorBytes(_) => {
            let total = match options.budget {
                MixedBudget::FileBytes(bytes) => bytes.saturating_sub(overhead(&model)),
                MixedBudget::TensorBytes(bytes) => bytes,
                MixedBudget::Divergence(_) => 0,
            };
            let budget = Budget::Bytes(total.saturating_sub(kept));
            let decisions = lab.settle(&mut candidates, budget, progress)?;
            let decisions = decisions.map_err(|error| unmet(&model, options, &candidates, kept, &error))?;
            let measured = lab.measure(&candidates, &decisions, progress)?;
            if measured.is_some_and(|measured| !measured.is_finite()) {
                let reason = "with the types that the budget allows, its predictions are no numbers".to_owned();
                return Err(Error::Unusable { path: input.to_owned(), reason });
            }
            (decisions, measured)
        }
    };
    Ok(MixedReport { settled, ..report(options, &candidates, &decisions, kept, measured) })
}

/// What a file has besides its tensors, with room for what alignment may add.
fn overhead(model: &Gguf) -> u64 {
    const ALIGNMENT: u64 = 32;
    let files: u64 = model.shards().map(|file| std::fs::metadata(file.path()).map_or(0, |data| data.len())).sum();
    let tensors: u64 = model.tensors().iter().map(|info| info.byte_len() as u64).sum();
    files.saturating_sub(tensors) + ALIGNMENT * model.tensors().len() as u64
}

/// What to add where less is to choose for than one may think.
fn quantized_stays(model: &Gguf, options: &MixedOptions) -> &'static str {
    let quantized = model.tensors().iter().any(|info| info.dtype().is_some_and(DType::is_block));
    match quantized && !options.allow_requantize {
        true => "; what is quantized already stays as it is without --allow-requantize",
        false => "",
    }
}

/// Why a budget of bytes is not met, with the smallest that could be.
fn unmet(model: &Gguf, options: &MixedOptions, candidates: &[Candidate], kept: u64, error: &BudgetError) -> Error {
    let budget = options.budget;
    let (name, beside, what) = match budget {
        MixedBudget::FileBytes(_) => ("target-size", kept + overhead(model), "file"),
        MixedBudget::TensorBytes(_) => ("vram", kept, "weights"),
        MixedBudget::Divergence(_) => ("max-kl", 0, ""),
    };
    let given = match budget {
        MixedBudget::FileBytes(bytes) | MixedBudget::TensorBytes(bytes) => bytes,
        MixedBudget::Divergence(_) => 0,
    };
    let reason = match error {
        BudgetError::Bytes { least, .. } => {
            let (least, more) = (least + beside, quantized_stays(model, options));
            format!("with the smallest types the {what} would take {least} bytes, and there are {given}{more}")
        }
        BudgetError::Choices(at) => {
            let name = candidates.get(*at).map_or("", |candidate| &candidate.name);
            format!("tensor '{name}' has no type to choose, or a cost that is no number")
        }
        BudgetError::Cost { .. } => error.to_string(),
    };
    Error::Option { name, reason }
}

/// A model's tensors: those that types are chosen for, and the others with their types and bytes.
struct Sorted {
    candidates: Vec<Candidate>,
    settled: Vec<(String, DType)>,
    kept: u64,
}

/// Every tensor that a mixture would quantize and nobody demands a type of, with its choices; and the others.
fn candidates(
    model: &Gguf,
    options: &MixedOptions,
    lab: &mut Lab<'_>,
    progress: &mut MixedProgress<'_>,
) -> Result<Sorted, Error> {
    let rules = QuantizeOptions {
        assign: options.assign,
        tensor_types: options.tensor_types.clone(),
        allow_requantize: true,
        access: options.access,
        ..QuantizeOptions::new(Mixture::Q8_0)
    };
    let planned = plan(model, &rules)?;
    let tied = !planned.iter().any(|tensor| tensor.name == "output.weight");
    let mut sorted = Sorted { candidates: Vec::new(), settled: Vec::new(), kept: 0 };
    let count = planned.len();
    for (i, tensor) in planned.into_iter().enumerate() {
        let whole =
            |dtype: &&DType| tensor.shape.last().is_some_and(|columns| columns.is_multiple_of(dtype.packing().0));
        let fitting: Vec<DType> = options.candidates.iter().filter(whole).copied().collect();
        let wanted = demanded(&options.tensor_types, &tensor.name)
            .or_else(|| options.assign.demanded(&tensor.name, tied))
            .map(|_| tensor.to);
        // What the rules leave alone, and what is quantized already.
        let left = (tensor.to == tensor.from && !tensor.from.is_block())
            || (tensor.from.is_block() && !options.allow_requantize)
            || (options.assign.leave_output && tensor.name == "output.weight");
        if left || wanted.is_some() || fitting.is_empty() {
            let to = wanted.unwrap_or(tensor.from);
            if to != tensor.from && tensor.from.is_block() && !options.allow_requantize {
                return Err(quantized_already(model.path(), &tensor.name, tensor.from));
            }
            if to != tensor.from {
                lab.demand(&tensor.name, to);
            }
            sorted.kept += bytes(&tensor.shape, to);
            sorted.settled.push((tensor.name, to));
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
        sorted.candidates.push(Candidate {
            name,
            shape,
            from,
            errors,
            choices,
            measured: vec![probe],
            sensitivity: 1.0,
        });
    }
    Ok(sorted)
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

impl Candidate {
    /// Whether a choice is so much coarser than all that was measured that nobody knows what it costs.
    fn is_unknown(&self, choice: usize) -> bool {
        /// Errors so much larger than a measured one are believed to cost in proportion.
        const BELIEVED: f64 = 1.25;
        let coarsest = self.measured.iter().map(|choice| self.errors[*choice]).fold(0.0, f64::max);
        self.errors[choice] > BELIEVED * coarsest
    }

    /// Takes in what a choice was measured to cost; those that are coarser still cost more in proportion.
    fn learn(&mut self, choice: usize, cost: f64) {
        let error = self.errors[choice];
        for (other, of) in self.choices.iter_mut().zip(&self.errors) {
            if *of >= error {
                other.cost = cost * of / error;
            }
        }
        self.measured.push(choice);
    }
}

/// The assignment for a budget, of which no type is [unknown](Candidate::is_unknown): where one is, `measure` says what it costs, and types are chosen again.
fn settle(
    candidates: &mut [Candidate],
    budget: Budget,
    measure: &mut dyn FnMut(&Candidate, DType) -> Result<f64, Error>,
) -> Result<Result<Vec<Decision>, BudgetError>, Error> {
    // Each round but the last measures a choice that none has measured before.
    loop {
        let decisions = match choose(candidates, budget) {
            Ok(decisions) => decisions,
            unmet => return Ok(unmet),
        };
        let mut corrected = false;
        for (candidate, decision) in candidates.iter_mut().zip(&decisions) {
            if candidate.is_unknown(decision.choice) {
                let cost = measure(candidate, candidate.choices[decision.choice].dtype)?;
                candidate.learn(decision.choice, cost);
                corrected = true;
            }
        }
        if !corrected {
            return Ok(Ok(decisions));
        }
    }
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
        let decisions = match lab.settle(candidates, Budget::Cost(target), progress)? {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 2, 4 and 8 bits with errors of 9, 1 and 0.01 %; the probe of 4 bits cost `sensitivity` of its error.
    fn candidate(name: &str, sensitivity: f64) -> Candidate {
        let errors = vec![0.09, 0.01, 0.0001];
        let choice = |(bytes, error): (u64, &f64)| Choice { dtype: DType::F16, bytes, cost: sensitivity * error };
        Candidate {
            name: name.to_owned(),
            shape: vec![1, 32],
            from: DType::F32,
            choices: [8, 16, 32].into_iter().zip(&errors).map(choice).collect(),
            errors,
            measured: vec![1],
            sensitivity,
        }
    }

    #[test]
    fn types_coarser_than_the_probe_are_measured_before_they_are_taken() {
        // By the probes 2 bits are cheapest for the first; in truth they break the model, and the second bears them.
        let mut candidates = [candidate("super", 0.5), candidate("other", 1.0)];
        let mut measured = Vec::new();
        let decisions = settle(&mut candidates, Budget::Bytes(24), &mut |candidate, _| {
            measured.push(candidate.name.clone());
            Ok(if candidate.name == "super" { 5.0 } else { 0.1 })
        });
        let chosen: Vec<usize> = decisions.unwrap().unwrap().iter().map(|decision| decision.choice).collect();
        assert_eq!((measured, chosen), (vec!["super".to_owned(), "other".to_owned()], vec![1, 0]));
        assert_eq!((candidates[0].choices[0].cost, candidates[0].choices[1].cost), (5.0, 0.005));
        // What was measured is measured once.
        let again = settle(&mut candidates, Budget::Bytes(24), &mut |_, _| unreachable!());
        assert_eq!(again.unwrap().unwrap()[1].choice, 0);
        assert!(matches!(
            settle(&mut candidates, Budget::Bytes(15), &mut |_, _| unreachable!()).unwrap(),
            Err(BudgetError::Bytes { least: 16, .. })
        ));
    }

    #[test]
    fn probes_are_coarse_but_of_three_bits() {
        let choice = |bytes| Choice { dtype: DType::F16, bytes, cost: 0.0 };
        // 2.6, 3.4, 4.5 and 8.5 bits of 256 weights.
        assert_eq!(probe(&[choice(84), choice(272), choice(110), choice(144)], &[1, 256]), 2);
        assert_eq!(probe(&[choice(84)], &[1, 256]), 0);
    }
}
