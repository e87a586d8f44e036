#version 460
//@ gcn4 spec 0=256
//@ each FROM,TO = 0,1 0,2 0,3 1,0 1,2 1,3 2,0 2,1 2,3 3,0 3,1 3,2
// Between f32 (0), f16 (1), bf16 (2) and i32 (3).
#include "step.glsl"
layout(push_constant) uniform Push { uint count; };
#if FROM == 0
#define IN uint
#elif FROM == 3
#define IN int
#else
#define IN uint16_t
#endif
#if TO == 0
#define OUT float
#elif TO == 3
#define OUT int
#else
#define OUT uint16_t
#endif
layout(set = 0, binding = 1, std430) readonly buffer X { IN x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { OUT y[]; };

float read(uint i) {
#if FROM == 0
  return uintBitsToFloat(x[i]);
#elif FROM == 1
  return unpackHalf2x16(uint(x[i])).x;
#elif FROM == 2
  return uintBitsToFloat(uint(x[i]) << 16);
#else
  return float(x[i]);
#endif
}

// Rounded to the nearest, halves to even, whatever the device's own conversion does.
uint to_half(float v) {
  const uint bits = floatBitsToUint(v), sign = (bits >> 16) & 0x8000u, a = bits & 0x7fffffffu;
  if (a > 0x7f800000u) return sign | 0x7e00u;
  if (a >= 0x477ff000u) return sign | 0x7c00u;
  if (a < 0x33000000u || a == 0x33000000u) return sign;
  uint mantissa = (a & 0x7fffffu) | 0x800000u, shift = 13u, exponent = a >> 23;
  if (exponent < 113u) shift = 126u - exponent;
  const uint kept = mantissa >> shift, rest = mantissa & ((1u << shift) - 1u), half_way = 1u << (shift - 1u);
  const uint up = rest > half_way || (rest == half_way && (kept & 1u) == 1u) ? 1u : 0u;
  if (exponent < 113u) return sign | (kept + up);
  return sign | (((exponent - 112u) << 10) + (kept - 0x400u) + up);
}

uint to_bfloat(float v) {
  const uint bits = floatBitsToUint(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

void main() {
  const uint n = extent(count);
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
#if TO == 0
    y[i] = read(i);
#elif TO == 1
    y[i] = uint16_t(to_half(read(i)));
#elif TO == 2
    y[i] = uint16_t(to_bfloat(read(i)));
#else
    const float v = read(i);
    y[i] = isnan(v) ? 0 : v >= 2147483648.0 ? 2147483647 : v <= -2147483648.0 ? int(0x80000000) : int(v);
#endif
  }
}
