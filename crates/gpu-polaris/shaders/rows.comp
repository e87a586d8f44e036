#version 460
//@ gcn4 spec 0=256
//@ each WORD = uint uint16_t
// Rows of a value or of a plain table, word by word.
#include "step.glsl"

layout(push_constant) uniform Push {
  uint count;      // indices: extent
  uint table_rows; // rows that there are: extent
  uint width;      // words of a row: extent
};

layout(set = 0, binding = 1, std430) readonly buffer Table { WORD table[]; };
layout(set = 0, binding = 5, std430) readonly buffer Indices { int indices[]; };
layout(set = 0, binding = 6, std430) writeonly buffer Y { WORD y[]; };
layout(set = 0, binding = 7, std430) buffer Status { uint status[]; };

void main() {
  const uint w = extent(width), rows = extent(table_rows);
  const uint n = extent(count) * w;
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    const uint token = i / w, column = i % w;
    const int index = indices[token];
    if (index < 0 || uint(index) >= rows) {
      if (column == 0u && atomicCompSwap(status[0], 0u, 1u) == 0u) {
        status[1] = uint(index);
        status[2] = rows;
      }
      continue;
    }
    y[i] = table[uint(index) * w + column];
  }
}
