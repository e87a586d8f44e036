#version 460
//@ each WEIGHT = F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K Q2_K Q3_K IQ4_NL IQ4_XS MXFP4 TERNARY
//@ each R,C = 1,1 2,1 4,1 2,2 2,4 4,8 3,32
//@ except WEIGHT=F32 R=4 C=1
//@ except WEIGHT=F16 R=4 C=1
//@ except WEIGHT=BF16 R=4 C=1
//@ gcn4 unit weight 8*R when C=8|32 WEIGHT=F32
//@ gcn4 unit weight 32*R when C=8|32 WEIGHT=Q5_0|Q5_K|Q6_K|Q2_K|Q3_K|TERNARY
//@ gcn4 unit weight 16*R when C=8|32
//@ gcn4 unit weight 32*R
//@ gcn4 spec 0=64
//@ gcn4 goal max_valu_per_unit=2.7 min_waves=4 when C=1 WEIGHT=Q4_0
//@ gcn4 goal max_valu_per_unit=2.4 min_waves=4 when C=1 WEIGHT=Q8_0
//@ gcn4 goal max_valu_per_unit=2.2 min_waves=4 when C=1 WEIGHT=F16
//@ gcn4 goal max_valu_per_unit=3.2 min_waves=4 when C=1 WEIGHT=Q4_K
//@ gcn4 goal max_valu_per_unit=4 min_waves=4 when C=1 WEIGHT=Q5_0|Q5_K|Q6_K
//@ gcn4 goal max_valu_per_unit=3.7 max_lds_share=0.7 min_waves=4 when C=1 WEIGHT=Q2_K|Q3_K|IQ4_NL|IQ4_XS|MXFP4|TERNARY
//@ gcn4 goal min_mac_share=0.82 max_lds_share=0.6 when C=32 WEIGHT=F32|F16|BF16|Q8_0|Q4_0|Q4_1|Q5_0|Q5_1|Q4_K|Q5_K|Q6_K|Q2_K|TERNARY
//@ gcn4 goal min_mac_share=0.76 max_lds_share=0.6 when C=32 WEIGHT=Q3_K|IQ4_NL|IQ4_XS|MXFP4
// Y = X·Wᵀ. A lane computes R rows of W (of R tiles of 64) for C rows of X. What is uniform in a wave, X, comes through scalar loads and
// stays in scalar registers, of which v_mac takes one as operand: no shared memory, no shuffles, no vector registers for X.
// X lies in tiles of C rows: [tile][k][C]; with C = 1 that is row by row. k is padded to whole blocks with zeros.
// Threads beyond 64 take other parts of k (C = 1 only); their sums meet in shared memory.
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#include "step.glsl"
#include "formats.glsl"
#if C >= 8
#if WEIGHT == F32
#define PARTS 4
#elif WEIGHT == Q5_0 || WEIGHT == Q5_K || WEIGHT == Q6_K || WEIGHT == Q2_K || WEIGHT == Q3_K || WEIGHT == TERNARY
#define PARTS 1
#else
#define PARTS 2
#endif
#endif
#include "weights.glsl"
#include "activation.glsl"

// 1: + bias[row]; 2: + residual[column][row]; 4: the activation comes before the residual, and not after it.
layout(constant_id = 1) const uint EPILOGUE = 0;
// Other than 0: rows of tiles 2i and 2i + 1 are gate and up; the result is activation(gate) * up (code + 1).
layout(constant_id = 2) const uint GATED = 0;
// Sums of X that fit: for weights with a least value, of what shares one.
layout(constant_id = 3) const uint SUMS = 1;
// Whether there are several matrices, as many as the grid is deep.
layout(constant_id = 4) const uint BATCHED = 0;
// Other than 0: the code of a function of the result, plus 1.
layout(constant_id = 5) const uint ACTIVATION = 0;

layout(push_constant) uniform Push {
  uint rows;        // of Y that these weights give: extent
  uint row_offset;  // where they begin in a row of Y
  uint y_stride;    // floats of a row of Y: extent
  uint columns;     // rows of X: extent
  uint block_count; // of 32 along k: extent
  uint tile_count;  // of 64 rows: extent
  float p;          // of the activation
  float q;
  uint x_matrix;    // tiles of columns from one matrix of X to the next: extent
  uint w_matrix;    // tiles of rows from one matrix of W to the next: extent
  uint y_matrix;    // floats from one matrix of Y to the next: extent
};

// 8 floats a load: the scalar unit takes them at once.
layout(set = 0, binding = 5, std430) readonly buffer X { u64vec4 x[]; };
layout(set = 0, binding = 6, std430) buffer Y { float y[]; };
layout(set = 0, binding = 7, std430) readonly buffer Bias { float bias[]; };
layout(set = 0, binding = 8, std430) readonly buffer Residual { float residual[]; };

#if C == 1
const uint SLICES = WG / 64u;
shared float part[WG > 64u ? WG : 1u];
#if HAS_MIN
#define SUMS_PER_BLOCK (HALVES ? 2u : 1u)
shared float sums[SUMS];
#endif
#endif

void eight(uint i, out float v[8]) {
  const u64vec4 t = x[i];
  [[unroll]] for (uint e = 0u; e < 4u; ++e) {
    const vec2 pair = uintBitsToFloat(unpack32(t[e]));
    v[2u * e] = pair.x;
    v[2u * e + 1u] = pair.y;
  }
}

void store(uint row, uint at, float v) {
  if ((EPILOGUE & 1u) != 0u) v += bias[row_offset + row];
  if (ACTIVATION != 0u && (EPILOGUE & 4u) != 0u) v = apply_function(ACTIVATION - 1u, v, p, q);
  if ((EPILOGUE & 2u) != 0u) v += residual[at + row];
  if (ACTIVATION != 0u && (EPILOGUE & 4u) == 0u) v = apply_function(ACTIVATION - 1u, v, p, q);
  y[at + row] = v;
}

void main() {
  const uint tid = gl_LocalInvocationID.x;
  const uint lane = tid & 63u;
  const uint tile0 = gl_WorkGroupID.x * R;
  const uint blocks = extent(block_count), tiles = extent(tile_count);
  const uint matrix = BATCHED != 0u ? gl_WorkGroupID.z : 0u;
  const uint x0 = matrix * extent(x_matrix), w0 = matrix * extent(w_matrix);
  prepare_weights();
  float sum[R][C];
  [[unroll]] for (uint r = 0u; r < R; ++r) [[unroll]] for (uint c = 0u; c < C; ++c) sum[r][c] = 0.0;

#if C == 1
#if HAS_MIN
  for (uint b = tid; b < blocks; b += WG) {
    [[unroll]] for (uint h = 0u; h < SUMS_PER_BLOCK; ++h) {
      float s = 0.0;
      [[unroll]] for (uint j = 0u; j < 4u / SUMS_PER_BLOCK; ++j) {
        float v[8];
        eight((x0 * blocks + b) * 4u + h * (4u / SUMS_PER_BLOCK) + j, v);
        s += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
      }
      sums[b * SUMS_PER_BLOCK + h] = s;
    }
  }
  barrier();
#endif
  const uint slice = SLICES > 1u ? subgroupBroadcastFirst(tid >> 6) : 0u;
  const uint per = (blocks + SLICES - 1u) / SLICES;
  const uint first = slice * per, last = min(blocks, first + per);
#else
  const uint first = 0u, last = blocks;
#endif

  for (uint p = first * PARTS; p < last * PARTS; ++p) {
    const uint b = p / PARTS;
    Block w[R];
    [[unroll]] for (uint r = 0u; r < R; ++r) w[r] = load_block(w0 + min(tile0 + r, tiles - 1u), b, p % PARTS, blocks, lane);
#if C == 1
    float s[R], s1[R];
    [[unroll]] for (uint r = 0u; r < R; ++r) { s[r] = 0.0; s1[r] = 0.0; }
    [[unroll]] for (uint j = 0u; j < 4u; ++j) {
      float v[8];
      eight((x0 * blocks + b) * 4u + j, v);
      [[unroll]] for (uint r = 0u; r < R; ++r) [[unroll]] for (uint i = 0u; i < 8u; ++i) {
#if HALVES
        if (j >= 2u) s1[r] += raw_weight(w[r], j * 8u + i) * v[i]; else
#endif
        s[r] += raw_weight(w[r], j * 8u + i) * v[i];
      }
    }
    [[unroll]] for (uint r = 0u; r < R; ++r) {
#if HAS_SCALE
      sum[r][0] += w[r].scale * s[r];
#else
      sum[r][0] += s[r];
#endif
#if HALVES
      sum[r][0] += w[r].scale1 * s1[r];
#endif
#if HAS_MIN
      sum[r][0] += w[r].least * sums[b * SUMS_PER_BLOCK];
#if HALVES
      sum[r][0] += w[r].least1 * sums[b * SUMS_PER_BLOCK + 1u];
#endif
#endif
    }
#else
    const uint base = ((x0 + gl_WorkGroupID.y) * blocks * PARTS + p) * (PART_WEIGHTS * C / 8u);
    [[unroll]] for (uint k = 0u; k < PART_WEIGHTS; k += (C < 8 ? 8u / C : 1u)) {
      float v[C < 8 ? 8 : C];
      [[unroll]] for (uint j = 0u; j < (C < 8 ? 1 : C / 8); ++j) {
        float t[8];
        eight(base + (k * C) / 8u + j, t);
        [[unroll]] for (uint i = 0u; i < 8u; ++i) v[j * 8u + i] = t[i];
      }
      [[unroll]] for (uint e = 0u; e < (C < 8 ? 8u / C : 1u); ++e) [[unroll]] for (uint r = 0u; r < R; ++r) {
        const float a = weight_at(w[r], k + e);
        [[unroll]] for (uint c = 0u; c < C; ++c) sum[r][c] += a * v[e * C + c];
      }
    }
#endif
  }

#if C == 1
  if (SLICES > 1u) {
    [[unroll]] for (uint r = 0u; r < R; ++r) {
      barrier();
      part[tid] = sum[r][0];
      barrier();
      if (tid < 64u) [[unroll]] for (uint i = 1u; i < SLICES; ++i) sum[r][0] += part[i * 64u + lane];
    }
    if (tid >= 64u) return;
  }
#endif

  const uint column0 = gl_WorkGroupID.y * C;
  const uint columns_here = C == 1 ? 1u : min(extent(columns) - column0, C);
  const uint here = extent(rows), stride = extent(y_stride);
  uint at = matrix * extent(y_matrix) + column0 * stride + row_offset;
  [[unroll]] for (uint c = 0u; c < C; ++c) {
    if (c >= columns_here) return;
#if R == 2 || R == 4
    if (GATED != 0u) {
      [[unroll]] for (uint r = 0u; r < R; r += 2u) {
        const uint row = ((tile0 + r) >> 1) * 64u + lane;
        if (row < here) store(row, at, apply_unary(GATED - 1u, sum[r][c]) * sum[r + 1u][c]);
      }
    } else
#endif
    [[unroll]] for (uint r = 0u; r < R; ++r) {
      const uint row = (tile0 + r) * 64u + lane;
      if (row < here) store(row, at, sum[r][c]);
    }
    at += stride;
  }
}
