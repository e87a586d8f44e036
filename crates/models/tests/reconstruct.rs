//! Reconstruction of tiny models: errors go down, and the file holds what was trained.

use crate::tiny;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use core_tensor::{BlockFormat, DType, FileAccess, Tensor, decode_f32};
use loader_gguf::{Gguf, GgufWriter};
use models::Error;
use models::llama::{CalibrationOptions, FeedbackOptions, LlamaOptions, Picked, TextCalibration, importances};
use models::quantize::{
    Calibration, Manifest, QuantizeOptions, ReconstructOptions, ReconstructProgress, Reconstruction,
    quantize_calibrated, reconstruct,
};

/// Tokens are bytes: some for every chunk.
fn text() -> String {
    (0..900u32).map(|i| char::from(b'a' + (i * i % 23 + i % 3) as u8)).collect()
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("polaris-reconstruct-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn options() -> ReconstructOptions {
    ReconstructOptions { context: 32, chunks: 12, steps: 40, rate: 0.04, threads: 1, ..ReconstructOptions::default() }
}

fn train(path: &Path, quantize: &mut QuantizeOptions, options: &ReconstructOptions) -> Result<Reconstruction, Error> {
    reconstruct(path, quantize, &text(), "text", options, None, &mut |_| ControlFlow::Continue(()))
}

/// A model with rows of whole blocks.
fn spec(name: &str) -> tiny::Spec {
    tiny::Spec { embedding: 64, heads: 4, kv_heads: 2, head: 16, feed_forward: 96, ..tiny::spec(name) }
}

fn write(spec: &tiny::Spec, folder: &Folder) -> PathBuf {
    let path = folder.0.join(format!("{}.gguf", spec.name));
    std::fs::write(&path, tiny::bytes(spec)).unwrap();
    path
}

#[test]
fn every_layer_of_every_architecture_comes_nearer_to_what_it_gave() {
    let folder = Folder::new("layers");
    for name in ["llama", "qwen2", "gemma3", "llama-joined"] {
        let path = write(&spec(name), &folder);
        let mut quantize = QuantizeOptions::new("Q4_0".parse().unwrap());
        let trained = train(&path, &mut quantize, &options()).unwrap();
        assert_eq!(trained.report.layers.len(), spec(name).layers);
        for layer in &trained.report.layers {
            assert!(layer.before > 1e-6 && layer.after < 0.7 * layer.before, "{name}: {layer:?}");
        }
    }
}

#[test]
fn the_file_holds_what_was_trained() {
    let folder = Folder::new("file");
    let path = write(&spec("llama"), &folder);
    let output = folder.0.join("out.gguf");
    let mut quantize = QuantizeOptions::new("Q4_0".parse().unwrap());
    let trained = train(&path, &mut quantize, &options()).unwrap();
    let manifest: Manifest =
        quantize_calibrated(&path, &output, &quantize, Some(&trained), &mut |_, _, _| ControlFlow::Continue(()))
            .unwrap();
    let (source, result) = (Gguf::open(&path, FileAccess::Map).unwrap(), Gguf::open(&output, FileAccess::Map).unwrap());
    let mut compared = 0;
    for record in &manifest.tensors {
        let tensor = result.tensor(&record.name).unwrap();
        let Some(expected) = trained.trained(&record.name) else { continue };
        assert_eq!((tensor.dtype(), tensor.bytes()), (expected.dtype(), expected.bytes()), "{}", record.name);
        // The error that the manifest tells is that of the bytes.
        let before = source.tensor(&record.name).unwrap();
        let values = decode_f32(before.dtype(), before.bytes(), before.len()).unwrap();
        let decoded = decode_f32(tensor.dtype(), tensor.bytes(), tensor.len()).unwrap();
        let sum = |f: &dyn Fn(f32, f32) -> f32| -> f64 {
            values.iter().zip(&decoded).map(|(a, b)| f64::from(f(*a, *b))).sum()
        };
        let error = (sum(&|a, b| (a - b) * (a - b)) / sum(&|a, _| a * a)).sqrt();
        assert!((error - record.relative_error).abs() < 1e-4 * error, "{}: {error}, {record:?}", record.name);
        compared += 1;
    }
    // Seven matrices and two norms in each of two layers.
    assert_eq!(compared, 18);
    assert_eq!(manifest.reconstruction.as_ref(), Some(&trained.report));
    assert_eq!(manifest.settings.calibration.as_deref(), Some("text"));
    let again: Manifest = serde_json::from_str(&manifest.to_json()).unwrap();
    assert_eq!(again.reconstruction.unwrap().layers.len(), 2);
    assert!(manifest.verify(&folder.0).unwrap().problems.is_empty());
}

#[test]
fn predictions_come_nearer_where_all_layers_are_trained_together() {
    let folder = Folder::new("distillation");
    for name in ["llama-3", "gemma3"] {
        let path = write(&spec(name), &folder);
        let output = folder.0.join("out.gguf");
        let mut quantize = QuantizeOptions::new("Q4_0".parse().unwrap());
        // One chunk, so that each step measures the same.
        let distill = ReconstructOptions { chunks: 1, steps: 2, distill_steps: 20, distill_rate: 0.25, ..options() };
        let trained = train(&path, &mut quantize, &distill).unwrap();
        let divergences = &trained.report.distillation;
        assert_eq!(divergences.len(), 20);
        assert!(divergences.iter().all(|d| d.is_finite() && *d > 0.0), "{name}: {divergences:?}");
        assert!(divergences[19] < 0.8 * divergences[0], "{name}: {divergences:?}");
        // The norm behind the last layer is trained, too, and the whole can be written.
        assert!(trained.trained("output_norm.weight").is_some() && trained.trained("blk.1.ffn_down.weight").is_some());
        quantize_calibrated(&path, &output, &quantize, Some(&trained), &mut |_, _, _| ControlFlow::Continue(()))
            .unwrap();
    }
}

#[test]
fn training_begins_where_gptq_ends() {
    let folder = Folder::new("gptq");
    for name in ["llama", "qwen2"] {
        let path = write(&spec(name), &folder);
        let collect =
            CalibrationOptions { context: 32, chunks: Some(12), picked: Picked::First, dataset: "text".into() };
        let (run, feedback) =
            (LlamaOptions::default(), FeedbackOptions { damping: 0.01, ..FeedbackOptions::default() });
        let mut load = |_, _| ControlFlow::Continue(());
        let gptq = TextCalibration::open(&path, &run, &text(), &collect, feedback, &mut load, |_, _| {}).unwrap();
        let options = ReconstructOptions { steps: 1, rate: 0.0, scale_rate: 0.0, distill_steps: 1, ..options() };
        let train = |start: Option<&dyn Calibration>| {
            let mut quantize = QuantizeOptions::new("Q4_0".parse().unwrap());
            quantize.assign.embedding = Some(DType::Block(BlockFormat::Q4_0));
            quantize.assign.output = quantize.assign.embedding;
            let go_on = &mut |_| ControlFlow::Continue(());
            (reconstruct(&path, &mut quantize, &text(), "text", &options, start, go_on).unwrap(), quantize)
        };
        let ((plain, _), (begun, quantize)) = (train(None), train(Some(&gptq)));
        let first = |trained: &Reconstruction| trained.report.layers[0].before;
        assert!(first(&begun) < 0.8 * first(&plain), "{name}: {} and {}", first(&begun), first(&plain));
        let divergence = |trained: &Reconstruction| trained.report.distillation[0];
        assert!(divergence(&begun) < 0.8 * divergence(&plain), "{name}: {} {}", divergence(&begun), divergence(&plain));
        // What is not trained is as GPTQ makes it, and the manifest says how.
        let write = |calibration: &dyn Calibration, output: &str| {
            let output = folder.0.join(output);
            let go_on = &mut |_: u64, _: u64, _: &str| ControlFlow::Continue(());
            let manifest = quantize_calibrated(&path, &output, &quantize, Some(calibration), go_on).unwrap();
            (Gguf::open(&output, FileAccess::Map).unwrap(), manifest)
        };
        let ((alone, _), (trained, manifest)) = (write(&gptq, "gptq.gguf"), write(&begun, "trained.gguf"));
        let untied = alone.tensors().iter().any(|info| info.name() == "output.weight");
        let output = if untied { "output.weight" } else { "token_embd.weight" };
        let bytes = |model: &Gguf| model.tensor(output).unwrap().bytes().to_vec();
        assert!(bytes(&alone) == bytes(&trained), "{name}");
        assert_eq!(manifest.settings.gptq, gptq.feedback_settings());
        let (plain, _) = write(&plain, "plain.gguf");
        assert!(bytes(&alone) != bytes(&plain), "{name}: GPTQ leaves the output matrix alone");
    }
}

#[test]
fn what_is_trained_depends_on_the_seed_and_not_on_the_threads() {
    let folder = Folder::new("threads");
    let path = write(&spec("llama"), &folder);
    let run = |threads: usize, seed: u64| {
        let mut quantize = QuantizeOptions::new("IQ4_NL".parse().unwrap());
        let options = ReconstructOptions { threads, seed, steps: 5, ..options() };
        let trained = train(&path, &mut quantize, &options).unwrap();
        trained.trained("blk.1.ffn_up.weight").unwrap().bytes().to_vec()
    };
    let one = run(1, 1);
    assert_eq!(one, run(2, 1));
    assert_ne!(one, run(2, 2));
}

#[test]
fn importances_of_the_text_are_collected_unless_there_are_some() {
    let folder = Folder::new("importances");
    let path = write(&spec("llama"), &folder);
    let options = ReconstructOptions { steps: 1, ..options() };
    let mut quantize = QuantizeOptions::new("Q4_0".parse().unwrap());
    let mut told = 0;
    let mut tell = |progress| {
        told += usize::from(matches!(progress, ReconstructProgress::Importances(..)));
        ControlFlow::Continue(())
    };
    reconstruct(&path, &mut quantize, &text(), "text", &options, None, &mut tell).unwrap();
    assert_eq!(told, options.chunks);
    let (found, _) = quantize.importances.clone().unwrap();
    let run = LlamaOptions::default();
    let collect = CalibrationOptions { context: 32, chunks: Some(12), picked: Picked::First, dataset: "text".into() };
    let go_on = |_, _| ControlFlow::Continue(());
    let expected =
        importances(&path, &run, &text(), &collect, &mut { go_on }, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!(found.entries.keys().collect::<Vec<_>>(), expected.entries.keys().collect::<Vec<_>>());
    // A second time they are there.
    let mut again = 0;
    let mut tell = |progress| {
        again += usize::from(matches!(progress, ReconstructProgress::Importances(..)));
        ControlFlow::Continue(())
    };
    reconstruct(&path, &mut quantize, &text(), "text", &options, None, &mut tell).unwrap();
    assert_eq!(again, 0);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let folder = Folder::new("options");
    let path = write(&spec("llama"), &folder);
    let mut quantize = QuantizeOptions::new("Q4_0".parse().unwrap());
    let wrong = [
        ("steps", ReconstructOptions { steps: 0, ..options() }),
        ("batch", ReconstructOptions { batch: 0, ..options() }),
        ("context", ReconstructOptions { context: 0, ..options() }),
        ("chunks", ReconstructOptions { chunks: 0, ..options() }),
        ("rate", ReconstructOptions { rate: f32::NAN, ..options() }),
        ("rate", ReconstructOptions { rate: -0.1, ..options() }),
        ("scale_rate", ReconstructOptions { scale_rate: f32::INFINITY, ..options() }),
        ("vector_rate", ReconstructOptions { vector_rate: 2.0, ..options() }),
        ("distill_rate", ReconstructOptions { distill_rate: -1.0, ..options() }),
        ("distill_steps", ReconstructOptions { distill_steps: usize::MAX, ..options() }),
    ];
    for (expected, options) in wrong {
        let error = train(&path, &mut quantize, &options).unwrap_err();
        assert!(matches!(error, Error::Option { name, .. } if name == expected), "{expected}: {error}");
    }
    let long = ReconstructOptions { context: 4096, ..options() };
    let error = train(&path, &mut quantize, &long).unwrap_err();
    assert!(matches!(error, Error::Option { name: "context", .. }), "{error}");
}

#[test]
fn who_cancels_is_told_so() {
    let folder = Folder::new("cancel");
    let path = write(&spec("llama"), &folder);
    for at in [0, 13, 20] {
        let mut quantize = QuantizeOptions::new("Q4_0".parse().unwrap());
        let mut told = 0;
        let mut tell = |_| {
            told += 1;
            if told > at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let error = reconstruct(&path, &mut quantize, &text(), "text", &options(), None, &mut tell).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        assert_eq!(told, at + 1);
    }
}

#[test]
fn a_loss_that_is_no_number_stops_training() {
    let folder = Folder::new("loss");
    let (path, model) = (folder.0.join("large.gguf"), tiny::open(&spec("llama")));
    let mut writer = GgufWriter::new();
    writer.copy_metadata(&model).unwrap();
    for info in model.tensors() {
        let mut values = model.tensor(info.name()).unwrap().to_vec::<f32>().unwrap();
        if info.name() == "blk.1.ffn_down.weight" {
            values.iter_mut().for_each(|value| *value *= 1e9);
        }
        writer.tensor(info.name(), &Tensor::from_slice(info.shape(), &values).unwrap()).unwrap();
    }
    writer.write(&path).unwrap();
    let error = train(&path, &mut QuantizeOptions::new("Q4_0".parse().unwrap()), &options()).map(drop).unwrap_err();
    assert!(error.to_string().contains("of layer 1 is NaN"), "{error}");
}
