#version 460
//@ gcn4 spec 0=256
// Integers or floats of 8 bits as floats: less a zero point, times a scale.
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#include "step.glsl"
#include "quantization.glsl"

layout(push_constant) uniform Push {
  uint count;  // extent
  uint mode;   // who shares a scale
  uint inner;  // extent
  uint length; // extent
  uint block;
  uint kind;   // 0: u8; 1: i8; 2: u16; 3: i16; 4: i32; 5: E4M3; 6: E5M2
  uint flags;  // 1: there are zero points
};
layout(set = 0, binding = 1, std430) readonly buffer X { uint x[]; };
layout(set = 0, binding = 2, std430) readonly buffer Scale { float scale[]; };
layout(set = 0, binding = 3, std430) readonly buffer Zero { uint zero[]; };
layout(set = 0, binding = 4, std430) writeonly buffer Y { float y[]; };

// An element as it lies in its word.
int number(uint word, uint i) {
  if (kind == 4u) return int(word);
  const int size = kind == 2u || kind == 3u ? 16 : 8, shift = int(i % (32u / uint(size))) * size;
  return kind == 1u || kind == 3u ? bitfieldExtract(int(word), shift, size) : int(bitfieldExtract(word, shift, size));
}

uint word_of(uint i) { return kind == 4u ? i : kind == 2u || kind == 3u ? i >> 1 : i >> 2; }

float decoded(int bits) {
  const uint mantissa = kind == 5u ? 3u : 2u, exponent = uint(bits & 0x7f) >> mantissa, part = uint(bits) & ((1u << mantissa) - 1u);
  const float sign = (bits & 0x80) != 0 ? -1.0 : 1.0;
  if (kind == 5u ? (bits & 0x7f) == 0x7f : exponent == 31u && part != 0u) return uintBitsToFloat(0x7fc00000u);
  if (kind == 6u && exponent == 31u) return sign * uintBitsToFloat(0x7f800000u);
  const uint steps = exponent == 0u ? part : part + (1u << mantissa), bias = kind == 5u ? 7u : 15u;
  return sign * float(steps) * uintBitsToFloat((max(exponent, 1u) + 127u - bias - mantissa) << 23);
}

void main() {
  const uint n = extent(count);
  const Shares shares = Shares(mode, extent(inner), extent(length), block);
  const bool shifted = (flags & 1u) != 0u;
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    const uint s = scale_of(shares, i);
    const int v = number(x[word_of(i)], i), z = shifted ? number(zero[word_of(s)], s) : 0;
    const float f = kind >= 5u  ? decoded(v) - (shifted ? decoded(z) : 0.0)
                    : kind == 4u ? float(int64_t(v) - int64_t(z))
                                 : float(v - z);
    y[i] = f * scale[s];
  }
}
