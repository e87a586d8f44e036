#version 460
//@ gcn4 spec 0=64 3=3 4=3
//@ gcn4 spec 0=64 3=5 4=5
// Convolution of single channels: a workgroup takes places of one channel of the result, whose weights come through scalar loads.
#include "step.glsl"
#include "activation.glsl"

// As in conv.comp.
layout(constant_id = 1) const uint EPILOGUE = 0;
layout(constant_id = 2) const uint ACTIVATION = 0;
layout(constant_id = 3) const uint KERNEL_Y = 1;
layout(constant_id = 4) const uint KERNEL_X = 1;

layout(push_constant) uniform Push {
  uint places;       // of the result, of all images: extent
  uint plane;        // places of an image: extent
  uint width;        // of them: extent
  uint image_height; // extent
  uint image_width;  // extent
  uint all_channels; // of the image
  uint outs;         // channels of the result that one of the image gives
  uint all_outs;
  uint strides;      // down the image, and along it in the upper half
  uint dilations;
  uint pads;
  float p;           // of the activation
  float q;
};

layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) readonly buffer Weights { float weights[]; };
layout(set = 0, binding = 3, std430) readonly buffer Bias { float bias[]; };
layout(set = 0, binding = 4, std430) readonly buffer Residual { float residual[]; };
layout(set = 0, binding = 5, std430) buffer Y { float y[]; };

const uint R = 4;

void main() {
  const uint n = extent(places), per_image = extent(plane), w = extent(width);
  const uint height = extent(image_height), row = extent(image_width), channel = gl_WorkGroupID.y;
  const uint step_y = strides & 0xffffu, step_x = strides >> 16, apart_y = dilations & 0xffffu, apart_x = dilations >> 16;
  const float offset = (EPILOGUE & 1u) != 0u ? bias[channel] : 0.0;
  const uint taps = channel * (KERNEL_Y * KERNEL_X);
  [[unroll]] for (uint r = 0u; r < R; ++r) {
    const uint place = (gl_WorkGroupID.x * R + r) * 64u + gl_LocalInvocationID.x;
    if (place >= n) return;
    const uint picture = place / per_image, in_plane = place % per_image;
    const uint base = (picture * all_channels + channel / outs) * height * row;
    const int y0 = int(in_plane / w * step_y) - int(pads & 0xffffu), x0 = int(in_plane % w * step_x) - int(pads >> 16);
    float sum = 0.0;
    [[unroll]] for (uint ky = 0u; ky < KERNEL_Y; ++ky) {
      const int iy = y0 + int(ky * apart_y);
      const bool inside = uint(iy) < height;
      const uint line = base + (inside ? uint(iy) * row : 0u);
      [[unroll]] for (uint kx = 0u; kx < KERNEL_X; ++kx) {
        const int ix = x0 + int(kx * apart_x);
        const bool here = inside && uint(ix) < row;
        const float v = x[line + (here ? uint(ix) : 0u)];
        sum += weights[taps + ky * KERNEL_X + kx] * (here ? v : 0.0);
      }
    }
    const uint at = (picture * all_outs + channel) * per_image + in_plane;
    float v = sum + offset;
    if (ACTIVATION != 0u && (EPILOGUE & 4u) != 0u) v = apply_function(ACTIVATION - 1u, v, p, q);
    if ((EPILOGUE & 2u) != 0u) v += residual[at];
    if (ACTIVATION != 0u && (EPILOGUE & 4u) == 0u) v = apply_function(ACTIVATION - 1u, v, p, q);
    y[at] = v;
  }
}
