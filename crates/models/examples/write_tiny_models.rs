//! Writes the tiny models of the tests as GGUF files, with the tokens that they are evaluated on and the rows whose logits are compared:
//! what `tests/fixtures/llama_cpp_logits.cpp` reads to make `tests/fixtures/logits`.
//!
//! `cargo run -p polaris-pipelines --example write_tiny_models -- FOLDER`

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/pruned/mod.rs"]
mod pruned;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/quantized/mod.rs"]
mod quantized;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/tiny/mod.rs"]
mod tiny;

use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: write_tiny_models FOLDER")?);
    fs::create_dir_all(&folder)?;
    let file = |name: &str, ending: &str| folder.join(format!("{name}.{ending}"));
    let write_tokens = |spec: &tiny::Spec, name: &str| {
        let list = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let rows = tiny::compared_rows(spec.tokens).map(|row| row as u32);
        let tokens = format!("{}\n{}\n", list(&tiny::tokens(spec)), list(&rows));
        fs::write(file(name, "tokens"), tokens)
    };
    for spec in &tiny::SPECS {
        fs::write(file(spec.name, "gguf"), tiny::bytes(spec))?;
        write_tokens(spec, spec.name)?;
    }
    for cut in &pruned::CUTS {
        cut.write(&file(cut.model, "gguf"), &file(cut.name, "gguf"));
        write_tokens(&tiny::spec(cut.model), cut.name)?;
    }
    let source = quantized::spec();
    fs::write(file(source.name, "gguf"), tiny::bytes(&source))?;
    write_tokens(&source, source.name)?;
    for mixture in quantized::TYPES {
        let name = quantized::name(mixture);
        quantized::write(mixture, &file(source.name, "gguf"), &file(&name, "gguf"));
        write_tokens(&source, &name)?;
    }
    Ok(())
}
