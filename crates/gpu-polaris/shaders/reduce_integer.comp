#version 460
//@ gcn4 spec 0=64
// Reductions of integers of any size along the last extent. A thread takes whole rows: those of a word of the result, or one.
#include "step.glsl"
#include "elements.glsl"
#include "integers.glsl"

layout(push_constant) uniform Push {
  uint rows;     // extent
  uint width;    // extent
  uint kind;     // bytes of an element, plus 16 where it has a sign
  uint function; // as in reduce.comp: 1: sum; 2: mean; 3: largest; 5: smallest; 6: product; 7: sum of magnitudes; 9: sum of squares
};
layout(set = 0, binding = 1, std430) readonly buffer X { uint x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { uint y[]; };

int64_t reduced(uint row, uint n) {
  const bool ordered = function == 3u || function == 5u;
  int64_t r = function == 6u ? 1l : 0l;
  for (uint i = 0u; i < n; ++i) {
    const uint at = row * n + i;
    const int64_t v = INTEGER_AT(x, at, kind);
    if (ordered) {
      const bool less = kind == 8u ? uint64_t(v) < uint64_t(r) : v < r;
      if (i == 0u || (less == (function == 5u) && v != r)) r = v;
    } else if (function == 6u) {
      r *= v;
    } else {
      r += function == 7u && kind >= 16u && v < 0l ? -v : function == 9u ? v * v : v;
    }
  }
  if (ordered && n == 0u) {
    // Nothing is as large as the least, nor as small as the largest.
    const uint bits = (kind & 15u) * 8u - (kind >> 4);
    const int64_t most = int64_t((bits == 64u ? 0ul : 1ul << bits) - 1ul);
    return function == 5u ? most : kind >= 16u ? -most - 1l : 0l;
  }
  return function == 2u ? (n == 0u ? 0l : r / int64_t(n)) : r;
}

void main() {
  const uint m = extent(rows), n = extent(width), size = kind & 15u;
  for (uint w = gl_GlobalInvocationID.x; w < (size == 8u ? m : words_of(m, size)); w += gl_NumWorkGroups.x * WG) {
    uint word = 0u;
    for (uint e = 0u; e < elements_of_word(size); ++e) {
      const uint row = size == 8u ? w : first_of_word(w, size) + e;
      if (row >= m) break;
      const ivec2 v = unpack32(reduced(row, n));
      if (size == 8u) y[2u * w + 1u] = uint(v.y);
      word |= size >= 4u ? uint(v.x) : placed(uint(v.x) & (size == 1u ? 0xffu : 0xffffu), e, size);
    }
    y[size == 8u ? 2u * w : w] = word;
  }
}
