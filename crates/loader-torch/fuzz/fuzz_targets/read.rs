//! Any bytes: reading never panics, and what is accepted survives being written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use loader_torch::{SafeTensors, SafeTensorsWriter};

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = SafeTensors::from_slice("fuzz", bytes) else { return };
    let mut writer = SafeTensorsWriter::new();
    let mut written = 0;
    for info in model.tensors() {
        assert_eq!(bytes[info.range()].len(), info.byte_len());
        if info.torch_type().dtype().is_some() {
            let tensor = model.tensor(info.name()).expect("what was accepted can be had");
            writer.tensor(info.name(), &tensor).expect("what was read can be written");
            written += 1;
        }
    }
    let mut out = Vec::new();
    writer.write_to(&mut out).expect("memory takes all");
    let again = SafeTensors::from_slice("again", &out).expect("what was written can be read");
    assert_eq!(again.tensors().len(), written);
    for info in again.tensors() {
        assert_eq!(out[info.range()], bytes[model.tensor_info(info.name()).expect("it was there").range()]);
    }
});
