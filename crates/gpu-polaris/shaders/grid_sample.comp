#version 460
//@ gcn4 spec 0=256 1=2 2=0
// Samples of images of one to three spatial extents at given places.
#include "step.glsl"
layout(constant_id = 1) const uint SPATIAL = 2;
layout(constant_id = 2) const uint MODE = 0; // 0: linear; 1: nearest; 2: cubic

layout(push_constant) uniform Push {
  uint count;    // elements of the result: extent
  uint out_word; // places of an image: extent
  uint channels; // extent
  uint padding;  // 0: zeros; 1: the nearest; 2: mirrored
  uint corners;  // whether -1 and 1 are the centers of the corner elements
  uint dims[3];  // spatial extents of the image: extents
};
layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) readonly buffer Grid { float grid[]; };
layout(set = 0, binding = 3, std430) writeonly buffer Y { float y[]; };

const uint TAPS = MODE == 0u ? 2u : MODE == 1u ? 1u : 4u;

float reflected(float v, float n) {
  const float least = corners != 0u ? 0.0 : -0.5, range = corners != 0u ? n - 1.0 : n;
  if (range <= 0.0) return least;
  if (v >= least && v <= least + range) return v;
  const float turns = floor((v - least) / (2.0 * range)), within = (v - least) - turns * 2.0 * range;
  return least + (within <= range ? within : 2.0 * range - within);
}

// The element that a coordinate names; -1 where there is nothing.
int element(float at, float n) {
  if (padding == 0u) return at >= 0.0 && at <= n - 1.0 ? int(at) : -1;
  return int(clamp(padding == 1u ? at : reflected(at, n), 0.0, n - 1.0));
}

void main() {
  const uint n = extent(count), places = extent(out_word), c = extent(channels);
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    const uint place = i % places, plane = i / places, image = plane / c;
    int at[SPATIAL * 4u];
    float weights[SPATIAL * 4u];
    uint area = 1u;
    [[unroll]] for (uint d = 0u; d < SPATIAL; ++d) {
      const float size = float(extent(dims[d]));
      area *= extent(dims[d]);
      // Coordinates come innermost first.
      const float g = grid[(image * places + place) * SPATIAL + SPATIAL - 1u - d];
      precise float v = (g + 1.0) / 2.0 * (size - 1.0);
      precise const float edges = ((g + 1.0) * size - 1.0) / 2.0;
      if (corners == 0u) v = edges;
      if (MODE == 1u) v = roundEven(v);
      const float least = corners != 0u ? 0.0 : -0.5, most = corners != 0u ? size - 1.0 : size - 0.5;
      if (v < least || v > most) v = padding == 1u ? clamp(v, 0.0, size - 1.0) : padding == 2u ? reflected(v, size) : v;
      if (MODE == 1u) {
        at[d * 4u] = element(trunc(v), size);
        weights[d * 4u] = 1.0;
        continue;
      }
      const float base = floor(v), ratio = v - base;
      [[unroll]] for (uint k = 0u; k < TAPS; ++k) {
        const float offset = float(k) - (MODE == 2u ? 1.0 : 0.0), away = abs(ratio - offset), a = -0.75;
        at[d * 4u + k] = element(base + offset, size);
        weights[d * 4u + k] = MODE == 0u   ? 1.0 - away
                              : away <= 1.0 ? ((a + 2.0) * away - (a + 3.0)) * away * away + 1.0
                                            : ((a * away - 5.0 * a) * away + 8.0 * a) * away - 4.0 * a;
      }
    }
    float sum = 0.0;
    const uint all = SPATIAL == 1u ? TAPS : SPATIAL == 2u ? TAPS * TAPS : TAPS * TAPS * TAPS;
    for (uint k = 0u; k < all; ++k) {
      uint rest = k, from = 0u, stride = 1u;
      float w = 1.0;
      bool there = true;
      [[unroll]] for (uint e = 0u; e < SPATIAL; ++e) {
        const uint d = SPATIAL - 1u - e, tap = d * 4u + rest % TAPS;
        rest /= TAPS;
        there = there && at[tap] >= 0;
        w *= weights[tap];
        from += uint(max(at[tap], 0)) * stride;
        stride *= extent(dims[d]);
      }
      if (there) sum += w * x[plane * area + from];
    }
    y[i] = sum;
  }
}
