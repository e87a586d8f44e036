#version 460
//@ gcn4 spec 0=256
//@ gcn4 spec 0=256 1=10
//@ gcn4 spec 0=256 1=14
// Element-wise functions of one operand.
#include "step.glsl"
#include "functions.glsl"
layout(constant_id = 1) const uint FUNCTION = 0;
layout(push_constant) uniform Push {
  uint count; // extent
  float p;
  float q;
};
layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) buffer Y { float y[]; };

void main() {
  const uint n = extent(count);
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) y[i] = apply_any(FUNCTION, x[i], p, q);
}
