//! A small decoder on a device, from its weights to its outputs.

use std::ops::ControlFlow;
use std::sync::Arc;

use core_tensor::{Backend, BackendError, Graph, Program, ReferenceBackend, Session, Tensor, Weights};
use gpu_polaris::{GpuOptions, VulkanBackend};

use crate::decoder::{Decoder, step, text};

/// Opens the best device.
pub(crate) fn open(options: &GpuOptions) -> VulkanBackend {
    VulkanBackend::open(options).unwrap_or_else(|error| panic!("{error}"))
}

/// Everything that a model needs to run.
pub(crate) struct Model {
    pub(crate) program: Arc<dyn Program>,
    pub(crate) session: Box<dyn Session>,
    pub(crate) weights: Arc<dyn Weights>,
}

impl Model {
    /// # Errors
    /// When anything on the way does.
    pub(crate) fn load(backend: &dyn Backend, graph: &Arc<Graph>) -> Result<Model, BackendError> {
        let weights = backend.load_weights(graph, &mut |_, _| ControlFlow::Continue(()))?;
        let program = backend.compile(graph, &weights, &Decoder::bounds())?;
        Ok(Model { program, session: backend.new_session(graph, 2, &Decoder::bounds())?, weights })
    }

    /// One token of a fixed text, in slot 0.
    pub(crate) fn token(&mut self, position: usize) -> Result<Vec<Tensor>, BackendError> {
        let token = text(position + 1, 5)[position];
        self.program.run(&mut *self.session, &step(&[token], position, 0))
    }
}

/// What the reference says for the first tokens.
pub(crate) fn expected(graph: &Arc<Graph>, tokens: usize) -> Vec<Vec<f32>> {
    let mut model = Model::load(&ReferenceBackend::new(false), graph).expect("the reference loads it");
    (0..tokens).map(|i| floats(&model.token(i).expect("the reference runs it"))).collect()
}

/// The first output.
pub(crate) fn floats(outputs: &[Tensor]) -> Vec<f32> {
    outputs[0].to_f32().expect("floats")
}

/// Fails where values are further apart than rounding.
pub(crate) fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 2e-3 * b.abs().max(1.0), "element {i}: {a} instead of {b}");
    }
}
