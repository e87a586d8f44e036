// Integers of any size, brought to 64 bits.
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require

// Element `i` of words; `kind`: its bytes, plus 16 where it has a sign.
#define INTEGER_AT(words, i, kind) integer_of((words)[word_at(i, 0u, (kind) & 15u)], ((kind) & 15u) == 8u ? (words)[2u * (i) + 1u] : 0u, i, kind)

int64_t integer_of(uint low, uint high, uint i, uint kind) {
  const uint size = kind & 15u;
  if (size == 8u) return packInt2x32(ivec2(int(low), int(high)));
  const uint part = part_of(low, i, size);
  if ((kind & 16u) == 0u) return int64_t(part);
  return int64_t(bitfieldExtract(int(part), 0, int(size * 8u)));
}
