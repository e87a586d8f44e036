//! Lists the tensors of a safetensors file and says how long opening took: `cargo run --example list_weights -- FILE`.

use loader_torch::{FileAccess, SafeTensors};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: list_weights FILE")?;
    let start = std::time::Instant::now();
    let model = SafeTensors::open(path, FileAccess::Map)?;
    let opened = start.elapsed();
    for tensor in model.tensors() {
        println!("{}\t{:?}\t{}\t{}", tensor.name(), tensor.shape(), tensor.torch_type(), tensor.range().start);
    }
    eprintln!("{} tensors, {} parameters, opened in {opened:.2?}", model.tensors().len(), model.parameters());
    Ok(())
}
