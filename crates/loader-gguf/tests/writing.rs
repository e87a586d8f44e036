//! What is written is read back, bit for bit; what would be malformed is not written.

use std::path::{Path, PathBuf};

use core_tensor::Tensor;
use loader_gguf::{ArrayBuf, Fault, FileAccess, GgmlType, Gguf, GgufError, GgufWriter, Value, ValueType, Version};
use proptest::prelude::*;

fn written(writer: GgufWriter<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    writer.write_to(&mut out).expect("written");
    out
}

fn read(bytes: &[u8]) -> Gguf {
    Gguf::from_slice("written.gguf", bytes).expect("what was written can be read")
}

/// A fresh folder of this name.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("writing-{name}"));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("a folder");
    path
}

fn files_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A value that owns what it holds.
#[derive(Clone, Debug)]
enum Owned {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(u32),
    Bool(bool),
    String(Vec<u8>),
    U64(u64),
    I64(i64),
    F64(u64),
    Array(ValueType, Vec<Owned>),
}

impl Owned {
    fn with(&self, take: &mut dyn FnMut(Value<'_>)) {
        match self {
            Owned::U8(v) => take(Value::U8(*v)),
            Owned::I8(v) => take(Value::I8(*v)),
            Owned::U16(v) => take(Value::U16(*v)),
            Owned::I16(v) => take(Value::I16(*v)),
            Owned::U32(v) => take(Value::U32(*v)),
            Owned::I32(v) => take(Value::I32(*v)),
            Owned::F32(v) => take(Value::F32(f32::from_bits(*v))),
            Owned::Bool(v) => take(Value::Bool(*v)),
            Owned::String(v) => take(Value::String(v)),
            Owned::U64(v) => take(Value::U64(*v)),
            Owned::I64(v) => take(Value::I64(*v)),
            Owned::F64(v) => take(Value::F64(f64::from_bits(*v))),
            Owned::Array(element, values) => {
                let mut array = ArrayBuf::new(*element);
                for value in values {
                    value.with(&mut |v| array.push(v).expect("elements of one type"));
                }
                take((&array).into())
            }
        }
    }

    /// Equality of bits: NaNs are equal to themselves.
    fn is(&self, value: Value<'_>) -> bool {
        match (self, value) {
            (Owned::F32(bits), Value::F32(v)) => v.to_bits() == *bits,
            (Owned::F64(bits), Value::F64(v)) => v.to_bits() == *bits,
            (Owned::Array(element, values), Value::Array(array)) => {
                array.value_type() == *element
                    && array.len() == values.len()
                    && values.iter().zip(array).all(|(a, b)| a.is(b))
            }
            (Owned::F32(_) | Owned::F64(_) | Owned::Array(..), _) => false,
            (other, value) => {
                let mut equal = false;
                other.with(&mut |v| equal = v == value);
                equal
            }
        }
    }
}

fn scalar(value_type: ValueType) -> BoxedStrategy<Owned> {
    match value_type {
        ValueType::U8 => any::<u8>().prop_map(Owned::U8).boxed(),
        ValueType::I8 => any::<i8>().prop_map(Owned::I8).boxed(),
        ValueType::U16 => any::<u16>().prop_map(Owned::U16).boxed(),
        ValueType::I16 => any::<i16>().prop_map(Owned::I16).boxed(),
        ValueType::U32 => any::<u32>().prop_map(Owned::U32).boxed(),
        ValueType::I32 => any::<i32>().prop_map(Owned::I32).boxed(),
        ValueType::F32 => any::<u32>().prop_map(Owned::F32).boxed(),
        ValueType::Bool => any::<bool>().prop_map(Owned::Bool).boxed(),
        ValueType::U64 => any::<u64>().prop_map(Owned::U64).boxed(),
        ValueType::I64 => any::<i64>().prop_map(Owned::I64).boxed(),
        ValueType::F64 => any::<u64>().prop_map(Owned::F64).boxed(),
        ValueType::String | ValueType::Array => {
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Owned::String).boxed()
        }
    }
}

fn array(element: BoxedStrategy<Owned>, value_type: ValueType) -> BoxedStrategy<Owned> {
    prop::collection::vec(element, 0..5).prop_map(move |values| Owned::Array(value_type, values)).boxed()
}

fn value() -> impl Strategy<Value = Owned> {
    let plain = prop::sample::select(ValueType::ALL.to_vec()).prop_filter("plain", |t| *t != ValueType::Array);
    plain.prop_flat_map(|t| {
        let flat = array(scalar(t), t);
        prop_oneof![scalar(t), flat.clone(), array(array(flat, ValueType::Array), ValueType::Array)]
    })
}

#[derive(Clone, Debug)]
struct Spec {
    ggml_type: GgmlType,
    shape: Vec<usize>,
    seed: u8,
    streamed: bool,
}

impl Spec {
    fn data(&self) -> Vec<u8> {
        let shape: Vec<u64> = self.shape.iter().map(|n| *n as u64).collect();
        let length = self.ggml_type.byte_len(&shape).expect("a valid shape");
        (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(self.seed)).collect()
    }
}

fn spec() -> impl Strategy<Value = Spec> {
    let ggml_type = prop::sample::select(GgmlType::ALL.to_vec());
    (ggml_type, prop::collection::vec(1..4_usize, 1..=4), any::<u8>(), any::<bool>()).prop_map(
        |(ggml_type, mut shape, seed, streamed)| {
            if let Some(row) = shape.last_mut() {
                *row *= ggml_type.block_len();
            }
            Spec { ggml_type, shape, seed, streamed }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn models_are_read_back_as_they_were_written(
        entries in prop::collection::btree_map("[a-z]{1,8}(\\.[a-zé_]{1,8}){0,2}", value(), 0..8),
        tensors in prop::collection::btree_map("[a-z0-9._ü]{1,70}", spec(), 0..6),
        alignment in prop::option::of(prop::sample::select(vec![1_u32, 8, 32, 64, 4096])),
        version in prop::sample::select(vec![Version::V2, Version::V3]),
    ) {
        let data: Vec<Vec<u8>> = tensors.values().map(Spec::data).collect();
        let mut writer = GgufWriter::with_version(version);
        for (key, value) in &entries {
            value.with(&mut |v| assert!(writer.set(key, v).is_ok(), "a valid entry"));
        }
        if let Some(alignment) = alignment {
            writer.set("general.alignment", alignment).expect("a valid alignment");
        }
        for ((name, spec), data) in tensors.iter().zip(&data) {
            if spec.streamed {
                writer.stream(name, spec.ggml_type, &spec.shape, |out| data.chunks(7).try_for_each(|c| out.write_all(c)))
            } else {
                writer.bytes(name, spec.ggml_type, &spec.shape, data)
            }.expect("a valid tensor");
        }
        let bytes = written(writer);
        let model = read(&bytes);

        prop_assert_eq!(model.version(), version);
        prop_assert_eq!(model.alignment(), u64::from(alignment.unwrap_or(32)));
        prop_assert_eq!(model.keys().count(), entries.len() + usize::from(alignment.is_some()));
        for (key, value) in &entries {
            prop_assert!(model.get(key).is_some_and(|found| value.is(found)), "{}: {:?}", key, value);
        }
        prop_assert_eq!(model.tensors().len(), tensors.len());
        for ((info, (name, spec)), data) in model.tensors().iter().zip(&tensors).zip(&data) {
            prop_assert_eq!((info.name(), info.ggml_type()), (name.as_str(), spec.ggml_type));
            prop_assert_eq!(info.shape(), &spec.shape[..]);
            prop_assert_eq!(info.range().start as u64 % model.alignment(), 0);
            prop_assert_eq!(bytes.get(info.range()), Some(&data[..]));
        }

        // Copying a model through the writer changes no byte.
        let mut copy = GgufWriter::with_version(version);
        copy.copy_metadata(&model).expect("valid metadata");
        for info in model.tensors() {
            copy.bytes(info.name(), info.ggml_type(), info.shape(), &bytes[info.range()]).expect("a valid tensor");
        }
        prop_assert_eq!(written(copy), bytes);
    }
}

#[test]
fn what_would_be_malformed_is_not_written() {
    let fault = |result: Result<(), GgufError>| match result {
        Err(GgufError::Invalid { fault, .. }) => *fault,
        other => panic!("expected a fault, got {other:?}"),
    };
    let mut w = GgufWriter::new();
    w.set("k", 1_u8).expect("fine");
    assert_eq!(fault(w.set("k", 2_u8).map(drop)), Fault::DuplicateKey);
    assert_eq!(fault(w.set("", 2_u8).map(drop)), Fault::EmptyName);
    assert_eq!(fault(w.set(&"k".repeat(65_536), 2_u8).map(drop)), Fault::NameLength { length: 65_536 });
    assert_eq!(fault(w.set("general.alignment", 24_u32).map(drop)), Fault::Alignment { value: 24 });
    let found = ValueType::I32;
    assert_eq!(fault(w.set("general.alignment", 32_i32).map(drop)), Fault::AlignmentType { found });

    let mut deep: ArrayBuf = [1_u8].into_iter().collect();
    for level in 2..8 {
        let mut outer = ArrayBuf::new(ValueType::Array);
        outer.push(&deep).expect("an array");
        deep = outer;
        let result = w.set(&format!("deep.{level}"), &deep).map(drop);
        assert_eq!(result.is_ok(), level <= 4, "{level} levels");
        if level > 4 {
            assert_eq!(fault(result), Fault::Nesting);
        }
    }
    let mut mixed = ArrayBuf::new(ValueType::U8);
    let expected = Fault::MixedArray { expected: ValueType::U8, found: ValueType::String };
    assert_eq!(mixed.push("text"), Err(expected));

    w.bytes("t", GgmlType::F32, &[1], &[0; 4]).expect("fine");
    assert_eq!(fault(w.bytes("t", GgmlType::F32, &[1], &[0; 4]).map(drop)), Fault::DuplicateTensor);
    assert_eq!(fault(w.bytes("", GgmlType::F32, &[1], &[0; 4]).map(drop)), Fault::EmptyName);
    assert_eq!(fault(w.bytes("u", GgmlType::F32, &[1; 5], &[0; 4]).map(drop)), Fault::TooManyDims { dims: 5 });
    assert_eq!(fault(w.bytes("u", GgmlType::F32, &[2, 0], &[]).map(drop)), Fault::ZeroExtent { axis: 1 });
    let partial = Fault::PartialBlock { row: 31, block_len: 32, ggml_type: GgmlType::Q4_0 };
    assert_eq!(fault(w.bytes("u", GgmlType::Q4_0, &[31], &[]).map(drop)), partial);
    let unsigned = Tensor::from_slice(&[2], &[1_u32, 2]).expect("a tensor");
    assert_eq!(fault(w.tensor("u", &unsigned).map(drop)), Fault::NoGgmlType { dtype: unsigned.dtype() });
    assert!(matches!(
        w.bytes("u", GgmlType::F32, &[2], &[0; 7]),
        Err(GgufError::DataLength { expected: 8, found: 7, .. })
    ));
    // Refusals leave nothing behind.
    let model = read(&written(w));
    assert_eq!((model.keys().count(), model.tensors().len()), (4, 1));
}

#[test]
fn a_stream_must_write_exactly_its_bytes_and_a_failed_file_leaves_no_trace() {
    let folder = folder("streams");
    let target = folder.join("model.gguf");
    std::fs::write(&target, b"what was there before").expect("written");
    for (count, found) in [(0, 0), (7, 7), (9, 9), (100, 9)] {
        let mut writer = GgufWriter::new();
        writer.stream("t", GgmlType::I8, &[8], move |out| out.write_all(&vec![1; count])).expect("a valid tensor");
        let error = writer.write(&target).expect_err("a wrong length");
        assert!(matches!(error, GgufError::DataLength { expected: 8, found: f, .. } if f == found), "{error}");
    }
    let mut writer = GgufWriter::new();
    writer.stream("t", GgmlType::I8, &[8], |_| Err(std::io::Error::other("no data"))).expect("a valid tensor");
    let error = writer.write(&target).expect_err("a stream that fails");
    assert!(matches!(&error, GgufError::Write { path, .. } if *path == target), "{error}");
    assert_eq!(files_in(&folder), ["model.gguf"]);
    assert_eq!(std::fs::read(&target).expect("read"), b"what was there before");
    assert!(matches!(GgufWriter::new().write(folder.join("absent/m.gguf")), Err(GgufError::Write { .. })));
}

#[test]
fn a_file_may_be_replaced_while_it_is_mapped() {
    let folder = folder("replace");
    let path = folder.join("model.gguf");
    let weights = Tensor::from_slice(&[2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]).expect("a tensor");
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "llama").expect("valid").set("general.file_type", 0_u32).expect("valid");
    writer.tensor("w", &weights).expect("valid");
    writer.write(&path).expect("written");

    let source = Gguf::open(&path, FileAccess::Map).expect("a model");
    let mut writer = GgufWriter::new();
    writer.set("general.file_type", 1_u32).expect("valid").copy_metadata(&source).expect("valid");
    writer.tensor("w", &source.tensor("w").expect("a tensor")).expect("valid");
    writer.write(&path).expect("replaced");

    let model = Gguf::open(&path, FileAccess::Map).expect("a model");
    assert_eq!(model.u32("general.file_type").ok(), Some(1));
    assert_eq!(model.str("general.architecture").ok(), Some("llama"));
    for model in [&source, &model] {
        assert_eq!(model.tensor("w").expect("a tensor").bytes(), weights.bytes());
    }
    assert_eq!(files_in(&folder), ["model.gguf"]);
}

#[test]
fn a_written_file_has_the_bytes_that_the_format_says() {
    let mut writer = GgufWriter::new();
    writer.set("a", true).expect("valid");
    writer.bytes("t", GgmlType::I16, &[2, 1], &[1, 2, 3, 4]).expect("valid");
    let mut expected = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
    expected.extend(b"\x01\0\0\0\0\0\0\0a\x07\0\0\0\x01");
    // Extents innermost first: 1, 2.
    expected.extend(b"\x01\0\0\0\0\0\0\0t\x02\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x19\0\0\0\0\0\0\0\0\0\0\0");
    expected.resize(96, 0);
    expected.extend([1, 2, 3, 4]);
    expected.resize(128, 0);
    assert_eq!(written(writer), expected);
}
