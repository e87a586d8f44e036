#version 460
//@ gcn4 spec 0=256 2=4
// Words with others around them.
#include "step.glsl"
// 0: a constant; 1: the nearest; 2: mirrored at the first and the last; 3: from the other end.
layout(constant_id = 1) const uint MODE = 0;
layout(constant_id = 2) const uint RANK = 1;
// Whether the constant is given; otherwise it is 0.
layout(constant_id = 3) const uint GIVEN = 0;
layout(push_constant) uniform Push {
  uint count;        // extent
  uint dims[8];      // of the result, outermost first: extents
  uint from_dims[8]; // of the input: extents
  uint before[8];    // extents
};
layout(set = 0, binding = 1, std430) readonly buffer X { uint x[]; };
layout(set = 0, binding = 2, std430) readonly buffer Constant { uint constant[]; };
layout(set = 0, binding = 3, std430) writeonly buffer Y { uint y[]; };

void main() {
  const uint n = extent(count);
  const uint around = GIVEN != 0u ? constant[0] : 0u;
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    uint rest = i, at = 0u, stride = 1u;
    bool inside = true;
    [[unroll]] for (uint e = 0u; e < RANK; ++e) {
      const uint d = RANK - 1u - e, size = extent(dims[d]);
      const int m = int(extent(from_dims[d]));
      int c = int(rest % size) - int(extent(before[d]));
      rest /= size;
      if (MODE == 0u) {
        inside = inside && c >= 0 && c < m;
      } else if (MODE == 1u) {
        c = clamp(c, 0, m - 1);
      } else {
        const int period = MODE == 2u ? max(2 * (m - 1), 1) : max(m, 1);
        c = c < 0 ? period - 1 - (-1 - c) % period : c % period;
        if (MODE == 2u && c >= m) c = period - c;
      }
      at += uint(c) * stride;
      stride *= uint(m);
    }
    y[i] = inside ? x[inside ? at : 0u] : around;
  }
}
