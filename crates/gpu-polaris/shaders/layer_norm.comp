#version 460
//@ gcn4 spec 0=256
//@ gcn4 spec 0=64
// Normalization of rows to a mean of 0 and a variance of 1: a workgroup a row. The mean is taken first, so that the variance is a sum of squares
// of what is left.
#include "step.glsl"
#include "reduce.glsl"

// 1: writes the normalized row; 0: writes the mean and the factor of the row only, for a kernel that applies them on its way.
layout(constant_id = 1) const uint WHOLE = 1;
// 1: there are weights; 2: there is a bias.
layout(constant_id = 2) const uint PARTS = 3;

layout(push_constant) uniform Push {
  uint rows;     // extent
  uint width;    // extent
  float epsilon;
};

layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) readonly buffer W { float w[]; };
layout(set = 0, binding = 3, std430) readonly buffer B { float b[]; };
layout(set = 0, binding = 4, std430) buffer Y { float y[]; };

void main() {
  const uint n = extent(width), m = extent(rows), tid = gl_LocalInvocationID.x;
  for (uint row = gl_WorkGroupID.x; row < m; row += gl_NumWorkGroups.x) {
    const uint at = row * n;
    float sum = 0.0, squares = 0.0;
    for (uint i = tid; i < n; i += WG) sum += x[at + i];
    const float mean = workgroup_sum(sum) / float(n);
    for (uint i = tid; i < n; i += WG) { const float v = x[at + i] - mean; squares += v * v; }
    const float scale = 1.0 / sqrt(workgroup_sum(squares) / float(n) + epsilon);
    if (WHOLE != 0u) {
      for (uint i = tid; i < n; i += WG) {
        float v = (x[at + i] - mean) * scale;
        if ((PARTS & 1u) != 0u) v *= w[i];
        if ((PARTS & 2u) != 0u) v += b[i];
        y[at + i] = v;
      }
    } else if (tid == 0u) {
      y[2u * row] = mean;
      y[2u * row + 1u] = scale;
    }
  }
}
