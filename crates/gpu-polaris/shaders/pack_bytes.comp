#version 460
//@ gcn4 spec 0=64
// Brings rows of bytes into the tiles that matmul_integer reads: words of four bytes along k, [tile of rows][k / 4][row], with zeros where there is
// nothing; and the sum of each row. A workgroup takes a row.
#include "step.glsl"

layout(push_constant) uniform Push {
  uint rows;    // of a matrix: extent
  uint width;   // bytes of a row: extent
  uint columns; // rows of a tile
  uint flip;    // 0x80808080 where bytes have a sign: they get 128 more
};
layout(set = 0, binding = 1, std430) readonly buffer X { uint x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { uint y[]; };
layout(set = 0, binding = 3, std430) writeonly buffer Sums { uint sums[]; };

shared uint part[WG];

void main() {
  const uint n = extent(rows), k = extent(width), words = (k + 3u) / 4u, tid = gl_LocalInvocationID.x;
  const uint row = gl_WorkGroupID.y * columns + gl_WorkGroupID.x, matrix = gl_WorkGroupID.z;
  const bool inside = row < n;
  const uint from = (matrix * n + row) * k;
  const uint to = (matrix * gl_NumWorkGroups.y + gl_WorkGroupID.y) * words * columns + gl_WorkGroupID.x;
  uint sum = 0u;
  for (uint w = tid; w < words; w += WG) {
    uint word = 0u;
    if (inside && (from & 3u) == 0u && w * 4u + 4u <= k) {
      word = x[(from >> 2) + w] ^ flip;
    } else if (inside) {
      [[unroll]] for (uint e = 0u; e < 4u; ++e) {
        const uint i = from + w * 4u + e;
        if (w * 4u + e < k) word |= (((x[i >> 2] ^ flip) >> (8u * (i & 3u))) & 0xffu) << (8u * e);
      }
    }
    y[to + w * columns] = word;
    sum += (word & 0xffu) + (word >> 8 & 0xffu) + (word >> 16 & 0xffu) + (word >> 24);
  }
  part[tid] = sum;
  for (uint half_size = WG / 2u; half_size > 0u; half_size /= 2u) {
    barrier();
    if (tid < half_size) part[tid] += part[tid + half_size];
  }
  if (tid == 0u && inside) sums[matrix * n + row] = part[0];
}
