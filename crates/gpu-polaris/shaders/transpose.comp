#version 460
//@ gcn4 spec 0=256
//@ each WORD = uint uint16_t
#include "step.glsl"
layout(constant_id = 1) const uint RANK = 2;
layout(push_constant) uniform Push {
  uint count;    // extent
  uint dims[8];  // of the input, outermost first: extents
  uint perm[8];
};
layout(set = 0, binding = 1, std430) readonly buffer X { WORD x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { WORD y[]; };

void main() {
  const uint n = extent(count);
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    uint rest = i, at = 0u;
    for (uint d = RANK; d-- > 0u;) {
      const uint from = perm[d], size = extent(dims[from]);
      uint stride = 1u;
      for (uint e = from + 1u; e < RANK; ++e) stride *= extent(dims[e]);
      at += (rest % size) * stride;
      rest /= size;
    }
    y[i] = x[at];
  }
}
