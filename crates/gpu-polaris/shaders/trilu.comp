#version 460
//@ gcn4 spec 0=256
// Matrices with zeros on one side of a diagonal.
#include "step.glsl"
#include "elements.glsl"
layout(push_constant) uniform Push {
  uint count;   // elements: extent
  uint size;    // bytes of an element
  uint height;  // extent
  uint width;   // extent
  uint upper;   // whether the upper side stays
  int diagonal; // 0: the main one
};
layout(set = 0, binding = 1, std430) readonly buffer X { uint x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { uint y[]; };

void main() {
  const uint n = extent(count), columns = extent(width), rows = extent(height);
  for (uint w = gl_GlobalInvocationID.x; w < words_of(n, size); w += gl_NumWorkGroups.x * WG) {
    uint word = 0u;
    for (uint e = 0u; e < elements_of_word(size); ++e) {
      const uint i = first_of_word(w, size) + e;
      if (i >= n) break;
      const int distance = int(i % columns) - int(i / columns % rows);
      if (upper != 0u ? distance >= diagonal : distance <= diagonal) word |= placed(part_of(x[word_at(i, w, size)], i, size), e, size);
    }
    y[w] = word;
  }
}
