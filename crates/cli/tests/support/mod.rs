//! Runs the binary that cargo built for these tests, and makes files for it.

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use core_tensor::op::{Binary, MatMul, Op, Unary};
use core_tensor::{DType, Dim, Graph, Tensor, Weight};
use loader_gguf::{ArrayBuf, GgmlType, GgufWriter};

/// What a run ended with.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Ended {
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("standard output is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("standard error is UTF-8"),
        }
    }
}

impl Ended {
    /// Asserts success and gives standard output.
    #[track_caller]
    pub(crate) fn succeeded(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Asserts an exit code, an empty standard output and one message that contains all of `parts`.
    #[track_caller]
    pub(crate) fn failed(self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert!(self.stderr.starts_with("error: "), "{self:?}");
        assert!(!self.stderr["error: ".len()..].contains("\nerror: "), "{self:?}");
        // clap's usage errors tell the usage on further lines.
        assert!(code == 2 || self.stderr.lines().count() == 1, "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {self:?}");
        }
        for unwanted in ["panicked", "RUST_BACKTRACE", "internal error"] {
            assert!(!self.stderr.contains(unwanted), "{self:?}");
        }
    }
}

impl Ended {
    /// Asserts exit code 1 and the message of a command that had printed its result by then.
    #[track_caller]
    pub(crate) fn fails_after_output(self, part: &str) {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.stderr.starts_with("error: ") && self.stderr.contains(part), "{self:?}");
        assert!(!self.stdout.is_empty(), "{self:?}");
    }

    /// Asserts an exit code and the end of what was told on standard error, behind notes on what is going on.
    #[track_caller]
    pub(crate) fn ends_with(self, code: i32, end: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.ends_with(end), "{self:?}");
    }
}

/// The binary with these arguments.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polaris"));
    command.args(arguments).env_remove("POLARIS_LOG").stdin(Stdio::null());
    command
}

pub(crate) fn polaris(arguments: &[&str]) -> Ended {
    command(arguments).output().expect("the binary runs").into()
}

/// The binary with something to read.
pub(crate) fn polaris_with_input(arguments: &[&str], input: &str) -> Ended {
    let mut command = command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    stdin.write_all(input.as_bytes()).expect("the binary reads");
    drop(stdin);
    child.wait_with_output().expect("the binary ends").into()
}

/// A folder of one test, removed with its value.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("polaris-cli-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("the temporary folder is writable");
        Folder(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and gives its path.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("the temporary folder is writable");
        path.display().to_string()
    }

    /// A model of one layer with arbitrary weights, and a SentencePiece vocabulary of nothing but bytes.
    pub(crate) fn tiny_model(&self) -> String {
        self.model("llama")
    }

    /// The same, said to be of another architecture.
    pub(crate) fn model(&self, architecture: &str) -> String {
        self.write_model(architecture, Some("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"))
    }

    /// A tiny model with this chat template.
    pub(crate) fn write_model(&self, architecture: &str, template: Option<&str>) -> String {
        let path = self.0.join(format!("{architecture}.gguf"));
        let result = write_model(architecture, template, &path);
        result.expect("the model is well-formed and the temporary folder writable");
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const WIDTH: usize = 32;
const HIDDEN: usize = 64;

fn write_model(architecture: &str, template: Option<&str>, path: &Path) -> Result<(), loader_gguf::GgufError> {
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter().chain(bytes).collect();
    let vocabulary = tokens.len();
    // Unknown, control, control, bytes.
    let types: ArrayBuf = [2i32, 3, 3].into_iter().chain(std::iter::repeat_n(6, 256)).collect();
    let scores: ArrayBuf = std::iter::repeat_n(0.0f32, vocabulary).collect();
    let texts: ArrayBuf = tokens.iter().map(String::as_str).collect();

    let shapes: [(&str, &[usize]); 12] = [
        ("token_embd.weight", &[vocabulary, WIDTH]),
        ("output.weight", &[vocabulary, WIDTH]),
        ("output_norm.weight", &[WIDTH]),
        ("blk.0.attn_norm.weight", &[WIDTH]),
        ("blk.0.attn_q.weight", &[WIDTH, WIDTH]),
        ("blk.0.attn_k.weight", &[WIDTH / 2, WIDTH]),
        ("blk.0.attn_v.weight", &[WIDTH / 2, WIDTH]),
        ("blk.0.attn_output.weight", &[WIDTH, WIDTH]),
        ("blk.0.ffn_norm.weight", &[WIDTH]),
        ("blk.0.ffn_gate.weight", &[HIDDEN, WIDTH]),
        ("blk.0.ffn_up.weight", &[HIDDEN, WIDTH]),
        ("blk.0.ffn_down.weight", &[WIDTH, HIDDEN]),
    ];
    let data: Vec<Vec<u8>> = shapes.iter().enumerate().map(|(seed, (_, shape))| noise(shape, seed as u32)).collect();

    let mut writer = GgufWriter::new();
    let key = |name: &str| format!("{architecture}.{name}");
    writer.set("general.architecture", architecture)?;
    writer.set("general.name", "tiny")?;
    writer.set(&key("block_count"), 1u32)?.set(&key("context_length"), 256u32)?;
    writer.set(&key("embedding_length"), WIDTH as u32)?.set(&key("feed_forward_length"), HIDDEN as u32)?;
    writer.set(&key("attention.head_count"), 2u32)?.set(&key("attention.head_count_kv"), 1u32)?;
    writer.set(&key("attention.layer_norm_rms_epsilon"), 1e-5f32)?;
    writer.set("tokenizer.ggml.model", "llama")?.set("tokenizer.ggml.tokens", &texts)?;
    writer.set("tokenizer.ggml.scores", &scores)?.set("tokenizer.ggml.token_type", &types)?;
    writer.set("tokenizer.ggml.bos_token_id", 1u32)?.set("tokenizer.ggml.eos_token_id", 2u32)?;

    if let Some(template) = template {
        writer.set("tokenizer.chat_template", template)?;
    }
    for ((name, shape), data) in shapes.iter().zip(&data) {
        writer.bytes(name, GgmlType::F32, shape, data)?;
    }
    writer.write(path)
}

/// Numbers between -0.5 and 0.5, the same on every run.
fn noise(shape: &[usize], seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f64::from(state) / f64::from(u32::MAX) - 0.5
    };
    let count: usize = shape.iter().product();
    std::iter::repeat_with(next).take(count).flat_map(|value| (value as f32).to_le_bytes()).collect()
}

/// A version 1.0 .npy file, by the format's description.
pub(crate) fn npy(path: &Path, shape: &str, values: &[f32]) {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    while !(header.len() + 11).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    fs::write(path, bytes).unwrap();
}

/// Numbers that look random and are the same in each run.
pub(crate) fn values(count: usize, seed: f32) -> Vec<f32> {
    (0..count).map(|i| (((i as f32 + seed) * 12.9898).sin() * 43_758.547).fract()).collect()
}

/// `relu(x·V + b)·W`, x is `[rows, 64]`.
pub(crate) fn two_layers(folder: &Folder) -> String {
    let mut graph = Graph::new("two layers");
    let mut x = graph.input("x", DType::F32, &[Dim::sym("rows"), 64.into()]);
    for (name, n) in [("first", 96), ("second", 32)] {
        let k = graph.tensor_type(x).unwrap().1[1].as_num().unwrap();
        let w = Tensor::from_slice(&[k, n], &values(k * n, n as f32)).unwrap();
        let w = graph.weight(&format!("{name}.weight"), Weight::stored(w));
        x = graph.add(name, Op::MatMul(MatMul { transpose_b: false }), &[x, w]).unwrap();
        let b =
            graph.weight(&format!("{name}.bias"), Weight::stored(Tensor::from_slice(&[n], &values(n, 0.5)).unwrap()));
        x = graph.add(&format!("{name}.sum"), Op::Binary(Binary::Add), &[x, b]).unwrap();
        if name == "first" {
            x = graph.add("relu", Op::Unary(Unary::Relu), &[x]).unwrap();
        }
    }
    graph.rename(x, "y");
    graph.output(x);
    let path = folder.path().join("model.onnx");
    loader_onnx::export::write(&graph, &path).unwrap();
    path.display().to_string()
}

/// What the binary ends with where nobody reads its standard output.
pub(crate) fn unread(arguments: &[&str]) -> Option<i32> {
    let mut child = command(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary runs");
    drop(child.stdout.take());
    child.wait().expect("the binary ends").code()
}
