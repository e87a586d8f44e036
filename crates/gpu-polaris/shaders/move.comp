#version 460
//@ gcn4 spec 0=256
//@ each WORD = uint uint16_t
// Runs of words from one place to another: copies, slices, and the parts of a concatenation.
#include "step.glsl"
layout(push_constant) uniform Push {
  uint count;      // words in all: extent
  uint run;        // words of a run: extent
  uint from_first; // extents from here
  uint from_stride;
  uint to_first;
  uint to_stride;
};
layout(set = 0, binding = 1, std430) readonly buffer X { WORD x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { WORD y[]; };

void main() {
  const uint n = extent(count), r = extent(run);
  const uint ff = extent(from_first), fs = extent(from_stride), tf = extent(to_first), ts = extent(to_stride);
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    const uint outer = i / r, inner = i % r;
    y[tf + outer * ts + inner] = x[ff + outer * fs + inner];
  }
}
