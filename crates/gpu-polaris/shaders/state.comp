#version 460
//@ each KEY,VALUE = KV_F32,KV_F32 KV_F16,KV_F16 KV_Q8_0,KV_Q8_0 KV_F32,KV_F16 KV_F16,KV_F32 KV_F32,KV_Q8_0 KV_Q8_0,KV_F32 KV_F16,KV_Q8_0 KV_Q8_0,KV_F16
// What attention needs before it begins, at once: keys are turned (rotary embedding) and written into their state, values are written, queries are
// turned. A thread takes two elements, or a block of Q8_0. Each is a job of its own, and any may be left out.
#include "step.glsl"
#include "kv.glsl"

#define JOB_QUERIES 1u
#define JOB_KEYS 2u
#define JOB_VALUES 3u
// The job of workgroups with y = 0, 1, 2: two bits each.
layout(constant_id = 1) const uint JOBS = 0x39;
layout(constant_id = 2) const uint HEADS = 32;
layout(constant_id = 3) const uint QUERY_ROTARY = 64;   // elements of a head that turn
layout(constant_id = 4) const uint QUERY_INTERLEAVED = 1;
// Rows of a tile that queries are written in, [tile][head][element][row], for attention_prefill; 0: row by row, in place if need be.
layout(constant_id = 5) const uint QUERY_TILE = 0;
layout(constant_id = 6) const uint KV_HEADS = 8;
layout(constant_id = 7) const uint KEY_DIM = 64;
layout(constant_id = 8) const uint KEY_ROTARY = 64;
layout(constant_id = 9) const uint KEY_INTERLEAVED = 1;
layout(constant_id = 10) const uint VALUE_DIM = 64;
layout(push_constant) uniform Push {
  uint rows;     // extent
  uint capacity; // positions of a slot
  uint ring;     // whether positions wrap around
  float factor;  // of queries
};
layout(set = 0, binding = 1, std430) readonly buffer Positions { int positions[]; };
layout(set = 0, binding = 2, std430) readonly buffer Slots { int slots[]; };
layout(set = 0, binding = 3, std430) readonly buffer QueryTable { vec2 query_table[]; }; // [row][rotary / 2]: cosine and sine
layout(set = 0, binding = 4, std430) readonly buffer KeyTable { vec2 key_table[]; };
layout(set = 0, binding = 5, std430) readonly buffer QueryRows { float query_rows[]; };
layout(set = 0, binding = 6, std430) readonly buffer KeyRows { float key_rows[]; };
layout(set = 0, binding = 7, std430) readonly buffer ValueRows { float value_rows[]; };
layout(set = 0, binding = 8, std430) writeonly buffer Queries { float queries[]; };
#if KEY == KV_F32
layout(set = 0, binding = 9, std430) writeonly buffer Keys { float keys[]; };
#elif KEY == KV_F16
layout(set = 0, binding = 9, std430) writeonly buffer Keys { float16_t keys[]; };
#else
layout(set = 0, binding = 9, std430) writeonly buffer Keys { uint keys[]; };
layout(set = 0, binding = 11, std430) writeonly buffer KeyScales { float16_t key_scales[]; };
#endif
#if VALUE == KV_F32
layout(set = 0, binding = 10, std430) writeonly buffer Values { float values[]; };
#elif VALUE == KV_F16
layout(set = 0, binding = 10, std430) writeonly buffer Values { float16_t values[]; };
#else
layout(set = 0, binding = 10, std430) writeonly buffer Values { uint values[]; };
layout(set = 0, binding = 12, std430) writeonly buffer ValueScales { float16_t value_scales[]; };
#endif

// The two elements of a head that turn together as pair `i`; from ROTARY on, elements stay as they are, two at a time.
uvec2 pair_of(uint i, uint rotary, uint interleaved) {
  if (interleaved != 0u || 2u * i >= rotary) return uvec2(2u * i, 2u * i + 1u);
  return uvec2(i, i + rotary / 2u);
}

vec2 turn(vec2 v, vec2 t) { return vec2(v.x * t.x - v.y * t.y, v.x * t.y + v.y * t.x); }

void query_pair(uint i) {
  const uint pairs = (KEY_DIM + 1u) / 2u;
  uint token, head, p;
  if (QUERY_TILE == 0u) {
    p = i % pairs;
    head = i / pairs % HEADS;
    token = i / (pairs * HEADS);
  } else {
    // Neighbours write neighbours: rows first.
    p = i / QUERY_TILE % pairs;
    head = i / (QUERY_TILE * pairs) % HEADS;
    token = i / (QUERY_TILE * pairs * HEADS) * QUERY_TILE + i % QUERY_TILE;
  }
  if (token >= extent(rows)) return;
  const uint from = (token * HEADS + head) * KEY_DIM;
  const uvec2 e = pair_of(p, QUERY_ROTARY, QUERY_INTERLEAVED);
  vec2 v = vec2(query_rows[from + e.x], e.y < KEY_DIM ? query_rows[from + e.y] : 0.0);
  if (2u * p < QUERY_ROTARY) v = turn(v, query_table[token * (QUERY_ROTARY / 2u) + p]);
  uint to = from, step = 1u;
  if (QUERY_TILE != 0u) {
    v *= factor;
    to = (i / (QUERY_TILE * pairs) * KEY_DIM) * QUERY_TILE + i % QUERY_TILE;
    step = QUERY_TILE;
  }
  queries[to + e.x * step] = v.x;
  if (e.y < KEY_DIM) queries[to + e.y * step] = v.y;
}

// Element `e` of a key, turned.
float key_element(uint token, uint head, uint e) {
  const uint from = (token * KV_HEADS + head) * KEY_DIM;
  const float own = key_rows[from + e];
  if (e >= KEY_ROTARY) return own;
  const uint turning = KEY_ROTARY / 2u;
  const uint p = KEY_INTERLEAVED != 0u ? e / 2u : e < turning ? e : e - turning;
  const bool first = KEY_INTERLEAVED != 0u ? (e & 1u) == 0u : e < turning;
  const float other = key_rows[from + (KEY_INTERLEAVED != 0u ? e ^ 1u : first ? e + turning : e - turning)];
  const vec2 v = turn(first ? vec2(own, other) : vec2(other, own), key_table[token * turning + p]);
  return first ? v.x : v.y;
}

uint row_of(uint token) {
  const uint position = uint(positions[token]);
  return ring != 0u ? position % capacity : position;
}

// Element `i` of a head of keys, and of values, in elements.
uint key_place(uint head, uint row, uint i) {
  const uint per = KV_PER_UNIT(KEY);
  return key_unit(head, row, i / per, (KEY_DIM + per - 1u) / per, (capacity + 63u) / 64u) * per + i % per;
}
uint value_place(uint head, uint row, uint i) {
  const uint per = KV_PER_UNIT(VALUE);
  return (head * capacity + row) * ((VALUE_DIM + per - 1u) / per * per) + i;
}

// Q8_0: halves away from zero, as ggml's files have it.
uint quantized(float v, float factor) {
  const float scaled = v * factor;
  return uint(int(scaled + (scaled < 0.0 ? -0.5 : 0.5))) & 0xffu;
}

void write_key(uint i, uint per_head) {
  const uint part = i % per_head, head = i / per_head % KV_HEADS, token = i / (per_head * KV_HEADS);
  const uint row = row_of(token), to = uint(slots[token]) * KV_HEADS + head;
#if KEY == KV_Q8_0
  float v[32];
  float most = 0.0;
  [[unroll]] for (uint j = 0u; j < 32u; ++j) {
    v[j] = key_element(token, head, part * 32u + j);
    most = max(most, abs(v[j]));
  }
  const float d = most / 127.0, factor = d != 0.0 ? 1.0 / d : 0.0;
  [[unroll]] for (uint j = 0u; j < 32u; j += 4u) {
    uint word = 0u;
    [[unroll]] for (uint b = 0u; b < 4u; ++b) word |= quantized(v[j + b], factor) << (8u * b);
    keys[key_place(to, row, part * 32u + j) / 4u] = word;
  }
  key_scales[((to * ((capacity + 63u) / 64u) + (row >> 6)) * per_head + part) * 64u + (row & 63u)] = float16_t(d);
#else
  [[unroll]] for (uint j = 0u; j < 2u; ++j) {
    const uint e = 2u * part + j;
#if KEY == KV_F16
    if (e < KEY_DIM) keys[key_place(to, row, e)] = float16_t(key_element(token, head, e));
#else
    if (e < KEY_DIM) keys[key_place(to, row, e)] = key_element(token, head, e);
#endif
  }
#endif
}

void write_value(uint i, uint per_head) {
  const uint part = i % per_head, head = i / per_head % KV_HEADS, token = i / (per_head * KV_HEADS);
  const uint row = row_of(token), to = uint(slots[token]) * KV_HEADS + head;
  const uint from = (token * KV_HEADS + head) * VALUE_DIM;
#if VALUE == KV_Q8_0
  float v[32];
  float most = 0.0;
  [[unroll]] for (uint j = 0u; j < 32u; ++j) {
    v[j] = value_rows[from + part * 32u + j];
    most = max(most, abs(v[j]));
  }
  const float d = most / 127.0, factor = d != 0.0 ? 1.0 / d : 0.0;
  [[unroll]] for (uint j = 0u; j < 32u; j += 4u) {
    uint word = 0u;
    [[unroll]] for (uint b = 0u; b < 4u; ++b) word |= quantized(v[j + b], factor) << (8u * b);
    values[value_place(to, row, part * 32u + j) / 4u] = word;
  }
  value_scales[(to * capacity + row) * per_head + part] = float16_t(d);
#else
  [[unroll]] for (uint j = 0u; j < 2u; ++j) {
    const uint e = 2u * part + j;
#if VALUE == KV_F16
    if (e < VALUE_DIM) values[value_place(to, row, e)] = float16_t(value_rows[from + e]);
#else
    if (e < VALUE_DIM) values[value_place(to, row, e)] = value_rows[from + e];
#endif
  }
#endif
}

void main() {
  const uint job = JOBS >> (2u * gl_WorkGroupID.y) & 3u, n = extent(rows), stride = gl_NumWorkGroups.x * WG;
  if (job == JOB_QUERIES) {
    const uint whole = QUERY_TILE == 0u ? n : (n + QUERY_TILE - 1u) / QUERY_TILE * QUERY_TILE;
    const uint count = whole * HEADS * ((KEY_DIM + 1u) / 2u);
    for (uint i = gl_GlobalInvocationID.x; i < count; i += stride) query_pair(i);
  } else if (job == JOB_KEYS) {
    const uint per_head = KEY == KV_Q8_0 ? KEY_DIM / 32u : (KEY_DIM + 1u) / 2u;
    for (uint i = gl_GlobalInvocationID.x; i < n * KV_HEADS * per_head; i += stride) write_key(i, per_head);
  } else if (job == JOB_VALUES) {
    const uint per_head = VALUE == KV_Q8_0 ? VALUE_DIM / 32u : (VALUE_DIM + 1u) / 2u;
    for (uint i = gl_GlobalInvocationID.x; i < n * KV_HEADS * per_head; i += stride) write_value(i, per_head);
  }
}
