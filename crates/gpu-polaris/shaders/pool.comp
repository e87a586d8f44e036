#version 460
//@ gcn4 spec 0=256 1=0
//@ gcn4 spec 0=256 1=1
// Pooling over two spatial extents: a thread a place.
#include "step.glsl"
// 0: the largest; 1: the mean of what is inside of the image; 2: the mean with the padding.
layout(constant_id = 1) const uint KIND = 0;
layout(push_constant) uniform Push {
  uint count;        // places of all channels: extent
  uint plane;        // of one: extent
  uint width;        // extent
  uint image_height; // extent
  uint image_width;  // extent
  uint kernel;       // down the image, and along it in the upper half
  uint strides;
  uint dilations;
  uint pads;         // before the image
  uint pads_end;     // after it
};
layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Y { float y[]; };

void main() {
  const uint n = extent(count), per = extent(plane), w = extent(width), height = extent(image_height), row = extent(image_width);
  const uint apart_y = dilations & 0xffffu, apart_x = dilations >> 16;
  const int end_y = int(height + (pads_end & 0xffffu)), end_x = int(row + (pads_end >> 16));
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    const uint at = i % per, base = i / per * height * row;
    const int y0 = int(at / w * (strides & 0xffffu)) - int(pads & 0xffffu), x0 = int(at % w * (strides >> 16)) - int(pads >> 16);
    float most = uintBitsToFloat(0xff800000u), sum = 0.0;
    uint inside = 0u, padded = 0u;
    for (uint ky = 0u; ky < (kernel & 0xffffu); ++ky) for (uint kx = 0u; kx < (kernel >> 16); ++kx) {
      const int iy = y0 + int(ky * apart_y), ix = x0 + int(kx * apart_x);
      if (iy < end_y && ix < end_x) ++padded;
      if (uint(iy) >= height || uint(ix) >= row) continue;
      const float v = x[base + uint(iy) * row + uint(ix)];
      most = v > most || isnan(v) ? v : most;
      sum += v;
      ++inside;
    }
    const uint elements = KIND == 1u ? inside : padded;
    y[i] = KIND == 0u ? most : elements == 0u ? 0.0 : sum / float(elements);
  }
}
