//! What tests of graphs share: random numbers, the interpreter, and calibration with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use core_tensor::op::Window;
use core_tensor::{Bindings, Graph, HostStates, Interpreter, Tensor, ValueId};
use polaris_quant::graph::{
    Calibration, Demand, GraphOptions, GraphType, Hessian, Host, HostError, Trained, demands, observed,
};

/// SplitMix64, and numbers that are about normal.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }

    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    pub(crate) fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }

    pub(crate) fn tensor(&mut self, shape: &[usize]) -> Tensor {
        Tensor::from_slice(shape, &self.normals(shape.iter().product())).unwrap()
    }
}

pub(crate) fn run(graph: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    let graph = Arc::new(graph.clone());
    let mut states = HostStates::new(&graph, 1, &Bindings::new()).unwrap();
    Interpreter::new(graph).run(&mut states, inputs).unwrap()
}

pub(crate) fn first(graph: &Graph, inputs: &[Tensor]) -> Vec<f32> {
    run(graph, inputs)[0].to_f32().unwrap()
}

/// Everything, however small.
pub(crate) fn options(ty: GraphType) -> GraphOptions {
    GraphOptions { minimum: 1, threads: 2, ..GraphOptions::new(ty) }
}

/// Looks at the activations of these inputs.
pub(crate) fn calibrated(graph: &Graph, options: &GraphOptions, runs: &[Vec<Tensor>]) -> Calibration {
    seen(graph, &demands(graph, options).unwrap(), runs)
}

/// Looks at what is demanded.
pub(crate) fn seen(graph: &Graph, demands: &[(ValueId, Demand)], runs: &[Vec<Tensor>]) -> Calibration {
    let mut calibration = Calibration::new(demands);
    let mut ids: Vec<ValueId> = demands.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    let graph = observed(graph, &ids);
    for inputs in runs {
        let outputs = run(&graph, inputs);
        for (id, tensor) in ids.iter().zip(&outputs[graph.outputs().len() - ids.len()..]) {
            calibration.observe(*id, tensor.shape(), &tensor.to_f32().unwrap());
        }
    }
    calibration
}

/// Gives integers that were trained.
pub(crate) struct Given(pub(crate) BTreeMap<ValueId, Trained>);

impl Host for Given {
    fn hessian(&mut self, _: &[ValueId]) -> Result<Option<Arc<Hessian>>, HostError> {
        Ok(None)
    }

    fn trained(&mut self, weight: ValueId) -> Option<Trained> {
        self.0.get(&weight).cloned()
    }
}

pub(crate) fn window(stride: usize) -> Window {
    Window { strides: vec![stride; 2], dilations: vec![1; 2], pads_begin: vec![1; 2], pads_end: vec![1; 2] }
}
