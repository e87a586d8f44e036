// Element-wise functions that other kernels apply on their way, numbered as `gpu_polaris::elementwise::Function` numbers them.

// Abramowitz and Stegun 7.1.26 is not near enough: Cody's rational approximations in three ranges (W. J. Cody, Math. Comp. 23, 1969).
float erf_near(float x) {
  const float a = abs(x);
  if (a < 0.5) {
    const float t = x * x;
    const float p = ((((-0.356098437018154e-1) * t + 6.99638348861914) * t + 21.9792616182942) * t + 242.667955230532);
    const float q = (((t + 15.0827976304078) * t + 91.1649054045149) * t + 215.058875869861);
    return x * p / q;
  }
  if (a > 4.0) return sign(x);
  const float p = ((((((((-1.36864857382717e-7) * a + 5.64195517478974e-1) * a + 7.21175825088309) * a + 43.1622272220567) * a
                + 152.98928504694) * a + 339.320816734344) * a + 451.918953711873) * a + 300.459261020162);
  const float q = (((((((a + 12.7827273196294) * a + 77.0001529352295) * a + 277.585444743988) * a + 638.980264465631) * a
                + 931.35409485061) * a + 790.950925327898) * a + 300.459260956983);
  return sign(x) * (1.0 - exp(-a * a) * p / q);
}

// exp overflows for large arguments: tanh is taken from the side that does not.
float tanh_near(float x) {
  const float a = abs(x);
  if (a < 0.1) {
    const float t = x * x;
    return x * (1.0 + t * (-1.0 / 3.0 + t * (2.0 / 15.0 - t * (17.0 / 315.0))));
  }
  const float e = exp(-2.0 * a);
  return sign(x) * (1.0 - e) / (1.0 + e);
}

// A function with its parameters.
float apply_function(uint code, float x, float p, float q) {
  switch (code) {
    case 0u: return -x;
    case 1u: return abs(x);
    case 2u: return exp(x);
    case 3u: return log(x);
    case 4u: return sqrt(x);
    case 5u: return 1.0 / x;
    case 6u: return isnan(x) ? x : tanh_near(x);
    case 7u: return 1.0 / (1.0 + exp(-x));
    case 8u: return x > 0.0 ? x : 0.0;
    case 9u: return x / (1.0 + exp(-x));
    case 10u: return 0.5 * x * (1.0 + erf_near(x * 0.70710678118654752));
    case 11u: return 0.5 * x * (1.0 + tanh_near(0.79788456080286536 * (x + 0.044715 * x * x * x)));
    case 12u: return x / (1.0 + exp(-1.702 * x));
    case 32u: return x * clamp(x / 6.0 + 0.5, 0.0, 1.0);
    case 33u: return clamp(p * x + q, 0.0, 1.0);
    case 34u: return x < 0.0 ? p * x : x;
    case 40u: return isnan(x) ? x : min(max(x, p), q);
    default: return x / (1.0 + exp(-p * x));
  }
}

// A function that has no parameters.
float apply_unary(uint code, float x) { return apply_function(code, x, 0.0, 0.0); }
