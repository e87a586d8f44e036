//! Lists the tensors of a GGUF file and says how long opening took: `cargo run --example list_tensors -- FILE`.

use loader_gguf::{FileAccess, Gguf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: list_tensors FILE")?;
    let start = std::time::Instant::now();
    let model = Gguf::open(path, FileAccess::Map)?;
    let opened = start.elapsed();
    for tensor in model.tensors() {
        println!("{}\t{:?}\t{}\t{}", tensor.name(), tensor.shape(), tensor.ggml_type(), tensor.range().start);
    }
    eprintln!("{} tensors, {} keys, opened in {opened:.2?}", model.tensors().len(), model.keys().count());
    Ok(())
}
