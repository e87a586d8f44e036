// Where states lie (src/state.rs). Rows of keys lie as weights do: tiles of 64 positions, 16-byte units side by side, so that lane = position reads
// a run of 1024 bytes; rows of values one after the other, so that lane = element does. Scales of Q8_0 lie apart, in the same order.
#define KV_F32 0
#define KV_F16 1
#define KV_Q8_0 2

// Elements of a 16-byte unit.
#define KV_PER_UNIT(TYPE) (TYPE == KV_F32 ? 4u : TYPE == KV_F16 ? 8u : 16u)

// The unit in which element `i` of keys lies, in units.
uint key_unit(uint head, uint row, uint unit, uint units, uint tiles) {
  return ((head * tiles + (row >> 6)) * units + unit) * 64u + (row & 63u);
}
