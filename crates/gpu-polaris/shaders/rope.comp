#version 460
// Rotary embedding by a table of cosines and sines that the host made for the step.
#include "step.glsl"
layout(constant_id = 1) const uint INTERLEAVED = 1;
layout(push_constant) uniform Push {
  uint rows;   // extent
  uint heads;  // extent
  uint dim;    // of a head
  uint rotary; // elements of a head that turn
};
layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) readonly buffer Table { vec2 table[]; }; // [row][rotary / 2]
layout(set = 0, binding = 3, std430) buffer Y { float y[]; };

void main() {
  const uint pairs = (dim + 1u) / 2u, turning = rotary / 2u, h = extent(heads);
  const uint n = extent(rows) * h * pairs;
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    const uint pair = i % pairs, head = i / pairs, at = head * dim;
    if (pair >= turning) {
      // What does not turn: elements from `rotary` on, two at a time.
      const uint e = 2u * pair;
      y[at + e] = x[at + e];
      if (e + 1u < dim) y[at + e + 1u] = x[at + e + 1u];
      continue;
    }
    const vec2 t = table[(head / h) * turning + pair];
    const uint p = INTERLEAVED != 0u ? at + 2u * pair : at + pair;
    const uint q = INTERLEAVED != 0u ? p + 1u : p + turning;
    const float a = x[p], b = x[q];
    y[p] = a * t.x - b * t.y;
    y[q] = a * t.y + b * t.x;
  }
}
