//! Thousands of damaged files, made from small whole ones with a fixed seed: whatever they say, reading them neither
//! panics nor allocates more than a multiple of the file, and what is accepted lies inside the file.

mod raw;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use loader_gguf::{Array, Gguf, GgufWriter, Value, Version};
use raw::{Raw, small_model};

/// Counts what this thread holds, and its peak.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(grow: usize, shrink: usize) {
    let held = HELD.get().saturating_add(grow).saturating_sub(shrink);
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call is handed on to the system's allocator unchanged; counting neither allocates nor unwinds (the
// cells are const-initialized and have no destructor).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps `alloc_zeroed`'s contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: the caller keeps `realloc`'s contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// xorshift64*: the same mutations on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Numbers that break careless arithmetic.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    31,
    255,
    65_536,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX,
];

fn mutate(base: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at.max(1)),
            // A length field blown up, in 4 or 8 bytes.
            3 | 4 => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let width = if random.below(2) == 0 { 4 } else { 8 };
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&edge[..end - at]);
            }
            // A piece of another file, over or between.
            5 => {
                let from = random.below(other.len());
                let piece = &other[from..(from + random.below(64)).min(other.len())];
                let end = if random.below(2) == 0 { at } else { (at + piece.len()).min(bytes.len()) };
                bytes.splice(at..end, piece.iter().copied());
            }
            // A piece out, a piece twice.
            6 => {
                let end = (at + random.below(32)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let piece = bytes[at..(at + random.below(64)).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
    bytes
}

/// Reads everything that a file offers; returns the number of values seen.
fn read_all(model: &Gguf, file_len: usize) -> usize {
    fn visit(array: Array<'_>) -> usize {
        let mut seen = 0;
        for value in array {
            seen += 1 + value.as_array().map_or(0, visit);
        }
        assert!(seen >= array.len(), "an accepted array decodes to its end");
        seen
    }
    let mut seen = 0;
    for (key, value) in model.metadata() {
        seen += 1 + value.as_array().map_or(0, visit);
        assert_eq!(model.get(key).map(|v| v.value_type()), Some(value.value_type()));
        let _ = (model.u64(key).is_ok(), model.f32(key).is_ok(), model.str(key).is_ok(), format!("{value:?}").len());
        if let Ok(strings) = model.strings(key) {
            seen += strings.filter(Result::is_ok).count();
        }
    }
    let mut end_of_last = model.data_start() as usize;
    let mut ranges: Vec<_> = model.tensors().iter().map(|info| info.range()).collect();
    ranges.sort_by_key(|range| range.start);
    for range in ranges {
        assert!(range.start >= end_of_last && range.end <= file_len, "tensors lie apart and inside the file");
        end_of_last = range.end;
    }
    for info in model.tensors() {
        if let Ok(tensor) = model.tensor(info.name()) {
            assert_eq!(tensor.bytes().len(), info.byte_len());
            assert_eq!(tensor.len(), info.elements());
            seen += 1;
        }
    }
    seen + model.summary().to_string().len().min(1)
}

/// A file like those of real models: many tokens, many layers, version 2.
fn layered_model() -> Vec<u8> {
    let tokens: Vec<String> = (0..40).map(|n| format!("tok{n}")).collect();
    let mut writer = GgufWriter::with_version(Version::V2);
    let weights = vec![0x5a; 34 * 2 * 64];
    let built = (|| {
        writer.set("general.architecture", "llama")?.set("general.alignment", 64_u32)?;
        writer.set("tokenizer.ggml.tokens", &tokens.iter().collect::<loader_gguf::ArrayBuf>())?;
        for layer in 0..6 {
            let name = format!("blk.{layer}.attn_q.weight");
            writer.bytes(&name, loader_gguf::GgmlType::Q8_0, &[64, 64], &weights)?;
        }
        let mut out = Vec::new();
        writer.write_to(&mut out).map(|()| out)
    })();
    built.expect("a valid model")
}

/// Bytes of bookkeeping per byte of file: an entry of 14 bytes becomes a key, its place and its hash slot.
const FACTOR: usize = 20;
/// For paths, messages, the first growth of tables.
const FIXED: usize = 16 * 1024;

fn survives(bytes: &[u8]) -> bool {
    PEAK.set(HELD.get());
    let before = HELD.get();
    let result = Gguf::from_slice("mutant.gguf", bytes);
    let grown = PEAK.get().saturating_sub(before);
    assert!(grown <= FIXED + FACTOR * bytes.len(), "{grown} bytes held for a file of {}", bytes.len());
    match result {
        Ok(model) => read_all(&model, bytes.len()) > 0,
        Err(error) => {
            assert!(error.to_string().starts_with("mutant.gguf: "), "{error}");
            false
        }
    }
}

#[test]
fn damaged_files_neither_panic_nor_exhaust_memory() {
    let bases = [small_model(), layered_model()];
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..60_000 {
        let (base, other) = (&bases[round % 2], &bases[(round + 1) % 2]);
        if survives(&mutate(base, other, &mut random)) {
            accepted += 1;
        } else {
            refused += 1;
        }
    }
    // Both ways out were taken often: the mutants are neither all rubbish nor all harmless.
    assert!(accepted > 3_000 && refused > 3_000, "{accepted} accepted, {refused} refused");
}

#[test]
fn every_single_bit_flip_is_survived() {
    let base = small_model();
    for bit in 0..base.len() * 8 {
        let mut bytes = base.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        survives(&bytes);
    }
}

#[test]
fn every_field_blown_up_is_survived() {
    let base = small_model();
    for at in 0..base.len() - 8 {
        for edge in EDGES {
            let mut bytes = base.clone();
            bytes[at..at + 8].copy_from_slice(&edge.to_le_bytes());
            survives(&bytes);
        }
    }
}

#[test]
fn a_file_full_of_smallest_entries_is_held_in_bounded_memory() {
    let keys = 50_000_u64;
    let mut file = Raw::header(0, keys);
    for n in 0..keys {
        file = file.key(&format!("{n}"), 0).bytes(&[0]);
    }
    assert!(survives(&file.0));
    let tensors = 50_000_u64;
    let mut file = Raw::header(tensors, 0);
    for n in 0..tensors {
        file = file.tensor(&format!("{n}"), &[], 24, n * 32);
    }
    assert!(survives(&file.data(32, 32 * tensors as usize).0));
    // All at the same place, so that the table alone is the file: refused, but only at the end.
    let mut file = Raw::header(tensors, 0);
    for n in 0..tensors {
        file = file.tensor(&format!("{n:x}"), &[], 24, 0);
    }
    assert!(!survives(&file.data(32, 32).0));
    let empty_arrays = Raw::header(0, 1).key("k", 9).u32(9).u64(100_000).bytes(&vec![0; 1_200_000]);
    assert!(survives(&empty_arrays.0));
}

#[test]
fn the_counting_allocator_counts() {
    let before = HELD.get();
    let block = vec![0_u8; 1 << 20];
    assert!(HELD.get() >= before + block.len());
    assert!(matches!(Value::from(1_u8), Value::U8(1)));
}
