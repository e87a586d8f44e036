#version 460
//@ gcn4 spec 0=256
// Element-wise functions of two operands.
#include "step.glsl"
layout(constant_id = 1) const uint FUNCTION = 0;
// Extents that are broadcast; 0: both operands have the result's shape, or repeat along it.
layout(constant_id = 2) const uint RANK = 0;

layout(push_constant) uniform Push {
  uint count;   // extent
  uint a_count; // a repeats after so many elements (RANK 0): extent
  uint b_count;
  uint dims[6]; // of the result, outermost first: extents
  uint a_dims[6];
  uint b_dims[6];
};

layout(set = 0, binding = 1, std430) readonly buffer A { float a[]; };
layout(set = 0, binding = 2, std430) readonly buffer B { float b[]; };
layout(set = 0, binding = 3, std430) buffer Y { float y[]; };

// pow is undefined for negative bases: an odd whole exponent keeps the sign, another one has no value.
float power(float base, float exponent) {
  if (exponent == 0.0 || base == 1.0) return 1.0;
  const float p = pow(abs(base), exponent);
  if (base >= 0.0) return base == 0.0 ? (exponent > 0.0 ? 0.0 : uintBitsToFloat(0x7f800000u)) : p;
  if (floor(exponent) != exponent) return uintBitsToFloat(0x7fc00000u);
  return abs(mod(exponent, 2.0)) == 1.0 ? -p : p;
}

float apply(float l, float r) {
  switch (FUNCTION) {
    case 0u: return l + r;
    case 1u: return l - r;
    case 2u: return l * r;
    case 3u: return l / r;
    case 4u: return isnan(l) ? r : isnan(r) ? l : max(l, r);
    case 5u: return isnan(l) ? r : isnan(r) ? l : min(l, r);
    default: return power(l, r);
  }
}

void main() {
  const uint n = extent(count), an = extent(a_count), bn = extent(b_count);
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    uint ia = i, ib = i;
    if (RANK == 0u) {
      if (an != n) ia = i % an;
      if (bn != n) ib = i % bn;
    } else {
      uint rest = i, a_stride = 1u, b_stride = 1u;
      ia = 0u;
      ib = 0u;
      for (uint d = RANK; d-- > 0u;) {
        const uint size = extent(dims[d]), at = rest % size;
        const uint as = extent(a_dims[d]), bs = extent(b_dims[d]);
        rest /= size;
        if (as != 1u) ia += at * a_stride;
        if (bs != 1u) ib += at * b_stride;
        a_stride *= as;
        b_stride *= bs;
      }
    }
    y[i] = apply(a[ia], b[ib]);
  }
}
