#version 460
//@ gcn4 spec 0=256 1=0
//@ gcn4 spec 0=256 1=1
// Resamples one extent: takes the nearest elements, of any size (MODE 0), or sums up f32 times the weights of a linear (1) or cubic (2) filter. Where a
// sample lies among the elements is known to twice the digits of a float: the reference has f64, and the nearest of two elements must be the same.
#include "step.glsl"
#include "elements.glsl"
#include "exact.glsl"
layout(constant_id = 1) const uint MODE = 0;

layout(push_constant) uniform Push {
  uint count;       // elements of the result: extent
  uint size;        // bytes of an element
  uint from_extent; // extent
  uint to_extent;   // extent
  uint inner_word;  // elements from one index to the next: extent
  float given;      // factor of the extent; 0: as the extents say
  uint coordinates; // 0: half_pixel; 1: half_pixel_symmetric; 2: pytorch_half_pixel; 3: align_corners; 4: asymmetric
  uint rounding;    // 0: round_prefer_floor; 1: round_prefer_ceil; 2: floor; 3: ceil
  float a;          // of the cubic filter
  uint flags;       // 1: the filter is stretched where the extent shrinks; 2: weights outside are left out
};
layout(set = 0, binding = 1, std430) readonly buffer X { uint x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { uint y[]; };

vec2 plus(vec2 p, float q) {
  const vec2 s = sum_of(p.x, q);
  return sum_of(s.x, s.y + p.y);
}

float floor_of(vec2 p) {
  const float f = floor(p.x);
  return f == p.x && p.y < 0.0 ? f - 1.0 : f;
}

float ceil_of(vec2 p) { return -floor_of(-p); }

vec2 coordinate(float at, float from, float to) {
  const float whole = given != 0.0 ? given * from : to;
  if (coordinates == 3u) return whole == 1.0 ? vec2(0.0) : quotient_of(product_of(at, from - 1.0), whole - 1.0);
  if (coordinates == 2u && whole == 1.0) return vec2(-0.5, 0.0);
  const float center = coordinates == 4u ? at : at + 0.5;
  vec2 place = given != 0.0 ? quotient_of(vec2(center, 0.0), given) : quotient_of(product_of(center, from), to);
  if (coordinates != 4u) place = plus(place, -0.5);
  return coordinates == 1u ? plus(place, from / 2.0 * (1.0 - to / whole)) : place;
}

float weight(float distance) {
  const float d = abs(distance);
  if (MODE == 1u) return max(1.0 - d, 0.0);
  if (d <= 1.0) return ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0;
  return d < 2.0 ? ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a : 0.0;
}

uint inside(float at, float from) { return uint(clamp(at, 0.0, from - 1.0)); }

void main() {
  const uint n = extent(count), inner = extent(inner_word), f = extent(from_extent), t = extent(to_extent);
  const float from = float(f);
  if (MODE == 0u) {
    for (uint w = gl_GlobalInvocationID.x; w < words_of(n, size); w += gl_NumWorkGroups.x * WG) {
      uint word = 0u;
      for (uint e = 0u; e < elements_of_word(size); ++e) {
        const uint i = first_of_word(w, size) + e;
        if (i >= n) break;
        const vec2 at = coordinate(float(i / inner % t), from, float(t));
        const float nearest = rounding == 0u   ? ceil_of(plus(at, -0.5))
                              : rounding == 1u ? floor_of(plus(at, 0.5))
                              : rounding == 2u ? floor_of(at)
                                               : ceil_of(at);
        const uint place = (i / inner / t * f + inside(nearest, from)) * inner + i % inner;
        word |= placed(part_of(x[word_at(place, w, size)], place, size), e, size);
      }
      y[w] = word;
    }
    return;
  }
  const float factor = given != 0.0 ? given : float(t) / from, shrink = (flags & 1u) != 0u ? min(factor, 1.0) : 1.0;
  const float reach = (MODE == 1u ? 1.0 : 2.0) / shrink;
  const int first = int(floor(-reach)) + 1;
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    const vec2 at = coordinate(float(i / inner % t), from, float(t));
    const float base = floor_of(at), ratio = (at.x - base) + at.y;
    const uint line = i / inner / t * f;
    float sum = 0.0, whole = 0.0;
    for (int k = first; k < 2 - first; ++k) {
      const float place = base + float(k), w = weight((float(k) - ratio) * shrink);
      if ((flags & 2u) != 0u && !(place >= 0.0 && place < from)) continue;
      whole += w;
      sum += w * uintBitsToFloat(x[(line + inside(place, from)) * inner + i % inner]);
    }
    y[i] = floatBitsToUint(flags != 0u && whole != 0.0 ? sum / whole : sum);
  }
}
