//! Writes the tiny models of the tests as GGUF files, with the tokens that they are evaluated on and the rows whose logits are compared:
//! what `tests/fixtures/llama_cpp_logits.cpp` reads to make `tests/fixtures/logits`.
//!
//! `cargo run -p polaris-pipelines --example write_tiny_models -- FOLDER`

#[path = "../tests/tiny/mod.rs"]
mod tiny;

use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: write_tiny_models FOLDER")?);
    fs::create_dir_all(&folder)?;
    for spec in &tiny::SPECS {
        let list = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let rows = tiny::compared_rows(spec.tokens).map(|row| row as u32);
        fs::write(folder.join(format!("{}.gguf", spec.name)), tiny::bytes(spec))?;
        let tokens = format!("{}\n{}\n", list(&tiny::tokens(spec)), list(&rows));
        fs::write(folder.join(format!("{}.tokens", spec.name)), tokens)?;
    }
    Ok(())
}
