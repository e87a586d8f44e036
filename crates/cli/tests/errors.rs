//! Wrong input ends in one clear message and the right exit code.

use std::fs;

use crate::support::{self, Folder, polaris, polaris_with_input};

#[test]
fn every_command_has_help_with_examples() {
    let commands = [
        "generate",
        "chat",
        "embed",
        "classify",
        "fill-mask",
        "inspect",
        "tokenize",
        "perplexity",
        "bench",
        "doctor",
        "completions",
    ];
    let all = polaris(&["--help"]).succeeded();
    for command in commands {
        assert!(all.contains(command), "{command} is not in {all}");
        let help = polaris(&[command, "--help"]).succeeded();
        assert!(help.contains(&format!("Usage: polaris {command}")), "{help}");
        assert!(help.contains("Examples:"), "{help}");
    }
}

#[test]
fn wrong_command_lines_end_with_code_2() {
    let model = ["generate", "-m", "m.gguf"];
    let cases: &[(&[&str], &str)] = &[
        (&["-p", "x", "--prompt-file", "y"], "--prompt-file"),
        (&[], "--prompt"),
        (&["-p", "x", "-n", "0"], "--max-tokens"),
        (&["-p", "x", "-n", "-5"], "-5"),
        (&["-p", "x", "-n", "many"], "many"),
        (&["-p", "x", "-t", "0"], "--threads"),
        (&["-p", "x", "--context", "0"], "--context"),
        (&["-p", "x", "--system", "y"], "--chat"),
        (&["-p", "x", "--device", "abacus"], "auto, cpu"),
        (&["-p", "x", "--kv-dtype", "q1"], "f32, f16, q8_0"),
        (&["-p", "x", "--temperature", "-1"], "temperature"),
        (&["-p", "x", "--temperature", "nan"], "temperature"),
        (&["-p", "x", "--top-p", "1.5"], "top-p"),
        (&["-p", "x", "--repeat-penalty", "0"], "penalty"),
        (&["-p", "x", "--stop", ""], "--stop"),
        (&["-p", "x", "--no-such-option"], "--no-such-option"),
    ];
    for (arguments, part) in cases {
        polaris(&[&model[..], arguments].concat()).failed(2, &[part]);
    }
    polaris(&["conjure"]).failed(2, &["conjure"]);
    polaris(&["inspect", "m.gguf", "--json", "--tensors"]).failed(2, &["--json"]);
    polaris(&["bench", "-m", "m.gguf", "-p", "0", "-n", "0"]).failed(2, &["nothing to measure"]);
}

/// Every command that opens a model, with the model's path left out.
fn opening(path: &str) -> Vec<Vec<&str>> {
    vec![
        vec!["generate", "-p", "x", "--json", "-m", path],
        vec!["chat", "-m", path],
        vec!["tokenize", "-p", "x", "-m", path],
        vec!["perplexity", "-f", path, "-m", path],
        vec!["bench", "-m", path],
        vec!["doctor", "-m", path],
        vec!["inspect", path],
    ]
}

#[test]
fn files_that_are_no_models_end_with_code_1_and_their_name() {
    let folder = Folder::new();
    let folder_path = folder.path().display().to_string();
    let absent = folder.path().join("absent.gguf").display().to_string();
    let text = folder.file("text.gguf", b"This is no model.\n");
    let empty = folder.file("empty.gguf", b"");
    let version = folder.file("version.gguf", b"GGUF\x63\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    for path in [&folder_path, &absent, &text, &empty, &version] {
        for arguments in opening(path) {
            polaris(&arguments).failed(1, &[path]);
        }
    }
}

#[test]
fn a_model_cut_anywhere_ends_with_code_1() {
    let folder = Folder::new();
    let bytes = fs::read(folder.tiny_model()).unwrap();
    for length in [1, 4, 20, 100, 1000, bytes.len() / 2, bytes.len() - 1] {
        let cut = folder.file("cut.gguf", &bytes[..length]);
        for access in [&[][..], &["--no-mmap"]] {
            polaris(&[&["generate", "-p", "x", "-m", &cut], access].concat()).failed(1, &[&cut]);
        }
    }
}

#[test]
fn an_architecture_that_is_not_built_is_named_beside_those_that_are() {
    let folder = Folder::new();
    let model = folder.model("abacus");
    polaris(&["generate", "-p", "x", "-m", &model]).failed(1, &[&model, "abacus", "llama", "qwen2"]);
}

#[test]
fn a_prompt_that_cannot_be_read_is_told() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let binary = folder.file("prompt.bin", b"abc\xff\xfe");
    polaris(&["generate", "-m", &model, "--prompt-file", &binary]).failed(1, &[&binary, "UTF-8", "byte 3"]);
    #[cfg(unix)]
    polaris(&["generate", "-m", &model, "--prompt-file", "/dev/zero"]).failed(1, &["/dev/zero", "256 MiB"]);
    let absent = folder.path().join("absent.txt").display().to_string();
    polaris(&["generate", "-m", &model, "--prompt-file", &absent]).failed(1, &[&absent]);
}

#[test]
fn a_model_without_a_chat_template_is_given_one() {
    let folder = Folder::new();
    let model = folder.write_model("llama", None);
    polaris_with_input(&["chat", "-m", &model], "a\n").failed(1, &["no chat template", "--chat-template"]);
    let broken = folder.file("broken.jinja", b"{% for");
    polaris_with_input(&["chat", "-m", &model, "--chat-template", &broken], "a\n").failed(1, &["template", "line 1"]);
    let engine = folder.file("engine.jinja", b"{% for m in [][::-1] %}{% endfor %}");
    polaris_with_input(&["chat", "-m", &model, "--chat-template", &engine], "a\n").failed(1, &["template", "engine"]);
    let rude = folder.file("rude.jinja", b"{{ raise_exception('no\\n\\x1b[31m') }}");
    polaris_with_input(&["chat", "-m", &model, "--chat-template", &rude], "a\n").failed(1, &["refuses", "no"]);
    let template = folder.file("template.jinja", b"{{ messages[0].content }}");
    polaris_with_input(&["chat", "-m", &model, "--chat-template", &template, "-n", "2"], "a\n").succeeded();
    let asked = ["generate", "-m", &model, "--chat", "--chat-template", &template, "-p", "a", "-n", "2"];
    polaris(&asked).succeeded();
}

#[test]
fn what_does_not_fit_is_told_with_numbers() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let long = "x".repeat(300);
    polaris(&["generate", "-m", &model, "-p", &long]).failed(1, &["tokens", "256"]);
    polaris_with_input(&["chat", "-m", &model], &format!("{long}\n")).failed(1, &["tokens", "256"]);
    polaris(&["generate", "-m", &model, "-p", "x", "--context", "2000000000"]).failed(1, &["memory", "--context"]);
    let text = folder.file("short.txt", b"short");
    polaris(&["perplexity", "-m", &model, "-f", &text]).failed(1, &["tokens"]);
}

#[test]
fn a_wrong_log_filter_is_told() {
    let ended = support::command(&["completions", "bash"]).env("POLARIS_LOG", "a=b=c").output().unwrap();
    support::Ended::from(ended).failed(2, &["POLARIS_LOG"]);
}
