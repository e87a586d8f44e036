#version 460
//@ gcn4 spec 0=256 1=0
//@ gcn4 spec 0=256 1=1
//@ gcn4 spec 0=256 1=4
// Reductions along the last extent: a workgroup a row.
#include "step.glsl"
#include "reduce.glsl"

// 0: softmax; 1: sum; 2: mean; 3: largest; 4: index of the largest.
layout(constant_id = 1) const uint KIND = 0;
layout(push_constant) uniform Push {
  uint rows;  // extent
  uint width; // extent
};
layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) buffer Y { float y[]; };

shared float best_value[WG];
shared uint best_index[WG];

#define LEAST uintBitsToFloat(0xff800000u)

// The first of the largest: as a scan from the left that takes what is larger than the best so far, starting with element 0.
void arg_max(uint row, uint at, uint n, uint tid) {
  float best = LEAST;
  uint index = 0xffffffffu;
  for (uint i = tid; i < n; i += WG) {
    const float v = x[at + i];
    if (v > best || (index == 0xffffffffu && v == best)) { best = v; index = i; }
  }
  best_value[tid] = best;
  best_index[tid] = index;
  for (uint half_size = WG / 2u; half_size > 0u; half_size /= 2u) {
    barrier();
    if (tid < half_size) {
      const float v = best_value[tid + half_size];
      const uint i = best_index[tid + half_size];
      if (v > best_value[tid] || (v == best_value[tid] && i < best_index[tid])) { best_value[tid] = v; best_index[tid] = i; }
    }
  }
  barrier();
  // NaN first: nothing is larger than it. Nothing but NaN: the first.
  if (tid == 0u) y[row] = uintBitsToFloat(isnan(x[at]) || best_index[0] == 0xffffffffu ? 0u : best_index[0]);
  barrier();
}

void main() {
  const uint n = extent(width), m = extent(rows), tid = gl_LocalInvocationID.x;
  for (uint row = gl_WorkGroupID.x; row < m; row += gl_NumWorkGroups.x) {
    const uint at = row * n;
    if (KIND == 4u) {
      arg_max(row, at, n, tid);
      continue;
    }
    float r = KIND == 0u || KIND == 3u ? LEAST : 0.0;
    for (uint i = tid; i < n; i += WG) {
      const float v = x[at + i];
      r = KIND == 0u || KIND == 3u ? (v > r ? v : r) : r + v;
    }
    if (KIND == 1u || KIND == 2u) {
      const float sum = workgroup_sum(r);
      if (tid == 0u) y[row] = KIND == 1u ? sum : sum / float(n);
    } else if (KIND == 3u) {
      const float most = workgroup_max(r);
      if (tid == 0u) y[row] = most;
    } else {
      const float most = workgroup_max(r);
      float sum = 0.0;
      for (uint i = tid; i < n; i += WG) sum += exp(x[at + i] - most);
      sum = workgroup_sum(sum);
      for (uint i = tid; i < n; i += WG) y[at + i] = exp(x[at + i] - most) / sum;
    }
    barrier();
  }
}
