// All element-wise functions. What a device's own promise is not near enough for some of them: Vulkan allows sin and cos an absolute error of
// 2^-11, asin and acos one of 4096 ulp.
#include "activation.glsl"

// Sine (quarter 0) or cosine (quarter 1): the argument less multiples of a quarter turn, in three parts (Cody and Waite 1980), then Taylor
// polynomials.
float sine_near(float x, float quarter) {
  const float n = round(x * 0.63661977236758134);
  float r = x - n * 1.5703125;
  r -= n * 4.837512969970703125e-4;
  r -= n * 7.54978995489188216e-8;
  const float t = r * r;
  const float s = r * (1.0 + t * (-1.6666654611e-1 + t * (8.3321608736e-3 - t * 1.9515295891e-4)));
  const float c = 1.0 + t * (-0.5 + t * (4.166664568298827e-2 + t * (-1.388731625493765e-3 + t * 2.443315711809948e-5)));
  const float m = n + quarter, q = m - 4.0 * floor(m * 0.25);
  const float v = q == 1.0 || q == 3.0 ? c : s;
  return q >= 2.0 ? -v : v;
}

float atan_near(float x) {
  const float a = abs(x);
  // From [0, tan(pi/8)] by the differences of angles.
  const float z = a > 2.414213562373095 ? -1.0 / a : a > 0.4142135623730950 ? (a - 1.0) / (a + 1.0) : a;
  const float base = a > 2.414213562373095 ? 1.5707963267948966 : a > 0.4142135623730950 ? 0.78539816339744831 : 0.0;
  const float t = z * z;
  const float p = ((8.05374449538e-2 * t - 1.38776856032e-1) * t + 1.99777106478e-1) * t - 3.33329491539e-1;
  return sign(x) * (base + (p * t * z + z));
}

float expm1_near(float x) {
  if (abs(x) < 0.1) return x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x / 120.0))));
  return exp(x) - 1.0;
}

float softplus_near(float x) {
  const float t = exp(-abs(x));
  return max(x, 0.0) + (t < 0.01 ? t * (1.0 - t * (0.5 - t / 3.0)) : log(1.0 + t));
}

float sinh_near(float x) {
  const float t = x * x;
  if (t < 0.25) return x * (1.0 + t * (1.0 / 6.0 + t * (1.0 / 120.0 + t / 5040.0)));
  return 0.5 * (exp(x) - exp(-x));
}

float asinh_near(float x) {
  const float a = abs(x), t = x * x;
  if (a < 0.1) return x * (1.0 - t * (1.0 / 6.0 - t * (3.0 / 40.0 - t * (15.0 / 336.0))));
  return sign(x) * (a > 1e18 ? log(a) + 0.69314718055994531 : log(a + sqrt(t + 1.0)));
}

float atanh_near(float x) {
  const float t = x * x;
  if (t < 0.01) return x * (1.0 + t * (1.0 / 3.0 + t * (0.2 + t / 7.0)));
  return 0.5 * log((1.0 + x) / (1.0 - x));
}

// A function with its parameters.
float apply_any(uint code, float x, float p, float q) {
  switch (code) {
    case 13u: return isnan(x) ? x : erf_near(x);
    case 14u: return sine_near(x, 0.0);
    case 15u: return sine_near(x, 1.0);
    case 16u: return sine_near(x, 0.0) / sine_near(x, 1.0);
    case 17u: return atan_near(x / sqrt((1.0 - x) * (1.0 + x)));
    case 18u: return 2.0 * atan_near(sqrt((1.0 - x) / (1.0 + x)));
    case 19u: return isnan(x) ? x : atan_near(x);
    case 20u: return sinh_near(x);
    case 21u: return 0.5 * (exp(x) + exp(-x));
    case 22u: return asinh_near(x);
    case 23u: return log(x + sqrt((x - 1.0) * (x + 1.0)));
    case 24u: return atanh_near(x);
    case 25u: return floor(x);
    case 26u: return ceil(x);
    case 27u: return roundEven(x);
    case 28u: return isnan(x) ? x : sign(x);
    case 29u: return softplus_near(x);
    case 30u: return x / (1.0 + abs(x));
    case 31u: return x * tanh_near(softplus_near(x));
    case 35u: return x < 0.0 ? p * expm1_near(x) : x;
    case 36u: return max(x, 0.0) + min(p * expm1_near(x / p), 0.0);
    case 37u: return q * (x <= 0.0 ? p * expm1_near(x) : x);
    case 38u: return x > p ? x : 0.0;
    case 39u: return x < -p ? x + q : x > p ? x - q : 0.0;
    default: return apply_function(code, x, p, q);
  }
}
