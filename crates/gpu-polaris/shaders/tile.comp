#version 460
//@ gcn4 spec 0=256
//@ each TYPE = 0 1 2
// Computed matrices of f32 (0), f16 (1) or bf16 (2) in the layout of f32 weights, padded with zeros.
#include "step.glsl"
// Whether it lies [k, n].
layout(constant_id = 1) const uint TRANSPOSED = 0;
layout(push_constant) uniform Push {
  uint count; // elements of a matrix with the padding: extent
  uint n;     // rows: extent
  uint k;     // extent
};
#if TYPE == 0
layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
#else
layout(set = 0, binding = 1, std430) readonly buffer X { uint16_t x[]; };
#endif
layout(set = 0, binding = 2, std430) writeonly buffer Y { float y[]; };

float at(uint i) {
#if TYPE == 0
  return x[i];
#elif TYPE == 1
  return unpackHalf2x16(uint(x[i])).x;
#else
  return uintBitsToFloat(uint(x[i]) << 16);
#endif
}

void main() {
  const uint total = extent(count), rows = extent(n), width = extent(k), blocks = (width + 31u) / 32u;
  const uint matrix = gl_WorkGroupID.y, first = matrix * rows * width;
  for (uint i = gl_GlobalInvocationID.x; i < total; i += gl_NumWorkGroups.x * WG) {
    // [tile][block][piece of 4][row][4]
    const uint e = i & 3u, lane = (i >> 2) & 63u, piece = (i >> 8) & 7u, b = (i >> 11) % blocks, tile = (i >> 11) / blocks;
    const uint row = tile * 64u + lane, column = b * 32u + piece * 4u + e;
    y[matrix * total + i] = row < rows && column < width ? at(first + (TRANSPOSED != 0u ? column * rows + row : row * width + column)) : 0.0;
  }
}
