#version 460
//@ gcn4 spec 0=256
// Numbers by equal steps: f32 (0), i32 (1) or i64 (2).
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#include "step.glsl"
layout(push_constant) uniform Push {
  uint count; // extent
  uint kind;
};
layout(set = 0, binding = 1, std430) readonly buffer Start { uint start[]; };
layout(set = 0, binding = 2, std430) readonly buffer Delta { uint delta[]; };
layout(set = 0, binding = 3, std430) writeonly buffer Y { uint y[]; };

void main() {
  const uint n = extent(count);
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    if (kind == 0u) {
      precise const float v = fma(float(i), uintBitsToFloat(delta[0]), uintBitsToFloat(start[0]));
      y[i] = floatBitsToUint(v);
    } else if (kind == 1u) {
      y[i] = start[0] + i * delta[0];
    } else {
      const int64_t first = packInt2x32(ivec2(start[0], start[1])), by = packInt2x32(ivec2(delta[0], delta[1]));
      const ivec2 v = unpack32(first + int64_t(i) * by);
      y[2u * i] = uint(v.x);
      y[2u * i + 1u] = uint(v.y);
    }
  }
}
