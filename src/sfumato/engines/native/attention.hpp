// softmax(q kᵀ · scale) v in blocks of queries and keys, with a running maximum (Dao et al. 2022); sums in float32.
#pragma once
#include "gemm.hpp"

constexpr int QUERIES = 24;         // rows of a tile of scores: it stays in the first cache
constexpr int KEYS = 256;           // its columns
constexpr int RUN_OF_QUERIES = 96;  // rows between two passes over the keys
constexpr int PR = MR / 3 * 2;      // rows of a register tile of weights · v

// 2^x for x ≤ 0, to about 2e-7.
static inline vec exp2_(vec x) {
  x = vmax(x, splat(-126.0f));
  const vec magic = splat(12582912.0f);
  const vec n = (x + magic) - magic;
  const vec r = x - n;
  vec p = splat(1.5403530393e-4f);
  p = p * r + 1.3333558146e-3f;
  p = p * r + 9.6181291076e-3f;
  p = p * r + 5.5504108665e-2f;
  p = p * r + 2.4022650696e-1f;
  p = p * r + 6.9314718056e-1f;
  p = p * r + 1.0f;
  ivec e = (__builtin_convertvector(n, ivec) + 127) << 23;
  return p * reinterpret_cast<vec&>(e);
}

// o (PR rows of ldo floats) += p (rows of KEYS units) · v (count rows of ldv units), NV vectors of columns; the last is
// half as wide where HALF.
template <class A, int NV, bool HALF>
static void weigh(int64_t count, const float* p, const float* v, int64_t ldv, float* o, int64_t ldo) {
#if defined(__AVX512F__)
  constexpr int FULL = HALF ? NV - 1 : NV;
  hvec t[PR];
#else
  constexpr int FULL = NV;
#endif
  vec s[PR][FULL > 0 ? FULL : 1];
#pragma GCC unroll 8
  for (int i = 0; i < PR; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < FULL; ++j) s[i][j] = load(o + i * ldo + j * VL);
#if defined(__AVX512F__)
    if (HALF) t[i] = *reinterpret_cast<const hvec*>(o + i * ldo + FULL * VL);
#endif
  }
  for (int64_t k = 0; k < count; ++k) {
    vec b[FULL > 0 ? FULL : 1];
#pragma GCC unroll 3
    for (int j = 0; j < FULL; ++j) b[j] = load(v + k * ldv + j * VL);
#pragma GCC unroll 8
    for (int i = 0; i < PR; ++i) {
      const float x = p[i * KEYS + k];
#pragma GCC unroll 3
      for (int j = 0; j < FULL; ++j) A::add(s[i][j], x, b[j]);
#if defined(__AVX512F__)
      if (HALF) A::add(t[i], x, halfload(v + k * ldv + FULL * VL));
#endif
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < PR; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < FULL; ++j) store(o + i * ldo + j * VL, s[i][j]);
#if defined(__AVX512F__)
    if (HALF) halfstore(o + i * ldo + FULL * VL, t[i]);
#endif
  }
}

// Scores of one query (already in powers of two) → weights, packed where the scores were; keeps the maximum and the sum,
// returns by how much earlier sums have to shrink. There is room up to a whole vector, and it is overwritten.
template <class A>
static inline float soften(float* s, int64_t count, float& top, float& total) {
  for (int64_t j = count; j < up(count, VL); ++j) s[j] = -INFINITY;
  vec m = splat(top);
  for (int64_t j = 0; j < count; j += VL) m = vmax(load(s + j), m);
  float highest = top;
  for (int i = 0; i < VL; ++i) highest = m[i] > highest ? m[i] : highest;
  const float shrink = std::exp2(top - highest);
  top = highest;
  vec added{};
  for (int64_t j = 0; j < count; j += VL) {
    const vec e = exp2_(load(s + j) - highest);
    A::put(s + j / A::PER, e);
    added += e;
  }
  total = total * shrink + sum(added);
  return shrink;
}

// One head of one image, queries [n0, n1). Rows of all four have `ld` floats.
template <class A>
static void attend(const float* q, const float* k, const float* v, float* out, int64_t n0, int64_t n1, int64_t m,
                   int64_t width, int64_t ld, float scale) {
  static thread_local Scratch room;
  const bool half = VL == 16 && width % VL == VL / 2;
  const int64_t wide = half ? width : up(width, VL), panels = (m + NR - 1) / NR;
  const int64_t deep = units_of<A>(width), along = units_of<A>(m);
  float* keys = room.get(panels * NR * deep + along * wide + RUN_OF_QUERIES * (LDA + wide) + QUERIES * KEYS);
  float* values = keys + panels * NR * deep;
  float* queries = values + along * wide;
  float* sums = queries + RUN_OF_QUERIES * LDA;
  float* scores = sums + RUN_OF_QUERIES * wide;
  for (int64_t p = 0; p < panels; ++p)
    pack_panel<A>(k + p * NR * ld, ld, m - p * NR, width, keys + p * NR * deep);
  for (int64_t i = 0; i < m; i += A::PER)
    for (int64_t j = 0; j < wide; j += VL) {
      vec pair[A::PER];
      for (int64_t h = 0; h < A::PER; ++h)
        pair[h] = i + h < m ? load_some(v + (i + h) * ld + j, (int)least(VL, width - j)) : vec{};
      store_some(values + i / A::PER * wide + j, A::join(pair), (int)least(VL, wide - j));
    }
  std::memset(queries, 0, RUN_OF_QUERIES * LDA * sizeof(float));
  std::memset(scores, 0, QUERIES * KEYS * sizeof(float));
  for (int64_t n = n0; n < n1; n += RUN_OF_QUERIES) {
    const int64_t rows = least(RUN_OF_QUERIES, n1 - n);
    float top[RUN_OF_QUERIES], total[RUN_OF_QUERIES];
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = q + (n + i) * ld;
      pack_row<A>(width, queries + i * LDA, [&](int64_t j, int n) { return load_some(from + j, n) * scale; });
      top[i] = -INFINITY;
      total[i] = 0;
    }
    std::memset(sums, 0, RUN_OF_QUERIES * wide * sizeof(float));
    for (int64_t m0 = 0; m0 < m; m0 += KEYS) {
      const int64_t count = least(KEYS, m - m0);
      for (int64_t i = 0; i < rows; i += QUERIES) {
        const int64_t some = least(QUERIES, rows - i), some_keys = units_of<A>(count);
        for (int64_t p = 0; p < count; p += NR)
          for (int64_t r = 0; r < some; r += MR)
            TILES<A>[MR](deep, queries + (i + r) * LDA, keys + (m0 + p) * deep, scores + r * KEYS + p, KEYS, false);
        for (int64_t r = 0; r < some; ++r) {
          const float shrink = soften<A>(scores + r * KEYS, count, top[i + r], total[i + r]);
          if (shrink != 1.0f)
            for (int64_t j = 0; j < wide; ++j) sums[(i + r) * wide + j] *= shrink;
        }
        for (int64_t r = 0; r < some; r += PR) {
          const float* weights = scores + r * KEYS;
          float* o = sums + (i + r) * wide;
          for (int64_t j = 0; j < wide;) {
            const int64_t left = wide - j;
            const float* from = values + m0 / A::PER * wide + j;
            if (half && left <= 3 * VL) {
              if (left > 2 * VL) weigh<A, 3, true>(some_keys, weights, from, wide, o + j, wide);
              else if (left > VL) weigh<A, 2, true>(some_keys, weights, from, wide, o + j, wide);
              else weigh<A, 1, true>(some_keys, weights, from, wide, o + j, wide);
              break;
            }
            if (left >= 3 * VL && left != 4 * VL) {
              weigh<A, 3, false>(some_keys, weights, from, wide, o + j, wide);
              j += 3 * VL;
            } else if (left >= 2 * VL) {
              weigh<A, 2, false>(some_keys, weights, from, wide, o + j, wide);
              j += 2 * VL;
            } else {
              weigh<A, 1, false>(some_keys, weights, from, wide, o + j, wide);
              j += VL;
            }
          }
        }
      }
    }
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < width; ++j) out[(n + i) * ld + j] = sums[i * wide + j] / total[i];
  }
}

// q, out (B, n, heads · width), k, v (B, m, heads · width); width at most KC.
template <class A>
static void attention(const float* q, const float* k, const float* v, float* out, int64_t B, int64_t heads, int64_t n,
                      int64_t m, int64_t width) {
  const int64_t ld = heads * width, pairs = B * heads, T = threads();
  const int64_t parts = pairs % T ? (T + pairs - 1) / pairs * (pairs < T ? 1 : T) : 1;
  const int64_t each = up((n + parts - 1) / parts, QUERIES);
  const float scale = (float)(1.4426950408889634 / std::sqrt((double)width));
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t t = 0; t < pairs * parts; ++t) {
    const int64_t b = t / parts / heads, h = t / parts % heads, n0 = t % parts * each, n1 = least(n, n0 + each);
    if (n0 < n1)
      attend<A>(q + b * n * ld + h * width, k + b * m * ld + h * width, v + b * m * ld + h * width,
             out + b * n * ld + h * width, n0, n1, m, width, ld, scale);
  }
}
