//! Reading and writing whole files.

mod raw;

use std::fs;
use std::path::PathBuf;

use core_tensor::{DType, Tensor, WeightSource};
use loader_torch::{FileAccess, SafeTensors, SafeTensorsWriter, TorchError, TorchType};

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("loader-torch-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn numbers(count: usize) -> Tensor {
    let values: Vec<f32> = (0..count).map(|i| i as f32).collect();
    Tensor::from_slice(&[count], &values).unwrap()
}

#[test]
fn tensors_lie_in_the_file_in_the_order_of_their_data() {
    let bytes = raw::small_model();
    let model = SafeTensors::from_slice("small", &bytes).unwrap();
    assert_eq!(WeightSource::names(&model), ["first", "second", "émpty", "scalar"]);
    assert_eq!(model.parameters(), 6 + 6 + 1);
    assert_eq!(model.all_metadata().collect::<Vec<_>>(), [("format", "pt"), ("no\tte", "x")]);
    let first = model.tensor("first").unwrap();
    assert_eq!((first.dtype(), first.shape()), (DType::F32, &[3, 2][..]));
    assert!(first.file().is_some());
    assert_eq!(first.bytes(), (0..24).collect::<Vec<u8>>());
    assert_eq!(model.tensor("second").unwrap().bytes(), (24..36).collect::<Vec<u8>>());
    assert!(model.tensor("émpty").unwrap().is_empty());
    let info = model.tensor_info("scalar").unwrap();
    assert_eq!((info.torch_type(), info.byte_len()), (TorchType::F8_E8M0, 1));
    let error = model.tensor("scalar").unwrap_err();
    assert_eq!(error.to_string(), "small: tensor 'scalar' is of type F8_E8M0, which cannot be computed with yet");
    assert!(matches!(model.tensor("third"), Err(TorchError::MissingTensor { .. })));
}

#[test]
fn what_is_written_can_be_read_whether_mapped_or_read() {
    let folder = Folder::new("written");
    let path = folder.0.join("model.safetensors");
    let mut writer = SafeTensorsWriter::new();
    writer.metadata("format", "pt").tensor("b", &numbers(3)).unwrap();
    writer.tensor("a", &Tensor::from_slice(&[2, 1], &[7_i64, 8]).unwrap()).unwrap();
    writer.tensor("none", &Tensor::zeroed(DType::BF16, &[0, 5]).unwrap()).unwrap();
    writer.write(&path).unwrap();
    for access in [FileAccess::Map, FileAccess::Read] {
        // The folder opens as the file in it.
        for path in [&path, &folder.0] {
            let model = SafeTensors::open(path, access).unwrap();
            assert_eq!(model.metadata("format"), Some("pt"));
            assert_eq!(model.tensor("b").unwrap().to_f32().unwrap(), [0.0, 1.0, 2.0]);
            assert_eq!(model.tensor("a").unwrap().to_vec::<i64>().unwrap(), [7, 8]);
            assert_eq!(model.tensor("none").unwrap().shape(), [0, 5]);
        }
    }
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "the temporary file is gone");
}

#[test]
fn what_the_format_does_not_have_is_not_written() {
    let mut writer = SafeTensorsWriter::new();
    let blocks = Tensor::zeroed(DType::Block(core_tensor::BlockFormat::Q8_0), &[32]).unwrap();
    let message = |result: Result<&mut SafeTensorsWriter, TorchError>| result.unwrap_err().to_string();
    assert_eq!(message(writer.tensor("q", &blocks)), "cannot write tensor 'q': safetensors has no type for q8_0");
    assert!(message(writer.tensor("__metadata__", &numbers(1))).contains("kept for the metadata"));
    writer.tensor("x", &numbers(1)).unwrap();
    assert!(message(writer.tensor("x", &numbers(1))).contains("occurs twice"));
}

/// Two shards and an index of this weight map.
fn sharded(folder: &Folder, map: &str) -> PathBuf {
    for (file, tensor, count) in
        [("model-00001-of-00002.safetensors", "a", 2), ("model-00002-of-00002.safetensors", "b", 3)]
    {
        let mut writer = SafeTensorsWriter::new();
        writer.tensor(tensor, &numbers(count)).unwrap();
        writer.write(folder.0.join(file)).unwrap();
    }
    let index = folder.0.join("model.safetensors.index.json");
    fs::write(&index, format!(r#"{{"metadata": {{"total_size": 20}}, "weight_map": {map}}}"#)).unwrap();
    index
}

#[test]
fn a_sharded_model_opens_from_its_index_its_folder_and_each_of_its_shards() {
    let folder = Folder::new("sharded");
    let map = r#"{"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}"#;
    let index = sharded(&folder, map);
    for path in [index, folder.0.clone(), folder.0.join("model-00002-of-00002.safetensors")] {
        let model = SafeTensors::open(&path, FileAccess::Map).unwrap();
        assert_eq!(WeightSource::names(&model), ["a", "b"]);
        assert_eq!(model.files().len(), 2);
        assert_eq!(model.tensor("b").unwrap().to_f32().unwrap(), [0.0, 1.0, 2.0]);
    }
}

#[test]
fn an_index_that_does_not_fit_its_files_is_refused() {
    let folder = Folder::new("index");
    let fails = |map: &str, expected: &str| {
        let error = SafeTensors::open(sharded(&folder, map), FileAccess::Map).unwrap_err().to_string();
        assert!(error.contains(expected), "{map}: {error}");
    };
    fails(r#"{"a": "../model-00001-of-00002.safetensors"}"#, "not a name beside the index");
    fails(r#"{"a": "/etc/passwd"}"#, "not a name beside the index");
    fails(r#"{"a": "..\\x"}"#, "not a name beside the index");
    fails(r#"{"a": ".."}"#, "not a name beside the index");
    fails(r#"{"a": "model-00003-of-00003.safetensors"}"#, "No such file");
    fails(r#"{"b": "model-00001-of-00002.safetensors"}"#, "tensor 'b': the index says that it is in 'model-00001");
    fails(r#"{"a": 3}"#, "expected a string");
    fails(r#"[]"#, "expected an object");
    fails(r#"{"a": "x""#, "at byte");
    let many: Vec<String> = (0..5000).map(|i| format!(r#""{i}": "{i}""#)).collect();
    fails(&format!("{{{}}}", many.join(",")), "more than 4096 files");
    fs::copy(folder.0.join("model-00001-of-00002.safetensors"), folder.0.join("copy.safetensors")).unwrap();
    fails(r#"{"a": "model-00001-of-00002.safetensors", "c": "copy.safetensors"}"#, "tensor 'a' is in '");
}
