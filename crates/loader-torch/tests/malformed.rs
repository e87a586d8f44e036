//! Files that are wrong in one way each, and what is said of them.

mod raw;

use loader_torch::SafeTensors;
use raw::{file, small_model};

/// The message for a file that must be refused.
#[track_caller]
fn refusal(bytes: &[u8]) -> String {
    let error = SafeTensors::from_slice("bad.safetensors", bytes).expect_err("it is malformed");
    assert!(error.malformed().is_some(), "{error}");
    error.to_string()
}

fn tensor(dtype: &str, shape: &str, offsets: &str, data: usize) -> Vec<u8> {
    file(&format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#), data)
}

fn two(first: &str, second: &str, data: usize) -> Vec<u8> {
    let entry = |offsets| format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}"#);
    file(&format!(r#"{{"a":{},"b":{}}}"#, entry(first), entry(second)), data)
}

#[test]
fn errors_name_file_offset_tensor_and_fault() {
    let long = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("seven bytes", vec![0; 7]),
        ("no header", vec![0; 8]),
        ("a GGUF file", b"GGUF\x03\0\0\0\0\0\0\0".to_vec()),
        ("header past the end", long(3)),
        ("largest header", long(u64::MAX)),
        ("an array", file("[]", 0)),
        ("a space first", file(" {}", 0)),
        ("no JSON", file("{a", 0)),
        ("not UTF-8", [&3_u64.to_le_bytes()[..], b"{\"\xff"].concat()),
        ("cut JSON", file(r#"{"w":{"dtype":"F32""#, 0)),
        ("more JSON", file("{}{}", 0)),
        ("deep", file(&format!(r#"{{"w":{}"#, "[".repeat(100_000)), 0)),
        ("metadata that is no text", file(r#"{"__metadata__":{"a":1}}"#, 0)),
        ("metadata twice", file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0)),
        ("no offsets", file(r#"{"w":{"dtype":"F32","shape":[1]}}"#, 4)),
        ("another field", file(r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}"#, 1)),
        ("a field twice", file(r#"{"w":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1)),
        ("unknown type", tensor("Q4", "[1]", "[0,4]", 4)),
        ("negative extent", tensor("F32", "[-1]", "[0,4]", 4)),
        ("huge extent", tensor("F32", "[99999999999999999999]", "[0,4]", 4)),
        ("fraction", tensor("F32", "[1.5]", "[0,4]", 4)),
        ("too many extents", tensor("F32", &format!("{:?}", [1; 65]), "[0,4]", 4)),
        ("overflow", tensor("F32", "[4294967296,4294967296]", "[0,0]", 0)),
        ("half a byte", tensor("F4", "[3]", "[0,2]", 2)),
        ("one offset", tensor("F32", "[1]", "[0]", 4)),
        ("three offsets", tensor("F32", "[1]", "[0,4,4]", 4)),
        ("shape and offsets", tensor("F32", "[2]", "[0,4]", 4)),
        ("offsets backwards", tensor("F32", "[1]", "[4,0]", 4)),
        ("past the end", tensor("F32", "[2]", "[0,8]", 7)),
        ("gap at the start", tensor("F32", "[1]", "[4,8]", 8)),
        ("bytes behind", tensor("F32", "[1]", "[0,4]", 5)),
        (
            "a name twice",
            file(
                r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                2,
            ),
        ),
        ("overlap", two("[0,4]", "[3,7]", 7)),
        ("the same bytes", two("[0,4]", "[0,4]", 4)),
        ("gap", two("[0,4]", "[5,9]", 9)),
    ];
    let lines: Vec<String> = cases.iter().map(|(what, bytes)| format!("{what}: {}", refusal(bytes))).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = small_model();
    assert!(SafeTensors::from_slice("whole", &whole).is_ok());
    for length in 0..whole.len() {
        refusal(&whole[..length]);
    }
}
