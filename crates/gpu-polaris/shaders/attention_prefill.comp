#version 460
//@ each KEY,VALUE = KV_F32,KV_F32 KV_F16,KV_F16 KV_Q8_0,KV_Q8_0 KV_F32,KV_F16 KV_F16,KV_F32 KV_F32,KV_Q8_0 KV_Q8_0,KV_F32 KV_F16,KV_Q8_0 KV_Q8_0,KV_F16
//@ gcn4 spec 0=64 1=64 2=64
//@ gcn4 spec 0=64 1=128 2=128
//@ gcn4 spec 0=64 1=256 2=256 4=1
//@ gcn4 goal max_vgprs=84
// Attention of many rows: 64 threads take 8 or 16 rows of a head, and of the context 64 positions at a time. Two matrix products with the softmax
// between them: scores with lanes as positions and queries, which
// state.comp has put in tiles of as many rows and multiplied by the scale, in scalar registers; weights through shared memory, where the softmax is made row by row; the sum
// of values with 8 rows by 4 elements in a lane. Rows of a tile may be of several slots: each run of one slot goes over its own context.
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#include "step.glsl"
#include "kv.glsl"
#define KEY_CHUNK 16u
#include "attention.glsl"

// Eights of rows.
layout(constant_id = 4) const uint ROW_GROUPS = 2;
const uint R = 8u * ROW_GROUPS;

// Threads of a row in the softmax, and how many weights each has.
const uint SLICES = 64u / R;
// Positions that the sum of values takes at a time: lanes that are not needed for elements and rows take other positions.
const uint SPLIT = 64u / (VALUE_LANES * ROW_GROUPS);

// Floats from a position to the next: 16-byte stores of neighbours go to different banks.
const uint PITCH = R + 4u;
shared float weight[64u * PITCH]; // [position][row]
shared float slice[64];
shared float kept[R];
shared uint limit[R];
shared uint careful;

void main() {
  const uint lane = gl_LocalInvocationID.x, head = gl_WorkGroupID.x;
  // The last rows see most: they begin first.
  const uint row0 = (gl_NumWorkGroups.y - 1u - gl_WorkGroupID.y) * R;
  const uint n = extent(rows);
  if (row0 >= n) return;
  const uint here = min(R, n - row0);
  const uint query0 = (row0 / R * heads + head) * (KEY_DIM * R / 8u);

  const uint own_row = lane % R, own_slice = lane / R;
  const uint element = lane % VALUE_LANES, rest = lane / VALUE_LANES;
  const uint row_group = rest % ROW_GROUPS, split = rest / ROW_GROUPS;
  float most, total;
  vec4 sum[8];
  bool again = false;
  do {
    most = LEAST;
    total = 0.0;
    [[unroll]] for (uint i = 0u; i < 8u; ++i) sum[i] = vec4(0.0);
    if (lane == 0u) careful = 0u;
    for (uint a = 0u; a < here;) {
      // Rows of one slot, and the positions that they see together.
      const int slot = slots[row0 + a];
      uint b = a, first = 0xffffffffu, last = 0u;
      while (b < here && slots[row0 + b] == slot) {
        const uint position = uint(positions[row0 + b]);
        last = max(last, position);
        first = min(first, position + 1u > window ? position + 1u - window : 0u);
        ++b;
      }
      const uint kv_head = uint(slot) * kv_heads + head / group;
      const Rows run = rows_of(first, last);
      if (lane < R) limit[lane] = lane >= a && lane < b ? uint(positions[row0 + lane]) : 0xffffffffu;
      barrier();
      for (uint t = 0u; t < run.tiles; ++t) {
        const Tile tile = tile_of(run, t);
        float score[R];
        [[unroll]] for (uint r = 0u; r < R; ++r) score[r] = 0.0;
        uint at = key_at(kv_head, tile.row, lane);
        for (uint c = 0u; c < KEY_DIM / CHUNK; ++c) {
          uvec4 raw[8];
          [[unroll]] for (uint u = 0u; u < CHUNK_UNITS; ++u) raw[u] = keys[at + u * 64u];
          at += CHUNK_UNITS * 64u;
  #if KEY == KV_Q8_0
          const float d = key_scale(kv_head, tile.row, lane, c / 2u);
  #endif
          [[unroll]] for (uint j = 0u; j < CHUNK / 8u; ++j) {
            float k[8];
            key_eight(raw, j, k);
  #if KEY == KV_Q8_0
            [[unroll]] for (uint i = 0u; i < 8u; ++i) k[i] *= d;
  #endif
            [[unroll]] for (uint i = 0u; i < 8u; ++i) [[unroll]] for (uint g = 0u; g < ROW_GROUPS; ++g) {
              float v[8];
              query(query0 + (c * CHUNK + j * 8u + i) * ROW_GROUPS + g, v);
              [[unroll]] for (uint r = 0u; r < 8u; ++r) score[g * 8u + r] += k[i] * v[r];
            }
          }
        }
        // The position of the lane's row; a row sees those from its own back as far as the window reaches.
        const uint front = t < run.front ? first - run.begin : first + (run.end - run.begin);
        // Differences of 2^31 and more are those that no window has: of rows of the tile that are not of this run, of lanes beyond it.
        const bool inside = lane >= tile.lo && lane < tile.hi;
        const uint position = inside ? front + tile.row + lane : 0x7fffffffu;
        [[unroll]] for (uint r = 0u; r < R; ++r) {
          weight[lane * PITCH + r] = limit[r] - position < window ? scored(score[r]) : MASKED;
        }
        barrier();
        float w[R];
        float larger = most;
        [[unroll]] for (uint i = 0u; i < R; ++i) {
          w[i] = weight[(own_slice + i * SLICES) * PITCH + own_row];
          larger = max(larger, w[i]);
        }
        slice[lane] = larger;
        barrier();
        [[unroll]] for (uint i = 0u; i < SLICES; ++i) larger = max(larger, slice[i * R + own_row]);
        const float keep = exp2(most - larger);
        most = larger;
        total *= keep;
        if (lane < R) kept[lane] = keep;
        [[unroll]] for (uint i = 0u; i < R; ++i) {
          const float p = exp2(w[i] - larger);
          total += p;
          weight[(own_slice + i * SLICES) * PITCH + own_row] = p;
        }
        barrier();
        [[unroll]] for (uint i = 0u; i < 8u; ++i) sum[i] *= kept[row_group * 8u + i];
        if (split < SPLIT) {
          const uint from = (kv_head * capacity + tile.row) * VALUE_LANES + element;
          uint i = tile.lo + split;
          if (again) {
            [[dont_unroll]] for (; i < tile.hi; i += SPLIT) {
              const vec4 v = value_at(from + i * VALUE_LANES);
              [[unroll]] for (uint k = 0u; k < 8u; ++k) {
                const float p = weight[i * PITCH + row_group * 8u + k];
                sum[k] += p != 0.0 ? p * v : vec4(0.0);
              }
            }
          }
          for (; i + 3u * SPLIT < tile.hi; i += 4u * SPLIT) {
            vec4 v[4];
            [[unroll]] for (uint j = 0u; j < 4u; ++j) v[j] = value_at(from + (i + j * SPLIT) * VALUE_LANES);
            [[unroll]] for (uint j = 0u; j < 4u; ++j) [[unroll]] for (uint k = 0u; k < 8u; ++k) sum[k] += weight[(i + j * SPLIT) * PITCH + row_group * 8u + k] * v[j];
          }
          for (; i < tile.hi; i += SPLIT) {
            const vec4 v = value_at(from + i * VALUE_LANES);
            [[unroll]] for (uint k = 0u; k < 8u; ++k) sum[k] += weight[i * PITCH + row_group * 8u + k] * v;
          }
        }
        barrier();
      }
      a = b;
    }
    // A value that is no number counts for the rows that see it, but times 0 it would for all rows of the tile: then once more, with care.
    if (again) break;
    bool finite = true;
    [[unroll]] for (uint i = 0u; i < 8u; ++i) finite = finite && all(lessThan(abs(sum[i]), vec4(uintBitsToFloat(0x7f800000u))));
    if (!finite) careful = 1u;
    barrier();
    again = careful != 0u;
    barrier();
  } while (again);

  slice[lane] = total;
  barrier();
  [[unroll]] for (uint i = 1u; i < SLICES; ++i) total += slice[i * R + own_row];
  if (lane < R) kept[lane] = total;
  barrier();
  [[unroll]] for (uint i = 0u; i < 8u; ++i) {
    if (SPLIT > 1u) {
      [[unroll]] for (uint e = 0u; e < 4u; ++e) weight[lane * 4u + e] = sum[i][e];
      barrier();
      if (split == 0u) [[unroll]] for (uint s = 1u; s < SPLIT; ++s) [[unroll]] for (uint e = 0u; e < 4u; ++e) {
        sum[i][e] += weight[(lane + s * ROW_GROUPS * VALUE_LANES) * 4u + e];
      }
      barrier();
    }
    const uint row = row_group * 8u + i;
    if (split == 0u && row < here) y[((row0 + row) * heads + head) * VALUE_LANES + element] = sum[i] / kept[row];
  }
}
