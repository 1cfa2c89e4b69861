// softmax(q kᵀ · scale) v in blocks of queries and keys, with a running maximum (Dao et al. 2022); sums in float32.
//
// Scores are kept turned, keys × queries: each lane of a vector is a query, so that maxima and sums need no steps across
// lanes, and both products have whole vectors whatever the width of a head.
#pragma once
#include <utility>

#include "gemm.hpp"

constexpr int KEYS = 120;  // rows of a tile of scores, a multiple of MR: it stays in the first cache
constexpr int PASS = 4;    // panels of NR queries that read a block of keys and values while it is in the second cache

// 2^x for x ≤ 0: to 1e-7, or, where weights are rounded to bfloat16 next, to 1e-4.
template <class A>
static inline vec exp2_(vec x) {
  x = vmax(x, splat(-126.0f));
  const vec shifted = x + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number, which is in the low bits then
  const vec r = x - (shifted - 12582912.0f);
  vec p;
  if constexpr (A::PER == 1) {
    p = splat(1.3264727214e-03f);
    p = p * r + 9.6715128125e-03f;
    p = p * r + 5.5507337448e-02f;
    p = p * r + 2.4022242083e-01f;
    p = p * r + 6.9314697760e-01f;
  } else {
    p = splat(5.5008930882e-02f);
    p = p * r + 2.4221096932e-01f;
    p = p * r + 6.9328292829e-01f;
  }
  p = p * r + 1.0f;
  const ivec scaled = reinterpret_cast<ivec&>(p) + (reinterpret_cast<const ivec&>(shifted) << 23);
  return reinterpret_cast<const vec&>(scaled);
}

// c (ROWS × NR) (+)= a · b: a's rows lie side by side, a column every `step` units; b is packed k × NR.
template <class A, int ROWS>
static void turned_tile(int64_t k, const float* a, int64_t step, const float* b, float* c, bool accumulate) {
  vec s[ROWS][2];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
    s[i][0] = accumulate ? load(c + i * NR) : vec{};
    s[i][1] = accumulate ? load(c + i * NR + VL) : vec{};
  }
  for (int64_t j = 0; j < k; ++j) {
    const vec b0 = load(b + j * NR), b1 = load(b + j * NR + VL);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      A::add(s[i][0], a[i], b0);
      A::add(s[i][1], a[i], b1);
    }
    a += step;
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
    store(c + i * NR, s[i][0]);
    store(c + i * NR + VL, s[i][1]);
  }
}

typedef void (*TurnedTile)(int64_t, const float*, int64_t, const float*, float*, bool);
template <class A, int... I>
static TurnedTile turned_tile_of(int64_t rows, std::integer_sequence<int, I...>) {
  static constexpr TurnedTile TILES[] = {turned_tile<A, I + 1>...};
  return TILES[rows - 1];
}
template <class A>
static TurnedTile turned_tile_of(int64_t rows) {
  return turned_tile_of<A>(rows, std::make_integer_sequence<int, MR>{});
}

// A panel of NR queries: what the blocks of keys so far came to.
struct Panel {
  vec top[2], total[2];
};

// `count` rows of scores (already in powers of two) → weights, packed where the scores were. Sums so far shrink where a
// maximum grows.
template <class A>
static inline void soften(float* s, int64_t count, Panel& panel, float* sums, int64_t width) {
  vec top[2] = {panel.top[0], panel.top[1]};
  for (int64_t j = 0; j < count; ++j)
    for (int half = 0; half < 2; ++half) top[half] = vmax(load(s + j * NR + half * VL), top[half]);
  vec added[2]{};
  for (int64_t j = 0; j < count; j += A::PER)
    for (int half = 0; half < 2; ++half) {
      vec e[A::PER];
      for (int h = 0; h < A::PER; ++h) {
        e[h] = j + h < count ? exp2_<A>(load(s + (j + h) * NR + half * VL) - top[half]) : vec{};
        added[half] += e[h];
      }
      store(s + j / A::PER * NR + half * VL, A::join(e));
    }
  const vec shrink[2] = {exp2_<A>(panel.top[0] - top[0]), exp2_<A>(panel.top[1] - top[1])};
  for (int half = 0; half < 2; ++half) {
    panel.top[half] = top[half];
    panel.total[half] = panel.total[half] * shrink[half] + added[half];
  }
  for (int64_t d = 0; d < width; ++d)
    for (int half = 0; half < 2; ++half) store(sums + d * NR + half * VL, load(sums + d * NR + half * VL) * shrink[half]);
}

// One head of one image, queries [n0, n1). Rows of all four have `ld` floats.
template <class A>
static void attend(const float* q, const float* k, const float* v, float* out, int64_t n0, int64_t n1, int64_t m,
                   int64_t width, int64_t ld, float scale) {
  static thread_local Scratch room;
  const int64_t deep = units_of<A>(width), wide = up(width, VL);
  float* keys = room.get(up(m, MR) * deep + units_of<A>(m) * width + PASS * NR * (deep + VL + wide) + KEYS * NR + NR * wide);
  float* values = keys + up(m, MR) * deep;
  float* queries = values + units_of<A>(m) * width;
  float* sums = queries + PASS * NR * deep;
  float* scores = sums + PASS * NR * wide;
  float* turned = scores + KEYS * NR;  // one row of keys, then NR finished rows
  for (int64_t i = 0; i < m; ++i) {
    const float* from = k + i * ld;
    pack_row<A>(width, turned, [&](int64_t j, int n) { return load_some(from + j, n) * scale; });
    float* to = keys + i / MR * MR * deep + i % MR;
    for (int64_t j = 0; j < deep; ++j) to[j * MR] = turned[j];
  }
  for (int64_t i = 0; i < m; i += A::PER)
    for (int64_t j = 0; j < width; j += VL) {
      const int some = (int)least(VL, width - j);
      vec pair[A::PER];
      for (int64_t h = 0; h < A::PER; ++h) pair[h] = i + h < m ? load_some(v + (i + h) * ld + j, some) : vec{};
      store_some(values + i / A::PER * width + j, A::join(pair), some);
    }
  const int64_t groups = (width + MR - 1) / MR, group = (width + groups - 1) / groups;
  for (int64_t n = n0; n < n1; n += PASS * NR) {
    const int64_t panels = least(PASS, (n1 - n + NR - 1) / NR);
    Panel panel[PASS];
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t from = n + p * NR;
      pack_panel<A>(q + from * ld, ld, n1 - from, width, queries + p * NR * deep);
      panel[p] = {{splat(-INFINITY), splat(-INFINITY)}, {}};
    }
    std::memset(sums, 0, PASS * NR * wide * sizeof(float));
    for (int64_t m0 = 0; m0 < m; m0 += KEYS) {
      const int64_t count = least(KEYS, m - m0);
      for (int64_t p = 0; p < panels; ++p) {
        float* o = sums + p * NR * wide;
        for (int64_t i = 0; i < count; i += MR)
          turned_tile_of<A>(least(MR, count - i))(deep, keys + (m0 + i) * deep, MR, queries + p * NR * deep,
                                                  scores + i * NR, false);
        soften<A>(scores, count, panel[p], o, width);
        for (int64_t d = 0; d < width; d += group)
          turned_tile_of<A>(least(group, width - d))(units_of<A>(count), values + m0 / A::PER * width + d, width, scores,
                                                     o + d * NR, true);
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t rows = least(NR, n1 - n - p * NR);
      for (int half = 0; half < 2; ++half)
        for (int64_t d = 0; d < wide; d += VL) {
          float* o = sums + (p * wide + d) * NR + half * VL;
          for (int i = 0; i < VL; ++i) store(o + i * NR, load(o + i * NR) / panel[p].total[half]);
          transpose<Single>(o, NR, turned + half * VL * wide + d, wide);
        }
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t d = 0; d < width; d += VL)
          store_some(out + (n + p * NR + i) * ld + d, load(turned + i * wide + d), (int)least(VL, width - d));
    }
  }
}

// q, out (B, n, heads · width), k, v (B, m, heads · width); width at most KC.
template <class A>
static void attention(const float* q, const float* k, const float* v, float* out, int64_t B, int64_t heads, int64_t n,
                      int64_t m, int64_t width) {
  const int64_t ld = heads * width, pairs = B * heads, T = threads();
  const int64_t parts = pairs % T ? (T + pairs - 1) / pairs * (pairs < T ? 1 : T) : 1;
  const int64_t each = up((n + parts - 1) / parts, NR);
  const float scale = (float)(1.4426950408889634 / std::sqrt((double)width));
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t t = 0; t < pairs * parts; ++t) {
    const int64_t b = t / parts / heads, h = t / parts % heads, n0 = t % parts * each, n1 = least(n, n0 + each);
    if (n0 < n1)
      attend<A>(q + b * n * ld + h * width, k + b * m * ld + h * width, v + b * m * ld + h * width,
                out + b * n * ld + h * width, n0, n1, m, width, ld, scale);
  }
}
