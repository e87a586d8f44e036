#version 460
//@ gcn4 spec 0=64
//@ each WEIGHT = F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K Q2_K Q3_K IQ4_NL IQ4_XS MXFP4 TERNARY
// Rows of a table that lies as matrices do, as f32: a thread decodes a block of 32.
#include "step.glsl"
#include "formats.glsl"
// What is gathered is the same to the bit on every backend.
#define SIGNED_ZEROS
#include "weights.glsl"
#include "indices.glsl"

layout(push_constant) uniform Push {
  uint count;      // indices: extent
  uint table_rows; // rows that there are
  uint width;      // floats of a row
  uint blocks;     // of 32, of a row
  uint first;      // the first row of these weights
  uint here;       // rows of these weights
};

layout(set = 0, binding = 6, std430) writeonly buffer Y { float y[]; };

void main() {
  prepare_weights();
  const uint n = extent(count) * blocks;
  for (uint i = gl_GlobalInvocationID.x; i < n; i += gl_NumWorkGroups.x * WG) {
    const uint token = i / blocks, b = i % blocks;
    uint index;
    if (!index_at(token, table_rows, b == 0u && first == 0u, index)) continue;
    const uint row = index - first;
    if (index < first || row >= here) continue;
    const Block w = load_block(row >> 6, b, 0u, blocks, row & 63u);
    const uint at = token * width + b * 32u;
    [[unroll]] for (uint k = 0u; k < 32u; ++k) if (b * 32u + k < width) y[at + k] = weight_at(w, k);
  }
}
