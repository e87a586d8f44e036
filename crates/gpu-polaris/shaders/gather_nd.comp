#version 460
//@ gcn4 spec 0=256
// Slices at tuples of indices.
#include "step.glsl"
#include "indices.glsl"
#include "elements.glsl"

layout(push_constant) uniform Push {
  uint count;   // elements of the result: extent
  uint size;    // bytes of an element
  uint run;     // elements of a slice: extent
  uint batch;   // tuples that share the extents before the named ones: extent
  uint tuple;   // indices of a tuple
  uint dims[8]; // the extents that they name: extents
};
layout(set = 0, binding = 1, std430) readonly buffer X { uint x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { uint y[]; };

void main() {
  const uint n = extent(count), r = extent(run), per = extent(batch);
  for (uint w = gl_GlobalInvocationID.x; w < words_of(n, size); w += gl_NumWorkGroups.x * WG) {
    uint word = 0u;
    for (uint e = 0u; e < elements_of_word(size); ++e) {
      const uint i = first_of_word(w, size) + e, number = i / r;
      if (i >= n) break;
      uint at = number / per;
      bool inside = true;
      for (uint d = 0u; d < tuple; ++d) {
        const uint length = extent(dims[d]);
        uint index;
        inside = index_at(number * tuple + d, length, true, index) && inside;
        at = at * length + index;
      }
      if (!inside) continue;
      at = at * r + i % r;
      word |= placed(part_of(x[word_at(at, w, size)], at, size), e, size);
    }
    y[w] = word;
  }
}
