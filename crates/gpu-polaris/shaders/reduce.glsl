// Reductions over a workgroup of any subgroup size. Every thread gets the result.
shared float reduce_part[WG];

float workgroup_sum(float x) {
  const float s = subgroupAdd(x);
  if (gl_NumSubgroups == 1u) return s;
  barrier();
  if (subgroupElect()) reduce_part[gl_SubgroupID] = s;
  barrier();
  float sum = 0.0;
  for (uint i = 0u; i < gl_NumSubgroups; ++i) sum += reduce_part[i];
  return sum;
}

// NaN is not the largest of anything: maxima are taken of numbers.
float workgroup_max(float x) {
  const float s = subgroupMax(x);
  if (gl_NumSubgroups == 1u) return s;
  barrier();
  if (subgroupElect()) reduce_part[gl_SubgroupID] = s;
  barrier();
  float m = reduce_part[0];
  for (uint i = 1u; i < gl_NumSubgroups; ++i) m = max(m, reduce_part[i]);
  return m;
}

float workgroup_product(float x) {
  const float s = subgroupMul(x);
  if (gl_NumSubgroups == 1u) return s;
  barrier();
  if (subgroupElect()) reduce_part[gl_SubgroupID] = s;
  barrier();
  float product = 1.0;
  for (uint i = 0u; i < gl_NumSubgroups; ++i) product *= reduce_part[i];
  return product;
}
