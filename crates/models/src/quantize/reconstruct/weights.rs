//! The weights of a layer in training.

use std::collections::HashMap;

use core_tensor::{DType, Tensor, decode_f32};
use loader_gguf::Gguf;
use polaris_quant::block::encode_with_threads;
use polaris_quant::reconstruct::{Adam, Latent, Rates, Rounding, can_train};

use super::ReconstructOptions;
use crate::Error;
use crate::llama::trained::Parameter;
use crate::quantize::{Planned, QuantizeOptions};

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

/// A tensor's weights as they are.
pub(super) fn original(model: &Gguf, name: &str) -> Result<Vec<f32>, Error> {
    let tensor = model.tensor(name)?;
    decode_f32(tensor.dtype(), tensor.bytes(), tensor.len()).map_err(|error| fault(model, name, &error))
}

fn fault(model: &Gguf, name: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Tensor { path: model.path().to_owned(), name: name.to_owned(), reason: error.to_string() }
}

impl LayerWeights {
    /// As encoders make them.
    pub(super) fn new(
        model: &Gguf,
        parameters: &[Parameter],
        planned: &HashMap<String, Planned>,
        quantize: &QuantizeOptions,
        options: &ReconstructOptions,
    ) -> Result<LayerWeights, Error> {
        let mut members = Vec::with_capacity(parameters.len());
        for Parameter { name, shape, .. } in parameters {
            let values = original(model, name)?;
            let to = planned.get(name).map_or(DType::F32, |tensor| tensor.to);
            let columns = shape.last().copied().unwrap_or(1);
            let importance = match planned.get(name) {
                Some(tensor) => crate::quantize::importance(quantize, tensor)?,
                None => None,
            };
            let kind = if shape.len() == 1 && to == DType::F32 {
                let size = values.iter().map(|v| v.abs()).sum::<f32>() / values.len().max(1) as f32;
                Kind::Vector { adam: Adam::new(values.len()), values, size }
            } else if can_train(to) {
                let latent =
                    Latent::new(to, &values, columns, importance.as_deref(), Rounding::Straight, options.threads);
                Kind::Blocks(Box::new(latent.map_err(|error| fault(model, name, &error))?))
            } else {
                let mut bytes = vec![0; to.row_bytes(columns).unwrap_or(0) * (values.len() / columns.max(1))];
                encode_with_threads(to, &values, columns, importance.as_deref(), options.threads, &mut bytes)
                    .map_err(|error| fault(model, name, &error))?;
                Kind::Fixed(decode_f32(to, &bytes, values.len()).map_err(|error| fault(model, name, &error))?)
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
