// Weights as they lie on the device (src/layout.rs): tiles of 64 rows; of each row of a tile a block of 32 weights lies in 16-byte units
// side by side with the same block of the other rows, so that lane = row reads 16 bytes of a run of 1024. Scales lie apart.
// Nibbles with a zero point in their middle are stored as two's complement in the high bits of a byte: one conversion then
// gives the signed value times a power of two, which the scale takes back. Nibbles that index a table find it in shared memory.
// Of 2-bit weights 16 share a word: weight 4 g + i the bits from 2 g on of byte i.
// 16-byte units of a block of 32 weights.
#if WEIGHT == F32
#define UNITS 8
#elif WEIGHT == F16 || WEIGHT == BF16
#define UNITS 4
#elif WEIGHT == Q8_0
#define UNITS 2
#else
#define UNITS 1
#endif

// Parts that a block is computed in: with many sums in registers, a loop over small parts keeps registers and code small.
#ifndef PARTS
#define PARTS 1
#endif
// 32-bit words and weights of a part.
#if WEIGHT == Q6_K
// 16 weights in 3 words: 12 in the upper six bits of the bytes, 4 in what is left of them.
#define PART_WORDS (6 / PARTS)
#elif WEIGHT == Q2_K || WEIGHT == Q3_K || WEIGHT == TERNARY
#define PART_WORDS (2 / PARTS)
#else
#define PART_WORDS (UNITS * 4 / PARTS)
#endif
#define PART_WEIGHTS (32 / PARTS)

#define HAS_SCALE (WEIGHT >= Q8_0)
#define HAS_MIN (WEIGHT == Q4_1 || WEIGHT == Q5_1 || WEIGHT == Q4_K || WEIGHT == Q5_K || WEIGHT == Q2_K || WEIGHT == TERNARY)
#define HAS_HIGH (WEIGHT == Q5_0 || WEIGHT == Q5_1 || WEIGHT == Q5_K || WEIGHT == Q3_K)
#define HAS_TABLE (WEIGHT == IQ4_NL || WEIGHT == IQ4_XS || WEIGHT == MXFP4)
// Whether the halves of a block have scales (and minima) of their own.
#define HALVES (WEIGHT == Q6_K || WEIGHT == Q2_K || WEIGHT == Q3_K)
// An f16 for each 256 weights, or two.
#define HAS_SUPER (HAS_SUPERS || WEIGHT == Q6_K || WEIGHT == Q3_K || WEIGHT == IQ4_XS || WEIGHT == TERNARY)
#define HAS_SUPERS (WEIGHT == Q4_K || WEIGHT == Q5_K || WEIGHT == Q2_K)

#if WEIGHT == Q6_K
layout(set = 0, binding = 1, std430) readonly buffer WeightUnits { uint weight_units[]; };
#elif PART_WORDS == 2
layout(set = 0, binding = 1, std430) readonly buffer WeightUnits { uvec2 weight_units[]; };
#else
layout(set = 0, binding = 1, std430) readonly buffer WeightUnits { uvec4 weight_units[]; };
#endif
#if HAS_SCALE && WEIGHT != TERNARY
#if WEIGHT == Q4_1 || WEIGHT == Q5_1
layout(set = 0, binding = 2, std430) readonly buffer WeightScales { uint weight_scales[]; };
#elif HAS_SUPER || WEIGHT == MXFP4
layout(set = 0, binding = 2, std430) readonly buffer WeightScales { uint16_t weight_scales[]; };
#else
layout(set = 0, binding = 2, std430) readonly buffer WeightScales { float16_t weight_scales[]; };
#endif
#endif
#if HAS_HIGH
layout(set = 0, binding = 3, std430) readonly buffer WeightHigh { uint weight_high[]; };
#endif
#if HAS_SUPERS
layout(set = 0, binding = 4, std430) readonly buffer WeightSuper { uint weight_super[]; };
#elif HAS_SUPER
layout(set = 0, binding = 4, std430) readonly buffer WeightSuper { float16_t weight_super[]; };
#endif

#if HAS_TABLE
shared float table[16];
#if WEIGHT == MXFP4
// Twice the values of E2M1.
const float TABLE[16] = float[](0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
#else
const float TABLE[16] = float[](-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
#endif
#endif

// What a workgroup does before weights are read.
void prepare_weights() {
#if HAS_TABLE
  if (gl_LocalInvocationID.x < 16u) table[gl_LocalInvocationID.x] = TABLE[gl_LocalInvocationID.x];
  barrier();
#endif
}

struct Block {
  uint words[PART_WORDS];
#if HAS_HIGH
  uint high;
#endif
#if HAS_SCALE
  float scale;
#endif
#if HAS_MIN
  float least;
#endif
#if HALVES && PARTS == 1
  float scale1;
#if HAS_MIN
  float least1;
#endif
#endif
};

// Part `part` of block `b` of the row that lies at `lane` of `tile`, in a matrix of `blocks` blocks per row.
Block load_block(uint tile, uint b, uint part, uint blocks, uint lane) {
  Block w;
  const uint at = tile * blocks + b;
  const uint i = at * 64u + lane;
#if WEIGHT == Q6_K
  [[unroll]] for (uint e = 0u; e < PART_WORDS; ++e) w.words[e] = weight_units[(i * PARTS + part) * PART_WORDS + e];
#elif PART_WORDS == 2
  const uvec2 v = weight_units[i * PARTS + part];
  w.words[0] = v.x;
  w.words[1] = v.y;
#else
  [[unroll]] for (uint u = 0u; u < PART_WORDS / 4u; ++u) {
    const uvec4 v = weight_units[((at * PARTS + part) * (PART_WORDS / 4u) + u) * 64u + lane];
    [[unroll]] for (uint e = 0u; e < 4u; ++e) w.words[4u * u + e] = v[e];
  }
#endif
#if HAS_HIGH
  w.high = weight_high[i] >> (PARTS == 1 ? 0u : 4u * part);
#endif
#if HAS_SUPERS
  const vec2 s = unpackHalf2x16(weight_super[(tile * (blocks >> 3) + (b >> 3)) * 64u + lane]);
#elif HAS_SUPER
  const float s = float(weight_super[(tile * (blocks >> 3) + (b >> 3)) * 64u + lane]);
#endif
#if WEIGHT == Q4_1 || WEIGHT == Q5_1
  const vec2 both = unpackHalf2x16(weight_scales[i]);
  w.scale = both.x;
  w.least = both.y;
#elif WEIGHT == Q4_K || WEIGHT == Q5_K
  const uint packed = uint(weight_scales[i]);
  w.scale = s.x * float(packed & 0xffu);
  w.least = -s.y * float((packed >> 8) & 0xffu);
#elif WEIGHT == Q2_K
  const uint packed = uint(weight_scales[i]);
  w.scale = s.x * float(packed & 0xfu);
  w.scale1 = s.x * float((packed >> 8) & 0xfu);
  w.least = -s.y * float((packed >> 4) & 0xfu);
  w.least1 = -s.y * float((packed >> 12) & 0xfu);
#elif WEIGHT == TERNARY
  w.scale = s;
  w.least = -s;
#elif WEIGHT == IQ4_XS
  // Two blocks share a word.
  const int packed = int(uint(weight_scales[(at >> 1) * 64u + lane]));
  w.scale = s * float(bitfieldExtract(packed, int(8u * (b & 1u)), 8));
#elif HALVES
  const int packed = int(uint(weight_scales[i]));
  const float unit = s * (WEIGHT == Q6_K ? 0.25 : 0.03125);
#if PARTS == 1
  w.scale = unit * float(bitfieldExtract(packed, 0, 8));
  w.scale1 = unit * float(bitfieldExtract(packed, 8, 8));
#else
  w.scale = unit * float(bitfieldExtract(packed, int(8u * part), 8));
#endif
#elif WEIGHT == Q4_0
  w.scale = float(weight_scales[i]) * 0.0625;
#elif WEIGHT == Q5_0
  w.scale = float(weight_scales[i]) * 0.125;
#elif WEIGHT == Q8_0 || WEIGHT == IQ4_NL
  w.scale = float(weight_scales[i]);
#elif WEIGHT == MXFP4
  // The upper half of an f32.
  w.scale = uintBitsToFloat(uint(weight_scales[i]) << 16);
#endif
  return w;
}

float signed_byte(uint v, uint i) { return float(bitfieldExtract(int(v), int(8u * i), 8)); }
float unsigned_byte(uint v, uint i) { return float((v >> (8u * i)) & 0xffu); }

// Weight `k` of a part before its scale; `k` is a constant once loops are unrolled.
float raw_weight(const Block w, const uint k) {
#if WEIGHT == F32
  return uintBitsToFloat(w.words[k]);
#elif WEIGHT == F16
  return unpackHalf2x16(w.words[k >> 1])[k & 1u];
#elif WEIGHT == BF16
  const uint v = w.words[k >> 1];
  return uintBitsToFloat((k & 1u) == 1u ? v & 0xffff0000u : v << 16);
#elif WEIGHT == Q8_0
  return signed_byte(w.words[k >> 2], k & 3u);
#elif WEIGHT == Q6_K
  const uint base = k < 16u ? 0u : 3u, j = k & 15u;
  if (j < 12u) return signed_byte(w.words[base + (j >> 2)] & 0xfcfcfcfcu, j & 3u);
  const uint rest = ((w.words[base] << 6) & 0xc0c0c0c0u) | ((w.words[base + 1u] << 4) & 0x30303030u)
                  | ((w.words[base + 2u] << 2) & 0x0c0c0c0cu);
  return signed_byte(rest, j & 3u);
#elif WEIGHT == Q2_K || WEIGHT == TERNARY
  return unsigned_byte((w.words[k >> 4] >> (2u * ((k >> 2) & 3u))) & 0x03030303u, k & 3u);
#elif WEIGHT == Q3_K
  const uint v = w.words[k >> 4], pair = (k >> 2) & 3u;
  const uint low = (pair < 3u ? v << (5u - 2u * pair) : v >> 1) & 0x60606060u;
  return signed_byte(((w.high << (7u - (k >> 2))) & 0x80808080u) | low, k & 3u);
#elif HAS_TABLE
  return table[bitfieldExtract(w.words[k >> 3], int(8u * (k & 3u) + (k & 4u)), 4)];
#else
  const uint v = w.words[k >> 3];
  const bool upper = (k & 4u) != 0u;
  const uint group = k >> 2;
#if WEIGHT == Q4_0
  return signed_byte((upper ? v : v << 4) & 0xf0f0f0f0u, k & 3u);
#elif WEIGHT == Q4_1 || WEIGHT == Q4_K
  return unsigned_byte((upper ? v >> 4 : v) & 0x0f0f0f0fu, k & 3u);
#elif WEIGHT == Q5_0
  const uint low = (upper ? v >> 1 : v << 3) & 0x78787878u;
  return signed_byte(((w.high << (7u - group)) & 0x80808080u) | low, k & 3u);
#elif WEIGHT == Q5_1 || WEIGHT == Q5_K
  const uint low = (upper ? v >> 4 : v) & 0x0f0f0f0fu;
  const uint high = (group < 4u ? w.high << (4u - group) : w.high >> (group - 4u)) & 0x10101010u;
  return unsigned_byte(high | low, k & 3u);
#endif
#endif
}

// The scale of weight `k`.
float weight_scale(const Block w, const uint k) {
#if HALVES && PARTS == 1
  return k < 16u ? w.scale : w.scale1;
#elif HAS_SCALE
  return w.scale;
#else
  return 1.0;
#endif
}

float weight_at(const Block w, const uint k) {
#if WEIGHT == TERNARY && defined(SIGNED_ZEROS)
  return (raw_weight(w, k) - 1.0) * w.scale;
#elif HAS_MIN && HALVES
  return raw_weight(w, k) * weight_scale(w, k) + (k < 16u ? w.least : w.least1);
#elif HAS_MIN
  return raw_weight(w, k) * w.scale + w.least;
#elif HAS_SCALE
  return raw_weight(w, k) * weight_scale(w, k);
#else
  return raw_weight(w, k);
#endif
}
