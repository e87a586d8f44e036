//! The commands on a tiny model with arbitrary weights: what they print, and where.

use std::io::Read;
use std::process::Stdio;

use crate::support::{self, Folder, command, polaris, polaris_with_input};
use serde_json::Value;

fn json(text: &str) -> Value {
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    serde_json::from_str(text).unwrap()
}

#[test]
fn generate_prints_one_object_with_json_and_nothing_else() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let arguments = ["generate", "-m", &model, "-p", "ab", "-n", "5", "--temperature", "0", "--ignore-eos", "--json"];
    let ended = polaris(&arguments);
    assert_eq!(ended.stderr, "");
    let answer = json(&ended.succeeded());
    // The token that begins a text, a space (SentencePiece's prefix, three bytes), the two bytes.
    assert_eq!(answer["prompt_tokens"], serde_json::json!([1, 229, 153, 132, 100, 101]));
    assert_eq!(answer["tokens"].as_array().unwrap().len(), 5);
    assert!(answer["text"].is_string());
    assert_eq!(answer["stop_reason"], "max_tokens");
    for key in ["load_seconds", "prompt_seconds", "first_token_seconds", "decode_seconds"] {
        assert!(answer["timings"][key].as_f64().is_some_and(|seconds| seconds >= 0.0), "{key}: {answer}");
    }
    assert_eq!(answer["timings"]["prompt_tokens"], 6);
    assert_eq!(answer["timings"]["decode_tokens"], 4);
    let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 5, "{keys:?}");
}

#[test]
fn generate_writes_text_to_stdout_and_statistics_to_stderr() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let ended = polaris(&["generate", "-m", &model, "-p", "ab", "-n", "5", "--seed", "7"]);
    assert!(ended.stderr.contains("answer 5 tokens") || ended.stderr.contains("end of text"), "{ended:?}");
    assert!(ended.stderr.contains("seed 7"), "{ended:?}");
    assert!(ended.succeeded().ends_with('\n'));
}

#[test]
fn the_same_seed_gives_the_same_text_and_threads_do_not_matter() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let run = |more: &[&str]| {
        let arguments = ["generate", "-m", &model, "-p", "ab", "-n", "20", "--temperature", "1.5", "--json"];
        json(&polaris(&[&arguments, more].concat()).succeeded())["tokens"].clone()
    };
    let first = run(&["--seed", "1"]);
    assert_eq!(first, run(&["--seed", "1", "-t", "1"]));
    assert_eq!(first, run(&["--seed", "1", "--no-mmap"]));
    assert_ne!(first, run(&["--seed", "2"]));
}

#[test]
fn a_prompt_comes_from_a_file_or_a_pipe_without_its_last_line_break() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let file = folder.file("prompt.txt", b"ab\n");
    let tokens = |ended: support::Ended| json(&ended.succeeded())["prompt_tokens"].clone();
    let arguments = |path| ["generate", "-m", &model, "-n", "1", "--json", "--prompt-file", path];
    let from_file = tokens(polaris(&arguments(&file)));
    assert_eq!(from_file, tokens(polaris_with_input(&arguments("-"), "ab\n")));
    assert_eq!(from_file, tokens(polaris(&["generate", "-m", &model, "-n", "1", "--json", "-p", "ab"])));
}

#[test]
fn a_full_context_stops_or_shifts() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let run = |more: &[&str]| {
        let arguments =
            ["generate", "-m", &model, "-p", "ab", "-n", "100", "--context", "32", "--ignore-eos", "--json"];
        json(&polaris(&[&arguments, more].concat()).succeeded())
    };
    let stopped = run(&[]);
    assert_eq!(stopped["stop_reason"], "context_full");
    let shifted = run(&["--context-shift"]);
    assert_eq!(shifted["stop_reason"], "max_tokens");
    assert_eq!(shifted["tokens"].as_array().unwrap().len(), 100);
}

#[test]
fn a_reader_that_leaves_ends_the_program_quietly() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let arguments = ["generate", "-m", &model, "-p", "ab", "-n", "100000", "--context-shift", "--ignore-eos"];
    let mut child = command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let ended: support::Ended = child.wait_with_output().unwrap().into();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn chat_takes_messages_and_commands_from_a_pipe() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let ended =
        polaris_with_input(&["chat", "-m", &model, "-n", "3"], "a\\\nb\n/nothing\n/reset\n\nc\n/exit\nnot read\n");
    assert!(ended.stderr.contains("There is no command /nothing"), "{ended:?}");
    assert!(ended.stderr.contains("begins anew"), "{ended:?}");
    let answers = ended.stderr.matches("first token").count();
    assert!(answers <= 2, "{ended:?}");
    ended.succeeded();
}

#[test]
fn tokenize_prints_tokens_ids_or_json() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    assert_eq!(polaris(&["tokenize", "-m", &model, "-p", "a", "--ids"]).succeeded(), "1 229 153 132 100\n");
    assert_eq!(polaris(&["tokenize", "-m", &model, "-p", "a", "--ids", "--no-bos"]).succeeded(), "229 153 132 100\n");
    let special = |more: &[&str]| {
        json(&polaris(&[&["tokenize", "-m", &model, "-p", "</s>", "--json"], more].concat()).succeeded())
    };
    assert_eq!(special(&[])["tokens"], serde_json::json!([1, 2]));
    assert_eq!(special(&[])["pieces"], serde_json::json!(["<s>", "</s>"]));
    assert_eq!(special(&["--no-special"])["count"], 8);
    assert!(polaris(&["tokenize", "-m", &model, "-p", "a"]).succeeded().contains("\"a\""));
}

#[test]
fn inspect_tells_what_is_in_the_file() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let text = polaris(&["inspect", &model]).succeeded();
    for part in ["tiny", "llama.embedding_length", "F32", "memory by context length"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let tensors = polaris(&["inspect", &model, "--tensors"]).succeeded();
    assert!(tensors.contains("blk.0.attn_q.weight") && !tensors.contains("llama.embedding_length"), "{tensors}");
    let metadata = polaris(&["inspect", &model, "--metadata"]).succeeded();
    assert!(!metadata.contains("blk.0.attn_q.weight") && metadata.contains("llama.embedding_length"), "{metadata}");
    let object = json(&polaris(&["inspect", &model, "--json"]).succeeded());
    assert_eq!(object["architecture"], "llama");
    assert_eq!(object["tensors"].as_array().unwrap().len(), 12);
    assert_eq!(object["parameters"], 2 * 259 * 32 + 3 * 32 + 3 * 32 * 32 + 3 * 64 * 32);
    assert_eq!(object["unsupported"], Value::Null);
    let other = json(&polaris(&["inspect", &folder.model("abacus"), "--json"]).succeeded());
    assert!(other["unsupported"].as_str().unwrap().contains("abacus"), "{other}");
}

#[test]
fn perplexity_tells_progress_and_one_object() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let text = folder.file("text.txt", "To be, or not to be. ".repeat(10).as_bytes());
    let arguments = ["perplexity", "-m", &model, "-f", &text, "--context", "32", "--chunks", "3", "--json"];
    let ended = polaris(&arguments);
    assert_eq!(ended.stderr.matches("chunk ").count(), 3, "{ended:?}");
    let measured = json(&ended.succeeded());
    assert_eq!(measured["chunks"], 3);
    // A model that knew nothing but how many tokens there are would have 259; one with arbitrary weights is worse.
    assert!(measured["perplexity"].as_f64().unwrap() > 100.0, "{measured}");
}

#[test]
fn bench_measures_as_often_as_asked() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let measured =
        json(&polaris(&["bench", "-m", &model, "-p", "40", "-n", "8", "-r", "2", "-t", "1", "--json"]).succeeded());
    assert_eq!(measured["model"], model.as_str());
    assert_eq!(measured["threads"], 1);
    for (phase, tokens) in [("prefill", 40), ("decode", 8)] {
        let phase = &measured[phase];
        assert_eq!(phase["tokens"], tokens);
        let samples = phase["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 2);
        assert!(samples.iter().all(|sample| sample.as_f64().unwrap() > 0.0), "{measured}");
        assert!(phase["tokens_per_second"].as_f64().unwrap() > 0.0);
    }
    assert!(measured["load_seconds"].as_f64().unwrap() > 0.0);
    if cfg!(target_os = "linux") {
        assert!(measured["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
    }
}

#[test]
fn doctor_tests_itself_and_says_that_a_tiny_model_fits() {
    let folder = Folder::new();
    let findings = json(&polaris(&["doctor", "--json", "-m", &folder.tiny_model()]).succeeded());
    assert!(findings["threads"].as_u64().unwrap() >= 1);
    let outcomes = findings["self_test"].as_array().unwrap();
    assert!(!outcomes.is_empty() && outcomes.iter().all(|outcome| outcome["passed"] == true), "{findings}");
    assert_eq!(findings["model"]["contexts"][0]["fits"], true, "{findings}");
    polaris(&["doctor", "-m", &folder.model("abacus")]).fails_after_output("abacus");
}

#[test]
fn completions_are_there_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = polaris(&["completions", shell]).succeeded();
        assert!(script.contains("perplexity"), "{shell}: {script}");
    }
}

#[test]
fn without_a_vulkan_driver_the_processor_runs_the_model_and_it_is_said() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    // Neither an installed loader nor its drivers matter: there is no such driver.
    let run = |arguments: &[&str]| -> support::Ended {
        let mut command = command(arguments);
        for name in ["VK_ICD_FILENAMES", "VK_DRIVER_FILES"] {
            command.env(name, "/nonexistent/icd.json");
        }
        command.output().unwrap().into()
    };
    let devices = json(&run(&["devices", "--json"]).succeeded());
    assert_eq!((&devices["auto"], &devices["vulkan"]), (&"cpu".into(), &serde_json::json!([])));
    assert!(devices["vulkan_missing"].as_str().is_some_and(|reason| reason.contains("Vulkan")), "{devices}");
    let generate = ["generate", "-m", &model, "-p", "ab", "-n", "2", "--ignore-eos"];
    let ended = run(&generate);
    assert_eq!(ended.stderr.matches("no Vulkan").count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("on CPU"), "{}", ended.stderr);
    ended.succeeded();
    run(&[&generate[..], &["--device", "vulkan"]].concat()).failed(1, &["device vulkan", "no Vulkan"]);
    run(&[&generate[..], &["--device", "vulkan:x"]].concat()).failed(2, &["--device", "vulkan:N"]);
}
