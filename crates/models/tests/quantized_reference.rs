//! What is quantized here runs in llama.cpp: its logits on the very files (`fixtures/llama_cpp_logits.cpp`) are ours.
#![cfg(feature = "cpu")]

use crate::quantized;
use crate::tiny;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use core_tensor::Backend;
use cpu_kernels::matmul::ActivationKind;
use cpu_kernels::{CpuBackend, CpuOptions};
use loader_gguf::Gguf;
use models::llama::{KvDType, Llama, LlamaOptions};
use polaris_quant::Mixture;

/// llama.cpp rounds activations to 8 bits, in blocks of 256 for some types: as much as that changes, and twice as much where both round.
/// Three bits instead of four change a hundred times as much.
const ROUNDED_THERE: f64 = 1e-3;
const ROUNDED_ON_BOTH_SIDES: f64 = 2e-3;
/// Weights of f16 meet activations of f16 in llama.cpp.
const F16: f64 = 1e-5;

fn logits(path: &Path, activations: Option<ActivationKind>) -> Vec<Vec<f32>> {
    let options = CpuOptions::default().with_threads(2);
    let options = activations.map_or(options, |kind| options.with_activations(kind));
    let backends: [Arc<dyn Backend>; 1] = [Arc::new(CpuBackend::new(options))];
    let options = LlamaOptions { kv_dtype: KvDType::F32, ..LlamaOptions::default() };
    let model = Gguf::open(path, options.access).expect("the result opens");
    let llama = Llama::from_gguf(model, &backends, &options, &mut |_, _| ControlFlow::Continue(())).expect("it runs");
    llama.logits(&tiny::tokens(&quantized::spec())).expect("there are logits")
}

/// Mean squared error over mean square.
fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    error / expected.iter().map(|x| square(*x)).sum::<f64>()
}

#[test]
fn llama_cpp_gets_the_same_logits_of_every_type() {
    let folder = std::env::temp_dir().join(format!("polaris-quantized-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let source = folder.join("source.gguf");
    fs::write(&source, tiny::bytes(&quantized::spec())).unwrap();
    let rows = tiny::compared_rows(quantized::spec().tokens);
    let picked = |logits: &[Vec<f32>]| -> Vec<f32> { rows.iter().flat_map(|row| logits[*row].clone()).collect() };
    let mut wrong = Vec::new();
    for mixture in quantized::TYPES {
        let name = quantized::name(mixture);
        let path = folder.join(format!("{name}.gguf"));
        quantized::write(mixture, &source, &path);
        let fixture = format!("{}/tests/fixtures/logits/{name}.f32", env!("CARGO_MANIFEST_DIR"));
        let expected = fs::read(fixture).unwrap();
        let expected: Vec<f32> = expected.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert_eq!(expected.len(), rows.len() * tiny::VOCABULARY);
        for (activations, tolerance) in [(None, ROUNDED_ON_BOTH_SIDES), (Some(ActivationKind::F32), ROUNDED_THERE)] {
            let tolerance = if mixture == Mixture::F16 { F16 } else { tolerance };
            let error = nmse(&picked(&logits(&path, activations)), &expected);
            println!("{name} {activations:?}: NMSE {error:.2e}");
            if error > tolerance {
                wrong.push(format!("{name} {activations:?}: NMSE {error:.2e}"));
            }
        }
    }
    fs::remove_dir_all(&folder).unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
