#version 460
//@ gcn4 spec 0=256 1=0
//@ gcn4 spec 0=256 1=1
// The range of a value, 0 among it, and from that the scale and the zero point with which it becomes bytes: first the range of what each workgroup
// sees, then that of all of them.
#include "step.glsl"
#include "reduce.glsl"
#include "quantization.glsl"
layout(constant_id = 1) const uint LAST = 0;
layout(push_constant) uniform Push {
  uint count; // elements, or workgroups before: extent
};
layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { float y[]; };
layout(set = 0, binding = 3, std430) writeonly buffer Zero { uint zero[]; };

void main() {
  const uint n = extent(count), tid = gl_LocalInvocationID.x;
  float least = 0.0, most = 0.0;
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    const float low = LAST != 0u ? x[2u * i] : x[i], high = LAST != 0u ? x[2u * i + 1u] : low;
    least = low < least ? low : least;
    most = high > most ? high : most;
  }
  most = workgroup_max(most);
  barrier();
  least = -workgroup_max(-least);
  if (tid != 0u) return;
  if (LAST == 0u) {
    y[2u * gl_WorkGroupID.x] = least;
    y[2u * gl_WorkGroupID.x + 1u] = most;
    return;
  }
  const float scale = most == least ? 1.0 : exact_quotient(most - least, 255.0);
  y[0] = scale;
  zero[0] = uint(roundEven(clamp(quotient(-least, scale), 0.0, 255.0)));
}
