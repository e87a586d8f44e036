#version 460
//@ gcn4 spec 0=256
//@ gcn4 spec 0=256 2=3
// Single elements along one extent, as indices of the result's shape say.
#include "step.glsl"
#include "walk.glsl"
#include "indices.glsl"
#include "elements.glsl"

layout(push_constant) uniform Push {
  uint count;             // elements of the result: extent
  uint size;              // bytes of an element
  uint rows;              // what indices count: extent
  uint stride;            // elements from one index to the next: extent
  uint dims[MAX_RANK];    // of the result, outermost first: extents
  uint strides[MAX_RANK]; // of the data; 0 along the indexed extent
};
layout(set = 0, binding = 1, std430) readonly buffer X { uint x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { uint y[]; };

void main() {
  const uint n = extent(count), r = extent(rows), apart = extent(stride);
  for (uint w = gl_GlobalInvocationID.x; w < words_of(n, size); w += gl_NumWorkGroups.x * WG) {
    uint word = 0u;
    for (uint e = 0u; e < elements_of_word(size); ++e) {
      const uint i = first_of_word(w, size) + e;
      uint row;
      if (i >= n || !index_at(i, r, true, row)) continue;
      uint rest = i, at = row * apart;
      for (uint d = RANK - 1u; d > 0u; --d) {
        const uint length = extent(dims[d]);
        at += rest % length * extent(strides[d]);
        rest /= length;
      }
      at += rest * extent(strides[0]);
      word |= placed(part_of(x[word_at(at, w, size)], at, size), e, size);
    }
    y[w] = word;
  }
}
