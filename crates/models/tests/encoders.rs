//! Encoders of every family and task against what Hugging Face transformers computes with the same files (`encoders/make_models.py`).

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use core_tensor::{
    Backend, BackendError, Bindings, DeviceMemory, FileAccess, Graph, Node, Program, Progress, Session, Weights,
};
use loader_torch::SafeTensors;
use models::Error;
use models::backends::{BackendOptions, Device};
use models::bert::{
    BertOptions, Classifier, EmbedOptions, Encoder, Family, FillMask, Pooling, Scores, Task, Text, TextEmbedder,
};
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/encoders")).join(name)
}

fn options(device: Device) -> BertOptions {
    let backend = BackendOptions { device, threads: Some(2), ..BackendOptions::default() };
    BertOptions { backend, ..BertOptions::default() }
}

fn open(name: &str) -> Encoder {
    Encoder::open(folder(name), &options(Device::Cpu), &mut |_, _| ControlFlow::Continue(())).unwrap()
}

/// Texts with what transformers gives for each of them alone.
fn reference(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder(name).join("reference.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().clone()
}

fn texts(reference: &[Value]) -> Vec<&str> {
    reference.iter().map(|case| case["text"].as_str().unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 2e-4 * (1.0 + b.abs()), "{what}, at {at}: {a} instead of {b}");
    }
}

fn go_on(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn ids_are_those_of_the_reference_whatever_padding_and_truncation_the_file_has() {
    for name in ["bert", "roberta-masked", "roberta-sequence", "xlm-roberta-token", "distilbert-masked"] {
        let (encoder, reference) = (open(name), reference(name));
        let texts: Vec<Text<'_>> = texts(&reference).into_iter().map(Text::from).collect();
        for (tokens, case) in encoder.tokenize(&texts).unwrap().iter().zip(&reference) {
            let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokens.ids, expected, "{name}: {}", case["text"]);
        }
    }
}

#[test]
fn embeddings_pool_the_hidden_states_of_the_reference_also_in_batches() {
    let reference = reference("bert");
    let texts = texts(&reference);
    for (_, pooling) in Pooling::ALL {
        for normalize in [false, true] {
            let embed = EmbedOptions { pooling: Some(pooling), normalize: Some(normalize) };
            let embedder = TextEmbedder::new(open("bert"), &embed).unwrap();
            let embeddings = embedder.embed(&texts, &mut go_on).unwrap();
            for (vector, case) in embeddings.vectors.iter().zip(&reference) {
                let mut expected = pooling.pool(&numbers(&case["last_hidden_state"]), 16);
                if normalize {
                    models::bert::normalize(&mut expected);
                }
                assert_near(vector, &expected, &format!("{pooling:?}, {normalize}: {}", case["text"]));
            }
            assert_eq!(embeddings.truncated, [4], "the last text is longer than the model's 16 tokens");
        }
    }
}

#[test]
fn the_reference_interpreter_gives_the_same_embeddings() {
    let texts = ["the cat sits", "a dog", "the quick brown fox jumps"];
    let embed = |device| {
        let load = &mut |_, _| ControlFlow::Continue(());
        let embedder = TextEmbedder::open(folder("bert"), &options(device), &EmbedOptions::default(), load).unwrap();
        embedder.embed(&texts, &mut go_on).unwrap().vectors
    };
    for (fast, slow) in embed(Device::Cpu).iter().zip(embed(Device::Reference)) {
        assert_near(fast, &slow, "the processor");
    }
}

#[test]
fn a_text_has_the_same_embedding_alone_and_beside_others() {
    let embedder = TextEmbedder::new(open("bert"), &EmbedOptions::default()).unwrap();
    let texts = ["the cat sits on the mat", "the cat sits on", "a lazy dog runs far away", "a lazy fox runs"];
    let together = embedder.embed(&texts, &mut go_on).unwrap().vectors;
    for (text, vector) in texts.iter().zip(&together) {
        assert_near(&embedder.embed(&[*text], &mut go_on).unwrap().vectors[0], vector, text);
    }
}

#[test]
fn labels_of_texts_have_the_scores_of_the_reference() {
    for (name, task) in [
        ("bert-sequence", Scores::Softmax),
        ("roberta-sequence", Scores::Sigmoid),
        ("distilbert-sequence", Scores::Softmax),
    ] {
        let (encoder, reference) = (open(name), reference(name));
        let names = encoder.labels().names.clone();
        let classifier = Classifier::new(encoder).unwrap();
        assert!(!classifier.labels_tokens());
        let found = classifier.classify(&texts(&reference), &mut go_on).unwrap();
        for (found, case) in found.iter().zip(&reference) {
            let mut expected = numbers(&case["logits"]);
            task.apply(&mut expected);
            let score = |label: &String| found.labels.iter().find(|scored| scored.label == *label).unwrap().score;
            assert_near(&names.iter().map(score).collect::<Vec<_>>(), &expected, &format!("{name}: {}", case["text"]));
            assert!(found.labels.is_sorted_by(|a, b| a.score >= b.score));
        }
    }
}

#[test]
fn labels_of_tokens_are_the_best_of_the_reference() {
    for name in ["bert-token", "xlm-roberta-token"] {
        let (encoder, reference) = (open(name), reference(name));
        let names = encoder.labels().names.clone();
        let classifier = Classifier::new(encoder).unwrap();
        assert!(classifier.labels_tokens());
        let found = classifier.classify(&texts(&reference), &mut go_on).unwrap();
        let mut compared = 0;
        for (found, case) in found.iter().zip(&reference) {
            let logits = numbers(&case["logits"]);
            // Neither the first nor the last token stands for text.
            let rows = logits.chunks(names.len()).skip(1).take(found.tokens.len());
            for (token, row) in found.tokens.iter().zip(rows) {
                let mut scores = row.to_vec();
                Scores::Softmax.apply(&mut scores);
                let best = scores.iter().copied().fold(0.0, f32::max);
                assert_near(&[token.score], &[best], &format!("{name}: {token:?}"));
                assert_eq!(scores[names.iter().position(|name| *name == token.label).unwrap()], best);
                assert_eq!(case["text"].as_str().unwrap().get(token.start..token.end), Some(token.text.as_str()));
                compared += 1;
            }
        }
        assert!(compared > 20, "{name}: {compared}");
    }
}

#[test]
fn gaps_are_filled_with_the_probabilities_of_the_reference() {
    for name in ["bert-masked", "roberta-masked", "distilbert-masked"] {
        let fill = FillMask::new(open(name)).unwrap();
        for case in reference(name) {
            let mut expected = numbers(&case["logits"]);
            Scores::Softmax.apply(&mut expected);
            let text = case["text"].as_str().unwrap();
            let found = fill.fill(text, usize::MAX, &mut go_on).unwrap();
            assert_eq!(found.len(), 1);
            let mut scores = vec![0.0; expected.len()];
            found[0].iter().for_each(|fill| scores[fill.token as usize] = fill.score);
            assert_near(&scores, &expected, &format!("{name}: {text}"));
            let best = fill.fill(text, 2, &mut go_on).unwrap();
            assert_eq!(best[0], found[0][..2]);
        }
    }
}

#[test]
fn several_gaps_are_filled_and_a_text_without_one_is_refused() {
    let fill = FillMask::new(open("bert-masked")).unwrap();
    let found = fill.fill("the [MASK] sits on the [MASK]", 3, &mut go_on).unwrap();
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
    let sequence = &found[0][0].sequence;
    assert!(sequence.contains(&found[0][0].text) && sequence.contains("sits on the"), "{sequence}");
    let error = fill.fill("the <mask> sits", 3, &mut go_on).unwrap_err();
    assert_eq!(error.to_string(), "the text has no [MASK]");
}

#[test]
fn a_pair_of_texts_is_told_apart_by_its_types() {
    let encoder = open("bert-sequence");
    let pair = Text { first: "the cat", second: Some("a dog") };
    let tokens = encoder.tokenize(&[pair]).unwrap();
    assert_eq!(tokens[0].types, [0, 0, 0, 0, 1, 1, 1]);
    let classifier = Classifier::new(encoder).unwrap();
    let both = classifier.classify(&[pair], &mut go_on).unwrap();
    let alone = classifier.classify(&["the cat"], &mut go_on).unwrap();
    assert_ne!(both[0].labels, alone[0].labels);
}

#[test]
fn the_configuration_tells_family_task_and_room() {
    let config = |name| open(name).config().cloned().unwrap();
    let roberta = config("xlm-roberta-token");
    assert_eq!((roberta.family, roberta.task), (Family::Roberta, Task::TokenClassification));
    assert_eq!((roberta.positions, roberta.max_tokens()), (40, 38));
    let distilled = config("distilbert-masked");
    assert_eq!(
        (distilled.family, distilled.task, distilled.max_tokens()),
        (Family::DistilBert, Task::MaskedLanguage, 16)
    );
}

#[test]
fn progress_is_told_and_can_cancel() {
    let embedder = TextEmbedder::new(open("bert"), &EmbedOptions::default()).unwrap();
    let texts = ["a", "the cat sits on the mat", "dogs run over hills and cats run over hills"];
    let mut told = Vec::new();
    embedder
        .embed(&texts, &mut |done, all| {
            told.push((done, all));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(told.last(), Some(&(3, 3)));
    let cancelled = embedder.embed(&texts, &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(cancelled, Err(Error::Cancelled)));
    assert!(embedder.embed::<&str>(&[], &mut go_on).unwrap().vectors.is_empty());
}

/// A copy of a model in which files are changed.
struct Copy(PathBuf);

impl Copy {
    fn of(name: &str, case: &str) -> Copy {
        let path = std::env::temp_dir().join(format!("polaris-encoders-{case}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            fs::copy(folder(name).join(file), path.join(file)).unwrap();
        }
        Copy(path)
    }

    fn config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.0.join("config.json");
        let mut config = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    fn open(&self) -> Result<Encoder, Error> {
        Encoder::open(&self.0, &options(Device::Cpu), &mut |_, _| ControlFlow::Continue(()))
    }

    #[track_caller]
    fn refused(&self, expected: &str) {
        let error = self.open().expect_err("it is refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Copy {
    /// The same graph as an ONNX file, and no safetensors file any more.
    fn into_onnx(self) -> Copy {
        let weights = self.0.join("model.safetensors");
        let config = self.open().unwrap().config().cloned().unwrap();
        let source = SafeTensors::open(&weights, FileAccess::Read).unwrap();
        let graph = models::bert::build(&config, &source).unwrap();
        loader_onnx::export::write(&graph, &self.0.join("model.onnx")).unwrap();
        fs::remove_file(weights).unwrap();
        self
    }
}

#[test]
fn an_onnx_file_of_an_encoder_gives_what_its_safetensors_give() {
    let texts = ["the cat sits on the mat", "a dog", "Paris is the capital of France."];
    for name in ["bert", "roberta-masked"] {
        let onnx = Copy::of(name, &format!("onnx-{name}")).into_onnx();
        assert!(onnx.open().unwrap().config().is_none(), "it is opened from ONNX");
        assert_eq!(onnx.open().unwrap().tokenizer().max_tokens(), open(name).tokenizer().max_tokens());
    }
    let onnx = Copy::of("bert", "onnx-embed").into_onnx();
    let embed =
        |encoder| TextEmbedder::new(encoder, &EmbedOptions::default()).unwrap().embed(&texts, &mut go_on).unwrap();
    for (found, expected) in embed(onnx.open().unwrap()).vectors.iter().zip(embed(open("bert")).vectors) {
        assert_near(found, &expected, "embeddings");
    }
    for name in ["bert-sequence", "roberta-sequence", "xlm-roberta-token"] {
        let onnx = Copy::of(name, &format!("onnx-{name}")).into_onnx();
        let classify = |encoder| Classifier::new(encoder).unwrap().classify(&texts, &mut go_on).unwrap();
        for (found, expected) in classify(onnx.open().unwrap()).iter().zip(classify(open(name))) {
            let labels = |one: &models::bert::Classification| -> Vec<String> {
                one.labels.iter().map(|l| l.label.clone()).chain(one.tokens.iter().map(|t| t.label.clone())).collect()
            };
            let scores = |one: &models::bert::Classification| -> Vec<f32> {
                one.labels.iter().map(|l| l.score).chain(one.tokens.iter().map(|t| t.score)).collect()
            };
            assert_eq!(labels(found), labels(&expected), "{name}");
            assert_near(&scores(found), &scores(&expected), name);
        }
    }
}

/// The processor under another name, without one operator or with less memory.
struct Lacking {
    inner: Arc<dyn Backend>,
    operator: &'static str,
    bytes: u64,
}

impl Lacking {
    fn new(operator: &'static str, bytes: u64) -> Lacking {
        let inner = models::backends::open(&options(Device::Cpu).backend).unwrap().backends[0].clone();
        Lacking { inner, operator, bytes }
    }
}

impl Backend for Lacking {
    fn name(&self) -> &str {
        "lacking"
    }

    fn description(&self) -> String {
        "a device that lacks something".into()
    }

    fn memory(&self) -> DeviceMemory {
        DeviceMemory { bytes: self.bytes, ..self.inner.memory() }
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), String> {
        if node.op.name() == self.operator { Err("it lacks that".into()) } else { self.inner.supports(graph, node) }
    }

    fn load_weights(&self, graph: &Arc<Graph>, progress: &mut Progress<'_>) -> Result<Arc<dyn Weights>, BackendError> {
        self.inner.load_weights(graph, progress)
    }

    fn compile(
        &self,
        graph: &Arc<Graph>,
        weights: &Arc<dyn Weights>,
        bounds: &Bindings,
    ) -> Result<Arc<dyn Program>, BackendError> {
        self.inner.compile(graph, weights, bounds)
    }

    fn new_session(&self, graph: &Graph, slots: usize, bounds: &Bindings) -> Result<Box<dyn Session>, BackendError> {
        self.inner.new_session(graph, slots, bounds)
    }
}

#[test]
fn what_a_device_lacks_or_cannot_hold_runs_on_the_next_one() {
    let cpu = models::backends::open(&options(Device::Cpu).backend).unwrap().backends[0].clone();
    let texts = ["the cat sits on the mat", "a dog", "dogs run over hills"];
    let embed = |backends: &[Arc<dyn Backend>]| {
        let load = &mut |_, _| ControlFlow::Continue(());
        let encoder = Encoder::open_on(folder("bert"), backends, &BertOptions::default(), load).unwrap();
        let device = encoder.device();
        let embedder = TextEmbedder::new(encoder, &EmbedOptions::default()).unwrap();
        (embedder.embed(&texts, &mut go_on).unwrap().vectors, device)
    };
    let (expected, _) = embed(std::slice::from_ref(&cpu));
    let attention = "Attention";
    let graph = open("bert").graph().clone();
    let operator = graph.nodes().iter().map(|node| node.op.name()).find(|name| name.contains(attention)).unwrap();
    for (lacking, told) in
        [(Lacking::new(operator, u64::MAX), "cpu and lacking (lacking refuses"), (Lacking::new("", 100), "has 100")]
    {
        let (found, device) = embed(&[Arc::new(lacking), cpu.clone()]);
        for (found, expected) in found.iter().zip(&expected) {
            assert_near(found, expected, &device);
        }
        assert!(device.contains(told), "{device}");
    }
}

#[test]
fn a_graph_that_is_no_encoder_is_refused_by_its_inputs() {
    use core_tensor::op::{Op, Unary};
    use core_tensor::{DType, Dim};
    let copy = Copy::of("bert", "no-encoder");
    fs::remove_file(copy.0.join("model.safetensors")).unwrap();
    let write = |input: &str, dtype: DType, shape: &[Dim]| {
        let mut graph = Graph::new("other");
        let x = graph.input(input, dtype, shape);
        let y = graph.add("y", Op::Unary(Unary::Neg), &[x]).unwrap();
        graph.output(y);
        loader_onnx::export::write(&graph, &copy.0.join("model.onnx")).unwrap();
    };
    write("pixels", DType::F32, &[Dim::sym("n")]);
    copy.refused(
        "input \"pixels\" is none of input_ids, attention_mask, token_type_ids, position_ids: not a text encoder",
    );
    write("attention_mask", DType::I64, &[Dim::sym("n"), Dim::sym("m")]);
    copy.refused("there is no input input_ids");
    write("input_ids", DType::F32, &[Dim::sym("n"), Dim::sym("m")]);
    copy.refused("i64 [batch, tokens] is expected");
    write("input_ids", DType::I64, &[Dim::sym("n")]);
    copy.refused("i64 [batch, tokens] is expected");
}

#[test]
fn sentence_transformers_files_decide_pooling_normalization_and_length() {
    let copy = Copy::of("bert", "sentence");
    let defaults = TextEmbedder::new(copy.open().unwrap(), &EmbedOptions::default()).unwrap();
    assert_eq!((defaults.pooling(), defaults.normalizes()), (Some(Pooling::Mean), true));
    let write = |name: &str, text: &str| fs::write(copy.0.join(name), text).unwrap();
    fs::create_dir_all(copy.0.join("1_Pooling")).unwrap();
    write("1_Pooling/config.json", r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#);
    write("sentence_bert_config.json", r#"{"max_seq_length": 7, "do_lower_case": false}"#);
    let modules = r#"[{"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#;
    write("modules.json", modules);
    let embedder = TextEmbedder::new(copy.open().unwrap(), &EmbedOptions::default()).unwrap();
    assert_eq!((embedder.pooling(), embedder.normalizes()), (Some(Pooling::Cls), false));
    let found = embedder.embed(&["the cat sits on the mat and runs"], &mut go_on).unwrap();
    assert_eq!((&found.tokens[..], &found.truncated[..]), (&[7][..], &[0][..]));
    write("modules.json", r#"[{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]"#);
    copy.refused("the module \"sentence_transformers.models.Dense\" is not supported");
    write("modules.json", r#"[{"path": "../elsewhere", "type": "sentence_transformers.models.Pooling"}]"#);
    copy.refused("no folder beside the model");
}

#[test]
fn a_configuration_that_does_not_fit_is_refused_by_key_or_tensor() {
    let case = |change: fn(&mut Value), expected: &str| {
        let copy = Copy::of("bert", "config");
        copy.config(change);
        copy.refused(expected);
    };
    case(|c| c["model_type"] = "gpt2".into(), "'model_type': \"gpt2\" is not supported (supported: bert,");
    case(|c| c["hidden_size"] = 0.into(), "'hidden_size': 0 (a number between 1 and");
    case(|c| c["hidden_size"] = 32.into(), "is [41, 16], the metadata asks for [41, 32]");
    case(|c| c["num_attention_heads"] = 3.into(), "3 heads do not divide the width 16");
    case(|c| c["num_hidden_layers"] = 3.into(), "encoder.layer.2.attention.self.query.weight");
    case(|c| c["num_hidden_layers"] = 1.into(), "does not use: encoder.layer.1.");
    case(|c| c["num_hidden_layers"] = (1_u64 << 40).into(), "'num_hidden_layers'");
    case(|c| c["vocab_size"] = Value::Null, "'vocab_size': is missing");
    case(|c| c["hidden_act"] = "mish".into(), "'hidden_act': \"mish\" is not supported");
    case(|c| c["is_decoder"] = true.into(), "'is_decoder': decoders are not supported");
    case(|c| c["architectures"][0] = "BertForQuestionAnswering".into(), "'architectures'");
    case(|c| c["layer_norm_eps"] = "x".into(), "'layer_norm_eps'");
    case(|c| *c = Value::Null, "'model_type': is missing");
}

#[test]
fn missing_and_damaged_files_are_told_by_name() {
    let copy = Copy::of("bert", "missing");
    fs::write(copy.0.join("tokenizer.json"), "{\"model\": 3}").unwrap();
    copy.refused("tokenizer.json: ");
    fs::remove_file(copy.0.join("tokenizer.json")).unwrap();
    copy.refused("there is no tokenizer.json beside it");
    fs::write(copy.0.join("config.json"), "{").unwrap();
    copy.refused("config.json: EOF");
    fs::remove_file(copy.0.join("config.json")).unwrap();
    copy.refused("there is no config.json beside it");
    fs::remove_file(copy.0.join("model.safetensors")).unwrap();
    copy.refused("a folder without model.safetensors");
    fs::write(copy.0.join("model.bin"), "x").unwrap();
    let load = &mut |_, _| ControlFlow::Continue(());
    let error = Encoder::open(copy.0.join("model.bin"), &BertOptions::default(), load).unwrap_err();
    assert!(error.to_string().contains("neither .safetensors nor .onnx"), "{error}");
}
