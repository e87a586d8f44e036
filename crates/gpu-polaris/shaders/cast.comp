#version 460
//@ gcn4 spec 0=256 1=1 2=0
//@ gcn4 spec 0=256 1=4 2=0
//@ gcn4 spec 0=256 1=0 2=1
// Between f32 (0), f16 (1), bf16 (2), i32 (3), i64 (4), u8 (5), i8 (6), bool (7), u32 (8), u16 (10) and i16 (11); the negation of bool (9); whether
// an f32 is no number (12), or infinite (13, plus 2 for infinity and 4 for what is below all). Elements are made four at once, since what is smaller
// than a word lies in parts of one.
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#include "step.glsl"
layout(constant_id = 1) const uint FROM = 0;
layout(constant_id = 2) const uint TO = 0;
layout(push_constant) uniform Push { uint count; };
layout(set = 0, binding = 1, std430) readonly buffer X { uint x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { uint y[]; };

const bool FROM_FLOAT = FROM < 3u;
const bool TO_HALF = TO == 1u || TO == 2u || TO == 10u || TO == 11u, TO_TRUTH = TO == 7u || TO == 9u || TO >= 12u;

float float_at(uint i) {
  if (FROM == 0u) return uintBitsToFloat(x[i]);
  const uint v = (x[i >> 1] >> (16u * (i & 1u))) & 0xffffu;
  return FROM == 1u ? unpackHalf2x16(v).x : uintBitsToFloat(v << 16);
}

int64_t int_at(uint i) {
  if (FROM == 3u) return int64_t(int(x[i]));
  if (FROM == 4u) return packInt2x32(ivec2(int(x[2u * i]), int(x[2u * i + 1u])));
  if (FROM == 8u) return int64_t(x[i]);
  if (FROM == 10u) return int64_t(bitfieldExtract(x[i >> 1], int(i & 1u) * 16, 16));
  if (FROM == 11u) return int64_t(bitfieldExtract(int(x[i >> 1]), int(i & 1u) * 16, 16));
  const uint word = x[i >> 2], shift = 8u * (i & 3u);
  return FROM == 6u ? int64_t(bitfieldExtract(int(word), int(shift), 8)) : int64_t((word >> shift) & 0xffu);
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

// As floats become integers: towards zero, to the nearest that there is; no number becomes 0.
int64_t truncated(float v) {
  if (isnan(v)) return 0l;
  const float low = TO == 5u || TO == 8u || TO == 10u ? 0.0 : TO == 6u ? -128.0 : TO == 11u ? -32768.0 : TO == 3u ? -2147483648.0 : -9223372036854775808.0;
  const float high = TO == 10u ? 65535.0 : TO == 11u ? 32767.0 : TO == 5u ? 255.0 : TO == 6u ? 127.0 : TO == 8u ? 4294967296.0 : TO == 3u ? 2147483648.0 : 9223372036854775808.0;
  const int64_t most = TO == 8u ? 0xffffffffl : TO == 3u ? 0x7fffffffl : TO == 4u ? 0x7fffffffffffffffl : int64_t(high);
  if (v >= high) return most;
  return v <= low ? int64_t(low) : int64_t(v);
}

// The bits of an element of TO; the upper word of 64.
uint bits_at(uint i, out uint upper) {
  upper = 0u;
  if (TO == 12u) return uint(isnan(float_at(i)));
  if (TO > 12u) {
    const uint bits = floatBitsToUint(float_at(i));
    return uint(((TO - 13u) & 2u) != 0u && bits == 0x7f800000u || ((TO - 13u) & 4u) != 0u && bits == 0xff800000u);
  }
  if (TO_TRUTH) {
    const bool set = FROM_FLOAT ? float_at(i) != 0.0 : int_at(i) != 0l;
    return uint(set != (TO == 9u));
  }
  if (TO < 3u) {
    const float v = FROM_FLOAT ? float_at(i) : FROM == 3u ? float(int(x[i])) : float(int_at(i));
    return TO == 0u ? floatBitsToUint(v) : TO == 1u ? to_half(v) : to_bfloat(v);
  }
  const ivec2 words = unpack32(FROM_FLOAT ? truncated(float_at(i)) : int_at(i));
  upper = uint(words.y);
  return uint(words.x);
}

void main() {
  const uint n = extent(count);
  for (uint group = gl_GlobalInvocationID.x; group * 4u < n; group += gl_NumWorkGroups.x * WG) {
    uint word = 0u, upper;
    [[unroll]] for (uint e = 0u; e < 4u; ++e) {
      const uint i = group * 4u + e;
      const uint bits = bits_at(min(i, n - 1u), upper);
      if (TO == 4u) {
        if (i < n) { y[2u * i] = bits; y[2u * i + 1u] = upper; }
      } else if (TO_HALF) {
        word = (e & 1u) == 0u ? bits & 0xffffu : word | bits << 16;
        if ((e & 1u) == 1u) y[group * 2u + e / 2u] = word;
      } else if (TO == 0u || TO == 3u || TO == 8u) {
        if (i < n) y[i] = bits;
      } else {
        word |= (bits & 0xffu) << (8u * e);
        if (e == 3u) y[group] = word;
      }
    }
  }
}
