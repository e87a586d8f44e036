// What the fast kernels of attention share: keys with lanes as positions, values with lanes as four elements, queries through scalar loads.
// Needs step.glsl, kv.glsl and KEY_CHUNK: how many elements of a key a lane holds at most; 8, 16 or 32, for Q8_0 not 8.

// Elements of a key and of a value: multiples of 8, of 32 for Q8_0; of values 256 at most.
layout(constant_id = 1) const uint KEY_DIM = 64;
layout(constant_id = 2) const uint VALUE_DIM = 64;
// Whether scores are capped.
layout(constant_id = 3) const uint CAPPED = 0;

layout(push_constant) uniform Push {
  uint rows;      // extent
  uint heads;
  uint kv_heads;
  uint group;     // heads that share a key
  uint capacity;
  uint ring;
  uint window;    // 2^31: all positions are seen
  float scale;    // times log2(e) where scores are not capped
  float softcap;
};

layout(set = 0, binding = 1, std430) readonly buffer Q { u64vec4 q[]; };
layout(set = 0, binding = 2, std430) readonly buffer Positions { int positions[]; };
layout(set = 0, binding = 3, std430) readonly buffer Slots { int slots[]; };
layout(set = 0, binding = 4, std430) readonly buffer Keys { uvec4 keys[]; };
#if VALUE == KV_F32
layout(set = 0, binding = 5, std430) readonly buffer Values { vec4 values[]; };
#elif VALUE == KV_F16
layout(set = 0, binding = 5, std430) readonly buffer Values { uvec2 values[]; };
#else
layout(set = 0, binding = 5, std430) readonly buffer Values { uint values[]; };
layout(set = 0, binding = 7, std430) readonly buffer ValueScales { float16_t value_scales[]; };
#endif
#if KEY == KV_Q8_0
layout(set = 0, binding = 6, std430) readonly buffer KeyScales { float16_t key_scales[]; };
#endif
layout(set = 0, binding = 8, std430) writeonly buffer Y { vec4 y[]; };

const float LOG2_E = 1.4426950408889634;
// Less than every score: a maximum over none. It is finite, so that differences are numbers.
const float LEAST = -3.0e38;
const float MASKED = uintBitsToFloat(0xff800000u);

// Elements of a key that are computed at once, and 16-byte units that they lie in.
const uint WHOLE = KEY_DIM % 32u == 0u ? 32u : KEY_DIM % 16u == 0u ? 16u : 8u;
const uint CHUNK = WHOLE < KEY_CHUNK ? WHOLE : KEY_CHUNK;
const uint PER_UNIT = KV_PER_UNIT(KEY);
const uint UNITS = (KEY_DIM + PER_UNIT - 1u) / PER_UNIT;
const uint CHUNK_UNITS = (CHUNK + PER_UNIT - 1u) / PER_UNIT;

// Lanes that a value takes, four elements each.
const uint VALUE_LANES = VALUE_DIM / 4u;

// Eight floats of a query: at an index that is the same for all lanes this is one scalar load.
void query(uint i, out float v[8]) {
  const u64vec4 t = q[i];
  [[unroll]] for (uint e = 0u; e < 4u; ++e) {
    const vec2 pair = uintBitsToFloat(unpack32(t[e]));
    v[2u * e] = pair.x;
    v[2u * e + 1u] = pair.y;
  }
}

// The rows of a slot that hold some positions: one run, or two where a ring wraps around. They are read in whole tiles of 64 rows.
struct Rows {
  uint begin, end; // the first run
  uint wrapped;    // the end of the second, which begins at row 0
  uint front;      // tiles of the first
  uint tiles;      // of both
};

Rows rows_of(uint first, uint last) {
  const uint count = last - first + 1u;
  Rows r;
  r.begin = ring != 0u ? first % capacity : first;
  r.end = ring != 0u ? min(r.begin + count, capacity) : r.begin + count;
  r.wrapped = count - (r.end - r.begin);
  r.front = ((r.end + 63u) >> 6) - (r.begin >> 6);
  r.tiles = r.front + ((r.wrapped + 63u) >> 6);
  return r;
}

struct Tile {
  uint row;    // its first, in the slot
  uint lo, hi; // rows from `lo` to before `hi` are of the run
};

Tile tile_of(Rows r, uint i) {
  Tile t;
  const bool front = i < r.front;
  t.row = (front ? (r.begin >> 6) + i : i - r.front) * 64u;
  t.lo = front && i == 0u ? r.begin & 63u : 0u;
  t.hi = min((front ? r.end : r.wrapped) - t.row, 64u);
  return t;
}

// A lane's key: `at` is its first unit.
uint key_at(uint kv_head, uint row, uint lane) { return key_unit(kv_head, row, 0u, UNITS, (capacity + 63u) / 64u) + lane; }

// Eight elements of a key out of its chunk.
void key_eight(in uvec4 raw[8], uint j, out float k[8]) {
  [[unroll]] for (uint i = 0u; i < 8u; ++i) {
#if KEY == KV_F32
    k[i] = uintBitsToFloat(raw[2u * j + i / 4u][i & 3u]);
#elif KEY == KV_F16
    const vec2 pair = unpackHalf2x16(raw[j][i >> 1]);
    k[i] = (i & 1u) == 0u ? pair.x : pair.y;
#else
    k[i] = float(bitfieldExtract(int(raw[j / 2u][(j & 1u) * 2u + i / 4u]), int(8u * (i & 3u)), 8));
#endif
  }
}

#if KEY == KV_Q8_0
float key_scale(uint kv_head, uint row, uint lane, uint block) {
  return float(key_scales[((kv_head * ((capacity + 63u) / 64u) + (row >> 6)) * (KEY_DIM / 32u) + block) * 64u + lane]);
}
#endif

// A score times log2(e), so that exp2 gives its weight. `dot` is multiplied by the scale.
float scored(float dot) {
  if (CAPPED == 0u) return dot;
  const float t = dot / softcap, e = exp2(-2.0 * LOG2_E * abs(t));
  return softcap * LOG2_E * sign(t) * (1.0 - e) / (1.0 + e);
}

// Four elements of values, from `at` = (head * capacity + row) * VALUE_LANES + lane on.
vec4 value_at(uint at) {
#if VALUE == KV_F32
  return values[at];
#elif VALUE == KV_F16
  const uvec2 raw = values[at];
  return vec4(unpackHalf2x16(raw.x), unpackHalf2x16(raw.y));
#else
  const int raw = int(values[at]);
  const vec4 v = vec4(bitfieldExtract(raw, 0, 8), bitfieldExtract(raw, 8, 8), bitfieldExtract(raw, 16, 8), bitfieldExtract(raw, 24, 8));
  return v * float(value_scales[at / 8u]);
#endif
}
