#version 460
//@ gcn4 spec 0=256
// The largest elements of a row, sorted: a workgroup a row. A radix selection over keys of 64 bits (the value in an order of unsigned
// integers, then the index from behind) finds the last of the k, so that there are no ties; what is not below it is sorted in shared memory.
#include "step.glsl"

layout(push_constant) uniform Push {
  uint rows;  // extent
  uint width; // extent
  uint k;     // at most 256
};
layout(set = 0, binding = 1, std430) readonly buffer X { float x[]; };
layout(set = 0, binding = 2, std430) writeonly buffer Values { float values[]; };
layout(set = 0, binding = 3, std430) writeonly buffer Indices { int indices[]; };

shared uint counts[256];
shared uvec2 found[256];
shared uint found_count;
shared uint prefix_high, prefix_low, wanted, done_bits;

// Larger values have larger keys; what is no number has the smallest.
uint value_key(float v) {
  if (isnan(v)) return 0u;
  const uint bits = floatBitsToUint(v == 0.0 ? 0.0 : v);
  return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

// The first of equals has the larger key.
uvec2 key(uint row_start, uint i) { return uvec2(value_key(x[row_start + i]), ~i); }

bool matches(uvec2 v) {
  const uint bits = done_bits;
  if (bits == 0u) return true;
  if (bits < 32u) return (v.x >> (32u - bits)) == (prefix_high >> (32u - bits));
  if (v.x != prefix_high) return false;
  return bits == 32u || (v.y >> (64u - bits)) == (prefix_low >> (64u - bits));
}

bool at_least(uvec2 v, uvec2 bar) { return v.x > bar.x || (v.x == bar.x && v.y >= bar.y); }

void main() {
  const uint n = extent(width), m = extent(rows), tid = gl_LocalInvocationID.x;
  for (uint row = gl_WorkGroupID.x; row < m; row += gl_NumWorkGroups.x) {
    const uint start = row * n;
    if (tid == 0u) {
      prefix_high = 0u;
      prefix_low = 0u;
      wanted = k;
      done_bits = 0u;
      found_count = 0u;
    }
    // Eight bits at a time, until the bucket of the k-th holds as many as are wanted of it.
    for (uint pass = 0u; pass < 8u; ++pass) {
      if (tid < 256u) counts[tid] = 0u;
      barrier();
      const uint bits = done_bits;
      for (uint i = tid; i < n; i += WG) {
        const uvec2 v = key(start, i);
        if (matches(v)) atomicAdd(counts[((bits < 32u ? v.x : v.y) >> (24u - (bits & 31u))) & 0xffu], 1u);
      }
      barrier();
      if (tid == 0u) {
        uint left = wanted, bucket = 255u;
        while (bucket > 0u && counts[bucket] < left) {
          left -= counts[bucket];
          --bucket;
        }
        if (bits < 32u) prefix_high |= bucket << (24u - bits);
        else prefix_low |= bucket << (56u - bits);
        wanted = left;
        // Whoever is in the bucket is wanted: no more bits are needed.
        done_bits = counts[bucket] == left ? 64u + bits : bits + 8u;
      }
      barrier();
      if (done_bits >= 64u) break;
    }
    const uvec2 bar = uvec2(prefix_high, prefix_low);
    for (uint i = tid; i < n; i += WG) {
      const uvec2 v = key(start, i);
      if (at_least(v, bar)) {
        const uint at = atomicAdd(found_count, 1u);
        if (at < 256u) found[at] = v;
      }
    }
    barrier();
    // A bitonic sort, largest first, of what was found, filled up with the smallest key.
    if (tid < 256u && tid >= found_count) found[tid] = uvec2(0u);
    for (uint size = 2u; size <= 256u; size *= 2u) {
      for (uint stride = size / 2u; stride > 0u; stride /= 2u) {
        barrier();
        if (tid < 256u) {
          const uint other = tid ^ stride;
          if (other > tid) {
            const uvec2 a = found[tid], b = found[other];
            const bool descending = (tid & size) == 0u;
            if (at_least(b, a) == descending) {
              found[tid] = b;
              found[other] = a;
            }
          }
        }
      }
    }
    barrier();
    if (tid < k) {
      const uint i = ~found[tid].y;
      values[row * k + tid] = x[start + i];
      indices[row * k + tid] = int(i);
    }
    barrier();
  }
}
