// What products are made of: floats, or pairs of bfloat16 that one instruction multiplies and adds up in float32.
//
// Either way packed operands are units of four bytes, so that one layout and one blocking serve both: a unit is one
// number (Single) or two that follow each other along the depth (Pairs).
#pragma once
#include "vectors.hpp"

#if defined(__AVX512F__)
typedef float hvec __attribute__((vector_size(VL * 2), aligned(4), may_alias));
static inline hvec halfload(const float* p) { return *reinterpret_cast<const hvec*>(p); }
static inline void halfstore(float* p, hvec v) { *reinterpret_cast<hvec*>(p) = v; }
#endif

struct Single {
  static constexpr int PER = 1;  // numbers in a unit
  static inline void add(vec& s, float a, vec b) { s += a * b; }
#if defined(__AVX512F__)
  static inline void add(hvec& s, float a, hvec b) { s += a * b; }
#endif
  // VL units of a row that lies in memory.
  template <class W>
  static inline vec units(const W* x) {
    return load(x);
  }
  // VL numbers of a row, packed.
  static inline void put(float* out, vec v) { store(out, v); }
  // VL units, each of one lane of PER vectors.
  static inline vec join(const vec* v) { return v[0]; }
  static inline float unit(float a, float) { return a; }
};

#if defined(__AVX512BF16__)
struct Pairs {
  static constexpr int PER = 2;
  static inline void add(vec& s, float a, vec b) {
    s = (vec)_mm512_dpbf16_ps((__m512)s, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
  }
  static inline void add(hvec& s, float a, hvec b) {
    s = (hvec)_mm256_dpbf16_ps((__m256)s, (__m256bh)_mm256_set1_ps(a), (__m256bh)b);
  }
  template <class W>
  static inline vec units(const W* x) {
    return (vec)_mm512_cvtne2ps_pbh((__m512)load(x + VL), (__m512)load(x));
  }
  static inline void put(float* out, vec v) { halfstore(out, (hvec)_mm512_cvtneps_pbh((__m512)v)); }
  static inline vec join(const vec* v) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)v[1], (__m512)v[0]);
    return (vec)_mm512_permutexvar_epi16(
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
                         3, 18, 2, 17, 1, 16, 0),
        both);
  }
  static inline float unit(float a, float b) {
    const vec pair[2] = {splat(a), splat(b)};
    return join(pair)[0];
  }
};
#endif

// How many units `count` numbers take.
template <class A>
static inline int64_t units_of(int64_t count) {
  return (count + A::PER - 1) / A::PER;
}
