//! Quantizing a small model: what lies in the file, what the manifest says, and what is refused.

use crate::tiny;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use core_tensor::{BlockFormat, DType, FileAccess, ReferenceBackend};
use loader_gguf::{ArrayBuf, Gguf, GgufWriter, Value};
use models::Error;
use models::llama::{CalibrationOptions, Llama, LlamaOptions, Picked, importances};
use models::quantize::{
    Manifest, MixedBudget, MixedOptions, MixedReport, QuantizeOptions, TensorType, assign_mixed, plan, quantize,
    read_importances, write_importances,
};
use polaris_quant::Mixture;

/// A folder of its own, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("polaris-quantize-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("the temporary folder is writable");
        Folder(path)
    }

    fn model(&self) -> PathBuf {
        let path = self.0.join("model.gguf");
        std::fs::write(&path, tiny::bytes(&spec())).expect("the folder is writable");
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

/// Columns that are whole blocks of 32.
fn spec() -> tiny::Spec {
    tiny::Spec { embedding: 64, heads: 4, head: 16, feed_forward: 96, ..tiny::spec("llama") }
}

fn go_on(_: u64, _: u64, _: &str) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn run(input: &Path, output: &Path, options: &QuantizeOptions) -> Manifest {
    quantize(input, output, options, &mut go_on).expect("the model is quantized")
}

#[test]
fn metadata_stays_and_tensors_are_what_was_planned() {
    let folder = Folder::new();
    let (input, output) = (folder.model(), folder.0.join("q.gguf"));
    let options = QuantizeOptions::new(Mixture::Q4_0);
    let before = Gguf::open(&input, FileAccess::Read).expect("the model opens");
    let planned = plan(&before, &options).expect("there is a plan");
    let manifest = run(&input, &output, &options);
    assert_eq!(folder.files(), ["model.gguf", "q.gguf"]);
    let after = Gguf::open(&output, FileAccess::Read).expect("the result opens");
    assert_eq!(after.u32("general.file_type").ok(), Some(2));
    assert_eq!(after.u32("general.quantization_version").ok(), Some(2));
    for (key, value) in before.metadata().filter(|(key, _)| !key.starts_with("general.")) {
        let shown = |value: Value<'_>| value.show(80).to_string();
        assert_eq!(after.get(key).map(shown), Some(shown(value)), "{key}");
    }
    assert_eq!(after.tensors().len(), planned.len());
    for ((tensor, plan), record) in after.tensors().iter().zip(&planned).zip(&manifest.tensors) {
        assert_eq!((tensor.name(), tensor.shape()), (&*plan.name, &*plan.shape));
        assert_eq!((tensor.dtype(), tensor.byte_len() as u64), (Some(plan.to), plan.bytes()));
        assert_eq!((&record.name, &record.to), (&plan.name, &plan.to.to_string()));
        let changed = plan.from != plan.to;
        assert_eq!(record.relative_error > 0.0, changed, "{record:?}");
        assert!(record.relative_error < 0.15, "{record:?}");
    }
    assert!(planned.iter().any(|plan| plan.to == DType::Block(BlockFormat::Q4_0)));
}

#[test]
fn the_result_does_not_depend_on_the_threads() {
    let folder = Folder::new();
    let input = folder.model();
    let bytes = |threads: usize| {
        let output = folder.0.join(format!("{threads}.gguf"));
        run(&input, &output, &QuantizeOptions { threads, ..QuantizeOptions::new(Mixture::Q5_1) });
        std::fs::read(output).expect("the result is there")
    };
    assert_eq!(bytes(1), bytes(3));
}

#[test]
fn who_cancels_finds_nothing_but_the_source() {
    let folder = Folder::new();
    let (input, output) = (folder.model(), folder.0.join("q.gguf"));
    let mut calls = 0;
    let result = quantize(&input, &output, &QuantizeOptions::new(Mixture::Q8_0), &mut |done, total, name| {
        assert!(done <= total && !name.is_empty());
        calls += 1;
        if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert_eq!((calls, folder.files()), (3, vec!["model.gguf".to_owned()]));
}

#[test]
fn what_is_quantized_already_has_to_be_allowed() {
    let folder = Folder::new();
    let (input, once, twice) = (folder.model(), folder.0.join("1.gguf"), folder.0.join("2.gguf"));
    run(&input, &once, &QuantizeOptions::new(Mixture::Q8_0));
    let options = QuantizeOptions::new(Mixture::Q4_0);
    let refused = quantize(&once, &twice, &options, &mut go_on).map(drop).expect_err("it is quantized already");
    assert!(refused.to_string().contains("q8_0 already"), "{refused}");
    run(&once, &twice, &QuantizeOptions { allow_requantize: true, ..options });
    assert!(twice.is_file());
}

#[test]
fn a_model_is_not_replaced_by_its_own_result() {
    let folder = Folder::new();
    let input = folder.model();
    let before = std::fs::read(&input).expect("the model is there");
    let refused = quantize(&input, &input, &QuantizeOptions::new(Mixture::Q8_0), &mut go_on);
    assert!(refused.is_err_and(|error| error.to_string().contains("would replace")));
    assert_eq!(std::fs::read(&input).expect("the model is there"), before);
}

/// The model with a tensor's weights changed.
fn changed(path: &Path, spec: &tiny::Spec, name: &str, change: impl Fn(&mut Vec<f32>)) {
    let model = tiny::open(spec);
    let mut writer = GgufWriter::new();
    writer.copy_metadata(&model).expect("its metadata is well-formed");
    for info in model.tensors() {
        let mut tensor = model.tensor(info.name()).expect("it is there").to_vec::<f32>().expect("it is f32");
        if info.name() == name {
            change(&mut tensor);
        }
        let tensor = core_tensor::Tensor::from_slice(info.shape(), &tensor).expect("the extents fit");
        writer.tensor(info.name(), &tensor).expect("it can be written");
    }
    writer.write(path).expect("the folder is writable");
}

#[test]
fn weights_that_are_no_numbers_or_too_large_are_refused_by_name_and_place() {
    let folder = Folder::new();
    let input = folder.0.join("wrong.gguf");
    let cases = [
        (f32::NAN, Mixture::Q8_0, "weight 5 of row 40 is NaN"),
        (1e5, Mixture::F16, "weight 5 of row 40 is 100000, which is too large for f16"),
    ];
    for (weight, mixture, expected) in cases {
        changed(&input, &spec(), "blk.0.ffn_up.weight", |weights| weights[40 * 64 + 5] = weight);
        let options = QuantizeOptions { threads: 3, ..QuantizeOptions::new(mixture) };
        let refused = quantize(&input, &folder.0.join("q.gguf"), &options, &mut go_on);
        let message = refused.expect_err("a weight cannot be written").to_string();
        assert!(message.contains("blk.0.ffn_up.weight") && message.contains(expected), "{message}");
        assert_eq!(folder.files(), ["wrong.gguf"]);
    }
}

/// What is chosen, kept and demanded: the file is as large as the report says.
fn mixed(input: &Path, options: &MixedOptions) -> Result<(MixedReport, Vec<models::quantize::Planned>), Error> {
    let report = assign_mixed(input, options, &mut |_, _, _| ControlFlow::Continue(()))?;
    let mut quantize = QuantizeOptions::new(report.main_mixture());
    quantize.exact = report.types().into_iter().collect();
    let planned = plan(&Gguf::open(input, FileAccess::Read)?, &quantize)?;
    assert_eq!(planned.iter().map(models::quantize::Planned::bytes).sum::<u64>(), report.bytes);
    Ok((report, planned))
}

#[test]
fn mixed_precision_keeps_what_is_quantized_or_fits_no_type_and_heeds_demands() {
    let folder = Folder::new();
    let (float, input) = (folder.0.join("float.gguf"), folder.0.join("model.gguf"));
    // 80 columns are whole blocks of no type.
    let spec = tiny::Spec { feed_forward: 80, ..spec() };
    std::fs::write(&float, tiny::bytes(&spec)).expect("the folder is writable");
    let mut part = QuantizeOptions::new(Mixture::F32);
    part.tensor_types = vec![TensorType::parse("ffn_up=q4_1").expect("it is well-formed")];
    run(&float, &input, &part);

    let mut options = MixedOptions::new(MixedBudget::TensorBytes(1 << 30));
    options.tensor_types = vec![TensorType::parse(r"blk\.0\.attn_q=q5_0").expect("it is well-formed")];
    options.assign.embedding = Some(DType::F16);
    options.assign.leave_output = true;
    let (report, planned) = mixed(&input, &options).expect("there is an assignment");
    let types = |planned: &[models::quantize::Planned], name: &str| {
        planned.iter().find(|tensor| tensor.name == name).map(|tensor| tensor.to.to_string())
    };
    let expected = [
        ("blk.0.ffn_up.weight", "q4_1"),
        ("blk.0.ffn_down.weight", "f32"),
        ("blk.0.attn_q.weight", "q5_0"),
        ("blk.1.attn_q.weight", "q8_0"),
        ("token_embd.weight", "f16"),
        ("output.weight", "f32"),
    ];
    for (name, dtype) in expected {
        assert_eq!(types(&planned, name).as_deref(), Some(dtype), "{name}");
    }
    assert!(report.tensors.iter().all(|tensor| tensor.to == "q8_0"), "{report:?}");

    options.tensor_types = vec![TensorType::parse("ffn_up=q8_0").expect("it is well-formed")];
    let refused = mixed(&input, &options).map(drop).expect_err("it is quantized already");
    assert!(refused.to_string().contains("--allow-requantize"), "{refused}");
    options.allow_requantize = true;
    options.tensor_types.clear();
    let (report, _) = mixed(&input, &options).expect("there is an assignment");
    assert!(report.tensors.iter().any(|tensor| tensor.name == "blk.0.ffn_up.weight"), "{report:?}");
}

#[test]
fn mixed_precision_tells_of_a_broken_model_and_of_the_smallest_file() {
    let folder = Folder::new();
    let input = folder.0.join("nan.gguf");
    changed(&input, &spec(), "blk.0.attn_norm.weight", |weights| weights[0] = f32::NAN);
    let text = Some("the quick brown fox jumps over the lazy dog ".repeat(8));
    let options = MixedOptions { text, context: 32, ..MixedOptions::new(MixedBudget::TensorBytes(1 << 30)) };
    let refused = mixed(&input, &options).map(drop).expect_err("nothing can be measured");
    assert!(refused.to_string().contains("its own predictions"), "{refused}");

    // Of the smallest types the file would be larger.
    let options = MixedOptions::new(MixedBudget::FileBytes(1000));
    let refused = mixed(&folder.model(), &options).map(drop).expect_err("it is too small");
    let message = refused.to_string();
    let words: Vec<&str> = message.split(' ').collect();
    let least = words.iter().position(|word| *word == "take").and_then(|at| words[at + 1].parse().ok());
    let least: u64 = least.expect("the message tells the smallest size");
    let options = MixedOptions::new(MixedBudget::FileBytes(least));
    assert!(mixed(&folder.model(), &options).is_ok(), "{message}");
}

#[test]
fn demands_name_tensors_by_expressions() {
    let folder = Folder::new();
    let model = Gguf::open(folder.model(), FileAccess::Read).expect("the model opens");
    let mut options = QuantizeOptions::new(Mixture::Q4_0);
    options.tensor_types = vec![TensorType::parse(r"blk\.0\.ffn_(up|gate)=Q8_0").expect("it is well-formed")];
    let planned = plan(&model, &options).expect("there is a plan");
    for tensor in planned.iter().filter(|tensor| tensor.name.ends_with("ffn_up.weight")) {
        let expected = if tensor.name.contains("blk.0.") { BlockFormat::Q8_0 } else { BlockFormat::Q4_0 };
        assert_eq!(tensor.to, DType::Block(expected), "{}", tensor.name);
    }
    for (text, part) in [("ffn", "PATTERN=TYPE"), ("(=q8_0", "("), ("ffn=q9", "no type of tensors")] {
        assert!(TensorType::parse(text).is_err_and(|error| error.contains(part)), "{text}");
    }
}

#[test]
fn a_manifest_finds_what_was_changed_afterwards() {
    let folder = Folder::new();
    let (input, output) = (folder.model(), folder.0.join("q.gguf"));
    let manifest = run(&input, &output, &QuantizeOptions::new(Mixture::Q8_0));
    let path = folder.0.join("q.gguf.manifest.json");
    std::fs::write(&path, manifest.to_json()).expect("the folder is writable");
    let manifest = Manifest::read(&path).expect("it is a manifest");
    let verify = || manifest.verify(&folder.0).expect("the files can be read");
    let verified = verify();
    assert_eq!((verified.files.len(), verified.problems.len(), verified.absent.len()), (2, 0, 0), "{verified:?}");

    let mut bytes = std::fs::read(&output).expect("the result is there");
    *bytes.last_mut().expect("it has bytes") ^= 1;
    std::fs::write(&output, &bytes).expect("the folder is writable");
    assert!(verify().problems.iter().any(|problem| problem.reason.contains("sha256")));
    std::fs::write(&output, &bytes[1..]).expect("the folder is writable");
    assert!(verify().problems.iter().any(|problem| problem.reason.contains("bytes")));
    std::fs::remove_file(&output).expect("the folder is writable");
    std::fs::remove_file(&input).expect("the folder is writable");
    let verified = verify();
    assert!(verified.problems.iter().any(|problem| problem.reason.contains("not there")), "{verified:?}");
    assert_eq!(verified.absent, [input]);
}

/// The sums, against the definition: the embeddings' rows, normalized, squared.
#[test]
fn importances_are_the_sums_of_squares_of_what_meets_a_matrix() {
    let folder = Folder::new();
    let input = folder.model();
    let text = "the quick brown fox jumps over the lazy dog ".repeat(8);
    let options = LlamaOptions::default();
    let collect = CalibrationOptions { context: 32, chunks: Some(3), picked: Picked::First, dataset: "fox".into() };
    let mut load = |_, _| ControlFlow::Continue(());
    let found = importances(&input, &options, &text, &collect, &mut load, &mut |_, _| ControlFlow::Continue(()))
        .expect("it runs");
    assert_eq!((found.chunks, found.chunk_size), (3, 32));

    let gguf = Gguf::open(&input, FileAccess::Read).expect("the model opens");
    let backend = Arc::new(ReferenceBackend::default());
    let model = Llama::from_gguf(gguf, &[backend], &options, &mut |_, _| ControlFlow::Continue(())).expect("it loads");
    let gguf = Gguf::open(&input, FileAccess::Read).expect("the model opens");
    let floats = |name: &str| gguf.tensor(name).expect("it is there").to_f32().expect("it is numbers");
    let (embedding, norm) = (floats("token_embd.weight"), floats("blk.0.attn_norm.weight"));
    let columns = norm.len();
    let epsilon = model.config().norm_epsilon;
    let bos = model.tokenizer().bos().filter(|_| model.tokenizer().adds_bos());
    let encode = models::tokenizer::EncodeOptions { add_special: true, parse_special: false };
    let mut expected = vec![0.0f64; columns];
    for chunk in model.tokenize(&text, encode).chunks_exact(32).take(3) {
        for (position, token) in chunk.iter().enumerate() {
            let token = if position == 0 { bos.unwrap_or(*token) } else { *token };
            let x = &embedding[token as usize * columns..][..columns];
            let mean = x.iter().map(|x| x * x).sum::<f32>() / columns as f32;
            for ((sum, x), norm) in expected.iter_mut().zip(x).zip(&norm) {
                *sum += f64::from(x * norm / (mean + epsilon).sqrt()).powi(2);
            }
        }
    }
    let sums = &found.entries["blk.0.attn_q.weight"].sums;
    for (sum, expected) in sums.iter().zip(&expected) {
        assert!((f64::from(*sum) - expected).abs() <= 1e-4 * expected, "{sum} {expected}");
    }
    assert_eq!(found.entries["blk.0.attn_k.weight"].sums, *sums);
    for matrix in ["attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        let entry = &found.entries[&format!("blk.0.{matrix}.weight")];
        assert!(entry.counts == [96.0] && entry.sums.iter().any(|sum| *sum > 0.0), "{matrix}");
    }
    // What meets the output matrix is normalized: without the norm's weights the squares of a row sum up to its columns.
    let untied = gguf.tensors().iter().any(|info| info.name() == "output.weight");
    let output = if untied { "output.weight" } else { "token_embd.weight" };
    let weights = floats("output_norm.weight");
    let sum: f32 = found.entries[output].sums.iter().zip(&weights).map(|(sum, w)| sum / (w * w)).sum();
    assert!((sum / (96 * columns) as f32 - 1.0).abs() < 1e-3, "{sum}");

    // Through a file, and into another.
    let path = folder.0.join("imatrix.gguf");
    write_importances(&found, &path).expect("the folder is writable");
    assert_eq!(read_importances(&path).expect("it can be read"), found);
    let (plain, weighted) = (folder.0.join("plain.gguf"), folder.0.join("weighted.gguf"));
    let mut options = QuantizeOptions::new(Mixture::Q4_1);
    run(&input, &plain, &options);
    options.importances = Some((found, "imatrix.gguf".into()));
    run(&input, &weighted, &options);
    let weighted = Gguf::open(&weighted, FileAccess::Read).expect("the result opens");
    assert_eq!(weighted.str("quantize.imatrix.file").ok(), Some("imatrix.gguf"));
    assert_eq!(weighted.str("quantize.imatrix.dataset").ok(), Some("fox"));
    assert_eq!(weighted.u32("quantize.imatrix.chunks_count").ok(), Some(3));
    let plain = Gguf::open(&plain, FileAccess::Read).expect("the result opens");
    let bytes = |model: &Gguf| model.tensor("blk.0.ffn_down.weight").expect("it is there").bytes().to_vec();
    assert!(bytes(&weighted) != bytes(&plain), "importances change nothing");
}

#[test]
fn importances_of_another_model_are_refused() {
    let folder = Folder::new();
    let (input, path) = (folder.model(), folder.0.join("imatrix.gguf"));
    let mut writer = GgufWriter::new();
    writer.set("imatrix.datasets", &["x"].into_iter().collect::<ArrayBuf>()).expect("it is a list");
    let sums = core_tensor::Tensor::from_slice(&[1, 3], &[1.0f32; 3]).expect("the extents fit");
    let counts = core_tensor::Tensor::from_slice(&[1, 1], &[1.0f32]).expect("the extents fit");
    writer.tensor("blk.0.ffn_up.weight.in_sum2", &sums).expect("it can be written");
    writer.tensor("blk.0.ffn_up.weight.counts", &counts).expect("it can be written");
    writer.write(&path).expect("the folder is writable");
    let mut options = QuantizeOptions::new(Mixture::Q8_0);
    options.importances = Some((read_importances(&path).expect("it can be read"), "imatrix.gguf".into()));
    let refused =
        quantize(&input, &folder.0.join("q.gguf"), &options, &mut go_on).map(drop).expect_err("3 columns are too few");
    assert!(refused.to_string().contains("3 importances"), "{refused}");
    assert!(read_importances(&input).is_err_and(|error| error.to_string().contains("no importances")));
}
