#version 460
//@ gcn4 spec 0=1024
// Normalization of groups of channels to a mean of 0 and a variance of 1: a workgroup a group.
#include "step.glsl"
#include "reduce.glsl"

// 1: there are weights; 2: there is a bias.
layout(constant_id = 1) const uint PARTS = 3;

layout(push_constant) uniform Push {
  uint rows;     // groups of all images: extent
  uint channels; // of a group: extent
  uint spatial;  // elements of a channel: extent
  uint groups;   // of an image
  float epsilon;
};

layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) readonly buffer W { float w[]; };
layout(set = 0, binding = 3, std430) readonly buffer B { float b[]; };
layout(set = 0, binding = 4, std430) buffer Y { float y[]; };

void main() {
  const uint plane = extent(spatial), here = extent(channels), n = plane * here, m = extent(rows), tid = gl_LocalInvocationID.x;
  for (uint row = gl_WorkGroupID.x; row < m; row += gl_NumWorkGroups.x) {
    const uint at = row * n;
    float sum = 0.0, squares = 0.0;
    for (uint i = tid; i < n; i += WG) sum += x[at + i];
    const float mean = workgroup_sum(sum) / float(n);
    for (uint i = tid; i < n; i += WG) { const float v = x[at + i] - mean; squares += v * v; }
    const float scale = 1.0 / sqrt(workgroup_sum(squares) / float(n) + epsilon);
    const uint channel0 = row % groups * here;
    for (uint c = 0u; c < here; ++c) {
      const float factor = (PARTS & 1u) != 0u ? w[channel0 + c] * scale : scale;
      const float offset = (PARTS & 2u) != 0u ? b[channel0 + c] : 0.0;
      for (uint i = tid; i < plane; i += WG) y[at + c * plane + i] = (x[at + c * plane + i] - mean) * factor + offset;
    }
  }
}
