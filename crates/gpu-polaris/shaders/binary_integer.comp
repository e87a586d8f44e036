#version 460
//@ gcn4 spec 0=256 1=7
//@ gcn4 spec 0=256 1=16 2=3
// Element-wise functions of two integers of any size, broadcast; of one, where both operands are the same. Results are made word by word.
#include "step.glsl"
#include "walk.glsl"
#include "elements.glsl"
#include "integers.glsl"
layout(constant_id = 1) const uint FUNCTION = 0;

layout(push_constant) uniform Push {
  uint count;
  uint kind; // bytes of an element, plus 16 where it has a sign
  uint dims[MAX_RANK]; // of the result, outermost first: extents
  uint a_strides[MAX_RANK];
  uint b_strides[MAX_RANK];
};
layout(set = 0, binding = 1, std430) readonly buffer A { uint a[]; };
layout(set = 0, binding = 2, std430) readonly buffer B { uint b[]; };
layout(set = 0, binding = 3, std430) writeonly buffer Y { uint y[]; };
layout(set = 0, binding = 7, std430) buffer Status { uint status[]; };

const bool TRUTH = FUNCTION >= 16u && FUNCTION <= 20u;

bool less(int64_t l, int64_t r) { return kind == 8u ? uint64_t(l) < uint64_t(r) : l < r; }

// Towards zero; the host is told of what is divided by zero.
int64_t divided(int64_t l, int64_t r, out int64_t rest) {
  rest = 0l;
  if (r == 0l) {
    atomicCompSwap(status[0], 0u, 2u);
    return 0l;
  }
  if (kind == 8u) {
    rest = int64_t(uint64_t(l) % uint64_t(r));
    return int64_t(uint64_t(l) / uint64_t(r));
  }
  // The least integer has no opposite.
  if (r == -1l) return -l;
  rest = l % r;
  return l / r;
}

int64_t power(int64_t base, int64_t exponent) {
  // Of what is divided, whole numbers: nothing but 1 and -1; 0 has none, and gets what the reference's infinity
  // wraps around to.
  if (kind >= 16u && exponent < 0l) return base == 1l ? 1l : base == -1l ? ((exponent & 1l) != 0l ? -1l : 1l) : base == 0l ? -1l : 0l;
  int64_t result = 1l, factor = base;
  for (uint64_t rest = uint64_t(exponent); rest != 0ul; rest >>= 1) {
    if ((rest & 1ul) != 0ul) result *= factor;
    factor *= factor;
  }
  return result;
}

int64_t apply(int64_t l, int64_t r) {
  int64_t rest;
  switch (FUNCTION) {
    case 0u: return l + r;
    case 1u: return l - r;
    case 2u: return l * r;
    case 3u: return divided(l, r, rest);
    case 4u: return less(l, r) ? r : l;
    case 5u: return less(r, l) ? r : l;
    case 6u: return power(l, r);
    case 7u:
      divided(l, r, rest);
      return rest != 0l && kind >= 16u && (rest < 0l) != (r < 0l) ? rest + r : rest;
    case 8u: return kind >= 16u && l < 0l ? l * r : l;
    case 9u: divided(l, r, rest); return rest;
    case 10u: return l & r;
    case 11u: return l | r;
    case 12u: return l ^ r;
    case 13u: return uint64_t(r) < 64ul ? l << r : 0l;
    case 14u: return uint64_t(r) < 64ul ? (kind >= 16u ? l >> r : int64_t(uint64_t(l) >> r)) : 0l;
    case 16u: return int64_t(l == r);
    case 17u: return int64_t(less(l, r));
    case 18u: return int64_t(!less(r, l));
    case 19u: return int64_t(less(r, l));
    case 20u: return int64_t(!less(l, r));
    case 32u: return -l;
    case 33u: return kind >= 16u && l < 0l ? -l : l;
    case 34u: return l == 0l ? 0l : kind >= 16u && l < 0l ? -1l : 1l;
    case 35u: return kind >= 16u && l < 0l ? 0l : l;
    default: return ~l;
  }
}

void main() {
  const uint n = extent(count), size = TRUTH ? 1u : kind & 15u;
  for (uint w = gl_GlobalInvocationID.x; w < (size == 8u ? n : words_of(n, size)); w += gl_NumWorkGroups.x * WG) {
    uint word = 0u;
    for (uint e = 0u; e < elements_of_word(size); ++e) {
      const uint i = size == 8u ? w : first_of_word(w, size) + e;
      if (i >= n) break;
      uint rest = i, ia = 0u, ib = 0u;
      for (uint d = RANK - 1u; d > 0u; --d) {
        const uint length = extent(dims[d]), at = rest % length;
        rest /= length;
        ia += at * extent(a_strides[d]);
        ib += at * extent(b_strides[d]);
      }
      ia += rest * extent(a_strides[0]);
      ib += rest * extent(b_strides[0]);
      const ivec2 v = unpack32(apply(INTEGER_AT(a, ia, kind), INTEGER_AT(b, ib, kind)));
      if (size == 8u) y[2u * w + 1u] = uint(v.y);
      word |= size >= 4u ? uint(v.x) : placed(uint(v.x) & (size == 1u ? 0xffu : 0xffffu), e, size);
    }
    y[size == 8u ? 2u * w : w] = word;
  }
}
