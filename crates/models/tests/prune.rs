//! Pruning small models: what lies in the file, what it computes, and what is refused.

use crate::pruned;
use crate::tiny;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use core_tensor::{DType, FileAccess, ReferenceBackend, Tensor};
use loader_gguf::{Gguf, GgufWriter};
use models::Error;
use models::llama::{KvDType, Llama, LlamaOptions};
use models::prune::{
    CalibrationText, Method, NamePattern, PruneOptions, StructurePruning, WeightPruning, What, plan, prune,
};
use models::quantize::{Manifest, QuantizeOptions};
use polaris_quant::{Importance, Importances, Mixture};

/// A folder of its own, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("polaris-prune-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("the temporary folder is writable");
        Folder(path)
    }

    fn model(&self, name: &str) -> PathBuf {
        let path = self.0.join("model.gguf");
        std::fs::write(&path, tiny::bytes(&tiny::spec(name))).expect("the folder is writable");
        path
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).expect("the folder is there");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(input: &Path, output: &Path, options: &PruneOptions) -> Result<Manifest, Error> {
    prune(input, output, options, &(Arc::new(|_, _| {}) as _), &mut |_, _, _| ControlFlow::Continue(()))
}

fn weights(pattern: &str, method: Method, reconstruct: bool) -> PruneOptions {
    let pattern = pattern.parse().expect("a pattern");
    PruneOptions { threads: 2, ..PruneOptions::new(What::Weights(WeightPruning { pattern, method, reconstruct })) }
}

const NEURONS: StructurePruning =
    StructurePruning { neurons: 0.25, heads: 0.0, query_heads: 0.0, multiple: 16, reconstruct: true };

fn structure(cut: StructurePruning) -> PruneOptions {
    PruneOptions { threads: 2, ..PruneOptions::new(What::Structure(cut)) }
}

/// Words in no order, of which a tiny model sees four chunks.
fn text() -> CalibrationText {
    let words = ["some", "hi", "words", "are", "here", "and", "others", "not", "fox"];
    let text: Vec<&str> = (0..200).map(|i| words[(i * i + i / 7) % words.len()]).collect();
    let mut text = CalibrationText::new(text.join(" "), "words".to_owned());
    (text.context, text.chunks) = (64, Some(8));
    text.backend.device = models::backends::Device::Cpu;
    text.backend.activations = models::backends::Activations::F32;
    text
}

fn floats(model: &Gguf, name: &str) -> Vec<f32> {
    model.tensor(name).expect("it is there").to_f32().expect("it is numbers")
}

fn open(path: &Path) -> Gguf {
    Gguf::open(path, FileAccess::Read).expect("the model opens")
}

fn logits(gguf: Gguf, tokens: &[u32]) -> Vec<Vec<f32>> {
    let options = LlamaOptions { kv_dtype: KvDType::F32, ..LlamaOptions::default() };
    let backend = Arc::new(ReferenceBackend::default());
    let model = Llama::from_gguf(gguf, &[backend], &options, &mut |_, _| ControlFlow::Continue(())).expect("it loads");
    model.logits(tokens).expect("it runs")
}

/// Mean squared error over mean square.
fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    error / expected.iter().map(|x| square(*x)).sum::<f64>()
}

/// The source with zeros in the columns that were cut: they are those whose rows the cut model has not.
fn masked(source: &Gguf, cut: &Gguf, heads: &std::collections::BTreeMap<usize, Vec<usize>>, head: usize) -> Gguf {
    let mut writer = GgufWriter::new();
    writer.copy_metadata(source).expect("its metadata is well-formed");
    for info in source.tensors() {
        let mut values = floats(source, info.name());
        let columns = *info.shape().last().expect("it has an extent");
        let layer = info.name().split('.').nth(1).and_then(|layer| layer.parse::<usize>().ok());
        let kept: Vec<bool> = if info.name().ends_with("ffn_down.weight") {
            let gate = info.name().replace("down", "gate");
            let width = source.tensor_info(&gate).expect("it is there").shape()[1];
            let rows = floats(cut, &gate);
            let stays = |row: &[f32]| rows.chunks(width).any(|other| other == row);
            floats(source, &gate).chunks(width).map(stays).collect()
        } else if let (true, Some(layer)) = (info.name().ends_with("attn_output.weight"), layer) {
            (0..columns).map(|c| heads.get(&layer).is_none_or(|heads| heads.contains(&(c / head)))).collect()
        } else {
            vec![true; columns]
        };
        for (i, value) in values.iter_mut().enumerate() {
            if !kept[i % columns] {
                *value = 0.0;
            }
        }
        let tensor = Tensor::from_slice(info.shape(), &values).expect("the extents fit");
        writer.tensor(info.name(), &tensor).expect("it can be written");
    }
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).expect("it is well-formed");
    Gguf::from_slice("masked", &bytes).expect("it opens")
}

#[test]
fn a_cut_model_computes_what_the_whole_one_does_with_zeros_in_place_of_what_is_gone() {
    for cut in &pruned::CUTS {
        let folder = Folder::new();
        let (spec, input, output) = (tiny::spec(cut.model), folder.model(cut.model), folder.0.join("cut.gguf"));
        let manifest = cut.write(&input, &output);
        let report = manifest.pruned.as_ref().expect("it tells what went");
        let (source, small) = (open(&input), open(&output));
        let masked = masked(&source, &small, &report.steps[0].heads, spec.head);
        let (before, after) = (report.layers_before[0], report.layers_after[0]);
        assert_eq!(after.neurons < before.neurons, cut.cut.neurons > 0.0);
        let heads = if cut.cut.heads + cut.cut.query_heads > 0.0 { 2 } else { 4 };
        assert_eq!(after.heads, heads, "{}", cut.name);
        let cut_bytes = std::fs::metadata(&output).expect("it is there").len();
        assert!(cut_bytes < std::fs::metadata(&input).expect("it is there").len(), "{}", cut.name);
        let tokens = &tiny::tokens(&spec)[..24];
        for (found, expected) in logits(small, tokens).iter().zip(logits(masked, tokens)) {
            let error = nmse(found, &expected);
            assert!(error < 1e-9, "{}: {error}", cut.name);
        }
    }
}

/// llama.cpp's logits of the files that `examples/write_tiny_models.rs` writes.
#[test]
fn cut_models_agree_with_llama_cpp() {
    for cut in &pruned::CUTS {
        let folder = Folder::new();
        let (spec, input, output) = (tiny::spec(cut.model), folder.model(cut.model), folder.0.join("cut.gguf"));
        cut.write(&input, &output);
        let path = format!("{}/tests/fixtures/logits/{}.f32", env!("CARGO_MANIFEST_DIR"), cut.name);
        let bytes = std::fs::read(path).expect("the fixture is there");
        let expected: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let found = logits(open(&output), &tiny::tokens(&spec));
        let rows = tiny::compared_rows(spec.tokens);
        assert_eq!(expected.len(), rows.len() * tiny::VOCABULARY);
        // llama.cpp looks GELU up in a table of f16.
        let tolerance = if spec.architecture == "gemma3" { 1e-6 } else { 1e-9 };
        for (row, expected) in rows.into_iter().zip(expected.chunks(tiny::VOCABULARY)) {
            let error = nmse(&found[row], expected);
            assert!(error <= tolerance, "{}, row {row}: NMSE {error:.2e}", cut.name);
        }
    }
}

#[test]
fn as_many_weights_are_zeros_as_were_asked_for_and_the_rest_is_untouched() {
    let folder = Folder::new();
    let (input, output) = (folder.model("llama"), folder.0.join("p.gguf"));
    let mut options = weights("50%", Method::Magnitude, false);
    options.skip = vec![NamePattern::parse(r"blk\.1\.").expect("it is an expression")];
    let manifest = run(&input, &output, &options).expect("it is pruned");
    let (before, after) = (open(&input), open(&output));
    for info in before.tensors() {
        let (old, new) = (floats(&before, info.name()), floats(&after, info.name()));
        let zeros = new.iter().filter(|w| **w == 0.0).count();
        let layer = info.name().starts_with("blk.0.") && info.shape().len() == 2;
        assert_eq!(zeros, if layer { new.len() / 2 } else { 0 }, "{}", info.name());
        assert!(new.iter().zip(&old).all(|(new, old)| *new == 0.0 || new == old), "{}", info.name());
    }
    let report = manifest.pruned.expect("it tells what went");
    assert_eq!(report.tensors().len(), 7);
    assert!(report.tensors().iter().all(|tensor| tensor.gone == 0.5 && tensor.output_error.is_none()));
    assert_eq!(report.settings.sparsity.as_deref(), Some("50%"));
}

#[test]
fn a_text_makes_outputs_change_less() {
    let folder = Folder::new();
    let input = folder.model("llama");
    let error = |what: &str, mut options: PruneOptions| {
        options.calibration = Some(text());
        let manifest = run(&input, &folder.0.join(format!("{what}.gguf")), &options).expect("it is pruned");
        let report = manifest.pruned.expect("it tells what went");
        let errors: Vec<f64> = report.tensors().iter().filter_map(|tensor| tensor.output_error).collect();
        assert!(errors.len() >= 2 && errors.iter().all(|error| *error > 0.0), "{what}: {errors:?}");
        errors.iter().sum::<f64>() / errors.len() as f64
    };
    for pattern in ["50%", "2:4"] {
        let magnitude = error("m", weights(pattern, Method::Magnitude, false));
        let wanda = error("w", weights(pattern, Method::Wanda, false));
        let repaired = error("r", weights(pattern, Method::Wanda, true));
        let chosen = error("s", weights(pattern, Method::SparseGpt, false));
        assert!(
            wanda < magnitude && repaired < 0.9 * wanda && chosen < 0.9 * wanda,
            "{magnitude} {wanda} {repaired} {chosen}"
        );
    }
    let plain = error("n", structure(StructurePruning { reconstruct: false, ..NEURONS }));
    let repaired = error("o", structure(NEURONS));
    assert!(repaired < 0.95 * plain, "{repaired} {plain}");
    let heads = StructurePruning { neurons: 0.0, query_heads: 0.5, ..NEURONS };
    let plain = error("p", structure(StructurePruning { reconstruct: false, ..heads }));
    let repaired = error("q", structure(heads));
    assert!(repaired < 0.95 * plain, "{repaired} {plain}");
}

#[test]
fn steps_end_where_one_step_does_and_leave_nothing_but_the_result() {
    let folder = Folder::new();
    let input = folder.model("llama");
    for (name, options) in [("w.gguf", weights("4:8", Method::SparseGpt, false)), ("n.gguf", structure(NEURONS))] {
        let options = PruneOptions { steps: 3, calibration: Some(text()), ..options };
        let output = folder.0.join(name);
        let manifest = run(&input, &output, &options).expect("it is pruned");
        let report = manifest.pruned.expect("it tells what went");
        let gone: Vec<f64> = report.steps.iter().map(|step| step.tensors[0].gone).collect();
        assert!(gone.len() == 3 && gone[0] > 0.0 && gone[0] < gone[2], "{gone:?}");
        let expected = plan(&open(&input), &options).expect("there is a plan");
        for (info, tensor) in open(&output).tensors().iter().zip(&expected.tensors) {
            assert_eq!((info.name(), info.shape()), (&*tensor.planned.name, &*tensor.planned.shape));
        }
    }
    assert_eq!(folder.files(), ["model.gguf", "n.gguf", "w.gguf"]);
}

#[test]
fn who_cancels_finds_nothing_but_the_source() {
    let folder = Folder::new();
    let input = folder.model("llama");
    let options = PruneOptions { steps: 2, calibration: Some(text()), ..structure(NEURONS) };
    for stop_at in [1, 4, 40, 60] {
        let mut calls = 0;
        let result =
            prune(&input, &folder.0.join("p.gguf"), &options, &(Arc::new(|_, _| {}) as _), &mut |done, total, _| {
                assert!(done <= total);
                calls += 1;
                if calls == stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        assert!(matches!(result, Err(Error::Cancelled)), "{stop_at}: {result:?}");
        assert_eq!((calls, folder.files()), (stop_at, vec!["model.gguf".to_owned()]));
    }
}

#[test]
fn the_result_does_not_depend_on_the_threads() {
    let folder = Folder::new();
    let input = folder.model("llama");
    let mut importances = Importances::default();
    for info in open(&input).tensors() {
        let columns = *info.shape().last().expect("it has an extent");
        let sums = (0..columns).map(|i| 1.0 + (i % 5) as f32).collect();
        importances.entries.insert(info.name().to_owned(), Importance { sums, counts: vec![1.0] });
    }
    let bytes = |threads: usize| {
        let output = folder.0.join(format!("{threads}.gguf"));
        let mut options = weights("2:4", Method::Wanda, false);
        (options.threads, options.importances) = (threads, Some((importances.clone(), "i".to_owned())));
        run(&input, &output, &options).expect("it is pruned");
        std::fs::read(output).expect("it is there")
    };
    assert_eq!(bytes(1), bytes(3));
}

#[test]
fn what_is_pruned_can_be_quantized_at_once_and_its_manifest_agrees() {
    let folder = Folder::new();
    let (input, output) = (folder.model("llama"), folder.0.join("q.gguf"));
    let quantize = QuantizeOptions { hash: false, ..QuantizeOptions::new(Mixture::F16) };
    let mut options = structure(StructurePruning { reconstruct: false, ..NEURONS });
    options.quantize = Some(quantize);
    let manifest = run(&input, &output, &options).expect("it is pruned");
    assert_eq!(folder.files(), ["model.gguf", "q.gguf"]);
    let up = open(&output).tensor_info("blk.0.ffn_up.weight").map(|info| (info.dtype(), info.shape().to_vec()));
    assert_eq!(up, Some((Some(DType::F16), vec![64, 48])));
    assert_eq!((manifest.settings.mixture.as_str(), manifest.source[0].path.clone()), ("F16", input.clone()));
    let read: Manifest = {
        let path = folder.0.join("q.gguf.manifest.json");
        std::fs::write(&path, manifest.to_json()).expect("the folder is writable");
        Manifest::read(&path).expect("it is a manifest")
    };
    assert_eq!(read.pruned, manifest.pruned);
    let verified = read.verify(&folder.0).expect("the files can be read");
    assert!(verified.problems.is_empty() && verified.files.len() == 2, "{verified:?}");
    // Rows of blocks stay blocks; what is changed weight by weight becomes F16.
    let (quantized, again) = (folder.0.join("q8.gguf"), folder.0.join("q8-cut.gguf"));
    let mut spec = tiny::spec("llama");
    (spec.embedding, spec.head, spec.feed_forward) = (64, 16, 96);
    std::fs::write(&input, tiny::bytes(&spec)).expect("the folder is writable");
    models::quantize::quantize(&input, &quantized, &QuantizeOptions::new(Mixture::Q8_0), &mut |_, _, _| {
        ControlFlow::Continue(())
    })
    .expect("it is quantized");
    options.quantize = None;
    run(&quantized, &again, &options).expect("it is pruned");
    let again = open(&again);
    let dtype = |name: &str| again.tensor_info(name).and_then(|info| info.dtype()).map(|dtype| dtype.to_string());
    assert_eq!(dtype("blk.0.ffn_up.weight").as_deref(), Some("q8_0"));
    assert_eq!(dtype("blk.0.ffn_down.weight").as_deref(), Some("f16"));
}

#[test]
fn what_makes_no_sense_is_refused_and_says_why() {
    let folder = Folder::new();
    let (input, output) = (folder.model("llama"), folder.0.join("p.gguf"));
    let refused = |options: PruneOptions| run(&input, &output, &options).expect_err("it makes no sense").to_string();
    let share = |share: f64| StructurePruning { neurons: share, reconstruct: false, ..NEURONS };
    let cases: [(PruneOptions, &str); 9] = [
        (weights("50%", Method::Wanda, false), "importances or a text"),
        (weights("50%", Method::SparseGpt, false), "needs a text"),
        (weights("5:7", Method::Magnitude, false), "no whole groups of 7"),
        (PruneOptions { steps: 2, ..weights("50%", Method::Magnitude, false) }, "between steps"),
        (structure(NEURONS), "needs a text"),
        (structure(share(0.01)), "none would go"),
        (
            structure(StructurePruning { heads: 0.9, ..share(0.0) }),
            "of 2 heads of keys and values of each layer 2 would go",
        ),
        (structure(StructurePruning { heads: 0.5, query_heads: 0.5, ..share(0.0) }), "either whole groups"),
        (structure(share(0.0)), "nothing is to go"),
    ];
    for (options, part) in cases {
        let message = refused(options);
        assert!(message.contains(part), "{message}");
    }
    let qwen = folder.0.join("qwen.gguf");
    std::fs::write(&qwen, tiny::bytes(&tiny::spec("qwen2"))).expect("the folder is writable");
    let heads = structure(StructurePruning { heads: 0.5, ..share(0.0) });
    let message = run(&qwen, &output, &heads).expect_err("its heads make up the width").to_string();
    assert!(message.contains("heads make up the width"), "{message}");
    std::fs::remove_file(&qwen).expect("the folder is writable");
    let importances = (Importances::default(), "empty.gguf".to_owned());
    let options = PruneOptions { importances: Some(importances), ..weights("50%", Method::Wanda, false) };
    assert!(refused(options).contains("empty.gguf: it has no importances of tensor 'blk.0.attn_q.weight'"));
    let mut short = text();
    short.text = "hi".to_owned();
    let options = PruneOptions { calibration: Some(short), ..weights("50%", Method::Wanda, false) };
    assert!(refused(options).contains("at least 64 tokens"));
    let same = run(&input, &input, &weights("50%", Method::Magnitude, false)).expect_err("it would be lost");
    assert!(same.to_string().contains("would replace"), "{same}");
    assert_eq!(folder.files(), ["model.gguf"]);
}
