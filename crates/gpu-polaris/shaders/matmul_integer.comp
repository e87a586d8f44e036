#version 460
//@ each C = 1 8
//@ gcn4 spec 0=64
//@ gcn4 unit weight 16
// Products of bytes, exact: Y = (A - a's zero points)·(B - b's). A lane computes four columns, a word of each row of B, for C rows of A, whose bytes
// are the same in a wave: they come through scalar loads, and the scalar unit cuts them apart. Bytes are taken without sign, so that products are
// multiply-adds of 24 bits at full rate; zero points are taken off at the end, by the sums of rows and columns. All wraps around as 32 bits do.
// Threads beyond 64 take other parts of k; their sums meet in shared memory.
#include "step.glsl"

layout(push_constant) uniform Push {
  uint rows;     // of a matrix of A: extent
  uint depth;    // k: extent
  uint columns;  // of Y: extent
  uint flip_b;   // 0x80808080 where bytes of B have a sign
  uint zero_a;   // A's zero point where none is given, after which A's bytes are none of them negative
  uint flags;    // 1: A has zero points; 2: one for each row; 4: B has zero points; 8: one for each column
  uint a_matrix; // tiles from one matrix of A to the next: extent
  uint b_matrix; // words from one matrix of B to the next: extent
};
layout(set = 0, binding = 1, std430) readonly buffer A { uint a[]; };
layout(set = 0, binding = 2, std430) readonly buffer Sums { uint sums[]; };
layout(set = 0, binding = 3, std430) readonly buffer B { uint b[]; };
layout(set = 0, binding = 4, std430) readonly buffer ZeroA { uint zeros_a[]; };
layout(set = 0, binding = 5, std430) readonly buffer ZeroB { uint zeros_b[]; };
layout(set = 0, binding = 6, std430) writeonly buffer Y { uint y[]; };

const uint SLICES = WG / 64u;
shared uint part[WG > 64u ? WG * 4u : 1u];

uint byte_of(uint word, uint i) { return bitfieldExtract(word, int(8u * i), 8); }

// Sums of all slices of k, in the threads of the first.
void meet(inout uint sum[4], uint tid) {
  barrier();
  [[unroll]] for (uint e = 0u; e < 4u; ++e) part[e * WG + tid] = sum[e];
  barrier();
  if (tid < 64u) [[unroll]] for (uint e = 0u; e < 4u; ++e) [[unroll]] for (uint i = 1u; i < SLICES; ++i) sum[e] += part[e * WG + i * 64u + tid];
}

void main() {
  const uint tid = gl_LocalInvocationID.x, lane = tid & 63u, matrix = gl_WorkGroupID.z;
  const uint k = extent(depth), n = extent(columns), m = extent(rows), words = (n + 3u) / 4u, groups = (k + 3u) / 4u;
  const uint column = (gl_WorkGroupID.x * 64u + lane) * 4u;
  const uint from_b = matrix * extent(b_matrix) + min(column / 4u, words - 1u);
  const uint from_a = (matrix * extent(a_matrix) + gl_WorkGroupID.y) * groups * C;
  const uint slice = SLICES > 1u ? subgroupBroadcastFirst(tid >> 6) : 0u;
  const uint per = (groups + SLICES - 1u) / SLICES, first = slice * per, last = min(groups, first + per);
  uint sum[C][4], of_b[4];
  [[unroll]] for (uint e = 0u; e < 4u; ++e) {
    of_b[e] = 0u;
    [[unroll]] for (uint c = 0u; c < C; ++c) sum[c][e] = 0u;
  }
  for (uint g = first; g < last; ++g) {
    uint w[4], v[C];
    [[unroll]] for (uint t = 0u; t < 4u; ++t) {
      const uint at = g * 4u + t;
      w[t] = b[from_b + min(at, k - 1u) * words] ^ flip_b;
      if (at >= k) w[t] = 0u;
    }
    [[unroll]] for (uint c = 0u; c < C; ++c) v[c] = a[from_a + g * C + c];
    [[unroll]] for (uint t = 0u; t < 4u; ++t) {
      [[unroll]] for (uint e = 0u; e < 4u; ++e) {
        const uint weight = byte_of(w[t], e);
        of_b[e] += weight;
        [[unroll]] for (uint c = 0u; c < C; ++c) sum[c][e] += weight * byte_of(v[c], t);
      }
    }
  }
  if (SLICES > 1u) {
    meet(of_b, tid);
    [[unroll]] for (uint c = 0u; c < C; ++c) meet(sum[c], tid);
    if (tid >= 64u) return;
  }
  [[unroll]] for (uint c = 0u; c < C; ++c) {
    const uint row = gl_WorkGroupID.y * C + c;
    if (row >= m) return;
    uint za = zero_a;
    const uint at_a = (flags & 2u) != 0u ? matrix * m + row : 0u;
    if ((flags & 1u) != 0u) za = byte_of(zeros_a[at_a >> 2], at_a & 3u) ^ zero_a;
    const uint rest = sums[extent(a_matrix) == 0u ? row : matrix * m + row] - k * za;
    [[unroll]] for (uint e = 0u; e < 4u; ++e) {
      if (column + e >= n) break;
      uint zb = flip_b & 0xffu;
      const uint at_b = (flags & 8u) != 0u ? column + e : 0u;
      if ((flags & 4u) != 0u) zb = byte_of(zeros_b[at_b >> 2], at_b & 3u) ^ zb;
      y[(matrix * m + row) * n + column + e] = sum[c][e] - za * of_b[e] - zb * rest;
    }
  }
}
