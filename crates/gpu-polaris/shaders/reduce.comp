#version 460
//@ gcn4 spec 0=256 1=0
//@ gcn4 spec 0=256 1=1
//@ gcn4 spec 0=256 1=4
//@ gcn4 spec 0=64 1=2
//@ gcn4 spec 0=256 1=11
// Reductions along the last extent: a workgroup a row.
#include "step.glsl"
#include "reduce.glsl"

// 0: softmax; 1: sum; 2: mean; 3: largest; 4: index of the largest; 5: smallest; 6: product; 7: sum of magnitudes; 8: root of the sum of squares;
// 9: sum of squares; 10: logarithm of the sum; 11: logarithm of the sum of exponentials; 12: logarithm of the softmax.
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
    // Of exponentials the largest comes first: less than it, none overflows.
    const bool exponentials = KIND == 0u || KIND == 11u || KIND == 12u, largest = exponentials || KIND == 3u;
    float r = largest ? LEAST : KIND == 5u ? -LEAST : KIND == 6u ? 1.0 : 0.0;
    for (uint i = tid; i < n; i += WG) {
      const float v = x[at + i];
      if (largest) r = v > r ? v : r;
      else if (KIND == 5u) r = v < r ? v : r;
      else if (KIND == 6u) r *= v;
      else r += KIND == 7u ? abs(v) : KIND == 8u || KIND == 9u ? v * v : v;
    }
    if (largest) {
      r = workgroup_max(r);
    } else if (KIND == 5u) {
      r = -workgroup_max(-r);
    } else if (KIND == 6u) {
      r = workgroup_product(r);
    } else {
      r = workgroup_sum(r);
    }
    if (exponentials) {
      float sum = 0.0;
      for (uint i = tid; i < n; i += WG) sum += exp(x[at + i] - r);
      sum = workgroup_sum(sum);
      if (KIND == 0u) {
        for (uint i = tid; i < n; i += WG) y[at + i] = exp(x[at + i] - r) / sum;
      } else if (KIND == 12u) {
        const float l = log(sum);
        for (uint i = tid; i < n; i += WG) y[at + i] = x[at + i] - r - l;
      } else if (tid == 0u) {
        y[row] = isinf(r) ? r : r + log(sum);
      }
    } else if (tid == 0u) {
      y[row] = KIND == 2u ? r / float(n) : KIND == 8u ? sqrt(r) : KIND == 10u ? log(r) : r;
    }
    barrier();
  }
}
