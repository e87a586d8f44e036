// Results whose elements are computed one by one, from operands that lie elsewhere: of each operand, how far elements are apart along each
// extent of the result; 0 where it repeats.
layout(constant_id = 2) const uint RANK = 1;
#define MAX_RANK 6
