//! Models that break rules of the format: each ends in an error that names file, part and fault.

mod build;

use std::io::{Seek, SeekFrom, Write};

use build::*;
use loader_onnx::proto::tensor_proto::DataType;
use loader_onnx::proto::*;
use loader_onnx::{FileAccess, OnnxModel, TensorData};

fn refused(model: &ModelProto) -> String {
    match OnnxModel::from_slice("m.onnx", &bytes(model)) {
        Ok(_) => panic!("a malformed model was opened"),
        Err(error) => error.to_string(),
    }
}

/// The error of reading one tensor.
fn tensor_error(tensor: TensorProto) -> String {
    let mut model = small_model();
    model.graph.as_mut().unwrap().initializer = vec![tensor];
    let model = OnnxModel::from_slice("m.onnx", &bytes(&model)).unwrap();
    let mut all: Vec<_> = model.initializers().collect();
    match all.remove(0).1 {
        Ok(data) => panic!("a malformed tensor was read: {data:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn models_that_are_none_are_refused_with_the_reason() {
    let with = |change: fn(&mut ModelProto)| {
        let mut model = small_model();
        change(&mut model);
        refused(&model)
    };
    for (error, expected) in [
        (with(|m| m.graph = None), "m.onnx: model: it has no graph"),
        (with(|m| m.ir_version = None), "m.onnx: model: it has no IR version"),
        (with(|m| m.ir_version = Some(2)), "m.onnx: model: IR version 2 is too old (3, of ONNX 1.0, is the oldest)"),
        (with(|m| m.opset_import.clear()), "m.onnx: model: it has no operator set"),
        (
            with(|m| m.opset_import[0].version = Some(5)),
            "m.onnx: model: it uses version 5 of the operators of ai.onnx; 6 is the oldest supported \
             (onnx.version_converter brings it up to date)",
        ),
        (
            with(|m| m.opset_import.push(OperatorSetIdProto { domain: Some("ai.onnx".into()), version: Some(18) })),
            "m.onnx: model: domain 'ai.onnx' occurs twice",
        ),
        (
            with(|m| {
                let function = FunctionProto { name: Some("f".into()), ..FunctionProto::default() };
                m.functions = vec![function.clone(), function];
            }),
            "m.onnx: function 'f': function 'f' occurs twice",
        ),
    ] {
        assert_eq!(error, expected);
    }
}

#[test]
fn bytes_that_are_no_message_are_refused_with_their_offset() {
    let whole = bytes(&small_model());
    let error = |bytes: &[u8]| OnnxModel::from_slice("m.onnx", bytes).unwrap_err().to_string();
    assert!(error(b"GGUF\x03\x00\x00\x00").starts_with("m.onnx: at byte "), "{}", error(b"GGUF"));
    let cut = error(&whole[..whole.len() - 3]);
    assert!(cut.starts_with("m.onnx: at byte "), "{cut}");
    assert_eq!(error(b""), "m.onnx: model: it has no graph");
}

#[test]
fn messages_within_messages_are_bounded() {
    let mut ty = tensor_type(DataType::Float, &[]);
    for _ in 0..10_000 {
        let elem_type = Some(Box::new(std::mem::take(&mut ty)));
        ty.value = Some(type_proto::Value::SequenceType(Box::new(type_proto::Sequence { elem_type })));
    }
    // Written from inside out: encoding and dropping it would overflow the stack themselves.
    let bytes = std::thread::Builder::new()
        .stack_size(1 << 28)
        .spawn(move || {
            let mut model = small_model();
            model.graph.as_mut().unwrap().input = vec![value("x", ty)];
            bytes(&model)
        })
        .unwrap()
        .join()
        .unwrap();
    let error = OnnxModel::from_slice("m.onnx", &bytes).unwrap_err().to_string();
    assert!(error.contains("recursion limit"), "{error}");
}

#[test]
fn tensors_whose_data_do_not_fit_are_refused() {
    let float = DataType::Float;
    let field = |change: fn(&mut TensorProto)| {
        let mut tensor = TensorProto { name: Some("w".into()), ..TensorProto::default() };
        change(&mut tensor);
        tensor_error(tensor)
    };
    for (error, expected) in [
        (tensor_error(raw("w", float, &[3], &[0; 8])), "12 bytes expected in raw_data, 8 found"),
        (tensor_error(raw("w", float, &[-1], &[])), "an extent of -1"),
        (
            tensor_error(raw("w", float, &[1 << 40, 1 << 40], &[])),
            "the extents [1099511627776, 1099511627776] multiply past what can be addressed",
        ),
        (
            tensor_error(raw("w", float, &[0, 1 << 40, 1 << 40], &[])),
            "the extents [0, 1099511627776, 1099511627776] multiply past what can be addressed",
        ),
        (tensor_error(raw("w", DataType::Complex64, &[1], &[0; 8])), "elements of type complex64 are not supported"),
        (field(|t| t.data_type = Some(99)), "unknown element type 99"),
        (field(|_| {}), "unknown element type 0"),
        (
            field(|t| {
                t.data_type = Some(DataType::Float as i32);
                t.dims = vec![1 << 40];
                t.float_data = vec![1.0];
            }),
            "1099511627776 elements expected in float_data, 1 found",
        ),
        (
            field(|t| {
                t.data_type = Some(DataType::Float as i32);
                t.dims = vec![1];
                t.float_data = vec![1.0];
                t.int32_data = vec![1];
            }),
            "its data are in int32_data (a tensor of f32 keeps them in float_data or raw_data)",
        ),
        (
            field(|t| {
                t.data_type = Some(DataType::Int8 as i32);
                t.dims = vec![2];
                t.int32_data = vec![1, 128];
            }),
            "element 1 is 128, which is no i8",
        ),
    ] {
        assert_eq!(error, format!("m.onnx: tensor 'w': {expected}"));
    }
}

#[test]
fn typed_fields_hold_narrow_types_by_value_and_floats_by_bits() {
    let read = |ty: DataType, dims: &[i64], change: fn(&mut TensorProto)| {
        let mut tensor = TensorProto {
            name: Some("w".into()),
            data_type: Some(ty as i32),
            dims: dims.to_vec(),
            ..TensorProto::default()
        };
        change(&mut tensor);
        let mut model = small_model();
        model.graph.as_mut().unwrap().initializer = vec![tensor];
        let model = OnnxModel::from_slice("m.onnx", &bytes(&model)).unwrap();
        let data = model.initializers().next().unwrap().1.unwrap();
        match data {
            TensorData::Tensor(tensor) => (tensor.dtype().name(), tensor.bytes().to_vec()),
            TensorData::Strings { .. } => panic!("strings"),
        }
    };
    assert_eq!(read(DataType::Float16, &[1], |t| t.int32_data = vec![0x3c00]), ("f16", vec![0, 0x3c]));
    assert_eq!(read(DataType::Bfloat16, &[1], |t| t.int32_data = vec![0xbf80]), ("bf16", vec![0x80, 0xbf]));
    assert_eq!(read(DataType::Int8, &[2], |t| t.int32_data = vec![-1, 127]), ("i8", vec![255, 127]));
    assert_eq!(read(DataType::Bool, &[2], |t| t.int32_data = vec![1, 0]), ("bool", vec![1, 0]));
    assert_eq!(read(DataType::Int4, &[4], |t| t.int32_data = vec![0x21, 0x43]), ("i4", vec![0x21, 0x43]));
    assert_eq!(read(DataType::Int4, &[3], |t| t.int32_data = vec![0xf1, 0x08]), ("i8", vec![1, 255, 0xf8]));
    assert_eq!(read(DataType::Uint32, &[1], |t| t.uint64_data = vec![7]), ("u32", vec![7, 0, 0, 0]));
    assert_eq!(read(DataType::Int64, &[0], |_| {}), ("i64", vec![]));
}

/// A folder that goes away with the test.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("loader-onnx-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(path.join("model")).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn external_data_are_taken_from_the_models_folder_only_and_checked_against_the_file() {
    let folder = Folder::new("external");
    let path = folder.0.join("model/m.onnx");
    std::fs::write(folder.0.join("model/w.bin"), [0u8, 0, 0, 0, 0, 0, 128, 63]).unwrap();
    std::fs::write(folder.0.join("secret"), [0u8; 8]).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("../secret", folder.0.join("model/link")).unwrap();
    let read = |entries: &[(&str, &str)]| {
        let mut model = small_model();
        model.graph.as_mut().unwrap().initializer = vec![external("w", DataType::Float, &[1], entries)];
        std::fs::write(&path, bytes(&model)).unwrap();
        let model = OnnxModel::open(&path, FileAccess::Map).unwrap();
        let data = model.initializers().next().unwrap().1;
        data.map(|data| match data {
            TensorData::Tensor(tensor) => tensor.to_f32().unwrap(),
            TensorData::Strings { .. } => panic!("strings"),
        })
        .map_err(|error| error.to_string())
    };
    assert_eq!(read(&[("location", "w.bin"), ("offset", "4"), ("length", "4")]), Ok(vec![1.0]));
    assert_eq!(read(&[("location", "./w.bin")]), Ok(vec![0.0]));
    let absolute = folder.0.join("secret");
    for (entries, expected) in [
        (vec![], "no location"),
        (vec![("location", "w.bin"), ("offset", "5")], "bytes 5..9 are not in"),
        (vec![("location", "w.bin"), ("offset", "18446744073709551615")], "are not in"),
        (vec![("location", "w.bin"), ("length", "8")], "4 bytes expected in external data, 8 found"),
        (vec![("location", "w.bin"), ("offset", "-4")], "offset '-4' is no number"),
        (vec![("location", "../secret")], "leaves the folder of the model"),
        (vec![("location", "x/..\\..\\secret")], "leaves the folder of the model"),
        (vec![("location", absolute.to_str().unwrap())], "leaves the folder of the model"),
        (vec![("location", "")], "is no path"),
        (vec![("location", "none.bin")], "none.bin"),
        #[cfg(unix)]
        (vec![("location", "link")], "is a link that leaves the folder of the model"),
    ] {
        let error = read(&entries).unwrap_err();
        assert!(error.contains(expected) && error.contains("tensor 'w'"), "{error}");
    }
}

#[test]
fn external_data_may_lie_beyond_what_protobuf_can_hold() {
    let folder = Folder::new("large");
    let path = folder.0.join("model/m.onnx");
    let mut data = std::fs::File::create(folder.0.join("model/w.bin")).unwrap();
    // Nothing is stored but the last page.
    data.seek(SeekFrom::Start((5 << 30) - 4)).unwrap();
    data.write_all(&2.5f32.to_le_bytes()).unwrap();
    let mut model = small_model();
    let entries = [("location", "w.bin"), ("offset", "5368709116")];
    model.graph.as_mut().unwrap().initializer = vec![external("w", DataType::Float, &[1], &entries)];
    std::fs::write(&path, bytes(&model)).unwrap();
    let model = OnnxModel::open(&path, FileAccess::Map).unwrap();
    match model.initializers().next().unwrap().1.unwrap() {
        TensorData::Tensor(tensor) => assert_eq!(tensor.to_f32().unwrap(), [2.5]),
        TensorData::Strings { .. } => panic!("strings"),
    }
}
