#version 460
//@ gcn4 spec 0=256
//@ each TABLE = 0 1 2
// Elements of a value or of a plain table along one extent, word by word (0); those of f16 (1) and bf16 (2) as f32.
#include "step.glsl"
#include "indices.glsl"

layout(push_constant) uniform Push {
  uint count;      // indices: extent
  uint table_rows; // what they count: extent
  uint width;      // words of a row: extent
  uint outer;      // tables, one after the other: extent
};

#if TABLE == 0
layout(set = 0, binding = 1, std430) readonly buffer Table { uint table[]; };
#else
layout(set = 0, binding = 1, std430) readonly buffer Table { uint16_t table[]; };
#endif
layout(set = 0, binding = 6, std430) writeonly buffer Y { uint y[]; };

void main() {
  const uint w = extent(width), rows = extent(table_rows), tokens = extent(count);
  const uint n = extent(outer) * tokens * w;
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    const uint line = i / w, column = i % w, token = line % tokens, table_number = line / tokens;
    uint row;
    if (!index_at(token, rows, i == token * w, row)) continue;
    const uint at = (table_number * rows + row) * w + column;
#if TABLE == 0
    y[i] = table[at];
#elif TABLE == 1
    y[i] = floatBitsToUint(unpackHalf2x16(uint(table[at])).x);
#else
    y[i] = uint(table[at]) << 16;
#endif
  }
}
