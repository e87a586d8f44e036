#version 460
//@ gcn4 spec 0=64 1=32 2=32
//@ gcn4 spec 0=64 1=64 2=64
//@ gcn4 spec 0=64 1=64 2=64 5=1
//@ gcn4 spec 0=64 1=128 2=128
//@ gcn4 spec 0=64 1=256 2=256 4=1
//@ gcn4 goal max_vgprs=84
// Attention over tensors: 64 threads take 8 or 16 rows of a head, and 64 keys at a time. As attention_prefill.comp: two matrix products with the
// softmax between them. Scores have keys in the lanes and queries, which heads.comp has put in tiles of as many rows and multiplied by the scale,
// in scalar registers; weights go through shared memory, where the softmax is made row by row; the sum of values has 8 rows by 4 elements in a lane.
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#include "step.glsl"

// Elements of a key with the padding: a multiple of 8; elements of a value that a workgroup sums, a multiple of 4.
layout(constant_id = 1) const uint KEY_DIM = 64;
layout(constant_id = 2) const uint VALUE_DIM = 64;
// Whether scores are capped.
layout(constant_id = 3) const uint CAPPED = 0;
// Eights of rows.
layout(constant_id = 4) const uint ROW_GROUPS = 2;
// 0: no mask; 1: f32, added; 2: bool, in bytes.
layout(constant_id = 5) const uint MASK = 0;
// Whether rows have masks of their own.
layout(constant_id = 6) const uint MASK_ROWS = 0;
layout(constant_id = 7) const uint CAUSAL = 0;
const uint R = 8u * ROW_GROUPS;

layout(push_constant) uniform Push {
  uint rows;         // queries of an image: extent
  uint keys_there;   // of an image: extent
  uint heads;
  uint kv_heads;
  uint parts;        // workgroups that share the elements of a value
  uint value_width;  // elements of a value as they lie: a multiple of 4
  uint value_dim;    // elements of a result
  uint key_tiles;    // extent
  uint row_tiles;    // extent
  float softcap;
  uint mask_image;   // elements of the mask from an image to the next, and so on: extents
  uint mask_head;
  uint mask_row;
  uint mask_key;
};

// 8 floats a load: the scalar unit takes them at once.
layout(set = 0, binding = 1, std430) readonly buffer Q { u64vec4 q[]; };
layout(set = 0, binding = 2, std430) readonly buffer Keys { vec4 keys[]; };
layout(set = 0, binding = 3, std430) readonly buffer Values { vec4 values[]; };
layout(set = 0, binding = 4, std430) readonly buffer Mask { uint mask[]; };
layout(set = 0, binding = 5, std430) writeonly buffer Y { float y[]; };

const float LOG2_E = 1.4426950408889634;
// Less than every score, also than those that a mask makes less than any other: a maximum over none. It is finite, so that differences are numbers.
const float LEAST = -3.0e38;
const float LEAST_SCORE = -2.9e38;
const float MASKED = uintBitsToFloat(0xff800000u);

const uint CHUNK = KEY_DIM % 16u == 0u ? 16u : 8u;
const uint UNITS = KEY_DIM / 4u;
// Lanes that a value takes, four elements each.
const uint VALUE_LANES = VALUE_DIM / 4u;
// Threads of a row in the softmax, and how many weights each has.
const uint SLICES = 64u / R;
// Keys that the sum of values takes at a time: lanes that are not needed for elements and rows take other keys.
const uint SPLIT = 64u / (VALUE_LANES * ROW_GROUPS);
// Floats from a key to the next: 16-byte stores of neighbours go to different banks.
const uint PITCH = R + 4u;
shared float weight[64u * PITCH]; // [key][row]
shared float slice[64];
shared float kept[R];

void query(uint i, out float v[8]) {
  const u64vec4 t = q[i];
  [[unroll]] for (uint e = 0u; e < 4u; ++e) {
    const vec2 pair = uintBitsToFloat(unpack32(t[e]));
    v[2u * e] = pair.x;
    v[2u * e + 1u] = pair.y;
  }
}

// A score times log2(e), so that exp2 gives its weight. `dot` is multiplied by the scale.
float scored(float dot) {
  if (CAPPED == 0u) return dot;
  const float t = dot / softcap, e = exp2(-2.0 * LOG2_E * abs(t));
  return softcap * LOG2_E * sign(t) * (1.0 - e) / (1.0 + e);
}

// A score under its mask.
float masked(float score, uint at) {
  if (MASK == 1u) {
    const float m = uintBitsToFloat(mask[at]);
    return m == MASKED ? MASKED : max(score + m * LOG2_E, LEAST_SCORE);
  }
  return ((mask[at >> 2] >> (8u * (at & 3u))) & 0xffu) != 0u ? score : MASKED;
}

void main() {
  const uint lane = gl_LocalInvocationID.x, head = gl_WorkGroupID.x / parts, part = gl_WorkGroupID.x % parts;
  const uint row_tile = gl_WorkGroupID.y, row0 = row_tile * R, image = gl_WorkGroupID.z;
  const uint m = extent(rows), n = extent(keys_there);
  const uint here = min(R, m - row0);
  const uint kv_head = head / (heads / kv_heads);
  const uint query0 = ((image * extent(row_tiles) + row_tile) * heads + head) * (KEY_DIM * R / 8u);
  const uint key0 = (image * kv_heads + kv_head) * extent(key_tiles);
  const uint value_step = kv_heads * (value_width / 4u);
  const uint value0 = image * n * value_step + kv_head * (value_width / 4u) + part * VALUE_LANES;
  const uint mask0 = MASK == 0u ? 0u : image * extent(mask_image) + head * extent(mask_head) + row0 * extent(mask_row);

  const uint own_row = lane % R, own_slice = lane / R;
  const uint element = lane % VALUE_LANES, rest = lane / VALUE_LANES;
  const uint row_group = rest % ROW_GROUPS, split = rest / ROW_GROUPS;
  // Of the row that a thread has in the softmax.
  float most = LEAST, total = 0.0;
  vec4 sum[8];
  [[unroll]] for (uint i = 0u; i < 8u; ++i) sum[i] = vec4(0.0);
  // The last query sees all keys; with more queries than keys the first ones see none.
  const uint seen = CAUSAL != 0u ? uint(clamp(int(row0 + here + n) - int(m), 0, int(n))) : n;
  for (uint first = 0u; first < seen; first += 64u) {
    float score[R];
    [[unroll]] for (uint r = 0u; r < R; ++r) score[r] = 0.0;
    uint at = (key0 + (first >> 6)) * (UNITS * 64u) + lane;
    for (uint c = 0u; c < KEY_DIM / CHUNK; ++c) {
      vec4 raw[4];
      [[unroll]] for (uint u = 0u; u < CHUNK / 4u; ++u) raw[u] = keys[at + u * 64u];
      at += CHUNK / 4u * 64u;
      [[unroll]] for (uint i = 0u; i < CHUNK; ++i) [[unroll]] for (uint g = 0u; g < ROW_GROUPS; ++g) {
        float v[8];
        query(query0 + (c * CHUNK + i) * ROW_GROUPS + g, v);
        [[unroll]] for (uint r = 0u; r < 8u; ++r) score[g * 8u + r] += raw[i >> 2][i & 3u] * v[r];
      }
    }
    const uint key = first + lane;
    const bool inside = key < seen;
    const uint mask_at = MASK == 0u ? 0u : mask0 + min(key, n - 1u) * extent(mask_key);
    [[unroll]] for (uint r = 0u; r < R; ++r) {
      float s = scored(score[r]);
      if (MASK != 0u) s = masked(s, MASK_ROWS != 0u ? mask_at + min(r, here - 1u) * extent(mask_row) : mask_at);
      const bool sees = CAUSAL == 0u || int(key) <= int(row0 + r + n) - int(m);
      weight[lane * PITCH + r] = inside && sees ? s : MASKED;
    }
    barrier();
    float w[R];
    float larger = most;
    [[unroll]] for (uint i = 0u; i < R; ++i) {
      w[i] = weight[(own_slice + i * SLICES) * PITCH + own_row];
      larger = max(larger, w[i]);
    }
    slice[lane] = larger;
    barrier();
    [[unroll]] for (uint i = 0u; i < SLICES; ++i) larger = max(larger, slice[i * R + own_row]);
    const float keep = exp2(most - larger);
    most = larger;
    total *= keep;
    if (lane < R) kept[lane] = keep;
    [[unroll]] for (uint i = 0u; i < R; ++i) {
      const float p = exp2(w[i] - larger);
      total += p;
      weight[(own_slice + i * SLICES) * PITCH + own_row] = p;
    }
    barrier();
    [[unroll]] for (uint i = 0u; i < 8u; ++i) sum[i] *= kept[row_group * 8u + i];
    if (split < SPLIT) {
      const uint from = value0 + first * value_step + element, end = min(seen - first, 64u);
      uint i = split;
      for (; i + 3u * SPLIT < end; i += 4u * SPLIT) {
        vec4 v[4];
        [[unroll]] for (uint j = 0u; j < 4u; ++j) v[j] = values[from + (i + j * SPLIT) * value_step];
        [[unroll]] for (uint j = 0u; j < 4u; ++j) [[unroll]] for (uint k = 0u; k < 8u; ++k) sum[k] += weight[(i + j * SPLIT) * PITCH + row_group * 8u + k] * v[j];
      }
      for (; i < end; i += SPLIT) {
        const vec4 v = values[from + i * value_step];
        [[unroll]] for (uint k = 0u; k < 8u; ++k) sum[k] += weight[i * PITCH + row_group * 8u + k] * v;
      }
    }
    barrier();
  }

  slice[lane] = total;
  barrier();
  [[unroll]] for (uint i = 1u; i < SLICES; ++i) total += slice[((own_slice + i) % SLICES) * R + own_row];
  if (lane < R) kept[lane] = total > 0.0 ? 1.0 / total : 0.0;
  barrier();
  [[unroll]] for (uint i = 0u; i < 8u; ++i) {
    if (SPLIT > 1u) {
      [[unroll]] for (uint e = 0u; e < 4u; ++e) weight[lane * 4u + e] = sum[i][e];
      barrier();
      if (split == 0u) [[unroll]] for (uint s = 1u; s < SPLIT; ++s) [[unroll]] for (uint e = 0u; e < 4u; ++e) {
        sum[i][e] += weight[(lane + s * ROW_GROUPS * VALUE_LANES) * 4u + e];
      }
      barrier();
    }
    const uint row = row_group * 8u + i;
    if (split == 0u && row < here) {
      const uint to = ((image * m + row0 + row) * heads + head) * value_dim, first = part * VALUE_DIM + element * 4u;
      [[unroll]] for (uint e = 0u; e < 4u; ++e) if (first + e < value_dim) y[to + first + e] = sum[i][e] * kept[row];
    }
  }
}
