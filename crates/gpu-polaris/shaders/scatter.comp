#version 460
//@ gcn4 spec 0=256 2=0
//@ gcn4 spec 0=256 2=1
// Data with elements replaced where indices say: along one extent (MODE 0), or slices at tuples of indices (1). Each thread looks through the indices
// that may mean its element, in their order: so the last of several stays, sums are made in the reference's order, and no two threads write one word.
#include "step.glsl"
#include "indices.glsl"
#include "elements.glsl"
layout(constant_id = 2) const uint MODE = 0;

layout(push_constant) uniform Push {
  uint count;       // elements of the result: extent
  uint size;        // bytes of an element
  uint many;        // indices along the extent, or tuples: extent
  uint run;         // tuples: elements of a slice: extent
  uint rank;        // extents, or indices of a tuple
  uint axis;        // the indexed extent
  uint join;        // 0: replaces; 1: sum; 2: product; 3: the smaller; 4: the larger
  uint whole;       // whether elements are integers of 32 bits, and not f32, where they are joined
  uint dims[8];     // of the data, outermost first: extents
  uint at_dims[8];  // of the indices: extents
};
layout(set = 0, binding = 1, std430) readonly buffer X { uint x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { uint y[]; };
layout(set = 0, binding = 3, std430) readonly buffer Updates { uint updates[]; };

uint joined(uint old, uint by) {
  if (join == 0u) return by;
  if (whole != 0u) {
    const int a = int(old), b = int(by);
    return uint(join == 1u ? a + b : join == 2u ? a * b : join == 3u ? min(a, b) : max(a, b));
  }
  const float a = uintBitsToFloat(old), b = uintBitsToFloat(by);
  const float smaller = isnan(a) ? b : isnan(b) ? a : min(a, b), larger = isnan(a) ? b : isnan(b) ? a : max(a, b);
  return floatBitsToUint(join == 1u ? a + b : join == 2u ? a * b : join == 3u ? smaller : larger);
}

void main() {
  const uint n = extent(count), m = extent(many), r = extent(run);
  for (uint w = gl_GlobalInvocationID.x; w < words_of(n, size); w += gl_NumWorkGroups.x * WG) {
    uint word = 0u;
    for (uint e = 0u; e < elements_of_word(size); ++e) {
      const uint i = first_of_word(w, size) + e;
      if (i >= n) break;
      uint value = part_of(x[word_at(i, w, size)], i, size);
      if (MODE == 0u) {
        uint rest = i, from = 0u, stride = 1u, own = 0u, apart = 0u;
        bool meant = true;
        for (uint d = rank; d-- > 0u;) {
          const uint length = extent(dims[d]), indexed = extent(at_dims[d]), c = rest % length;
          rest /= length;
          if (d == axis) {
            own = c;
            apart = stride;
          } else {
            meant = meant && c < indexed;
            from += c * stride;
          }
          stride *= indexed;
        }
        for (uint j = 0u; meant && j < m; ++j) {
          const uint at = from + j * apart;
          uint index;
          if (index_at(at, extent(dims[axis]), true, index) && index == own) value = joined(value, part_of(updates[word_at(at, w, size)], at, size));
        }
      } else {
        const uint slice = i / r;
        for (uint j = 0u; j < m; ++j) {
          uint place = 0u;
          bool inside = true;
          for (uint d = 0u; d < rank; ++d) {
            const uint length = extent(dims[d]);
            uint index;
            inside = index_at(j * rank + d, length, true, index) && inside;
            place = place * length + index;
          }
          const uint at = j * r + i % r;
          if (inside && place == slice) value = joined(value, part_of(updates[word_at(at, w, size)], at, size));
        }
      }
      word |= placed(value, e, size);
    }
    y[w] = word;
  }
}
