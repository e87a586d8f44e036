#version 460
//@ each TYPE = KV_F32 KV_F16 KV_Q8_0
// Writes rows into a state: a thread an element, or a block of Q8_0.
#include "step.glsl"
#include "kv.glsl"

// Whether the state holds keys.
layout(constant_id = 1) const uint KEYS = 0;
layout(push_constant) uniform Push {
  uint rows;     // extent
  uint heads;
  uint dim;      // of a head
  uint units;    // of 16 bytes, of a head
  uint capacity; // positions of a slot
  uint ring;     // whether positions wrap around
};
layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) readonly buffer Positions { int positions[]; };
layout(set = 0, binding = 3, std430) readonly buffer Slots { int slots[]; };
#if TYPE == KV_F32
layout(set = 0, binding = 4, std430) writeonly buffer State { float state[]; };
#elif TYPE == KV_F16
layout(set = 0, binding = 4, std430) writeonly buffer State { float16_t state[]; };
#else
layout(set = 0, binding = 4, std430) writeonly buffer State { uint state[]; };
layout(set = 0, binding = 5, std430) writeonly buffer Scales { float16_t scales[]; };
#endif

#define PER_UNIT KV_PER_UNIT(TYPE)

// Element `i` of a head, in elements.
uint place(uint head, uint row, uint i) {
  if (KEYS != 0u) return key_unit(head, row, i / PER_UNIT, units, (capacity + 63u) / 64u) * PER_UNIT + i % PER_UNIT;
  return (head * capacity + row) * units * PER_UNIT + i;
}

void main() {
#if TYPE == KV_Q8_0
  const uint per_head = dim / 32u;
#else
  const uint per_head = dim;
#endif
  const uint n = extent(rows) * heads * per_head;
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    const uint e = i % per_head, h = (i / per_head) % heads, token = i / (per_head * heads);
    const uint position = uint(positions[token]);
    const uint row = ring != 0u ? position % capacity : position;
    const uint head = uint(slots[token]) * heads + h;
#if TYPE == KV_Q8_0
    const uint at = (token * heads + h) * dim + e * 32u;
    float most = 0.0;
    for (uint j = 0u; j < 32u; ++j) most = max(most, abs(x[at + j]));
    const float d = most / 127.0;
    const float factor = d != 0.0 ? 1.0 / d : 0.0;
    for (uint j = 0u; j < 32u; j += 4u) {
      uint word = 0u;
      [[unroll]] for (uint b = 0u; b < 4u; ++b) {
        // Halves away from zero, as ggml's files have it.
        const float v = x[at + j + b] * factor;
        const int q = int(v + (v < 0.0 ? -0.5 : 0.5));
        word |= (uint(q) & 0xffu) << (8u * b);
      }
      state[place(head, row, e * 32u + j) / 4u] = word;
    }
    if (KEYS != 0u) scales[((head * ((capacity + 63u) / 64u) + (row >> 6)) * per_head + e) * 64u + (row & 63u)] = float16_t(d);
    else scales[(head * capacity + row) * per_head + e] = float16_t(d);
#elif TYPE == KV_F16
    state[place(head, row, e)] = float16_t(x[i]);
#else
    state[place(head, row, e)] = x[i];
#endif
  }
}
