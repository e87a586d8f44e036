#version 460
//@ gcn4 spec 0=64
// Running sums along an extent: a thread a line.
#include "step.glsl"
layout(constant_id = 1) const uint EXCLUSIVE = 0; // without the element itself
layout(constant_id = 2) const uint REVERSE = 0;   // from the last to the first
layout(push_constant) uniform Push {
  uint lines;  // extent
  uint width;  // elements of a line: extent
  uint stride; // from one to the next: extent
};
layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { float y[]; };

void main() {
  const uint m = extent(lines), n = extent(width), s = extent(stride);
  for (uint line = gl_GlobalInvocationID.x; line < m; line += gl_NumWorkGroups.x * WG) {
    const uint first = line / s * (n * s) + line % s;
    float sum = 0.0;
    for (uint i = 0u; i < n; ++i) {
      const uint at = first + (REVERSE != 0u ? n - 1u - i : i) * s;
      const float v = x[at];
      if (EXCLUSIVE != 0u) y[at] = sum;
      sum += v;
      if (EXCLUSIVE == 0u) y[at] = sum;
    }
  }
}
