#version 460
//@ gcn4 spec 0=256
//@ gcn4 spec 0=256 2=3
// Chooses between words of two operands by bytes of a third, all broadcast.
#include "step.glsl"
#include "walk.glsl"

layout(push_constant) uniform Push {
  uint count;
  uint dims[MAX_RANK]; // of the result, outermost first: extents
  uint c_strides[MAX_RANK];
  uint a_strides[MAX_RANK];
  uint b_strides[MAX_RANK];
};

layout(set = 0, binding = 1, std430) readonly buffer Condition { uint condition[]; };
layout(set = 0, binding = 2, std430) readonly buffer A { uint a[]; };
layout(set = 0, binding = 3, std430) readonly buffer B { uint b[]; };
layout(set = 0, binding = 4, std430) writeonly buffer Y { uint y[]; };

void main() {
  const uint n = extent(count);
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    uint rest = i, ic = 0u, ia = 0u, ib = 0u;
    for (uint d = RANK - 1u; d > 0u; --d) {
      const uint size = extent(dims[d]), at = rest % size;
      rest /= size;
      ic += at * extent(c_strides[d]);
      ia += at * extent(a_strides[d]);
      ib += at * extent(b_strides[d]);
    }
    ic += rest * extent(c_strides[0]);
    ia += rest * extent(a_strides[0]);
    ib += rest * extent(b_strides[0]);
    y[i] = ((condition[ic >> 2] >> (8u * (ic & 3u))) & 0xffu) != 0u ? a[ia] : b[ib];
  }
}
