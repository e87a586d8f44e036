use super::*;
use half::{bf16, f16};

/// A small deterministic generator.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }

    /// Uniform in -1..1.
    pub(crate) fn unit(&mut self) -> f32 {
        self.bits() as f32 / 2_147_483_648.0 - 1.0
    }
}

const QUANTIZED: [BlockFormat; 15] = [
    BlockFormat::Q4_0,
    BlockFormat::Q4_1,
    BlockFormat::Q5_0,
    BlockFormat::Q5_1,
    BlockFormat::Q8_0,
    BlockFormat::Q4_K,
    BlockFormat::Q5_K,
    BlockFormat::Q6_K,
    BlockFormat::Q2_K,
    BlockFormat::Q3_K,
    BlockFormat::IQ4_NL,
    BlockFormat::IQ4_XS,
    BlockFormat::MXFP4,
    BlockFormat::TQ1_0,
    BlockFormat::TQ2_0,
];

/// Byte offsets of the f16 fields of a block.
fn f16_fields(format: BlockFormat) -> &'static [usize] {
    match format {
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4_K | BlockFormat::Q5_K => &[0, 2],
        BlockFormat::Q6_K => &[208],
        BlockFormat::Q2_K => &[80, 82],
        BlockFormat::Q3_K => &[108],
        BlockFormat::TQ1_0 => &[52],
        BlockFormat::TQ2_0 => &[64],
        BlockFormat::MXFP4 => &[],
        _ => &[0],
    }
}

/// Random rows as a file has them: any bits, with f16 scales of either sign and sane size.
fn random_rows(dtype: DType, n: usize, k: usize, random: &mut Random) -> Vec<u8> {
    match dtype {
        DType::F32 => (0..n * k).flat_map(|_| random.unit().to_le_bytes()).collect(),
        DType::F16 => (0..n * k).flat_map(|_| f16::from_f32(random.unit()).to_le_bytes()).collect(),
        DType::BF16 => (0..n * k).flat_map(|_| bf16::from_f32(random.unit()).to_le_bytes()).collect(),
        DType::Block(format) => {
            let mut bytes: Vec<u8> = (0..dtype.row_bytes(k).unwrap() * n).map(|_| random.bits() as u8).collect();
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                for at in f16_fields(format) {
                    block[*at..at + 2].copy_from_slice(&f16::from_f32(random.unit() * 0.1).to_le_bytes());
                }
                if format == BlockFormat::MXFP4 {
                    block[0] = 120 + block[0] % 8;
                }
            }
            bytes
        }
        _ => unreachable!("no weights of this type here"),
    }
}

fn half_at(block: &[u8], at: usize) -> f64 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f64()
}

/// Weight `i` of a block, straight from the format's definition.
fn weight(format: BlockFormat, b: &[u8], i: usize) -> f64 {
    let nibble = |at: usize| f64::from(if i < 16 { b[at + i] & 15 } else { b[at + i - 16] >> 4 });
    let bit = |at: usize| f64::from((b[at + i / 8] >> (i % 8)) & 1);
    match format {
        BlockFormat::Q4_0 => half_at(b, 0) * (nibble(2) - 8.0),
        BlockFormat::Q4_1 => half_at(b, 0) * nibble(4) + half_at(b, 2),
        BlockFormat::Q5_0 => half_at(b, 0) * (nibble(6) + 16.0 * bit(2) - 16.0),
        BlockFormat::Q5_1 => half_at(b, 0) * (nibble(8) + 16.0 * bit(4)) + half_at(b, 2),
        BlockFormat::Q8_0 => half_at(b, 0) * f64::from(b[2 + i] as i8),
        BlockFormat::Q4_K | BlockFormat::Q5_K => {
            let (j, l) = (i / 32, i % 32);
            let packed = &b[4..16];
            let (scale, min) = if j < 4 {
                (packed[j] & 63, packed[j + 4] & 63)
            } else {
                (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
            };
            let five = format == BlockFormat::Q5_K;
            let low = b[if five { 48 } else { 16 } + 32 * (j / 2) + l];
            let low = if j % 2 == 0 { low & 15 } else { low >> 4 };
            let high = if five { (b[16 + l] >> j) & 1 } else { 0 };
            half_at(b, 0) * f64::from(scale) * f64::from(low + 16 * high) - half_at(b, 2) * f64::from(min)
        }
        BlockFormat::Q6_K => {
            let (half, j, l) = (i / 128, i % 128 / 32, i % 32);
            let low = b[64 * half + 32 * (j % 2) + l];
            let low = if j < 2 { low & 15 } else { low >> 4 };
            let high = (b[128 + 32 * half + l] >> (2 * j)) & 3;
            let scale = b[192 + i / 16] as i8;
            half_at(b, 208) * f64::from(scale) * (f64::from(low | high << 4) - 32.0)
        }
        // The decoders are compared with ggml's where they are.
        _ => {
            let mut all = vec![0.0; format.block_len()];
            block::decode(format, b, &mut all).unwrap();
            f64::from(all[i])
        }
    }
}

fn decode_rows(dtype: DType, n: usize, k: usize, rows: &[u8]) -> Vec<f64> {
    let at = |i: usize| match dtype {
        DType::F32 => f64::from(f32::from_le_bytes(rows[4 * i..4 * i + 4].try_into().unwrap())),
        DType::F16 => half_at(rows, 2 * i),
        DType::BF16 => bf16::from_le_bytes([rows[2 * i], rows[2 * i + 1]]).to_f64(),
        DType::Block(format) => {
            let (len, bytes) = (format.block_len(), format.block_bytes());
            weight(format, &rows[i / len * bytes..][..bytes], i % len)
        }
        _ => unreachable!("no weights of this type here"),
    };
    (0..n * k).map(at).collect()
}

/// What blocks of integers up to `limit` make of activations.
fn through_integers(x: &[f32], k: usize, limit: f32) -> Vec<f64> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(k) {
        for block in row.chunks(32) {
            let top = block.iter().fold(0.0f32, |top, v| top.max(v.abs()));
            let (scale, inverse) = if top == 0.0 { (0.0, 0.0) } else { (top / limit, limit / top) };
            out.extend(block.iter().map(|v| f64::from((v * inverse).round_ties_even()) * f64::from(scale)));
        }
    }
    out
}

fn product(w: &[f64], x: &[f64], n: usize, k: usize) -> Vec<f64> {
    let mut y = Vec::new();
    for x in x.chunks_exact(k) {
        y.extend((0..n).map(|o| w[o * k..(o + 1) * k].iter().zip(x).map(|(w, x)| w * x).sum::<f64>()));
    }
    y
}

fn nmse(y: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(y.len(), expected.len());
    let error: f64 = y.iter().zip(expected).map(|(y, e)| (f64::from(*y) - e).powi(2)).sum();
    error / expected.iter().map(|e| e * e).sum::<f64>().max(1e-30)
}

/// Computes the whole product, in two calls over groups where there are several.
fn run(level: Level, w: &PackedMatrix, kind: ActivationKind, rows: usize, x: &[f32]) -> Vec<f32> {
    let x = Activations::pack(level, kind, rows, w.k(), x);
    let mut y = vec![f32::NAN; rows * w.n()];
    let middle = w.groups() / 2;
    for groups in [0..middle, middle..w.groups()] {
        let start = groups.start * GROUP_ROWS;
        // SAFETY: the output has rows × n elements.
        unsafe {
            w.matmul(level, groups, &x.view(), 0..rows, Output::new(y.as_mut_ptr().wrapping_add(start), w.n()));
        }
    }
    y
}

const ROWS: [usize; 7] = [1, 2, 3, 5, 8, 17, 30];

fn check(dtype: DType, kind: ActivationKind, n: usize, k: usize, rows: &[usize]) {
    let mut random = Random::new((n * 31 + k) as u64);
    let bytes = random_rows(dtype, n, k, &mut random);
    let w = PackedMatrix::pack(dtype, n, k, &bytes).unwrap();
    let decoded = decode_rows(dtype, n, k, &bytes);
    for &rows in rows {
        let x: Vec<f32> = (0..rows * k).map(|_| random.unit() * 3.0).collect();
        let seen = match kind {
            ActivationKind::Q8 => through_integers(&x, k, 127.0),
            ActivationKind::I16 | ActivationKind::F32 => x.iter().map(|v| f64::from(*v)).collect(),
        };
        let expected = product(&decoded, &seen, n, k);
        for level in Level::available() {
            let y = run(level, &w, kind, rows, &x);
            let error = nmse(&y, &expected);
            let limit = if kind == ActivationKind::I16 { 4e-8 } else { 1e-8 };
            assert!(error <= limit, "{dtype} x {kind:?} on {level}, n {n}, k {k}, {rows} rows: NMSE {error:e}");
        }
    }
}

#[test]
fn int8_products_equal_a_reference_that_quantizes_the_same_way() {
    for format in QUANTIZED {
        for n in [1, 16, 47] {
            for k in [1, 2, 3] {
                check(DType::Block(format), ActivationKind::Q8, n, k * format.block_len(), &ROWS);
            }
        }
    }
}

#[test]
fn f32_products_are_exact_for_quantized_weights() {
    for format in QUANTIZED {
        for n in [1, 33, 47] {
            for k in [1, 3] {
                check(DType::Block(format), ActivationKind::F32, n, k * format.block_len(), &ROWS);
            }
        }
    }
    // More than one slice of k per panel.
    check(DType::Block(BlockFormat::Q4_0), ActivationKind::F32, 35, 1056, &[1, 13]);
    check(DType::Block(BlockFormat::Q6_K), ActivationKind::F32, 19, 1280, &[2, 13]);
}

#[test]
fn float_weights_are_computed_with_as_they_are() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for n in [1, 16, 47] {
            for k in [1, 5, 64, 519, 1025] {
                check(dtype, ActivationKind::F32, n, k, &ROWS);
            }
        }
    }
}

#[test]
fn integer_products_of_16_bit_floats_are_nearly_exact() {
    for dtype in [DType::F16, DType::BF16] {
        for n in [7, 47] {
            for k in [1, 33, 64, 1025] {
                check(dtype, ActivationKind::I16, n, k, &[1, 5, 16, 21, 30]);
            }
        }
    }
}

#[test]
fn the_most_bytes_that_activations_need_suffice_for_fewer_rows() {
    for kind in [ActivationKind::Q8, ActivationKind::I16, ActivationKind::F32] {
        for most in 1..40 {
            let enough = ActivationLayout::max_bytes(kind, most, 96);
            assert!((0..=most).all(|rows| ActivationLayout::new(kind, rows, 96).bytes() <= enough), "{kind:?}, {most}");
        }
    }
}

#[test]
fn parts_of_rows_and_groups_land_where_they_belong() {
    let (n, k, rows) = (70, 64, 11);
    let mut random = Random::new(7);
    for dtype in [DType::Block(BlockFormat::Q4_1), DType::F16] {
        let kind = if dtype == DType::F16 { ActivationKind::F32 } else { ActivationKind::Q8 };
        let w = PackedMatrix::pack(dtype, n, k, &random_rows(dtype, n, k, &mut random)).unwrap();
        let x: Vec<f32> = (0..rows * k).map(|_| random.unit()).collect();
        let bias: Vec<f32> = (0..n).map(|_| random.unit()).collect();
        for level in Level::available() {
            let whole = run(level, &w, kind, rows, &x);
            let x = Activations::pack(level, kind, rows, k, &x);
            // Groups 1..5 of rows 4..9, with a guard on each side of each row, onto a residual of 2.
            let (width, stride) = (n - 16, n - 16 + 2);
            let mut y = vec![7.0f32; 5 * stride];
            y.chunks_exact_mut(stride).for_each(|row| row[1..=width].fill(2.0));
            let out = Output::new(y.as_mut_ptr().wrapping_add(1), stride).with_bias(Some(&bias)).accumulating(true);
            // SAFETY: five rows of 54 outputs.
            unsafe { w.matmul(level, 1..5, &x.view(), 4..9, out) };
            for (r, row) in y.chunks_exact(stride).enumerate() {
                assert_eq!(
                    (row[0], row[stride - 1]),
                    (7.0, 7.0),
                    "{dtype} on {level}: a guard of row {r} was overwritten"
                );
                for (o, y) in row[1..=width].iter().enumerate() {
                    let expected = whole[(r + 4) * n + 16 + o] + bias[16 + o] + 2.0;
                    assert!(
                        (y - expected).abs() < 1e-4,
                        "{dtype} on {level}: row {r}, output {o}: {y}, not {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn activations_packed_in_parts_equal_those_packed_at_once() {
    let (rows, k) = (18, 72);
    let mut random = Random::new(3);
    let x: Vec<f32> = (0..rows * k).map(|_| random.unit()).collect();
    for kind in [ActivationKind::Q8, ActivationKind::I16, ActivationKind::F32] {
        let layout = ActivationLayout::new(kind, rows, k);
        let mut expected = vec![0xaau8; layout.bytes()];
        // SAFETY: the buffers are as long as the layout says.
        unsafe { layout.pack_rows(Level::SCALAR, expected.as_mut_ptr(), 0..rows, x.as_ptr(), k) };
        for level in Level::available() {
            let mut parts = vec![0x55u8; layout.bytes()];
            for range in [8..18, 0..3, 3..8] {
                let at = x[range.start * k..].as_ptr();
                // SAFETY: as above.
                unsafe { layout.pack_rows(level, parts.as_mut_ptr(), range, at, k) };
            }
            assert!(parts == expected, "{kind:?} on {level}");
        }
    }
}

#[test]
fn activations_that_are_not_finite_are_not_hidden() {
    let w = PackedMatrix::pack(DType::Block(BlockFormat::Q8_0), 1, 32, &[1; 34]).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = [1.0f32; 32];
        x[20] = bad;
        for level in Level::available() {
            assert!(!run(level, &w, ActivationKind::Q8, 1, &x)[0].is_finite(), "{bad} on {level}");
        }
    }
}

#[test]
fn packing_refuses_what_does_not_fit() {
    let q4 = DType::Block(BlockFormat::Q4_0);
    assert!(matches!(PackedMatrixBuilder::new(q4, 4, 33), Err(PackError::Shape { .. })));
    assert!(matches!(PackedMatrixBuilder::new(q4, usize::MAX, 64), Err(PackError::Shape { .. })));
    assert!(matches!(PackedMatrixBuilder::new(DType::I64, 4, 32), Err(PackError::Unsupported(DType::I64))));
    let builder = PackedMatrixBuilder::new(q4, 40, 32).unwrap();
    assert_eq!((builder.groups(), builder.row_bytes()), (3, 18));
    assert!(matches!(builder.pack_groups(0..1, &[0; 17]), Err(PackError::Length { expected: 288, found: 17, .. })));
    assert!(matches!(builder.pack_groups(3..4, &[]), Err(PackError::Group(3))));
    builder.pack_groups(2..3, &[0; 8 * 18]).unwrap();
    builder.pack_groups(0..1, &[0; 16 * 18]).unwrap();
    assert_eq!(builder.pack_groups(0..1, &[0; 16 * 18]), Err(PackError::Group(0)));
    assert_eq!(builder.finish().err(), Some(PackError::Missing(1)));
}

#[test]
fn packed_weights_take_the_bits_that_the_file_has() {
    for format in QUANTIZED {
        let dtype = DType::Block(format);
        let (n, k) = (64, 2048);
        let file = dtype.row_bytes(k).unwrap() * n;
        let packed = PackedMatrix::pack(dtype, n, k, &vec![0; file]).unwrap().bytes();
        let share = match format {
            // Five digits in a byte become four.
            BlockFormat::TQ1_0 => 1.26,
            // One factor for 256 weights, on a cache line of its own.
            BlockFormat::TQ2_0 => 1.031,
            // Scales of six bits become bytes.
            BlockFormat::Q3_K => 1.06,
            // 32 bytes unused for 64 weights.
            BlockFormat::MXFP4 => 1.06,
            _ => 1.03,
        };
        assert!(packed as f64 <= file as f64 * share, "{format}: {packed} bytes for {file}");
    }
}
