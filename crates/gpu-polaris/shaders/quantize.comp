#version 460
//@ gcn4 spec 0=256
// Floats or integers of 32 bits as integers of 8 or 16, or as floats of 8. Four are made at once, since they lie in parts of words.
#include "step.glsl"
#include "quantization.glsl"

layout(push_constant) uniform Push {
  uint count;  // extent
  uint mode;   // who shares a scale
  uint inner;  // extent
  uint length; // extent
  uint block;
  uint kind;     // of the result: 0: 8 bits; 1: 16 bits; 2: E4M3; 3: E5M2
  int least;     // integers: the least and the largest
  int most;
  uint flags;    // 1: there are zero points; 2: x are integers; 4: floats of 8 bits stay finite
};
layout(set = 0, binding = 1, std430) readonly buffer X { uint x[]; };
layout(set = 0, binding = 2, std430) readonly buffer Scale { float scale[]; };
layout(set = 0, binding = 3, std430) readonly buffer Zero { uint zero[]; };
layout(set = 0, binding = 4, std430) writeonly buffer Y { uint y[]; };

int zero_at(uint i) {
  if ((flags & 1u) == 0u) return 0;
  const uint size = kind == 0u ? 8u : 16u, per = 32u / size;
  const int shift = int(i % per * size);
  return least < 0 ? bitfieldExtract(int(zero[i / per]), shift, int(size)) : int(bitfieldExtract(zero[i / per], shift, int(size)));
}

// The unit in the last place of a magnitude, and its inverse.
void units(float a, int mantissa, int bias, out int exponent, out float unit, out float inverse) {
  exponent = max(int(floatBitsToUint(a) >> 23) - 127, 1 - bias);
  unit = uintBitsToFloat(uint(exponent - mantissa + 127) << 23);
  inverse = uintBitsToFloat(uint(127 - exponent + mantissa) << 23);
}

uint float8(float v) {
  const bool wide = kind == 2u;
  const int mantissa = wide ? 3 : 2, bias = wide ? 7 : 15;
  const uint sign = floatBitsToUint(v) >> 24 & 0x80u, top = wide ? 0x7eu : 0x7bu, beyond = wide ? 0x7fu : 0x7cu;
  const uint large = (flags & 4u) != 0u ? top : beyond;
  const float a = abs(v);
  if (isnan(v)) return sign | (wide ? 0x7fu : 0x7eu);
  // No 8-bit float is as large; the unit of what is larger may have no inverse.
  if (a > 1e6) return sign | large;
  int exponent;
  float unit, inverse;
  units(a, mantissa, bias, exponent, unit, inverse);
  const float rounded = roundEven(a * inverse) * unit;
  if (rounded > (wide ? 448.0 : 57344.0)) return sign | large;
  units(rounded, mantissa, bias, exponent, unit, inverse);
  const int steps = int(rounded * inverse), hidden = 1 << mantissa;
  return sign | uint(steps < hidden ? steps : ((exponent + bias) << mantissa) + steps - hidden);
}

uint bits_at(uint i) {
  const uint s = scale_of(Shares(mode, extent(inner), extent(length), block), i);
  const float v = (flags & 2u) != 0u ? float(int(x[i])) : uintBitsToFloat(x[i]);
  const float q = quotient(v, scale[s]);
  if (kind >= 2u) return float8(q);
  // Zero points have 16 bits: what is larger than this ends at a bound all the same.
  const float r = isnan(q) ? 0.0 : clamp(roundEven(q), -1e6, 1e6);
  return uint(clamp(int(r) + zero_at(s), least, most));
}

void main() {
  const uint n = extent(count);
  for (uint group = gl_GlobalInvocationID.x; group * 4u < n; group += gl_NumWorkGroups.x * WG) {
    uint bits[4];
    [[unroll]] for (uint e = 0u; e < 4u; ++e) bits[e] = bits_at(min(group * 4u + e, n - 1u));
    if (kind == 1u) {
      y[group * 2u] = (bits[0] & 0xffffu) | bits[1] << 16;
      y[group * 2u + 1u] = (bits[2] & 0xffffu) | bits[3] << 16;
    } else {
      y[group] = (bits[0] & 0xffu) | (bits[1] & 0xffu) << 8 | (bits[2] & 0xffu) << 16 | bits[3] << 24;
    }
  }
}
