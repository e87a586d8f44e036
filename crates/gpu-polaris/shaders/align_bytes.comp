#version 460
//@ gcn4 spec 0=256
// Rows of bytes, each brought to the begin of a word, with zeros up to the next.
#include "step.glsl"
layout(push_constant) uniform Push {
  uint rows;  // extent
  uint width; // bytes of a row: extent
};
layout(set = 0, binding = 1, std430) readonly buffer X { uint x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { uint y[]; };

void main() {
  const uint w = extent(width), words = (w + 3u) / 4u, n = extent(rows) * words;
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    const uint row = i / words, column = i % words * 4u;
    uint word = 0u;
    [[unroll]] for (uint e = 0u; e < 4u; ++e) {
      const uint at = row * w + column + e;
      if (column + e < w) word |= ((x[at >> 2] >> (8u * (at & 3u))) & 0xffu) << (8u * e);
    }
    y[i] = word;
  }
}
