//! The weights of a layer in training.

use std::collections::HashMap;
use std::sync::Arc;

use core_tensor::{DType, Tensor, decode_f32};
use loader_gguf::Gguf;
use polaris_quant::block::encode_with_threads;
use polaris_quant::gptq::{self, Feedback};
use polaris_quant::reconstruct::{Adam, Latent, Rates, Rounding, can_train};

use super::ReconstructOptions;
use crate::Error;
use crate::llama::trained::Parameter;
use crate::quantize::{Calibration, Planned, QuantizeOptions};

/// What becomes of one tensor.
enum Kind {
    /// Trained as blocks.
    Blocks(Box<Latent>),
    /// Trained as floats.
    Vector { values: Vec<f32>, adam: Adam, size: f32 },
    /// As its encoder makes it, or as it is: nothing is to be trained.
    Fixed(Vec<f32>),
}

struct Member {
    name: String,
    shape: Vec<usize>,
    kind: Kind,
}

/// All weights of a layer, in the order of its parameters.
pub(super) struct LayerWeights {
    members: Vec<Member>,
    options: ReconstructOptions,
}

/// What the weights of a model begin as when they are trained.
pub(super) struct Starts<'a> {
    pub(super) model: &'a Gguf,
    pub(super) planned: &'a HashMap<String, Planned>,
    pub(super) quantize: &'a QuantizeOptions,
    /// What rounding follows, and the tensors that it will be asked for, in their order.
    pub(super) feedback: Option<(&'a dyn Calibration, Vec<String>)>,
}

impl Starts<'_> {
    /// How the rounding of a tensor follows its inputs, where it is to and something is known of them. `stopped` is asked while a text runs for it.
    pub(super) fn feedback(&self, name: &str, stopped: &dyn Fn() -> bool) -> Result<Option<Arc<Feedback>>, Error> {
        let Some((calibration, order)) = &self.feedback else { return Ok(None) };
        let Some(at) = order.iter().position(|other| other == name) else { return Ok(None) };
        let upcoming: Vec<&str> = order[at..].iter().map(String::as_str).collect();
        calibration.feedback(&upcoming, stopped)
    }

    /// Rows of a tensor in the type that is planned for it, as they are without training.
    pub(super) fn encoded(
        &self,
        tensor: &Planned,
        values: &[f32],
        feedback: Option<&Feedback>,
    ) -> Result<Vec<u8>, Error> {
        let columns = tensor.shape.last().copied().unwrap_or(1).max(1);
        let mut bytes = vec![0; tensor.to.row_bytes(columns).unwrap_or(0) * (values.len() / columns)];
        let encoded = match feedback {
            Some(feedback) => {
                let mut values = values.to_vec();
                gptq::compensate(tensor.to, &mut values, feedback, self.quantize.threads, &mut bytes)
            }
            None => {
                let importance = crate::quantize::importance(self.quantize, tensor)?;
                let threads = self.quantize.threads;
                encode_with_threads(tensor.to, values, columns, importance.as_deref(), threads, &mut bytes)
            }
        };
        encoded.map_err(|error| fault(self.model, &tensor.name, &error))?;
        Ok(bytes)
    }
}

/// A tensor's weights as they are.
pub(super) fn original(model: &Gguf, name: &str) -> Result<Vec<f32>, Error> {
    let tensor = model.tensor(name)?;
    decode_f32(tensor.dtype(), tensor.bytes(), tensor.len()).map_err(|error| fault(model, name, &error))
}

fn fault(model: &Gguf, name: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Tensor { path: model.path().to_owned(), name: name.to_owned(), reason: error.to_string() }
}

impl LayerWeights {
    /// As encoders make them. `stopped` is asked while a text runs for how they round.
    pub(super) fn new(
        starts: &Starts<'_>,
        parameters: &[Parameter],
        options: &ReconstructOptions,
        stopped: &dyn Fn() -> bool,
    ) -> Result<LayerWeights, Error> {
        let model = starts.model;
        let mut members = Vec::with_capacity(parameters.len());
        for Parameter { name, shape, .. } in parameters {
            let values = original(model, name)?;
            let planned = starts.planned.get(name);
            let to = planned.map_or(DType::F32, |tensor| tensor.to);
            let columns = shape.last().copied().unwrap_or(1);
            let kind = match planned {
                _ if shape.len() == 1 && to == DType::F32 => {
                    let size = values.iter().map(|v| v.abs()).sum::<f32>() / values.len().max(1) as f32;
                    Kind::Vector { adam: Adam::new(values.len()), values, size }
                }
                Some(tensor) if can_train(to) => {
                    let (threads, rounding) = (options.threads, Rounding::Straight);
                    let latent = match starts.feedback(name, stopped)? {
                        Some(feedback) => Latent::with_feedback(to, values, &feedback, rounding, threads),
                        None => {
                            let importance = crate::quantize::importance(starts.quantize, tensor)?;
                            Latent::new(to, &values, columns, importance.as_deref(), rounding, threads)
                        }
                    };
                    Kind::Blocks(Box::new(latent.map_err(|error| fault(model, name, &error))?))
                }
                Some(tensor) => {
                    let bytes = starts.encoded(tensor, &values, None)?;
                    Kind::Fixed(decode_f32(to, &bytes, values.len()).map_err(|error| fault(model, name, &error))?)
                }
                None => Kind::Fixed(values),
            };
            members.push(Member { name: name.clone(), shape: shape.clone(), kind });
        }
        Ok(LayerWeights { members, options: options.clone() })
    }

    /// As they are in the file that is quantized.
    pub(super) fn originals(model: &Gguf, parameters: &[Parameter]) -> Result<LayerWeights, Error> {
        let mut members = Vec::with_capacity(parameters.len());
        for Parameter { name, shape, .. } in parameters {
            let kind = Kind::Fixed(original(model, name)?);
            members.push(Member { name: name.clone(), shape: shape.clone(), kind });
        }
        Ok(LayerWeights { members, options: ReconstructOptions::default() })
    }

    /// What the layer computes with.
    pub(super) fn tensors(&mut self) -> Result<Vec<Tensor>, Error> {
        let mut tensors = Vec::with_capacity(self.members.len());
        for member in &mut self.members {
            tensors.push(match &mut member.kind {
                Kind::Blocks(latent) => {
                    let mut decoded = vec![0.0; latent.len()];
                    latent.decode(&mut decoded).map_err(|error| unusable(&member.name, &error))?;
                    Tensor::from_slice(&member.shape, &decoded)?
                }
                Kind::Vector { values, .. } | Kind::Fixed(values) => Tensor::from_slice(&member.shape, values)?,
            });
        }
        Ok(tensors)
    }

    /// A step against the gradients, at a share of the rates.
    pub(super) fn step(&mut self, gradients: &[Vec<f32>], left: f32) -> Result<(), Error> {
        let options = &self.options;
        let rates = Rates { codes: options.rate * left, scales: options.scale_rate * left };
        for (member, gradient) in self.members.iter_mut().zip(gradients) {
            match &mut member.kind {
                Kind::Blocks(latent) => {
                    latent.step(gradient, rates).map_err(|error| unusable(&member.name, &error))?;
                }
                Kind::Vector { values, adam, size } => adam.step(values, gradient, options.vector_rate * left * *size),
                Kind::Fixed(_) => {}
            }
        }
        Ok(())
    }

    /// Another loss begins.
    pub(super) fn restart(&mut self) {
        for member in &mut self.members {
            match &mut member.kind {
                Kind::Blocks(latent) => latent.restart(),
                Kind::Vector { values, adam, .. } => *adam = Adam::new(values.len()),
                Kind::Fixed(_) => {}
            }
        }
    }

    /// What was trained, as the file holds it.
    pub(super) fn into_stored(self) -> Result<Vec<(String, Tensor)>, Error> {
        let mut stored = Vec::new();
        for member in self.members {
            let tensor = match member.kind {
                Kind::Blocks(latent) => Tensor::from_bytes(latent.dtype(), &member.shape, latent.bytes())?,
                Kind::Vector { values, .. } => Tensor::from_slice(&member.shape, &values)?,
                Kind::Fixed(_) => continue,
            };
            stored.push((member.name, tensor));
        }
        Ok(stored)
    }
}

fn unusable(name: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Tensor { path: "".into(), name: name.to_owned(), reason: error.to_string() }
}
