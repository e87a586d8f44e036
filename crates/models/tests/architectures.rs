//! The logits of tiny models, against those that llama.cpp computes in f32 (`fixtures/llama_cpp_logits.cpp`).

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::tiny::{self, Spec};
use core_tensor::{Backend, ReferenceBackend};
use models::llama::{KvDType, Llama, LlamaOptions};

fn options() -> LlamaOptions {
    LlamaOptions { kv_dtype: KvDType::F32, ..LlamaOptions::default() }
}

fn open(spec: &Spec, backend: impl Backend + 'static, options: &LlamaOptions) -> Llama {
    let backends: [Arc<dyn Backend>; 1] = [Arc::new(backend)];
    Llama::from_gguf(tiny::open(spec), &backends, options, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

/// llama.cpp's logits of the compared rows.
fn expected(spec: &Spec) -> Vec<Vec<f32>> {
    let path = format!("{}/tests/fixtures/logits/{}.f32", env!("CARGO_MANIFEST_DIR"), spec.name);
    let bytes = std::fs::read(path).unwrap();
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    assert_eq!(values.len(), 3 * tiny::VOCABULARY);
    values.chunks(tiny::VOCABULARY).map(<[f32]>::to_vec).collect()
}

/// Mean squared error over mean square.
fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    error / expected.iter().map(|x| square(*x)).sum::<f64>()
}

fn compare(name: &str, backend: impl Backend + 'static, tolerance: f64) {
    let spec = tiny::spec(name);
    let logits = open(&spec, backend, &options()).logits(&tiny::tokens(&spec)).unwrap();
    for (row, expected) in tiny::compared_rows(spec.tokens).into_iter().zip(expected(&spec)) {
        let error = nmse(&logits[row], &expected);
        println!("{name} row {row}: NMSE {error:.2e}");
        assert!(error <= tolerance, "{name}, row {row}: NMSE {error:.2e}");
    }
}

/// llama.cpp computes f32 throughout, but sums in another order.
const F32: f64 = 1e-9;
/// llama.cpp looks GELU up in a table of f16.
const GELU_TABLE: f64 = 1e-6;
/// The same, over 62 layers.
const GELU_TABLE_DEEP: f64 = 1e-5;

macro_rules! agrees_with_llama_cpp {
    ($($test:ident: $name:literal, $tolerance:expr;)*) => {
        $(#[test]
        fn $test() {
            compare($name, ReferenceBackend::default(), $tolerance);
        })*

        #[cfg(feature = "cpu")]
        mod on_the_cpu {
            use cpu_kernels::matmul::ActivationKind;
            use cpu_kernels::{CpuBackend, CpuOptions};

            use super::{F32, GELU_TABLE, GELU_TABLE_DEEP, compare};

            $(#[test]
            fn $test() {
                let options = CpuOptions::default().with_threads(2).with_activations(ActivationKind::F32);
                compare($name, CpuBackend::new(options), $tolerance);
            })*
        }
    };
}

agrees_with_llama_cpp! {
    llama_with_grouped_heads: "llama", F32;
    llama_3_with_tied_embeddings_and_frequency_factors: "llama-3", F32;
    llama_with_linear_scaling: "llama-linear", F32;
    llama_with_yarn: "llama-yarn", F32;
    llama_with_biases_and_the_old_key_of_linear_scaling: "llama-bias", F32;
    llama_with_joined_projections: "llama-joined", F32;
    llama_with_heads_wider_than_the_embedding: "llama-heads", F32;
    qwen2_with_biases: "qwen2", F32;
    qwen2_with_yarn: "qwen2-yarn", F32;
    gemma3_with_sliding_windows_and_a_soft_cap: "gemma3", GELU_TABLE;
    gemma3_past_the_ring_of_its_local_layers: "gemma3-long", GELU_TABLE;
    gemma3_with_another_pattern_and_local_theta: "gemma3-pattern", GELU_TABLE;
    gemma3_with_the_scale_of_the_largest_model: "gemma3-62-layers", GELU_TABLE_DEEP;
}
