#include "exact.glsl"

// Who shares a scale: all elements (0), those with the same index along an extent (1), blocks along an extent (2).
struct Shares {
  uint mode;
  uint inner;  // elements from one index of the extent to the next
  uint size;  // of the extent
  uint block;  // indices that share one
};

uint scale_of(Shares s, uint i) {
  if (s.mode == 0u) return 0u;
  const uint line = i / s.inner, at = line % s.size;
  if (s.mode == 1u) return at;
  const uint blocks = (s.size + s.block - 1u) / s.block;
  return (line / s.size * blocks + at / s.block) * s.inner + i % s.inner;
}

// Rounded as IEEE says, where no part of it is denormal: devices may be off by a little, which moves what lies between two integers.
float exact_quotient(float x, float by) {
  const float q = quotient_of(vec2(x, 0.0), by).x;
  return isnan(q) || isinf(q) ? x / by : q;
}

// The same for what is rounded to a small integer: other magnitudes need not be exact.
float quotient(float x, float by) {
  const float size = abs(x / by);
  return size > 1e-6 && size < 1e6 ? exact_quotient(x, by) : x / by;
}
