// Vectors as wide as the processor has them, in GCC's and Clang's common dialect; everything else is written on top.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__AVX512F__)
constexpr int VL = 16;
constexpr int MR = 12;  // rows of a register tile: MR * 2 accumulators have to fit beside operands
#else
constexpr int VL = 8;
constexpr int MR = 6;
#endif
constexpr int NR = 2 * VL;  // columns of a register tile

typedef float vec __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(VL * 4), aligned(4), may_alias));

static inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
static inline void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }

// Weights may be stored in 16 bits: they are widened where they are read, which loses nothing.
struct half {
  uint16_t bits;
};
struct brain {  // bfloat16
  uint16_t bits;
};
#if defined(__AVX512F__)
static inline vec load(const half* p) { return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
static inline vec load(const brain* p) {
  return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
}
#else
static inline vec load(const half* p) { return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
static inline vec load(const brain* p) {
  return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
}
#endif
static inline float widen(float x) { return x; }
static inline float widen(half x) { return _cvtsh_ss(x.bits); }
static inline float widen(brain x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// Weights by what they are stored as: the order of native_kernels.py's `_KINDS`. Only what reads them is compiled for each.
struct Weights {
  const void* data;
  int64_t kind;
  template <class F>
  void read(F f) const {
    if (kind == 0) f(static_cast<const float*>(data));
    else if (kind == 1) f(static_cast<const half*>(data));
    else f(static_cast<const brain*>(data));
  }
};

static inline vec splat(float s) { return vec{} + s; }
static inline ivec isplat(int32_t s) { return ivec{} + s; }
static inline vec blend(ivec mask, vec a, vec b) { return mask ? a : b; }
#if defined(__AVX512F__)
static inline vec vmax(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vec vmin(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
#else
static inline vec vmax(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vec vmin(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
#endif

static inline vec load_some(const float* p, int n) {
  if (n >= VL) return load(p);
  vec v{};
  std::memcpy(&v, p, sizeof(float) * (n > 0 ? n : 0));
  return v;
}
static inline void store_some(float* p, vec v, int n) {
  if (n >= VL) store(p, v);
  else if (n > 0) std::memcpy(p, &v, sizeof(float) * n);
}

static inline float sum(vec v) {
  float s = 0;
  for (int i = 0; i < VL; ++i) s += v[i];
  return s;
}

// e^x to about 1 ulp: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes' expf).
static inline vec exp_(vec x) {
  x = vmin(vmax(x, splat(-87.0f)), splat(88.0f));
  const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  vec n = (x * 1.44269504088896341f + magic) - magic;
  vec r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  ivec e = (__builtin_convertvector(n, ivec) + 127) << 23;
  return p * reinterpret_cast<vec&>(e);
}

static inline vec silu(vec x) { return x / (1.0f + exp_(-x)); }

// x * Phi(x), the exact GELU, with erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
static inline vec gelu(vec x) {
  vec z = x * 0.70710678118654752f;
  vec a = blend(z < 0.0f, -z, z);
  vec t = 1.0f / (1.0f + 0.3275911f * a);
  vec p = splat(1.061405429f);
  p = p * t + -1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t + -0.284496736f;
  p = p * t + 0.254829592f;
  vec tail = 0.5f * p * t * exp_(-a * a);  // half of 1 - erf(a)
  return x * blend(z < 0.0f, tail, 1.0f - tail);
}

static inline int threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}
static inline int thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}
static inline int64_t up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Working memory of one thread, kept between calls; 64-byte aligned.
struct Scratch {
  float* data = nullptr;
  size_t size = 0;
  float* get(size_t n) {
    if (n > size) {
      std::free(data);
      data = static_cast<float*>(std::aligned_alloc(64, up(n * sizeof(float), 64)));
      size = data ? n : 0;
    }
    return data;
  }
};
