//! Every way in which a file can be wrong, each with the exact error that it is answered with.

mod raw;

use loader_gguf::{Fault, GgmlType, Gguf, GgufError, Malformed, Subject, ValueType};
use raw::{Raw, small_model};

/// A file, what it is wrong in, and the expected offset, subject and fault.
struct Case {
    what: &'static str,
    bytes: Vec<u8>,
    offset: u64,
    subject: Subject,
    fault: Fault,
}

fn case(what: &'static str, raw: Raw, offset: u64, subject: Subject, fault: Fault) -> Case {
    Case { what, bytes: raw.0, offset, subject, fault }
}

fn key(name: &str) -> Subject {
    Subject::Key(name.to_owned())
}

fn tensor(name: &str) -> Subject {
    Subject::Tensor(name.to_owned())
}

fn fault_of(bytes: &[u8]) -> Malformed {
    match Gguf::from_slice("bad.gguf", bytes) {
        Err(GgufError::Malformed(malformed)) => *malformed,
        other => panic!("expected a malformed file, got {other:?}"),
    }
}

#[track_caller]
fn check(cases: Vec<Case>) {
    for Case { what, bytes, offset, subject, fault } in cases {
        let expected = Malformed { path: "bad.gguf".into(), offset, subject, fault };
        assert_eq!(fault_of(&bytes), expected, "{what}");
    }
}

fn magic(bytes: &[u8], found: [u8; 4], guess: Option<&'static str>) -> Case {
    case("magic", Raw(bytes.to_vec()), 0, Subject::Header, Fault::Magic { found, guess })
}

#[test]
fn other_formats_are_named() {
    check(vec![
        magic(b"\0\0\0\0\0\0\0\0", [0; 4], None),
        magic(b"lmgg\x01\0\0\0", *b"lmgg", Some("GGML, the format before GGUF: convert the model again")),
        magic(b"tjgg\x03\0\0\0", *b"tjgg", Some("GGJT, the format before GGUF: convert the model again")),
        magic(b"fmgg\x01\0\0\0", *b"fmgg", Some("GGMF, the format before GGUF: convert the model again")),
        magic(b"PK\x03\x04\x14\0", *b"PK\x03\x04", Some("a zip archive, as PyTorch writes")),
        magic(
            b"version https://git-lfs.github.com/spec/v1\n",
            *b"vers",
            Some("a Git LFS pointer: fetch the file itself"),
        ),
        magic(b"<!DOCTYPE html>", *b"<!DO", Some("a web page: the download went wrong")),
        magic(b"\x10\0\0\0\0\0\0\0{\"a\":1}", [16, 0, 0, 0], Some("safetensors")),
    ]);
}

#[test]
fn versions_and_byte_orders_that_are_not_read_are_refused() {
    let version = |number| Raw::default().bytes(b"GGUF").u32(number).u64(0).u64(0);
    let header = |what, raw, offset, fault| case(what, raw, offset, Subject::Header, fault);
    check(vec![
        header("version 0", version(0), 4, Fault::Version { found: 0 }),
        header("version 1", version(1), 4, Fault::Version { found: 1 }),
        header("version 4", version(4), 4, Fault::Version { found: 4 }),
        header("huge version", version(u32::MAX), 4, Fault::Version { found: u32::MAX }),
        header("big-endian version 3", version(3_u32.swap_bytes()), 4, Fault::BigEndian),
        header("big-endian version 1", version(1_u32.swap_bytes()), 4, Fault::BigEndian),
        header("big-endian magic", Raw::default().bytes(b"FUGG").u32(3), 0, Fault::BigEndian),
    ]);
    assert!(Gguf::from_slice("v2", &Raw::default().bytes(b"GGUF").u32(2).u64(0).u64(0).0).is_ok());
}

#[test]
fn counts_larger_than_the_file_are_refused_before_anything_is_allocated() {
    let count = |what, offset, raw: Raw, count, remaining| {
        case(what, raw, offset, Subject::Header, Fault::Count { what, count, remaining })
    };
    check(vec![
        count("tensors", 8, Raw::header(1, 0), 1, 0),
        count("tensors", 8, Raw::header(u64::MAX, 0), u64::MAX, 0),
        count("tensors", 8, Raw::header(u64::MAX / 25 + 1, 0).bytes(&[0; 50]), u64::MAX / 25 + 1, 50),
        count("tensors", 8, Raw::header(3, 0).bytes(&[0; 74]), 3, 74),
        count("metadata entries", 16, Raw::header(0, 1), 1, 0),
        count("metadata entries", 16, Raw::header(0, u64::MAX), u64::MAX, 0),
        count("metadata entries", 16, Raw::header(0, 1 << 60).bytes(&[0; 100]), 1 << 60, 100),
    ]);
}

#[test]
fn names_of_keys_are_checked() {
    let long = "k".repeat(65_536);
    let entry = |what, raw, offset, fault| case(what, raw, offset, Subject::Entry(0), fault);
    let one = || Raw::header(0, 1);
    check(vec![
        entry("empty", one().key("", 4).u32(1).bytes(&[0; 9]), 24, Fault::EmptyName),
        entry("too long", one().key(&long, 4).u32(1), 24, Fault::NameLength { length: 65_536 }),
        entry("of absurd length", one().u64(u64::MAX).bytes(&[0; 20]), 24, Fault::NameLength { length: u64::MAX }),
        entry(
            "longer than the file",
            one().u64(100).bytes(&[b'a'; 20]),
            32,
            Fault::EndOfFile { field: "name", needed: 100, remaining: 20 },
        ),
        entry("not UTF-8", one().u64(2).bytes(&[0xff, 0xfe]).u32(4).u32(1), 24, Fault::NameNotUtf8),
        case(
            "twice",
            Raw::header(0, 2).key("a.b", 0).bytes(&[1]).key("a.b", 0).bytes(&[1]),
            40,
            key("a.b"),
            Fault::DuplicateKey,
        ),
    ]);
    let longest = one().key(long.get(1..).unwrap_or(""), 0).bytes(&[1]);
    assert!(Gguf::from_slice("longest key", &longest.0).is_ok());
}

#[test]
fn values_are_checked_to_their_end() {
    let one = |value_type: u32| Raw::header(0, 1).key("k", value_type); // the value begins at byte 37
    let bad = |what, raw, offset, fault| case(what, raw, offset, key("k"), fault);
    let eof = |field, needed, remaining| Fault::EndOfFile { field, needed, remaining };
    let elements = |count, remaining| Fault::Count { what: "array elements", count, remaining };
    check(vec![
        bad("value type 13", one(13).bytes(&[0; 8]), 33, Fault::UnknownValueType { number: 13 }),
        bad("value type huge", one(u32::MAX).bytes(&[0; 8]), 33, Fault::UnknownValueType { number: u32::MAX }),
        bad("bool 2", one(7).bytes(&[2]), 37, Fault::Bool { byte: 2 }),
        bad("bool 255", one(7).bytes(&[255]), 37, Fault::Bool { byte: 255 }),
        bad("u64 cut", one(10).bytes(&[0; 7]), 37, eof("u64 value", 8, 7)),
        bad("string length cut", one(8).bytes(&[0; 3]), 37, eof("length of a string", 8, 3)),
        bad("string too long", one(8).u64(6).bytes(b"hello"), 45, eof("string", 6, 5)),
        bad("string of absurd length", one(8).u64(u64::MAX), 45, eof("string", u64::MAX, 0)),
        bad("array type unknown", one(9).u32(99).u64(0), 37, Fault::UnknownValueType { number: 99 }),
        bad("array length cut", one(9).u32(0).bytes(&[1; 5]), 41, eof("length of an array", 8, 5)),
        bad("array too long", one(9).u32(4).u64(3).bytes(&[0; 11]), 41, elements(3, 11)),
        bad("array of absurd length", one(9).u32(0).u64(u64::MAX), 41, elements(u64::MAX, 0)),
        bad(
            "array length overflows",
            one(9).u32(12).u64(u64::MAX / 8 + 2).bytes(&[0; 8]),
            41,
            elements(u64::MAX / 8 + 2, 8),
        ),
        bad("string array too long", one(9).u32(8).u64(3).bytes(&[0; 23]), 41, elements(3, 23)),
        bad("string in array too long", one(9).u32(8).u64(2).string("ab").u64(9).bytes(b"x"), 67, eof("string", 9, 1)),
        bad("bool array", one(9).u32(7).u64(3).bytes(&[0, 1, 3]), 51, Fault::Bool { byte: 3 }),
        bad("nested array too long", one(9).u32(9).u64(1).u32(5).u64(2).u32(0), 53, elements(2, 4)),
        bad("nested array unknown", one(9).u32(9).u64(1).u32(44).u64(0), 49, Fault::UnknownValueType { number: 44 }),
        bad("array of arrays too long", one(9).u32(9).u64(2).u32(4).u64(0), 41, elements(2, 12)),
    ]);
}

#[test]
fn arrays_are_read_four_deep_and_refused_deeper() {
    let nested = |levels: usize| {
        let start = Raw::header(0, 1).key("k", 9);
        (1..levels).fold(start, |raw, _| raw.u32(9).u64(1)).u32(0).u64(1).bytes(&[7])
    };
    assert!(Gguf::from_slice("four", &nested(4).0).is_ok());
    for (levels, what) in [(5, "five deep"), (1000, "a thousand deep"), (200_000, "very deep")] {
        check(vec![case(what, nested(levels), 37 + 4 * 12, key("k"), Fault::Nesting)]);
    }
}

#[test]
fn alignments_that_are_no_power_of_two_are_refused() {
    let u32_alignment = |value: u32| Raw::header(0, 1).key("general.alignment", 4).u32(value);
    let bad = |what, raw, fault| case(what, raw, 53, key("general.alignment"), fault);
    check(vec![
        bad("0", u32_alignment(0), Fault::Alignment { value: 0 }),
        bad("24", u32_alignment(24), Fault::Alignment { value: 24 }),
        bad("2^25", u32_alignment(1 << 25), Fault::Alignment { value: 1 << 25 }),
        bad("2^32 - 1", u32_alignment(u32::MAX), Fault::Alignment { value: u64::from(u32::MAX) }),
        bad("2^63", Raw::header(0, 1).key("general.alignment", 10).u64(1 << 63), Fault::Alignment { value: 1 << 63 }),
        bad(
            "text",
            Raw::header(0, 1).key("general.alignment", 8).string("32"),
            Fault::AlignmentType { found: ValueType::String },
        ),
    ]);
}

#[test]
fn tensor_entries_are_checked() {
    // Name "t": the number of dimensions stands at byte 33, the extents from 37.
    let one =
        |extents: &[u64], ggml_type, offset| Raw::header(1, 0).tensor("t", extents, ggml_type, offset).data(32, 4096);
    let bad = |what, raw, offset, fault| case(what, raw, offset, tensor("t"), fault);
    let too_large = |shape: &[u64], ggml_type| Fault::TooLarge { shape: shape.to_vec(), ggml_type };
    let partial = |row, block_len, ggml_type| Fault::PartialBlock { row, block_len, ggml_type };
    check(vec![
        bad("five dimensions", one(&[1; 5], 0, 0), 33, Fault::TooManyDims { dims: 5 }),
        bad(
            "2^32 - 1 dimensions",
            Raw::header(1, 0).string("t").u32(u32::MAX).bytes(&[0; 40]),
            33,
            Fault::TooManyDims { dims: u64::from(u32::MAX) },
        ),
        bad("zero rows", one(&[4, 0], 0, 0), 37, Fault::ZeroExtent { axis: 0 }),
        bad("zero row length", one(&[0, 4], 0, 0), 37, Fault::ZeroExtent { axis: 1 }),
        bad("one extent, zero", one(&[0], 2, 0), 37, Fault::ZeroExtent { axis: 0 }),
        bad("product overflows", one(&[1 << 32, 1 << 32], 0, 0), 37, too_large(&[1 << 32, 1 << 32], GgmlType::F32)),
        bad("bytes overflow", one(&[1 << 61, 2], 28, 0), 37, too_large(&[2, 1 << 61], GgmlType::F64)),
        bad("extent is negative", one(&[u64::MAX], 24, 0), 37, too_large(&[u64::MAX], GgmlType::I8)),
        bad("four extents overflow", one(&[1 << 16; 4], 1, 0), 37, too_large(&[1 << 16; 4], GgmlType::F16)),
        bad("half a block", one(&[48, 2], 2, 0), 37, partial(48, 32, GgmlType::Q4_0)),
        bad("576 in K-quants", one(&[576, 2], 12, 0), 37, partial(576, 256, GgmlType::Q4_K)),
        bad("blocks across rows", one(&[16, 2], 8, 0), 37, partial(16, 32, GgmlType::Q8_0)),
        bad("a scalar of blocks", one(&[], 8, 0), 37, partial(1, 32, GgmlType::Q8_0)),
        bad("unknown type", one(&[32], 43, 0), 45, Fault::UnknownType { number: 43 }),
        bad("absurd type", one(&[32], u32::MAX, 0), 45, Fault::UnknownType { number: u32::MAX }),
        bad("offset unaligned", one(&[4], 0, 16), 49, Fault::Unaligned { offset: 16, alignment: 32 }),
        bad(
            "offset past the end",
            one(&[4], 0, 8192),
            49,
            Fault::OutOfFile { offset: 8192, length: 16, data_start: 64, file_len: 4160 },
        ),
        bad(
            "offset overflows",
            one(&[4], 0, u64::MAX - 31),
            49,
            Fault::OutOfFile { offset: u64::MAX - 31, length: 16, data_start: 64, file_len: 4160 },
        ),
        bad(
            "data truncated by one byte",
            Raw::header(1, 0).tensor("t", &[4], 0, 0).data(32, 15),
            49,
            Fault::OutOfFile { offset: 0, length: 16, data_start: 64, file_len: 79 },
        ),
        bad(
            "no data section",
            Raw::header(1, 0).tensor("t", &[4], 0, 0),
            49,
            Fault::OutOfFile { offset: 0, length: 16, data_start: 64, file_len: 57 },
        ),
    ]);
}

#[test]
fn removed_tensor_types_are_called_by_name() {
    let names = [
        (4, "Q4_2"),
        (5, "Q4_3"),
        (31, "Q4_0_4_4"),
        (32, "Q4_0_4_8"),
        (33, "Q4_0_8_8"),
        (36, "IQ4_NL_4_4"),
        (37, "IQ4_NL_4_8"),
        (38, "IQ4_NL_8_8"),
    ];
    for (number, name) in names {
        let raw = Raw::header(1, 0).tensor("t", &[256], number, 0).data(32, 512);
        check(vec![case(name, raw, 45, tensor("t"), Fault::RemovedType { number, name })]);
    }
}

#[test]
fn tensors_may_not_share_names_or_bytes() {
    let two = |a: (&str, u64), b: (&str, u64)| {
        Raw::header(2, 0).tensor(a.0, &[16], 0, a.1).tensor(b.0, &[16], 0, b.1).data(32, 256)
    };
    let overlap = |what, raw, offset, later: &str, other: &str| {
        case(what, raw, offset, tensor(later), Fault::Overlap { other: other.to_owned() })
    };
    // The data section begins at byte 96.
    check(vec![
        case("the same name", two(("a", 0), ("a", 64)), 57, tensor("a"), Fault::DuplicateTensor),
        overlap("the same bytes", two(("a", 0), ("b", 0)), 96, "b", "a"),
        overlap("the second half", two(("a", 0), ("b", 32)), 128, "b", "a"),
        overlap("in the other order", two(("a", 64), ("b", 32)), 160, "a", "b"),
        case(
            "an empty name",
            Raw::header(1, 0).tensor("", &[4], 0, 0).data(32, 64),
            24,
            Subject::TensorNumber(0),
            Fault::EmptyName,
        ),
    ]);
    let number = |what, raw, offset, fault| case(what, raw, offset, Subject::TensorNumber(0), fault);
    let absurd = Fault::NameLength { length: 1 << 48 };
    check(vec![
        number("an absurd name", Raw::header(1, 0).u64(1 << 48).bytes(&[0; 40]), 24, absurd),
        number("a name that is not UTF-8", Raw::header(1, 0).u64(1).bytes(&[0x80; 40]), 24, Fault::NameNotUtf8),
    ]);
    assert!(Gguf::from_slice("gaps and any order are fine", &two(("a", 128), ("b", 0)).0).is_ok());
}

#[test]
fn a_header_cut_at_any_byte_is_refused_inside_the_field_that_is_cut() {
    let whole = small_model();
    let data_start = Gguf::from_slice("whole", &whole).expect("the whole file is fine").data_start();
    for cut in 0..data_start as usize {
        let malformed = fault_of(&whole[..cut]);
        match malformed.fault {
            // The fault begins in the file, what it needs does not end in it.
            Fault::EndOfFile { needed, remaining, .. } => {
                assert_eq!(malformed.offset + remaining, cut as u64, "{malformed}");
                assert!(needed > remaining, "{malformed}");
            }
            // Noticed before the entries are read.
            Fault::Count { count, remaining, .. } => {
                assert!(malformed.offset < cut as u64 && remaining < cut as u64 && count > 0, "{malformed}");
            }
            // Cut in the padding: the tensors are listed in full, their data is missing.
            Fault::OutOfFile { file_len, .. } => assert_eq!(file_len, cut as u64, "{malformed}"),
            _ => panic!("cut at {cut}: {malformed}"),
        }
    }
}

#[test]
fn tensor_data_cut_at_any_byte_is_refused() {
    let whole = small_model();
    let data_start = Gguf::from_slice("whole", &whole).expect("the whole file is fine").data_start() as usize;
    for cut in data_start..whole.len() {
        assert!(matches!(fault_of(&whole[..cut]).fault, Fault::OutOfFile { file_len, .. } if file_len == cut as u64));
    }
}

#[test]
fn errors_name_file_offset_key_and_remedy() {
    let text = |raw: Raw| Gguf::from_slice("models/bad.gguf", &raw.0).expect_err("malformed").to_string();
    let texts = [
        text(Raw(b"GGML".to_vec())),
        text(Raw(b"version https://git-lfs.github.com/spec/v1".to_vec())),
        text(Raw::default().bytes(b"GGUF").u32(1)),
        text(Raw::default().bytes(b"GGUF").u32(7)),
        text(Raw::default().bytes(b"GGUF").u32(3 << 24)),
        text(Raw::header(0, 1 << 40)),
        text(Raw::header(0, 1).key("llama.block_count", 4).bytes(&[1])),
        text(Raw::header(0, 1).key("tokenizer.ggml.tokens", 9).u32(8).u64(1 << 50)),
        text(Raw::header(1, 0).tensor("blk.0.attn_q.weight", &[576, 576], 12, 0)),
        text(Raw::header(1, 0).tensor("blk.0.attn_q.weight", &[576, 576], 31, 0)),
        text(Raw::header(1, 0).tensor("blk.0.attn_q.weight", &[576, 576], 77, 0)),
        text(Raw::header(1, 0).tensor("blk.0.attn_q.weight", &[576, 576], 2, 0)),
    ];
    insta::assert_snapshot!(texts.join("\n"));
}
