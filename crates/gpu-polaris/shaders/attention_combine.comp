#version 460
// Joins what attention_decode made of the parts of a context: 64 threads take a head of a row.
#include "step.glsl"
#include "reduce.glsl"

layout(constant_id = 1) const uint VALUE_DIM = 64;
layout(constant_id = 2) const uint PARTS = 64; // at most 64

layout(push_constant) uniform Push {
  uint rows; // extent
  uint heads;
};
// For each row, head and part the sum of values, four elements each, then the largest score and the sum of weights.
layout(set = 0, binding = 1, std430) readonly buffer Partial { vec4 partial[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { vec4 y[]; };

shared float weight[64];

void main() {
  const uint lane = gl_LocalInvocationID.x, row = gl_WorkGroupID.y * heads + gl_WorkGroupID.x;
  if (gl_WorkGroupID.y >= extent(rows)) return;
  const uint lanes = VALUE_DIM / 4u, stride = lanes + 1u, from = row * PARTS * stride;
  // A part with no position in it has a sum of 0 and counts for nothing.
  vec2 stats = vec2(0.0);
  if (lane < PARTS) stats = partial[from + lane * stride + lanes].xy;
  const float most = workgroup_max(stats.y == 0.0 ? -3.0e38 : stats.x);
  const float w = stats.y == 0.0 ? 0.0 : exp2(stats.x - most);
  barrier();
  const float total = workgroup_sum(w * stats.y);
  weight[lane] = w;
  barrier();
  for (uint e = lane; e < lanes; e += 64u) {
    vec4 sum = vec4(0.0);
    for (uint p = 0u; p < PARTS; ++p) {
      if (weight[p] != 0.0) sum += weight[p] * partial[from + p * stride + e];
    }
    y[row * lanes + e] = sum / total;
  }
}
