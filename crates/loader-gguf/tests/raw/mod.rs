//! Bytes of GGUF files written field by field, with no rule kept: for files that are wrong on purpose.
#![allow(dead_code)] // each test binary uses its part

/// Little-endian fields, one after another.
#[derive(Clone, Default)]
pub(crate) struct Raw(pub(crate) Vec<u8>);

impl Raw {
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend(bytes);
        self
    }

    pub(crate) fn u32(self, value: u32) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn string(self, text: &str) -> Raw {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    /// Magic, version 3, counts.
    pub(crate) fn header(tensors: u64, entries: u64) -> Raw {
        Raw::default().bytes(b"GGUF").u32(3).u64(tensors).u64(entries)
    }

    /// A key and the number of its value's type.
    pub(crate) fn key(self, key: &str, value_type: u32) -> Raw {
        self.string(key).u32(value_type)
    }

    /// A tensor entry; extents innermost first, as files store them.
    pub(crate) fn tensor(self, name: &str, extents: &[u64], ggml_type: u32, offset: u64) -> Raw {
        let named = self.string(name).u32(extents.len() as u32);
        extents.iter().fold(named, |raw, extent| raw.u64(*extent)).u32(ggml_type).u64(offset)
    }

    /// Zero bytes up to a multiple of `alignment`, then `data` more.
    pub(crate) fn data(mut self, alignment: usize, data: usize) -> Raw {
        self.0.resize(self.0.len().next_multiple_of(alignment) + data, 0);
        self
    }
}

/// A small file with a bit of everything: every value type, nested arrays, three tensors.
pub(crate) fn small_model() -> Vec<u8> {
    Raw::header(3, 15)
        .key("general.architecture", 8)
        .string("llama")
        .key("v.u8", 0)
        .bytes(&[200])
        .key("v.i8", 1)
        .bytes(&[0xff])
        .key("v.u16", 2)
        .bytes(&[1, 2])
        .key("v.i16", 3)
        .bytes(&[0xfe, 0xff])
        .key("llama.block_count", 4)
        .u32(30)
        .key("v.i32", 5)
        .u32(u32::MAX)
        .key("v.f32", 6)
        .u32(1e-5_f32.to_bits())
        .key("v.bool", 7)
        .bytes(&[1])
        .key("tokens", 9)
        .u32(8)
        .u64(4)
        .string("<s>")
        .string("</s>")
        .string("")
        .string("Ġthe")
        .key("scores", 9)
        .u32(6)
        .u64(2)
        .u32(0)
        .u32((-1.5_f32).to_bits())
        .key("v.u64", 10)
        .u64(1 << 40)
        .key("v.i64", 11)
        .u64(u64::MAX)
        .key("v.f64", 12)
        .u64(0.5_f64.to_bits())
        .key("nested", 9)
        .u32(9)
        .u64(2)
        .u32(7)
        .u64(2)
        .bytes(&[0, 1])
        .u32(8)
        .u64(1)
        .string("x")
        .tensor("token_embd.weight", &[64, 4], 2, 0)
        .tensor("blk.0.attn_norm.weight", &[6], 0, 160)
        .tensor("scale", &[], 30, 192)
        .data(32, 194)
        .0
}
