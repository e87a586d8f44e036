#version 460
//@ gcn4 spec 0=64
//@ each C = 1 2 4 8 32
// Brings activations into the tiles that matmul reads: [tile of C rows][k][C], k padded with zeros; with their normalization or gating on the way.
#include "step.glsl"
#include "activation.glsl"

// 0: as they are; 1: times the factor of the row and w[k]; 2: activation(gate) * up; 3: the same, where gate and up lie in one
// row as a gated pair of matrices gives them: 64 of one, 64 of the other; 4: a function of them; 5: less the row's mean, times its factor and w[k],
// plus up[k].
layout(constant_id = 1) const uint MODE = 0;
layout(constant_id = 2) const uint ACTIVATION = 0;

layout(push_constant) uniform Push {
  uint rows;    // extent
  uint width_word;  // of a row of X (of the gate): extent
  uint padded_word; // the same in whole blocks: extent
  uint stride_word; // floats from row to row of X: extent
  float p;      // of the function
  float q;
};

layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) readonly buffer Factor { float factor[]; };
layout(set = 0, binding = 3, std430) readonly buffer W { float w[]; };
layout(set = 0, binding = 4, std430) readonly buffer Up { float up[]; };
layout(set = 0, binding = 5, std430) writeonly buffer Y { float y[]; };

// One more, so that lanes that read down a column hit different banks.
shared float tile[64 * (C + 1)];

float value(uint row, uint k, uint stride) {
  if (MODE == 3u) {
    const uint at = row * stride + (k >> 6) * 128u + (k & 63u);
    return apply_unary(ACTIVATION, x[at]) * x[at + 64u];
  }
  const uint at = row * stride + k;
  if (MODE == 1u) return x[at] * factor[row] * w[k];
  if (MODE == 4u) return apply_function(ACTIVATION, x[at], p, q);
  if (MODE == 5u) return (x[at] - factor[2u * row]) * factor[2u * row + 1u] * w[k] + up[k];
  if (MODE == 2u) return apply_unary(ACTIVATION, x[at]) * up[at];
  return x[at];
}

// A workgroup of 64 threads takes 64 elements along k of C rows.
void main() {
  const uint lane = gl_LocalInvocationID.x, k0 = gl_WorkGroupID.x * 64u, row0 = gl_WorkGroupID.y * C;
  const uint width = extent(width_word), padded = extent(padded_word), stride = extent(stride_word);
  // Of several matrices each has tiles of its own.
  const uint n = extent(rows), k = k0 + lane, first = gl_WorkGroupID.z * n;
  [[unroll]] for (uint c = 0u; c < C; ++c) {
    const bool inside = row0 + c < n && k < width;
    tile[lane * (C + 1u) + c] = inside ? value(first + row0 + c, k, stride) : 0.0;
  }
  barrier();
  const uint base = ((gl_WorkGroupID.z * gl_NumWorkGroups.y + gl_WorkGroupID.y) * padded + k0) * C;
  [[unroll]] for (uint j = 0u; j < C; ++j) {
    const uint i = j * 64u + lane;
    if (k0 + i / C < padded) y[base + i] = tile[(i / C) * (C + 1u) + i % C];
  }
}
