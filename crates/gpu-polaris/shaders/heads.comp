#version 460
//@ gcn4 spec 0=256 1=0
//@ gcn4 spec 0=256 1=1
// Brings rows of heads [batch][row][head][element] into the order in which attention_tensor.comp reads them, padded with zeros.
#include "step.glsl"

// 0: keys, [batch][head][tile of 64 rows][four elements][row][4]; other than 0: queries in tiles of so many rows, [batch][tile][head][element][row],
// times a factor.
layout(constant_id = 1) const uint TILE = 0;

layout(push_constant) uniform Push {
  uint count;   // elements with the padding: extent
  uint rows;    // of an image: extent
  uint heads;
  uint dim;
  uint padded;  // elements of a head with the padding
  uint tiles;   // of an image: extent
  float factor;
};

layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { float y[]; };

void main() {
  const uint total = extent(count), n = extent(rows), t = extent(tiles);
  for (uint i = gl_GlobalInvocationID.x; i < total; i += gl_NumWorkGroups.x * WG) {
    uint row, element, head, image;
    if (TILE == 0u) {
      const uint unit = (i >> 8) % (padded / 4u), rest = (i >> 8) / (padded / 4u);
      element = unit * 4u + (i & 3u);
      row = rest % t * 64u + ((i >> 2) & 63u);
      head = rest / t % heads;
      image = rest / t / heads;
    } else {
      const uint rest = i / TILE / padded;
      element = i / TILE % padded;
      head = rest % heads;
      row = rest / heads % t * TILE + i % TILE;
      image = rest / heads / t;
    }
    y[i] = row < n && element < dim ? x[((image * n + row) * heads + head) * dim + element] * factor : 0.0;
  }
}
