#version 460
//@ gcn4 spec 0=256
// Root-mean-square normalization: a workgroup a row.
#include "step.glsl"
#include "reduce.glsl"

// 1: writes the normalized row; 0: writes the factor of the row only, for a kernel that applies it on its way.
layout(constant_id = 1) const uint WHOLE = 1;

layout(push_constant) uniform Push {
  uint rows;     // extent
  uint width;    // extent
  float epsilon;
};

layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) readonly buffer W { float w[]; };
layout(set = 0, binding = 3, std430) buffer Y { float y[]; };

void main() {
  const uint n = extent(width), m = extent(rows), tid = gl_LocalInvocationID.x;
  for (uint row = gl_WorkGroupID.x; row < m; row += gl_NumWorkGroups.x) {
    const uint at = row * n;
    float squares = 0.0;
    for (uint i = tid; i < n; i += WG) { const float v = x[at + i]; squares += v * v; }
    const float scale = 1.0 / sqrt(workgroup_sum(squares) / float(n) + epsilon);
    if (WHOLE != 0u) {
      for (uint i = tid; i < n; i += WG) y[at + i] = x[at + i] * scale * w[i];
    } else if (tid == 0u) {
      y[row] = scale;
    }
  }
}
