#version 460
//@ each KEY,VALUE = KV_F32,KV_F32 KV_F16,KV_F16 KV_Q8_0,KV_Q8_0 KV_F32,KV_F16 KV_F16,KV_F32 KV_F32,KV_Q8_0 KV_Q8_0,KV_F32 KV_F16,KV_Q8_0 KV_Q8_0,KV_F16
//@ gcn4 spec 0=64 4=1
//@ gcn4 spec 0=64 4=4
//@ gcn4 spec 0=64 4=8
//@ gcn4 spec 0=64 1=128 2=128 4=4
//@ gcn4 goal max_vgprs=84
// Attention of few rows: 64 threads take a row, the heads that share a key (GROUP of them) and a part of the context. Keys and values are read once for
// the whole group. Lanes are positions for the scores, four elements of some positions for the sum of values. Parts are joined by attention_combine.
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#include "step.glsl"
#include "kv.glsl"
#if KEY == KV_Q8_0
#define KEY_CHUNK 32u
#define KEY_LOOP
#elif KEY == KV_F16
#define KEY_CHUNK 16u
#define KEY_LOOP
#else
// All loads of a key at once would take more registers than there are.
#define KEY_CHUNK 8u
#define KEY_LOOP [[dont_unroll]]
#endif
#include "attention.glsl"
#include "reduce.glsl"

// Heads that a workgroup computes, and workgroups that a group of heads takes.
layout(constant_id = 4) const uint GROUP = 4;
layout(constant_id = 5) const uint PASSES = 1;
layout(constant_id = 6) const uint PARTS = 1;

// Positions that the sum of values takes at a time.
const uint STRIDE = 64u / VALUE_LANES;
// Loads of values on their way: what registers leave room for.
const uint AHEAD = GROUP > 4u ? 2u : 4u;

shared float weight[64u * GROUP]; // [position][head]
shared float largest[64u * GROUP];
shared vec4 part_sum[64];

void main() {
  const uint lane = gl_LocalInvocationID.x, token = gl_WorkGroupID.y;
  const uint part = gl_WorkGroupID.x % PARTS, pass = gl_WorkGroupID.x / PARTS % PASSES, shared_head = gl_WorkGroupID.x / (PARTS * PASSES);
  if (token >= extent(rows)) return;
  const uint kv_head = uint(slots[token]) * kv_heads + shared_head;
  const uint last = uint(positions[token]);
  const Rows run = rows_of(last + 1u > window ? last + 1u - window : 0u, last);
  const uint per_part = (run.tiles + PARTS - 1u) / PARTS;
  const uint first_tile = part * per_part, end_tile = min(run.tiles, first_tile + per_part);

  // Heads beyond the group's last are computed again and not stored.
  const uint head0 = shared_head * group, own = pass * GROUP;
  uint query_at[GROUP];
  [[unroll]] for (uint g = 0u; g < GROUP; ++g) query_at[g] = (token * heads + head0 + min(own + g, group - 1u)) * (KEY_DIM / 8u);

  float most[GROUP], total[GROUP];
  vec4 sum[GROUP];
  [[unroll]] for (uint g = 0u; g < GROUP; ++g) {
    most[g] = LEAST;
    total[g] = 0.0;
    sum[g] = vec4(0.0);
  }
  for (uint t = first_tile; t < end_tile; ++t) {
    const Tile tile = tile_of(run, t);
    float score[GROUP];
    [[unroll]] for (uint g = 0u; g < GROUP; ++g) score[g] = 0.0;
    uint at = key_at(kv_head, tile.row, lane);
    KEY_LOOP for (uint c = 0u; c < KEY_DIM / CHUNK; ++c) {
      uvec4 raw[8];
      [[unroll]] for (uint u = 0u; u < CHUNK_UNITS; ++u) raw[u] = keys[at + u * 64u];
      at += CHUNK_UNITS * 64u;
#if KEY == KV_Q8_0
      float s[GROUP];
      [[unroll]] for (uint g = 0u; g < GROUP; ++g) s[g] = 0.0;
#else
#define s score
#endif
      [[unroll]] for (uint j = 0u; j < CHUNK / 8u; ++j) {
        float k[8];
        key_eight(raw, j, k);
        [[unroll]] for (uint g = 0u; g < GROUP; ++g) {
          float v[8];
          query(query_at[g] + c * (CHUNK / 8u) + j, v);
          [[unroll]] for (uint i = 0u; i < 8u; ++i) s[g] += k[i] * v[i];
        }
      }
#if KEY == KV_Q8_0
      const float d = key_scale(kv_head, tile.row, lane, c);
      [[unroll]] for (uint g = 0u; g < GROUP; ++g) score[g] += d * s[g];
#endif
    }
    const bool seen = lane >= tile.lo && lane < tile.hi;
    float larger[GROUP];
    [[unroll]] for (uint g = 0u; g < GROUP; ++g) {
      score[g] = seen ? scored(score[g] * scale) : MASKED;
      larger[g] = subgroupMax(score[g]);
    }
    if (gl_NumSubgroups > 1u) {
      if (subgroupElect()) [[unroll]] for (uint g = 0u; g < GROUP; ++g) largest[gl_SubgroupID * GROUP + g] = larger[g];
      barrier();
      for (uint i = 0u; i < gl_NumSubgroups; ++i) [[unroll]] for (uint g = 0u; g < GROUP; ++g) larger[g] = max(larger[g], largest[i * GROUP + g]);
    }
    [[unroll]] for (uint g = 0u; g < GROUP; ++g) {
      larger[g] = max(most[g], larger[g]);
      const float keep = exp2(most[g] - larger[g]);
      const float p = exp2(score[g] - larger[g]);
      most[g] = larger[g];
      total[g] = total[g] * keep + p;
      sum[g] *= keep;
      weight[lane * GROUP + g] = p;
    }
    barrier();
    if (lane < STRIDE * VALUE_LANES) {
      const uint from = (kv_head * capacity + tile.row) * VALUE_LANES + lane % VALUE_LANES;
      uint i = tile.lo + lane / VALUE_LANES;
      for (; i + (AHEAD - 1u) * STRIDE < tile.hi; i += AHEAD * STRIDE) {
        vec4 v[AHEAD];
        [[unroll]] for (uint j = 0u; j < AHEAD; ++j) v[j] = value_at(from + (i + j * STRIDE) * VALUE_LANES);
        [[unroll]] for (uint j = 0u; j < AHEAD; ++j) [[unroll]] for (uint g = 0u; g < GROUP; ++g) sum[g] += weight[(i + j * STRIDE) * GROUP + g] * v[j];
      }
      for (; i < tile.hi; i += STRIDE) {
        const vec4 v = value_at(from + i * VALUE_LANES);
        [[unroll]] for (uint g = 0u; g < GROUP; ++g) sum[g] += weight[i * GROUP + g] * v;
      }
    }
    barrier();
  }

  [[unroll]] for (uint g = 0u; g < GROUP; ++g) {
    const float all = workgroup_sum(total[g]);
    barrier();
    part_sum[lane] = sum[g];
    barrier();
    const uint row = token * heads + head0 + own + g;
    if (own + g < group && lane < VALUE_LANES) {
      vec4 s = part_sum[lane];
      for (uint i = 1u; i < STRIDE; ++i) s += part_sum[i * VALUE_LANES + lane];
      if (PARTS == 1u) {
        y[row * VALUE_LANES + lane] = s / all;
      } else {
        const uint to = (row * PARTS + part) * (VALUE_LANES + 1u);
        y[to + lane] = s;
        if (lane == 0u) y[to + VALUE_LANES] = vec4(most[g], all, 0.0, 0.0);
      }
    }
  }
}
