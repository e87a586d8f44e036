// Arithmetic that loses nothing, of floats that are neither huge nor tiny: the float nearest to a result, and what is left. Without fma, which some
// devices have as a product and a sum.

vec2 sum_of(float p, float q) {
  precise const float s = p + q;
  precise const float b = s - p;
  precise const float rest = (p - (s - b)) + (q - b);
  return vec2(s, rest);
}

// The upper twelve bits of a mantissa, and the lower ones.
vec2 halves_of(float p) {
  precise const float c = 4097.0 * p;
  precise const float high = c - (c - p);
  precise const float low = p - high;
  return vec2(high, low);
}

vec2 product_of(float p, float q) {
  const vec2 a = halves_of(p), b = halves_of(q);
  precise const float v = p * q;
  precise const float rest = ((a.x * b.x - v) + a.x * b.y + a.y * b.x) + a.y * b.y;
  return vec2(v, rest);
}

// The second float is right to some digits.
vec2 quotient_of(vec2 p, float q) {
  precise const float v = p.x / q;
  const vec2 back = product_of(v, q);
  precise const float rest = ((p.x - back.x) - back.y) + p.y;
  precise const float more = rest / q;
  return sum_of(v, more);
}
