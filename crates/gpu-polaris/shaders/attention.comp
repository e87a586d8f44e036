#version 460
//@ each KEY,VALUE = KV_F32,KV_F32 KV_F16,KV_F16 KV_Q8_0,KV_Q8_0 KV_F32,KV_F16 KV_F16,KV_F32 KV_F32,KV_Q8_0 KV_Q8_0,KV_F32 KV_F16,KV_Q8_0 KV_Q8_0,KV_F16
// Attention of any shape: a workgroup of 64 threads takes a row and a head. Lanes are positions for the scores, elements for the sum of values.
#include "step.glsl"
#include "reduce.glsl"
#include "kv.glsl"

layout(push_constant) uniform Push {
  uint rows;      // extent
  uint heads;
  uint kv_heads;
  uint key_dim;
  uint value_dim;
  uint key_units;
  uint value_units;
  uint capacity;
  uint ring;
  uint window;    // 0: all positions are seen
  float scale;
  float softcap;  // 0: none
};
layout(set = 0, binding = 1, std430) readonly buffer Q { float q[]; };
layout(set = 0, binding = 2, std430) readonly buffer Positions { int positions[]; };
layout(set = 0, binding = 3, std430) readonly buffer Slots { int slots[]; };
layout(set = 0, binding = 4, std430) readonly buffer Keys { uvec4 keys[]; };
#if VALUE == KV_F32
layout(set = 0, binding = 5, std430) readonly buffer Values { float values[]; };
#elif VALUE == KV_F16
layout(set = 0, binding = 5, std430) readonly buffer Values { float16_t values[]; };
#else
layout(set = 0, binding = 5, std430) readonly buffer Values { uint values[]; };
layout(set = 0, binding = 7, std430) readonly buffer ValueScales { float16_t value_scales[]; };
#endif
#if KEY == KV_Q8_0
layout(set = 0, binding = 6, std430) readonly buffer KeyScales { float16_t key_scales[]; };
#endif
layout(set = 0, binding = 8, std430) writeonly buffer Y { float y[]; };

// Elements of a value that a lane sums at most.
const uint PER_LANE = 8u;
shared float query[1024];
shared float weight[64];

float dot_unit(uvec4 unit, uint at) {
  float s = 0.0;
#if KEY == KV_F32
  [[unroll]] for (uint i = 0u; i < 4u; ++i) s += uintBitsToFloat(unit[i]) * query[at + i];
#elif KEY == KV_F16
  [[unroll]] for (uint i = 0u; i < 4u; ++i) {
    const vec2 v = unpackHalf2x16(unit[i]);
    s += v.x * query[at + 2u * i] + v.y * query[at + 2u * i + 1u];
  }
#else
  [[unroll]] for (uint i = 0u; i < 16u; ++i) s += float(bitfieldExtract(int(unit[i >> 2]), int(8u * (i & 3u)), 8)) * query[at + i];
#endif
  return s;
}

float value_at(uint head, uint row, uint e) {
  const uint base = (head * capacity + row) * value_units;
#if VALUE == KV_Q8_0
  const uint i = base * 16u + e;
  const float d = float(value_scales[(head * capacity + row) * (value_dim / 32u) + e / 32u]);
  return d * float(bitfieldExtract(int(values[i >> 2]), int(8u * (i & 3u)), 8));
#else
  return float(values[base * KV_PER_UNIT(VALUE) + e]);
#endif
}

void main() {
  const uint lane = gl_LocalInvocationID.x, head = gl_WorkGroupID.x, token = gl_WorkGroupID.y;
  if (token >= extent(rows)) return;
  const uint kv_head = uint(slots[token]) * kv_heads + head / (heads / kv_heads);
  const uint last = uint(positions[token]);
  const uint first = window != 0u && last + 1u > window ? last + 1u - window : 0u;
  const uint tiles = (capacity + 63u) / 64u;
  const uint per_unit = KV_PER_UNIT(KEY);
  for (uint i = lane; i < key_units * per_unit; i += 64u) query[i] = i < key_dim ? q[(token * heads + head) * key_dim + i] * scale : 0.0;
  barrier();
  float most = uintBitsToFloat(0xff800000u), total = 0.0;
  float sum[PER_LANE];
  [[unroll]] for (uint j = 0u; j < PER_LANE; ++j) sum[j] = 0.0;
  for (uint p0 = first; p0 <= last; p0 += 64u) {
    const uint position = p0 + lane;
    const bool seen = position <= last;
    float score = uintBitsToFloat(0xff800000u);
    if (seen) {
      const uint row = ring != 0u ? position % capacity : position;
      score = 0.0;
      for (uint u = 0u; u < key_units; ++u) {
        const float s = dot_unit(keys[key_unit(kv_head, row, u, key_units, tiles)], u * per_unit);
#if KEY == KV_Q8_0
        const uint blocks = key_dim / 32u;
        score += s * float(key_scales[((kv_head * tiles + (row >> 6)) * blocks + u / 2u) * 64u + (row & 63u)]);
#else
        score += s;
#endif
      }
      if (softcap != 0.0) {
        const float t = score / softcap, e = exp(-2.0 * abs(t));
        score = softcap * sign(t) * (1.0 - e) / (1.0 + e);
      }
    }
    const float larger = max(most, workgroup_max(score));
    const float keep = exp(most - larger);
    const float p = seen ? exp(score - larger) : 0.0;
    most = larger;
    total = total * keep + workgroup_sum(p);
    barrier();
    weight[lane] = p;
    barrier();
    const uint here = min(64u, last - p0 + 1u);
    [[unroll]] for (uint j = 0u; j < PER_LANE; ++j) {
      const uint e = lane + 64u * j;
      if (e < value_dim) {
        float s = sum[j] * keep;
        for (uint i = 0u; i < here; ++i) {
          const uint row = ring != 0u ? (p0 + i) % capacity : p0 + i;
          s += weight[i] * value_at(kv_head, row, e);
        }
        sum[j] = s;
      }
    }
  }
  [[unroll]] for (uint j = 0u; j < PER_LANE; ++j) {
    const uint e = lane + 64u * j;
    if (e < value_dim) y[(token * heads + head) * value_dim + e] = sum[j] / total;
  }
}
