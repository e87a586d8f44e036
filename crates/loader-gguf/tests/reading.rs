//! What a whole file gives: values, coercions, tensors, the summary, and the errors of asking for the wrong thing.

mod raw;

use core_tensor::{DType, WeightSource};
use loader_gguf::{Array, Fault, GgmlType, Gguf, GgufError, Value, ValueType, Version};
use raw::{Raw, small_model};

fn small() -> Gguf {
    Gguf::from_slice("small.gguf", &small_model()).expect("a valid file")
}

fn one_key(value_type: u32, value: &[u8]) -> Gguf {
    Gguf::from_slice("one.gguf", &Raw::header(0, 1).key("k", value_type).bytes(value).0).expect("a valid file")
}

#[test]
fn keys_come_in_the_files_order() {
    let model = small();
    let keys: Vec<&str> = model.keys().collect();
    assert_eq!(keys.len(), 15);
    assert_eq!(keys[..3], ["general.architecture", "v.u8", "v.i8"]);
    assert_eq!(keys[14], "nested");
    assert!(model.contains("v.u8") && !model.contains("v.u9"));
}

#[test]
fn every_value_type_is_read() {
    let model = small();
    let types: Vec<ValueType> = model.metadata().map(|(_, value)| value.value_type()).collect();
    assert!(ValueType::ALL.iter().all(|t| types.contains(t)), "{types:?}");
    assert_eq!(model.str("general.architecture").ok(), Some("llama"));
    assert_eq!(model.get("v.u8"), Some(Value::U8(200)));
    assert_eq!(model.get("v.i8"), Some(Value::I8(-1)));
    assert_eq!(model.get("v.u16"), Some(Value::U16(0x201)));
    assert_eq!(model.get("v.i16"), Some(Value::I16(-2)));
    assert_eq!(model.get("llama.block_count"), Some(Value::U32(30)));
    assert_eq!(model.get("v.i32"), Some(Value::I32(-1)));
    assert_eq!(model.get("v.f32"), Some(Value::F32(1e-5)));
    assert_eq!(model.get("v.bool"), Some(Value::Bool(true)));
    assert_eq!(model.get("v.u64"), Some(Value::U64(1 << 40)));
    assert_eq!(model.get("v.i64"), Some(Value::I64(-1)));
    assert_eq!(model.get("v.f64"), Some(Value::F64(0.5)));
}

#[test]
fn arrays_are_iterated_in_place() {
    let model = small();
    let tokens: Result<Vec<&str>, _> = model.strings("tokens").expect("strings").collect();
    assert_eq!(tokens.expect("UTF-8"), ["<s>", "</s>", "", "Ġthe"]);
    assert_eq!(model.strings("tokens").expect("strings").len(), 4);
    assert_eq!(model.f32s("scores").expect("floats"), [0.0, -1.5]);

    let nested: Array<'_> = model.value("nested").expect("an array");
    let inner: Vec<Array<'_>> = nested.iter().filter_map(|value| value.as_array()).collect();
    assert_eq!(inner.len(), 2);
    assert!(inner[0].iter().eq([Value::Bool(false), Value::Bool(true)]));
    assert!(inner[1].iter().eq([Value::String(b"x")]));
}

#[test]
fn integers_of_every_width_are_converted_where_they_fit() {
    let model = small();
    assert_eq!(model.u32("v.u8").ok(), Some(200));
    assert_eq!(model.u64("llama.block_count").ok(), Some(30));
    assert_eq!(model.value::<i64>("v.i8").ok(), Some(-1));
    assert_eq!(model.value::<usize>("v.u64").ok(), Some(1 << 40));
    assert_eq!(model.value::<f32>("v.u16").ok(), Some(513.0));
    assert_eq!(model.f32("v.f64").ok(), Some(0.5));
    assert_eq!(model.optional::<u32>("absent").ok(), Some(None));
}

#[test]
fn wrong_questions_are_answered_with_file_key_and_types() {
    let model = small();
    let error = |result: Result<(), GgufError>| result.expect_err("a wrong question").to_string();
    let texts = [
        error(model.u32("absent").map(drop)),
        error(model.u32("v.i8").map(drop)),
        error(model.u32("v.u64").map(drop)),
        error(model.u32("v.f32").map(drop)),
        error(model.bool("v.u8").map(drop)),
        error(model.f32("v.bool").map(drop)),
        error(model.str("tokens").map(drop)),
        error(model.u64("general.architecture").map(drop)),
        error(model.strings("scores").map(drop)),
        error(model.strings("absent").map(drop)),
        error(model.i32s("scores").map(drop)),
        error(model.f32s("v.f32").map(drop)),
        error(model.tensor("output.weight").map(drop)),
    ];
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn strings_that_are_not_utf8_are_bytes_and_an_error_only_as_text() {
    let text = Raw::default().u64(2).bytes(b"\xff\xfe").0;
    let model = one_key(8, &text);
    assert_eq!(model.value::<&[u8]>("k").ok(), Some(&b"\xff\xfe"[..]));
    assert!(matches!(model.str("k"), Err(GgufError::WrongType { offset: 37, .. })));

    let model = one_key(9, &Raw::default().u32(8).u64(2).string("fine").bytes(&text).0);
    assert!(model.byte_strings("k").expect("strings").eq([&b"fine"[..], b"\xff\xfe"]));
    let strings: Vec<_> = model.strings("k").expect("strings").collect();
    assert!(matches!(strings[0], Ok("fine")));
    assert!(matches!(strings[1], Err(GgufError::WrongType { expected: "UTF-8 strings", .. })));
}

#[test]
fn an_empty_array_of_any_type_is_an_empty_array_of_strings() {
    let model = one_key(9, &Raw::default().u32(5).u64(0).0);
    assert_eq!(model.strings("k").expect("strings").len(), 0);
    assert_eq!(model.f32s("k").expect("floats"), []);
}

#[test]
fn one_value_stands_for_all_layers() {
    assert_eq!(one_key(4, &8_u32.to_le_bytes()).per_layer::<u32>("k", 3).expect("a value"), [8, 8, 8]);
    let array = |values: &[u32]| {
        let start = Raw::default().u32(4).u64(values.len() as u64);
        one_key(9, &values.iter().fold(start, |raw, value| raw.u32(*value)).0)
    };
    assert_eq!(array(&[1, 2, 3]).per_layer::<u32>("k", 3).expect("an array"), [1, 2, 3]);
    assert_eq!(array(&[1, 2, 3]).per_layer::<u32>("k", 2).expect("an array"), [1, 2]);
    assert!(matches!(array(&[1, 2]).per_layer::<u32>("k", 3), Err(GgufError::WrongType { .. })));
    assert!(matches!(array(&[]).per_layer::<u32>("absent", 3), Err(GgufError::MissingKey { .. })));
}

#[test]
fn tensors_have_their_outermost_extent_first_and_lie_in_the_file() {
    let model = small();
    let info = model.tensor_info("token_embd.weight").expect("listed");
    assert_eq!((info.shape(), info.ggml_type()), (&[4, 64][..], GgmlType::Q4_0));
    assert_eq!((info.elements(), info.byte_len()), (256, 4 * 2 * 18));
    assert_eq!(info.range().start as u64, model.data_start());
    let scale = model.tensor("scale").expect("a scalar");
    assert_eq!((scale.shape(), scale.dtype()), (&[][..], DType::BF16));

    let tensor = model.tensor("token_embd.weight").expect("a tensor");
    let (file, range) = tensor.file().expect("the bytes are those of the file, not a copy");
    assert_eq!((file.path().to_str(), range), (Some("small.gguf"), info.range()));
}

#[test]
fn a_model_is_a_weight_source() {
    let source: Box<dyn WeightSource> = Box::new(small());
    assert_eq!(source.names(), ["token_embd.weight", "blk.0.attn_norm.weight", "scale"]);
    assert_eq!(source.tensor("blk.0.attn_norm.weight").map(|t| t.shape().to_vec()), Some(vec![6]));
    assert!(source.tensor("absent").is_none());
    assert_eq!(source.origin(), "small.gguf");
}

#[test]
fn the_summary_of_a_small_file_is_stable() {
    let model = small();
    assert_eq!((model.version(), model.alignment(), model.parameters()), (Version::V3, 32, 256 + 6 + 1));
    insta::assert_snapshot!(model.summary());
}

/// Type numbers, block lengths and block bytes, from `ggml.h` and `ggml-common.h` of ggml 0.25.
const SIZES: [(u32, &str, usize, usize); 35] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

#[test]
fn every_tensor_type_of_ggml_has_its_number_name_and_size() {
    let found: Vec<_> = GgmlType::ALL.iter().map(|t| (t.number(), t.name(), t.block_len(), t.block_bytes())).collect();
    assert_eq!(found, SIZES);
    for (number, ..) in SIZES {
        assert_eq!(GgmlType::from_number(number).map(GgmlType::number), Ok(number));
    }
    for number in 43..300 {
        assert_eq!(GgmlType::from_number(number), Err(Fault::UnknownType { number }));
    }
}

#[test]
fn a_tensor_of_every_type_is_read_at_its_size() {
    for (number, name, block_len, block_bytes) in SIZES {
        let raw = Raw::header(2, 0)
            .tensor("t", &[2 * block_len as u64, 3], number, 0)
            .tensor("u", &[1], 24, (6 * block_bytes).next_multiple_of(32) as u64)
            .data(32, (6 * block_bytes).next_multiple_of(32) + 1);
        let model = Gguf::from_slice("types.gguf", &raw.0).expect(name);
        assert_eq!(model.tensor_info("t").map(|info| info.byte_len()), Some(6 * block_bytes), "{name}");
        match (model.tensor("t"), GgmlType::from_number(number).ok().and_then(GgmlType::dtype)) {
            (Ok(tensor), Some(dtype)) => {
                assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &[3, 2 * block_len][..]), "{name}");
                assert_eq!(GgmlType::from_dtype(dtype).map(GgmlType::number), Some(number), "{name}");
            }
            (Err(GgufError::UnsupportedType { .. }), None) => {}
            (result, dtype) => panic!("{name}: {result:?} for {dtype:?}"),
        }
    }
}
