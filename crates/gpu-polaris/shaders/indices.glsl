// Indices of i32 or i64; negative ones count from the end. Those that are out of range are told to the host: 1, the index in two words, and how
// much there is.
layout(constant_id = 1) const uint INDEX_WORDS = 1;
layout(set = 0, binding = 5, std430) readonly buffer Indices { uint indices[]; };
layout(set = 0, binding = 7, std430) buffer Status { uint status[]; };

bool index_at(uint token, uint rows, bool tell, out uint row) {
  const uint low = indices[token * INDEX_WORDS];
  const uint high = INDEX_WORDS == 2u ? indices[token * 2u + 1u] : uint(int(low) >> 31);
  row = high == 0xffffffffu ? low + rows : low;
  const bool inside = high == 0u ? low < rows : high == 0xffffffffu && low >= 0u - rows && rows != 0u;
  if (!inside && tell && atomicCompSwap(status[0], 0u, 1u) == 0u) {
    status[1] = low;
    status[2] = high;
    status[3] = rows;
  }
  return inside;
}
