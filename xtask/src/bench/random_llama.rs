//! Llama files with random weights, for measuring speed and memory where no real model of the size can be had.
//!
//! Names, shapes and types of the tensors are those of a real conversion; the bits are random, with scales that keep
//! activations finite. The vocabulary is made up, in SentencePiece form, so that programs that need text run, too.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use half::f16;
use loader_gguf::{ArrayBuf, GgmlType, GgufError, GgufWriter};

/// Part of the file's name: a generator that writes something else needs another number.
const GENERATOR: u32 = 1;

/// The shape of a model with the architecture `llama`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    name: &'static str,
    layers: usize,
    width: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    context: usize,
}

pub(crate) const TINYLLAMA: Shape = Shape {
    name: "tinyllama-1.1b-random",
    layers: 22,
    width: 2048,
    feed_forward: 5632,
    heads: 32,
    kv_heads: 4,
    vocabulary: 32000,
    context: 2048,
};

/// The type of the matrices; the output matrix is Q6_K and the norms are F32 for each, as llama.cpp's quantizer makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightType {
    Q4_0,
    Q4K,
}

impl WeightType {
    fn ggml_type(self) -> GgmlType {
        match self {
            WeightType::Q4_0 => GgmlType::Q4_0,
            WeightType::Q4K => GgmlType::Q4_K,
        }
    }

    /// llama.cpp's number of the file type.
    fn file_type(self) -> u32 {
        match self {
            WeightType::Q4_0 => 2,
            WeightType::Q4K => 15,
        }
    }
}

pub(crate) fn file_name(weights: WeightType) -> String {
    let kind = match weights {
        WeightType::Q4_0 => "Q4_0",
        WeightType::Q4K => "Q4_K",
    };
    format!("{}.{kind}.{GENERATOR}.gguf", TINYLLAMA.name)
}

/// Writes the file; the same shape and type give the same bytes.
pub(crate) fn write(shape: &Shape, weights: WeightType, path: &Path) -> Result<(), String> {
    try_write(shape, weights, path).map_err(|error| error.to_string())
}

fn try_write(shape: &Shape, weights: WeightType, path: &Path) -> Result<(), GgufError> {
    let mut file = GgufWriter::new();
    let head = shape.width / shape.heads;
    file.set("general.architecture", "llama")?;
    file.set("general.name", shape.name)?;
    file.set("general.file_type", weights.file_type())?;
    file.set("general.quantization_version", 2_u32)?;
    file.set("llama.context_length", shape.context as u32)?;
    file.set("llama.embedding_length", shape.width as u32)?;
    file.set("llama.block_count", shape.layers as u32)?;
    file.set("llama.feed_forward_length", shape.feed_forward as u32)?;
    file.set("llama.attention.head_count", shape.heads as u32)?;
    file.set("llama.attention.head_count_kv", shape.kv_heads as u32)?;
    file.set("llama.attention.layer_norm_rms_epsilon", 1e-5_f32)?;
    file.set("llama.rope.dimension_count", head as u32)?;
    file.set("llama.rope.freq_base", 10000.0_f32)?;
    file.set("llama.vocab_size", shape.vocabulary as u32)?;
    set_vocabulary(&mut file, shape.vocabulary)?;

    let kind = weights.ggml_type();
    let mut seed = 0;
    let mut matrix = |file: &mut GgufWriter<'_>, name: String, kind: GgmlType, rows: usize, columns: usize| {
        seed += 1;
        let random = Random(seed);
        file.stream(&name, kind, &[rows, columns], move |out| write_blocks(out, kind, rows, columns, random)).map(drop)
    };
    let ones = 1.0_f32.to_le_bytes().repeat(shape.width);
    let norm = |file: &mut GgufWriter<'_>, name: String| {
        let ones = ones.clone();
        file.stream(&name, GgmlType::F32, &[shape.width], move |out| out.write_all(&ones)).map(drop)
    };
    let (width, hidden, kv) = (shape.width, shape.feed_forward, head * shape.kv_heads);
    matrix(&mut file, "token_embd.weight".into(), kind, shape.vocabulary, width)?;
    for layer in 0..shape.layers {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        norm(&mut file, name("attn_norm"))?;
        matrix(&mut file, name("attn_q"), kind, width, width)?;
        matrix(&mut file, name("attn_k"), kind, kv, width)?;
        matrix(&mut file, name("attn_v"), kind, kv, width)?;
        matrix(&mut file, name("attn_output"), kind, width, width)?;
        norm(&mut file, name("ffn_norm"))?;
        matrix(&mut file, name("ffn_gate"), kind, hidden, width)?;
        matrix(&mut file, name("ffn_up"), kind, hidden, width)?;
        matrix(&mut file, name("ffn_down"), kind, width, hidden)?;
    }
    norm(&mut file, "output_norm.weight".into())?;
    matrix(&mut file, "output.weight".into(), GgmlType::Q6_K, shape.vocabulary, width)?;
    file.write(path)
}

/// A SentencePiece vocabulary: three control tokens, the 256 bytes, then made-up pieces, the most likely first.
fn set_vocabulary(file: &mut GgufWriter<'_>, size: usize) -> Result<(), GgufError> {
    // llama.cpp's numbers of the kinds of token.
    const NORMAL: i32 = 1;
    const UNKNOWN: i32 = 2;
    const CONTROL: i32 = 3;
    const BYTE: i32 = 6;
    let mut tokens: Vec<(String, i32)> =
        vec![("<unk>".into(), UNKNOWN), ("<s>".into(), CONTROL), ("</s>".into(), CONTROL)];
    tokens.extend((0..=255).map(|byte| (format!("<0x{byte:02X}>"), BYTE)));
    tokens.extend(pieces().take(size.saturating_sub(tokens.len())).map(|piece| (piece, NORMAL)));
    let scores: ArrayBuf =
        (0..tokens.len()).map(|index| if index < 259 { 0.0 } else { 259.0 - index as f32 }).collect();
    let kinds: ArrayBuf = tokens.iter().map(|(_, kind)| *kind).collect();
    let texts: ArrayBuf = tokens.iter().map(|(text, _)| text.as_str()).collect();
    file.set("tokenizer.ggml.model", "llama")?;
    file.set("tokenizer.ggml.tokens", &texts)?;
    file.set("tokenizer.ggml.scores", &scores)?;
    file.set("tokenizer.ggml.token_type", &kinds)?;
    file.set("tokenizer.ggml.bos_token_id", 1_u32)?;
    file.set("tokenizer.ggml.eos_token_id", 2_u32)?;
    file.set("tokenizer.ggml.unknown_token_id", 0_u32)?;
    file.set("tokenizer.ggml.add_bos_token", true)?;
    Ok(())
}

/// Distinct pieces without end: the space mark, printable ASCII, then longer and longer words of letters, each as it is
/// and after a space.
fn pieces() -> impl Iterator<Item = String> {
    const SPACE: &str = "\u{2581}";
    let characters = (b'!'..=b'~').map(|byte| char::from(byte).to_string());
    let words = (0_u64..).map(|number| {
        // Bijective base 26: a..z, aa..zz, aaa.. and so on.
        let (mut rest, mut word) = (number + 1, String::new());
        while rest > 0 {
            rest -= 1;
            word.insert(0, char::from(b'a' + (rest % 26) as u8));
            rest /= 26;
        }
        word
    });
    let mut seen = HashSet::new();
    std::iter::once(SPACE.to_owned())
        .chain(characters)
        .chain(words.flat_map(|word| [format!("{SPACE}{word}"), word]))
        .filter(move |piece| seen.insert(piece.clone()))
}

/// Writes random blocks, row by row, whose values have a standard deviation of about `columns`^-0.5.
fn write_blocks(
    out: &mut dyn Write,
    kind: GgmlType,
    rows: usize,
    columns: usize,
    mut random: Random,
) -> io::Result<()> {
    let deviation = 1.0 / (columns as f32).sqrt();
    let (block, length) = match kind {
        GgmlType::Q4_0 => (18, 32),
        GgmlType::Q4_K => (144, 256),
        GgmlType::Q6_K => (210, 256),
        _ => return Err(io::Error::other("no random form for this type")),
    };
    let mut row = vec![0; columns / length * block];
    for _ in 0..rows {
        random.fill(&mut row);
        for bytes in row.chunks_exact_mut(block) {
            let jitter = 0.9 + 0.2 * f32::from(bytes[0]) / 255.0;
            let mut put = |at: usize, value: f32| {
                bytes[at..at + 2].copy_from_slice(&f16::from_f32(value * jitter).to_le_bytes());
            };
            match kind {
                // d, then 32 nibbles of value + 8: their standard deviation is 4.6.
                GgmlType::Q4_0 => put(0, deviation / 4.6),
                // d and dmin before 6-bit scales (32 on average) and nibbles: the minimum centres them.
                GgmlType::Q4_K => {
                    put(0, deviation / (4.6 * 36.0));
                    put(2, 7.5 * deviation / (4.6 * 36.0));
                }
                // 6-bit values, 16 8-bit scales from byte 192, d last.
                _ => {
                    put(208, deviation / (18.5 * 2.7));
                    for scale in &mut bytes[192..208] {
                        *scale = 1 + *scale % 4;
                    }
                }
            }
        }
        out.write_all(&row)?;
    }
    Ok(())
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Clone, Copy)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core_tensor::FileAccess;
    use loader_gguf::Gguf;
    use std::{env, fs, process};

    const SMALL: Shape = Shape {
        name: "small",
        layers: 2,
        width: 256,
        feed_forward: 512,
        heads: 4,
        kv_heads: 2,
        vocabulary: 1000,
        context: 64,
    };

    #[test]
    fn the_file_can_be_read_and_is_the_same_every_time() {
        let folder = env::temp_dir().join(format!("polaris-random-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        for weights in [WeightType::Q4_0, WeightType::Q4K] {
            let path = folder.join("a.gguf");
            write(&SMALL, weights, &path).unwrap();
            let first = fs::read(&path).unwrap();
            write(&SMALL, weights, &path).unwrap();
            assert!(first == fs::read(&path).unwrap());

            let file = Gguf::open(&path, FileAccess::Read).unwrap();
            assert_eq!(file.tensors().len(), 3 + SMALL.layers * 9);
            assert_eq!(file.tensor_info("blk.1.ffn_down.weight").unwrap().shape(), [256, 512]);
            assert_eq!(file.tensor_info("blk.0.attn_k.weight").unwrap().shape(), [128, 256]);
            assert_eq!(file.strings("tokenizer.ggml.tokens").unwrap().count(), SMALL.vocabulary);
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn random_weights_have_the_deviation_of_a_trained_matrix() {
        let columns = 1024;
        let mut bytes = Vec::new();
        write_blocks(&mut bytes, GgmlType::Q4_0, 8, columns, Random(1)).unwrap();
        let mut squares = 0.0;
        for block in bytes.chunks_exact(18) {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            for byte in &block[2..] {
                for nibble in [byte & 15, byte >> 4] {
                    squares += (scale * (f32::from(nibble) - 8.0)).powi(2);
                }
            }
        }
        let deviation = (squares / (8 * columns) as f32).sqrt() * (columns as f32).sqrt();
        assert!((0.9..1.15).contains(&deviation), "{deviation}");
    }

    #[test]
    fn pieces_begin_with_what_merging_needs_and_do_not_repeat() {
        let pieces: Vec<String> = pieces().take(31741).collect();
        let distinct: HashSet<&String> = pieces.iter().collect();
        assert_eq!(distinct.len(), pieces.len());
        assert_eq!(pieces[0], "\u{2581}");
        for piece in ["a", "~", "\u{2581}a", "the", "\u{2581}the"] {
            assert!(distinct.contains(&piece.to_owned()), "{piece}");
        }
    }
}
