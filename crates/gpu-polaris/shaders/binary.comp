#version 460
//@ each TYPE = 0 1 2 3
//@ gcn4 spec 0=256
//@ gcn4 spec 0=256 2=3
// Element-wise functions of two operands of f32 (0), i32 (1), i64 (2) or bool (3), broadcast. Results that are bool lie in bytes: four of a word
// are made at once.
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#include "step.glsl"
#include "walk.glsl"
layout(constant_id = 1) const uint FUNCTION = 0;

layout(push_constant) uniform Push {
  uint count;
  uint dims[MAX_RANK]; // of the result, outermost first: extents
  uint a_strides[MAX_RANK];
  uint b_strides[MAX_RANK];
};

#if TYPE == 0
#define ELEMENT float
#elif TYPE == 1
#define ELEMENT int
#elif TYPE == 2
#define ELEMENT int64_t
#else
#define ELEMENT uint
#endif
layout(set = 0, binding = 1, std430) readonly buffer A { ELEMENT a[]; };
layout(set = 0, binding = 2, std430) readonly buffer B { ELEMENT b[]; };
// The same memory; one of them is used.
layout(set = 0, binding = 3, std430) buffer Y { ELEMENT y[]; };
layout(set = 0, binding = 3, std430) buffer Packed { uint packed[]; };

#if TYPE == 0
// pow is undefined for negative bases: an odd whole exponent keeps the sign, another one has no value.
float power(float base, float exponent) {
  if (exponent == 0.0 || base == 1.0) return 1.0;
  const float p = pow(abs(base), exponent);
  if (base >= 0.0) return base == 0.0 ? (exponent > 0.0 ? 0.0 : uintBitsToFloat(0x7f800000u)) : p;
  if (floor(exponent) != exponent) return uintBitsToFloat(0x7fc00000u);
  return abs(mod(exponent, 2.0)) == 1.0 ? -p : p;
}

// The quotient may be rounded to the wrong side of a whole number.
float modulo(float l, float r) {
  float rest = l - floor(l / r) * r;
  if (rest != 0.0 && (rest < 0.0) != (r < 0.0)) rest += r;
  return abs(rest) >= abs(r) ? rest - r : rest;
}

float apply(float l, float r) {
  switch (FUNCTION) {
    case 0u: return l + r;
    case 1u: return l - r;
    case 2u: return l * r;
    case 3u: return l / r;
    case 4u: return isnan(l) ? r : isnan(r) ? l : max(l, r);
    case 5u: return isnan(l) ? r : isnan(r) ? l : min(l, r);
    case 6u: return power(l, r);
    case 7u: return modulo(l, r);
    default: return l < 0.0 ? l * r : l;
  }
}
#else
ELEMENT apply(ELEMENT l, ELEMENT r) {
  switch (FUNCTION) {
    case 0u: return l + r;
    case 1u: return l - r;
    case 2u: return l * r;
    case 4u: return max(l, r);
    default: return min(l, r);
  }
}
#endif

bool holds(ELEMENT l, ELEMENT r) {
  switch (FUNCTION) {
    case 16u: return l == r;
    case 17u: return l < r;
    case 18u: return l <= r;
    case 19u: return l > r;
    case 20u: return l >= r;
#if TYPE == 3
    case 21u: return (l & r) != 0u;
    case 22u: return (l | r) != 0u;
    default: return l != r;
#else
    default: return false;
#endif
  }
}

void places(uint i, out uint ia, out uint ib) {
  uint rest = i;
  ia = 0u;
  ib = 0u;
  for (uint d = RANK - 1u; d > 0u; --d) {
    const uint size = extent(dims[d]), at = rest % size;
    rest /= size;
    ia += at * extent(a_strides[d]);
    ib += at * extent(b_strides[d]);
  }
  ia += rest * extent(a_strides[0]);
  ib += rest * extent(b_strides[0]);
}

ELEMENT left(uint i) {
#if TYPE == 3
  return (a[i >> 2] >> (8u * (i & 3u))) & 0xffu;
#else
  return a[i];
#endif
}

ELEMENT right(uint i) {
#if TYPE == 3
  return (b[i >> 2] >> (8u * (i & 3u))) & 0xffu;
#else
  return b[i];
#endif
}

void main() {
  const uint n = extent(count);
  uint ia, ib;
  if (FUNCTION < 16u) {
    for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
      places(i, ia, ib);
      y[i] = apply(left(ia), right(ib));
    }
    return;
  }
  for (uint i = gl_GlobalInvocationID.x; i * 4u < n; i += gl_NumWorkGroups.x * WG) {
    uint word = 0u;
    [[unroll]] for (uint e = 0u; e < 4u; ++e) {
      places(min(i * 4u + e, n - 1u), ia, ib);
      if (holds(left(ia), right(ib))) word |= 1u << (8u * e);
    }
    packed[i] = word;
  }
}
