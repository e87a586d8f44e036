#version 460
//@ each SIZE = 1 2 4
//@ gcn4 spec 0=256 2=2
// Elements of 1, 2 or 4 bytes taken from where strides say: transpositions, slices by steps, broadcasts. Bytes are made four at once.
#include "step.glsl"
layout(constant_id = 1) const uint FLIPPED = 0; // extents that are walked backwards, a bit each
layout(constant_id = 2) const uint RANK = 1;
layout(push_constant) uniform Push {
  uint count;      // extent
  uint first;      // element of the input: extent
  uint dims[8];    // of the result, outermost first: extents
  uint strides[8]; // in elements of the input: extents
};
#if SIZE == 2
#define WORD uint16_t
#else
#define WORD uint
#endif
layout(set = 0, binding = 1, std430) readonly buffer X { WORD x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { WORD y[]; };

uint place(uint i) {
  uint rest = i, at = extent(first);
  [[unroll]] for (uint d = RANK - 1u; d > 0u; --d) {
    const uint size = extent(dims[d]), c = rest % size;
    rest /= size;
    at += ((FLIPPED >> d & 1u) != 0u ? size - 1u - c : c) * extent(strides[d]);
  }
  return at + ((FLIPPED & 1u) != 0u ? extent(dims[0]) - 1u - rest : rest) * extent(strides[0]);
}

void main() {
  const uint n = extent(count);
#if SIZE == 1
  for (uint i = gl_GlobalInvocationID.x; i * 4u < n; i += gl_NumWorkGroups.x * WG) {
    uint word = 0u;
    [[unroll]] for (uint e = 0u; e < 4u; ++e) {
      const uint at = place(min(i * 4u + e, n - 1u));
      word |= ((x[at >> 2] >> (8u * (at & 3u))) & 0xffu) << (8u * e);
    }
    y[i] = word;
  }
#else
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) y[i] = x[place(i)];
#endif
}
