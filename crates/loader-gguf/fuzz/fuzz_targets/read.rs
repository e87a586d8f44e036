//! Any bytes: reading never panics, and what is accepted survives being written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use loader_gguf::{Array, Gguf, GgufWriter};

fn visit(array: Array<'_>) {
    assert_eq!(array.iter().count(), array.len());
    array.into_iter().filter_map(|value| value.as_array()).for_each(visit);
}

fn copy(model: &Gguf, bytes: &[u8]) -> Result<Vec<u8>, loader_gguf::GgufError> {
    let mut writer = GgufWriter::with_version(model.version());
    // An alignment of another type than u32 is read, but not written.
    writer.set("general.alignment", model.alignment() as u32)?;
    writer.copy_metadata(model)?;
    for info in model.tensors() {
        writer.bytes(info.name(), info.ggml_type(), info.shape(), &bytes[info.range()])?;
    }
    let mut out = Vec::new();
    writer.write_to(&mut out)?;
    Ok(out)
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = Gguf::from_slice("fuzz", bytes) else { return };
    for (key, value) in model.metadata() {
        assert_eq!(model.get(key).map(|found| found.value_type()), Some(value.value_type()));
        if let Some(array) = value.as_array() {
            visit(array);
        }
    }
    let _ = model.summary().to_string();
    for info in model.tensors() {
        assert_eq!(bytes[info.range()].len(), info.byte_len());
    }
    let written = copy(&model, bytes).expect("what was read can be written");
    let again = Gguf::from_slice("again", &written).expect("what was written can be read");
    assert_eq!(again.tensors().len(), model.tensors().len());
    for (a, b) in model.tensors().iter().zip(again.tensors()) {
        assert_eq!((a.name(), a.shape(), &bytes[a.range()]), (b.name(), b.shape(), &written[b.range()]));
    }
});
