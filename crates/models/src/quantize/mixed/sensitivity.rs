//! What errors of tensors cost: errors of every type, and divergences of the model with some tensors quantized.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use core_tensor::{Backend, DType, Tensor, decode_f32};
use loader_gguf::Gguf;
use polaris_quant::block::encode_with_threads;
use polaris_quant::mixed::{Budget, BudgetError, Decision};

use super::overlay::Overlay;
use super::{Candidate, MixedOptions, MixedProgress, Probes};
use crate::Error;
use crate::backends::{self, Activations, BackendOptions};
use crate::llama::{KvDType, Llama, LlamaOptions, PerplexityOptions, Picked, Reference};

/// Weights of a tensor that errors are measured on at most.
const SAMPLE: usize = 1 << 18;
/// What is taken for a divergence (in nats) that is infinite or larger than this: what the model loses where its predictions are no numbers any more. Beyond
/// all that a vocabulary allows, but a number, so that better types are cheaper in proportion.
const BROKEN: f64 = 1e3;

/// A model that is measured.
pub(super) struct Lab<'a> {
    model: &'a Gguf,
    options: &'a MixedOptions,
    runs: Option<Runs>,
    /// Tensors that types are demanded of.
    demanded: Vec<(String, DType)>,
}

/// What running the model takes.
struct Runs {
    backends: Vec<Arc<dyn Backend>>,
    options: LlamaOptions,
    reference: Reference,
}

/// What is probed together: a tensor's name, or a layer and its part.
type Group = (usize, String);

impl<'a> Lab<'a> {
    /// Runs the original on the text, if there is one.
    pub(super) fn new(
        model: &'a Gguf,
        options: &'a MixedOptions,
        progress: &mut MixedProgress<'_>,
    ) -> Result<Lab<'a>, Error> {
        let Some(text) = &options.text else { return Ok(Lab { model, options, runs: None, demanded: Vec::new() }) };
        if progress(0, 1, "the original").is_break() {
            return Err(Error::Cancelled);
        }
        // Rounded activations would hide small errors of weights.
        let backend = BackendOptions { activations: Activations::F32, ..options.backend };
        let run = LlamaOptions {
            access: options.access,
            backend,
            kv_dtype: KvDType::F32,
            context: Some(options.context),
            slots: 1,
        };
        let backends = backends::open(&backend)?.backends;
        let lab = Lab { model, options, runs: None, demanded: Vec::new() };
        let original = lab.load(&backends, &run, HashMap::new())?;
        let (context, chunks) = (options.context, Some(options.chunks));
        let chunks = PerplexityOptions { context, chunks, picked: Picked::Spread };
        let reference = Reference::of(&original, text, &chunks)?;
        if !reference.is_finite() {
            let reason = "its own predictions on the text are no numbers: nothing can be measured with it".to_owned();
            return Err(Error::Unusable { path: model.path().to_owned(), reason });
        }
        Ok(Lab { runs: Some(Runs { backends, options: run, reference }), ..lab })
    }

    /// Notes a type that is demanded of a tensor: every assignment has it.
    pub(super) fn demand(&mut self, name: &str, dtype: DType) {
        self.demanded.push((name.to_owned(), dtype));
    }

    fn load(
        &self,
        backends: &[Arc<dyn Backend>],
        options: &LlamaOptions,
        replaced: HashMap<String, Tensor>,
    ) -> Result<Llama, Error> {
        let overlay = Overlay { model: self.model, replaced };
        Llama::with_weights(self.model, &overlay, backends, options, &mut |_, _| ControlFlow::Continue(()))
    }

    /// The importances of a tensor's columns, if they are known and it is one matrix.
    fn importance(&self, name: &str, columns: usize) -> Option<Vec<f32>> {
        let (importances, _) = self.options.importances.as_ref()?;
        crate::quantize::means(importances, name).filter(|means| means.len() == columns)
    }

    /// The relative error of a tensor in each type, on rows from all over it.
    pub(super) fn errors(&self, name: &str, dtypes: &[DType]) -> Result<Vec<f64>, Error> {
        let tensor = self.model.tensor(name)?;
        let fault = |reason: String| self.fault(name, reason);
        let columns = tensor.shape().last().copied().unwrap_or(1).max(1);
        let rows = tensor.len() / columns;
        let row_bytes = tensor.dtype().row_bytes(columns).unwrap_or(0);
        let count = (SAMPLE / columns).clamp(1, rows.max(1)).min(rows);
        let mut values = Vec::with_capacity(count * columns);
        for i in 0..count {
            let row = i * rows / count;
            let bytes = tensor.bytes().get(row * row_bytes..(row + 1) * row_bytes);
            let bytes = bytes.ok_or_else(|| fault("its bytes end early".into()))?;
            values.extend(decode_f32(tensor.dtype(), bytes, columns).map_err(|error| fault(error.to_string()))?);
        }
        let importance = self.importance(name, columns);
        let mut errors = Vec::with_capacity(dtypes.len());
        for dtype in dtypes {
            let mut out = vec![0; count * dtype.row_bytes(columns).unwrap_or(0)];
            encode_with_threads(*dtype, &values, columns, importance.as_deref(), self.options.threads, &mut out)
                .map_err(|error| fault(error.to_string()))?;
            let decoded = decode_f32(*dtype, &out, values.len()).map_err(|error| fault(error.to_string()))?;
            let (mut noise, mut power) = (0.0, 0.0);
            for (values, decoded) in values.chunks_exact(columns).zip(decoded.chunks_exact(columns)) {
                for (i, (x, y)) in values.iter().zip(decoded).enumerate() {
                    let w = importance.as_ref().map_or(1.0, |w| f64::from(w[i]));
                    noise += w * f64::from(x - y).powi(2);
                    power += w * f64::from(*x).powi(2);
                }
            }
            errors.push(if power > 0.0 { noise / power } else { 0.0 });
        }
        Ok(errors)
    }

    fn fault(&self, name: &str, reason: String) -> Error {
        Error::Tensor { path: self.model.path().to_owned(), name: name.to_owned(), reason }
    }

    /// All of a tensor in a type.
    fn quantized(&self, name: &str, dtype: DType) -> Result<Tensor, Error> {
        let tensor = self.model.tensor(name)?;
        let fault = |reason: String| self.fault(name, reason);
        let columns = tensor.shape().last().copied().unwrap_or(1).max(1);
        let values = decode_f32(tensor.dtype(), tensor.bytes(), tensor.len()).map_err(|e| fault(e.to_string()))?;
        let mut out = vec![0; values.len() / columns * dtype.row_bytes(columns).unwrap_or(0)];
        let importance = self.importance(name, columns);
        encode_with_threads(dtype, &values, columns, importance.as_deref(), self.options.threads, &mut out)
            .map_err(|error| fault(error.to_string()))?;
        Tensor::from_bytes(dtype, tensor.shape(), &out).map_err(|error| fault(error.to_string()))
    }

    /// The divergence of the model with some tensors in other types.
    fn divergence(&self, runs: &Runs, changed: &[(&str, DType)]) -> Result<f64, Error> {
        let mut replaced = HashMap::new();
        for (name, dtype) in changed {
            replaced.insert((*name).to_owned(), self.quantized(name, *dtype)?);
        }
        let model = self.load(&runs.backends, &runs.options, replaced)?;
        Ok(runs.reference.compare(&model)?.divergence.mean)
    }

    /// Gives all candidates their sensitivities, and their choices their costs.
    pub(super) fn probe(
        &self,
        candidates: &mut [Candidate],
        probes: Probes,
        progress: &mut MixedProgress<'_>,
    ) -> Result<(), Error> {
        let Some(runs) = &self.runs else { return Ok(()) };
        let mut groups: BTreeMap<Group, Vec<usize>> = BTreeMap::new();
        for (i, candidate) in candidates.iter().enumerate() {
            let group = match probes {
                Probes::Tensors => (i, String::new()),
                Probes::Parts => part(&candidate.name),
            };
            groups.entry(group).or_default().push(i);
        }
        let count = groups.len();
        for (done, members) in groups.into_values().enumerate() {
            if progress(done, count, &candidates[members[0]].name).is_break() {
                return Err(Error::Cancelled);
            }
            let probed =
                |i: &usize| (candidates[*i].name.as_str(), candidates[*i].choices[candidates[*i].measured[0]].dtype);
            let changed: Vec<(&str, DType)> = members.iter().map(probed).collect();
            let divergence = self.divergence(runs, &changed)?.min(BROKEN);
            let error: f64 = members.iter().map(|i| candidates[*i].errors[candidates[*i].measured[0]]).sum();
            let sensitivity = if error > 0.0 { divergence / error } else { 0.0 };
            for i in members {
                let candidate = &mut candidates[i];
                candidate.sensitivity = sensitivity;
                for (choice, error) in candidate.choices.iter_mut().zip(&candidate.errors) {
                    choice.cost = sensitivity * error;
                }
            }
        }
        Ok(())
    }

    /// The assignment for a budget, of types that were measured, are finer, or hardly coarser.
    pub(super) fn settle(
        &self,
        candidates: &mut [Candidate],
        budget: Budget,
        progress: &mut MixedProgress<'_>,
    ) -> Result<Result<Vec<Decision>, BudgetError>, Error> {
        let Some(runs) = &self.runs else { return Ok(super::choose(candidates, budget)) };
        let (count, mut done) = (candidates.len(), 0);
        super::settle(candidates, budget, &mut |candidate, dtype| {
            if progress(done, count, &format!("{} as {dtype}", candidate.name)).is_break() {
                return Err(Error::Cancelled);
            }
            done = (done + 1).min(count);
            Ok(self.divergence(runs, &[(&candidate.name, dtype)])?.min(BROKEN))
        })
    }

    /// The divergence of a whole assignment; none without a text.
    pub(super) fn measure(
        &self,
        candidates: &[Candidate],
        decisions: &[Decision],
        progress: &mut MixedProgress<'_>,
    ) -> Result<Option<f64>, Error> {
        let Some(runs) = &self.runs else { return Ok(None) };
        if progress(0, 1, "the assignment").is_break() {
            return Err(Error::Cancelled);
        }
        let chosen = |(candidate, decision): (&'_ Candidate, &Decision)| candidate.choices[decision.choice].dtype;
        let changed = candidates.iter().zip(decisions).map(|pair| (pair.0.name.as_str(), chosen(pair)));
        let demanded = self.demanded.iter().map(|(name, dtype)| (name.as_str(), *dtype));
        let changed: Vec<(&str, DType)> = changed.chain(demanded).collect();
        self.divergence(runs, &changed).map(Some)
    }
}

/// A layer's attention or its feed-forward; what belongs to no layer is a part of its own.
fn part(name: &str) -> Group {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match layer.and_then(|(number, rest)| Some((number.parse::<usize>().ok()?, rest))) {
        Some((number, rest)) => (number + 1, if rest.starts_with("attn") { "attn" } else { "ffn" }.to_owned()),
        None => (0, name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_a_layers_attention_and_the_rest_of_it() {
        assert_eq!(part("blk.0.attn_q.weight"), part("blk.0.attn_output.weight"));
        assert_ne!(part("blk.0.attn_q.weight"), part("blk.0.ffn_up.weight"));
        assert_ne!(part("blk.0.attn_q.weight"), part("blk.1.attn_q.weight"));
        assert_ne!(part("token_embd.weight"), part("output.weight"));
    }
}
