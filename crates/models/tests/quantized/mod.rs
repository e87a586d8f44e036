//! A tiny model quantized to every type, as `polaris quantize` writes it.

use std::ops::ControlFlow;
use std::path::Path;

use models::quantize::{QuantizeOptions, quantize};
use polaris_quant::{AssignOptions, Mixture};

use crate::tiny::{self, Spec};

/// Columns that are whole blocks of every type.
pub(crate) fn spec() -> Spec {
    Spec { name: "quantized", embedding: 256, heads: 4, head: 64, feed_forward: 256, ..tiny::spec("llama") }
}

/// The types, and two mixtures of several.
pub(crate) const TYPES: [Mixture; 18] = {
    use Mixture::*;
    [
        Q8_0, Q6_K, Q5_K_S, Q5_1, Q5_0, Q4_K_S, Q4_1, Q4_0, IQ4_NL, IQ4_XS, MXFP4, Q3_K_S, Q2_K, TQ2_0, TQ1_0, F16,
        Q4_K_M, Q3_K_L,
    ]
};

/// The name of the result.
pub(crate) fn name(mixture: Mixture) -> String {
    format!("quantized-{}", mixture.name().to_lowercase())
}

/// Writes the model as a mixture; every matrix becomes its main type, but in the two that are there for their rules.
pub(crate) fn write(mixture: Mixture, input: &Path, output: &Path) {
    let pure = !matches!(mixture, Mixture::Q4_K_M | Mixture::Q3_K_L | Mixture::MXFP4);
    let assign = AssignOptions { pure, ..QuantizeOptions::new(mixture).assign };
    let options = QuantizeOptions { assign, ..QuantizeOptions::new(mixture) };
    quantize(input, output, &options, &mut |_, _, _| ControlFlow::Continue(())).expect("the model is quantized");
}
