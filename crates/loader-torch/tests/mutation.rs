//! Thousands of damaged files, made from a small whole one with a fixed seed: whatever they say, reading them neither panics nor
//! allocates more than a multiple of the file, and what is accepted lies inside the file.

mod raw;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use loader_torch::SafeTensors;
use raw::{file, small_model};

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

/// Pieces of JSON that break careless readers.
const PIECES: [&str; 16] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    "\"",
    "\\",
    "0",
    "-1",
    "1e9",
    "18446744073709551615",
    "18446744073709551616",
    "null",
    "\\ud800",
    "\"w\":",
    "\u{e9}",
];

fn mutate(base: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes.truncate(at.max(1)),
            2 => {
                let piece = PIECES[random.below(PIECES.len())].bytes();
                bytes.splice(at..at, piece);
            }
            // Another digit, so that the JSON stays whole.
            3 => {
                if let Some(digit) = bytes.iter_mut().skip(at).find(|byte| byte.is_ascii_digit()) {
                    *digit = b'0' + random.below(10) as u8;
                }
            }
            4 => {
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
        // Mostly with the length that the header has now, so that its contents are looked at.
        if bytes.len() > 8 && random.below(4) > 0 {
            let end = bytes.iter().rposition(|byte| *byte == b'}').unwrap_or(0).max(8) + 1;
            let length = (end as u64).saturating_sub(8);
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
    }
    bytes
}

/// Reads a file; whether it was accepted.
#[track_caller]
fn survives(bytes: &[u8]) -> bool {
    let before = HELD.get();
    PEAK.set(before);
    let model = SafeTensors::from_slice("mutated", bytes);
    let peak = PEAK.get() - before;
    assert!(peak < 64 * 1024 + 128 * bytes.len(), "{peak} bytes were held for a file of {}", bytes.len());
    let Ok(model) = model else { return false };
    let mut covered = 0;
    for info in model.tensors() {
        covered += bytes[info.range()].len();
        if info.torch_type().dtype().is_some() {
            assert_eq!(model.tensor(info.name()).expect("what was accepted can be had").bytes(), &bytes[info.range()]);
        }
    }
    assert!(covered <= bytes.len());
    true
}

#[test]
fn damaged_files_are_survived() {
    let base = small_model();
    let mut random = Random(0x5afe);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..30_000 {
        match survives(&mutate(&base, &mut random)) {
            true => accepted += 1,
            false => refused += 1,
        }
    }
    assert!(accepted > 100 && refused > 10_000, "{accepted} accepted, {refused} refused");
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
fn a_header_full_of_smallest_entries_is_held_in_bounded_memory() {
    let entries: Vec<String> =
        (0..50_000).map(|n| format!(r#""{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    assert!(survives(&file(&format!("{{{}}}", entries.join(",")), 0)));
    let extents = vec!["0"; 100_000].join(",");
    assert!(!survives(&file(&format!(r#"{{"w":{{"dtype":"U8","shape":[{extents}],"data_offsets":[0,0]}}}}"#), 0)));
    let pairs: Vec<String> = (0..50_000).map(|n| format!(r#""{n}":"""#)).collect();
    assert!(survives(&file(&format!(r#"{{"__metadata__":{{{}}}}}"#, pairs.join(",")), 0)));
}

#[test]
fn the_counting_allocator_counts() {
    let before = HELD.get();
    let block = vec![0_u8; 1 << 20];
    assert!(HELD.get() >= before + block.len());
}
