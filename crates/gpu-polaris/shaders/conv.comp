#version 460
//@ each R,C = 1,8 4,8 1,16 3,16 1,32 2,32
//@ gcn4 unit mac 4*R*C
//@ gcn4 spec 0=64 3=3 4=3
//@ gcn4 goal min_mac_share=0.7 min_waves=3 max_valu_per_unit=1.1 when C=32 R=2
//@ gcn4 goal min_waves=5 max_valu_per_unit=1.1 when C=32 R=1
// Convolution over two spatial extents. Lanes are places of the result, R of each lane; C channels of it are computed at once. Each element of
// the image is loaded by the lanes of a wave side by side and multiplied by weights that are the same for all of them: these come through
// scalar loads and enter v_mac as its scalar operand. Nothing is unfolded into memory, and there is no shared memory in the main loop.
// Weights lie [group][tile of C channels][element of the window][channel of the image][C], padded with zeros.
// Threads beyond 64 take other channels of the image; their sums meet in shared memory.
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#include "step.glsl"
#include "activation.glsl"

// 1: + bias; 2: + residual; 4: the activation comes before the residual, and not after it.
layout(constant_id = 1) const uint EPILOGUE = 0;
// Other than 0: the code of a function of the result, plus 1.
layout(constant_id = 2) const uint ACTIVATION = 0;
// Extents of the window.
layout(constant_id = 3) const uint KERNEL_Y = 1;
layout(constant_id = 4) const uint KERNEL_X = 1;
// Whether it is a transposed convolution: places of the image are `stride` apart in the result, and not the other way round.
layout(constant_id = 5) const uint TRANSPOSED = 0;

layout(push_constant) uniform Push {
  uint places;       // of the result, of all images: extent
  uint plane;        // places of an image: extent
  uint width;        // of them: extent
  uint image_height; // extent
  uint image_width;  // extent
  uint channels;     // of the image that a group has
  uint all_channels; // of the image
  uint outs;         // channels of the result that a group has
  uint all_outs;
  uint tiles;        // of C channels of a group
  uint strides;      // down the image, and along it in the upper half
  uint dilations;
  uint pads;         // before the image, in the same way
  float p;           // of the activation
  float q;
};

layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
// 8 floats a load: the scalar unit takes them at once.
layout(set = 0, binding = 2, std430) readonly buffer Weights { u64vec4 weights[]; };
layout(set = 0, binding = 3, std430) readonly buffer Bias { float bias[]; };
layout(set = 0, binding = 4, std430) readonly buffer Residual { float residual[]; };
layout(set = 0, binding = 5, std430) buffer Y { float y[]; };

const uint SLICES = WG / 64u;
// Sums that meet at a time.
const uint MEET = 8u;
shared float part[WG > 64u ? WG * MEET : 1u];

void eight(uint i, out float v[8]) {
  const u64vec4 t = weights[i];
  [[unroll]] for (uint e = 0u; e < 4u; ++e) {
    const vec2 pair = uintBitsToFloat(unpack32(t[e]));
    v[2u * e] = pair.x;
    v[2u * e + 1u] = pair.y;
  }
}

void main() {
  const uint tid = gl_LocalInvocationID.x, lane = tid & 63u;
  const uint slice = SLICES > 1u ? subgroupBroadcastFirst(tid >> 6) : 0u;
  const uint n = extent(places), per_image = extent(plane), w = extent(width);
  const uint height = extent(image_height), row = extent(image_width), image = height * row;
  const uint group = gl_WorkGroupID.y / tiles, tile = gl_WorkGroupID.y % tiles;
  const uint step_y = strides & 0xffffu, step_x = strides >> 16, apart_y = dilations & 0xffffu, apart_x = dilations >> 16;

  uint base[R], to[R];
  int y0[R], x0[R];
  [[unroll]] for (uint r = 0u; r < R; ++r) {
    const uint place = min((gl_WorkGroupID.x * R + r) * 64u + lane, n - 1u);
    const uint picture = place / per_image, at = place % per_image;
    base[r] = (picture * all_channels + group * channels) * image;
    to[r] = (picture * all_outs + group * outs) * per_image + at;
    const int down = int(at / w), along = int(at % w);
    if (TRANSPOSED != 0u) {
      y0[r] = down + int(pads & 0xffffu);
      x0[r] = along + int(pads >> 16);
    } else {
      y0[r] = down * int(step_y) - int(pads & 0xffffu);
      x0[r] = along * int(step_x) - int(pads >> 16);
    }
  }

  float sum[R][C];
  [[unroll]] for (uint r = 0u; r < R; ++r) [[unroll]] for (uint c = 0u; c < C; ++c) sum[r][c] = 0.0;
  const uint per = (channels + SLICES - 1u) / SLICES;
  const uint first = min(slice * per, channels), last = min(channels, first + per);
  for (uint ky = 0u; ky < KERNEL_Y; ++ky) for (uint kx = 0u; kx < KERNEL_X; ++kx) {
    // Beside the image elements are 0: a place inside is read, and not used.
    bool inside[R];
    uint at[R];
    [[unroll]] for (uint r = 0u; r < R; ++r) {
      int iy, ix;
      if (TRANSPOSED != 0u) {
        iy = y0[r] - int(ky * apart_y);
        ix = x0[r] - int(kx * apart_x);
        inside[r] = iy >= 0 && ix >= 0 && uint(iy) % step_y == 0u && uint(ix) % step_x == 0u;
        iy /= int(step_y);
        ix /= int(step_x);
        inside[r] = inside[r] && uint(iy) < height && uint(ix) < row;
      } else {
        iy = y0[r] + int(ky * apart_y);
        ix = x0[r] + int(kx * apart_x);
        inside[r] = uint(iy) < height && uint(ix) < row;
      }
      at[r] = base[r] + first * image + (inside[r] ? uint(iy) * row + uint(ix) : 0u);
    }
    uint from = (((group * tiles + tile) * (KERNEL_Y * KERNEL_X) + ky * KERNEL_X + kx) * channels + first) * (C / 8u);
    uint c = first;
    for (; c + 4u <= last; c += 4u) {
      float v[4][R];
      [[unroll]] for (uint u = 0u; u < 4u; ++u) [[unroll]] for (uint r = 0u; r < R; ++r) {
        const float t = x[at[r] + u * image];
        v[u][r] = inside[r] ? t : 0.0;
      }
      [[unroll]] for (uint u = 0u; u < 4u; ++u) [[unroll]] for (uint j = 0u; j < C / 8u; ++j) {
        float k[8];
        eight(from + u * (C / 8u) + j, k);
        [[unroll]] for (uint i = 0u; i < 8u; ++i) [[unroll]] for (uint r = 0u; r < R; ++r) sum[r][j * 8u + i] += k[i] * v[u][r];
      }
      [[unroll]] for (uint r = 0u; r < R; ++r) at[r] += 4u * image;
      from += C / 2u;
    }
    [[dont_unroll]] for (; c < last; ++c) {
      float v[R];
      [[unroll]] for (uint r = 0u; r < R; ++r) {
        const float t = x[at[r]];
        v[r] = inside[r] ? t : 0.0;
        at[r] += image;
      }
      [[unroll]] for (uint j = 0u; j < C / 8u; ++j) {
        float k[8];
        eight(from + j, k);
        [[unroll]] for (uint i = 0u; i < 8u; ++i) [[unroll]] for (uint r = 0u; r < R; ++r) sum[r][j * 8u + i] += k[i] * v[r];
      }
      from += C / 8u;
    }
  }

  if (SLICES > 1u) {
    [[unroll]] for (uint r = 0u; r < R; ++r) [[unroll]] for (uint j = 0u; j < C / MEET; ++j) {
      barrier();
      [[unroll]] for (uint i = 0u; i < MEET; ++i) part[i * WG + tid] = sum[r][j * MEET + i];
      barrier();
      if (tid < 64u) {
        [[unroll]] for (uint i = 0u; i < MEET; ++i) [[unroll]] for (uint s = 1u; s < SLICES; ++s) sum[r][j * MEET + i] += part[i * WG + s * 64u + lane];
      }
    }
    if (tid >= 64u) return;
  }

  [[unroll]] for (uint c = 0u; c < C; ++c) {
    const uint channel = tile * C + c;
    if (channel >= outs) return;
    const float offset = (EPILOGUE & 1u) != 0u ? bias[group * outs + channel] : 0.0;
    [[unroll]] for (uint r = 0u; r < R; ++r) {
      if ((gl_WorkGroupID.x * R + r) * 64u + lane >= n) continue;
      float v = sum[r][c] + offset;
      const uint at = to[r] + channel * per_image;
      if (ACTIVATION != 0u && (EPILOGUE & 4u) != 0u) v = apply_function(ACTIVATION - 1u, v, p, q);
      if ((EPILOGUE & 2u) != 0u) v += residual[at];
      if (ACTIVATION != 0u && (EPILOGUE & 4u) == 0u) v = apply_function(ACTIVATION - 1u, v, p, q);
      y[at] = v;
    }
  }
}
