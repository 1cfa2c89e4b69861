// Matrix products: out = f(in) · weightᵀ, blocked for the caches (Goto and van de Geijn 2008). Depths of packed operands
// are in units of `A` (numbers.hpp), sums are float32.
#pragma once
#include "numbers.hpp"

constexpr int KC = 320;       // depth of a block: rows of it stay in the first cache
constexpr int LDA = KC + 16;  // its row stride, a constant so that one register addresses all rows of a tile
constexpr int MC = MR * 12;   // rows of a block: it stays in the second cache
constexpr int NC = NR * 10;   // columns of a block

// MR×NR accumulators: c (+)= a · b. a has rows of LDA units, b is packed k × NR, c has rows of ldc.
template <class A, int ROWS>
static void tile(int64_t k, const float* a, const float* b, float* c, int64_t ldc, bool accumulate) {
  vec s[ROWS][2];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
    s[i][0] = accumulate ? load(c + i * ldc) : vec{};
    s[i][1] = accumulate ? load(c + i * ldc + VL) : vec{};
  }
  for (int64_t start = 0; start < k; start += 16) {
    // The rows of the next tile come from the third cache: a dozen streams are too many for the processor to foresee.
    for (int i = 0; i < ROWS; ++i) __builtin_prefetch(a + (ROWS + i) * LDA, 0, 2);
    const int64_t end = least(k - start, 16);
    for (int64_t j = 0; j < end; ++j) {
      vec b0 = load(b), b1 = load(b + VL);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) {
        float x = a[i * LDA];
        A::add(s[i][0], x, b0);
        A::add(s[i][1], x, b1);
      }
      a += 1;
      b += NR;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
    store(c + i * ldc, s[i][0]);
    store(c + i * ldc + VL, s[i][1]);
  }
}

typedef void (*Tile)(int64_t, const float*, const float*, float*, int64_t, bool);
#if defined(__AVX512F__)
template <class A>
static constexpr Tile TILES[MR + 1] = {nullptr,    tile<A, 1>, tile<A, 2>, tile<A, 3>,  tile<A, 4>,  tile<A, 5>, tile<A, 6>,
                                       tile<A, 7>, tile<A, 8>, tile<A, 9>, tile<A, 10>, tile<A, 11>, tile<A, 12>};
#else
template <class A>
static constexpr Tile TILES[MR + 1] = {nullptr, tile<A, 1>, tile<A, 2>, tile<A, 3>, tile<A, 4>, tile<A, 5>, tile<A, 6>};
#endif

// VL×VL units turned about their diagonal: in (numbers, row stride `stride`) → out (row stride `ld`).
template <class A, class W>
static inline void transpose(const W* in, int64_t stride, float* out, int64_t ld) {
  vec r[VL];
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) r[i] = A::units(in + i * stride);
  // Log2(VL) rounds, each exchanging halves of pairs `h` rows apart.
#define ROUND(h)                                                             \
  _Pragma("GCC unroll 16") for (int i = 0; i < VL; ++i) if (!(i & h)) {      \
    ivec lo, hi;                                                             \
    for (int l = 0; l < VL; ++l) {                                           \
      lo[l] = (l & h) ? VL + (l ^ h) : l;                                    \
      hi[l] = (l & h) ? VL + l : (l ^ h);                                    \
    }                                                                        \
    vec a = __builtin_shuffle(r[i], r[i + h], lo), b = __builtin_shuffle(r[i], r[i + h], hi); \
    r[i] = a;                                                                \
    r[i + h] = b;                                                            \
  }
  ROUND(1)
  ROUND(2)
  ROUND(4)
#if defined(__AVX512F__)
  ROUND(8)
#endif
#undef ROUND
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) store(out + i * ld, r[i]);
}

// Up to VL rows of a weight, columns [0, depth) → packed units_of(depth) × VL within rows of NR. Missing rows are zeros.
template <class A, class W>
static void pack_lanes(const W* w, int64_t ldw, int64_t rows, int64_t depth, float* out) {
  constexpr int64_t STEP = VL * A::PER;
  int64_t j = 0;
  if (rows >= VL)
    for (; j + STEP <= depth; j += STEP) transpose<A>(w + j, ldw, out + j / A::PER * NR, NR);
  for (; j < depth; j += A::PER)
    for (int64_t i = 0; i < VL; ++i) {
      const W* at = w + i * ldw + j;
      out[j / A::PER * NR + i] = i < rows ? A::unit(widen(at[0]), j + 1 < depth ? widen(at[A::PER - 1]) : 0.0f) : 0.0f;
    }
}

// The same of NR rows.
template <class A, class W>
static void pack_panel(const W* w, int64_t ldw, int64_t rows, int64_t depth, float* out) {
  for (int64_t base = 0; base < NR; base += VL) pack_lanes<A>(w + base * ldw, ldw, rows - base, depth, out + base);
}

// How rows of the input are read: as they are; normalised per row (LayerNorm); per image and channel (GroupNorm).
struct Rows {
  const float* x;
  int64_t ld;
  const float* layer_weight = nullptr;  // (K,): LayerNorm, with `layer_bias` and `stats` (mean, 1/σ) a row
  const float* layer_bias = nullptr;
  const float* stats = nullptr;
  const float* scale = nullptr;  // (B, K): GroupNorm's, with `shift`; `pixels` rows an image
  const float* shift = nullptr;
  int64_t pixels = 1;
};

// One row packed, of numbers that `value` gives VL at a time.
template <class A, class F>
static inline void pack_row(int64_t depth, float* out, F value) {
  for (int64_t j = 0; j < units_of<A>(depth) * A::PER; j += VL) A::put(out + j / A::PER, value(j, (int)least(VL, depth - j)));
}

template <class A>
static void pack_rows(const Rows& in, int64_t m, int64_t rows, int64_t k, int64_t depth, int64_t width, float* out) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* x = in.x + (m + i) * in.ld + k;
    float* o = out + i * LDA;
    if (in.stats) {
      const vec mean = splat(in.stats[2 * (m + i)]), inverse = splat(in.stats[2 * (m + i) + 1]);
      const float *weight = in.layer_weight + k, *bias = in.layer_bias + k;
      pack_row<A>(depth, o, [&](int64_t j, int n) {
        return (load_some(x + j, n) - mean) * inverse * load_some(weight + j, n) + load_some(bias + j, n);
      });
    } else if (in.scale) {
      const int64_t at = (m + i) / in.pixels * width + k;
      pack_row<A>(depth, o, [&](int64_t j, int n) {
        return load_some(x + j, n) * load_some(in.scale + at + j, n) + load_some(in.shift + at + j, n);
      });
    } else {
      pack_row<A>(depth, o, [&](int64_t j, int n) { return load_some(x + j, n); });
    }
  }
}

// What happens to a finished tile: bias, residual, or the gated GELU of column pairs.
struct Finish {
  float* out;
  int64_t ld;
  const float* bias = nullptr;
  const float* residual = nullptr;  // as `out`
  bool gated = false;               // columns are VL values, then their VL gates
  int64_t half = 0;                 // of a gated weight: where gates begin
};

static void finish(const Finish& f, const float* c, int64_t ldc, int64_t m, int64_t rows, int64_t n, int64_t columns) {
  if (f.gated) {
    const int64_t at = n / 2;
    const int count = (int)least(VL, f.half - at);
    const vec bias = f.bias ? load_some(f.bias + at, count) : vec{};
    const vec gate_bias = f.bias ? load_some(f.bias + f.half + at, count) : vec{};
    for (int64_t i = 0; i < rows; ++i)
      store_some(f.out + (m + i) * f.ld + at, (load(c + i * ldc) + bias) * gelu(load(c + i * ldc + VL) + gate_bias), count);
    return;
  }
  for (int half = 0; half < 2; ++half) {
    const int64_t at = n + half * VL;
    const int count = (int)least(VL, columns - half * VL);
    if (count <= 0) continue;
    const vec bias = f.bias ? load_some(f.bias + at, count) : vec{};
    for (int64_t i = 0; i < rows; ++i) {
      vec v = load(c + i * ldc + half * VL) + bias;
      if (f.residual) v += load_some(f.residual + (m + i) * f.ld + at, count);
      store_some(f.out + (m + i) * f.ld + at, v, count);
    }
  }
}

// One thread's share: rows [m0, m1), columns [n0, n1) (of the weight as packed).
template <class A>
static void gemm_share(const Rows& in, Weights weights, int64_t K, int64_t N, int64_t m0, int64_t m1, int64_t n0,
                       int64_t n1, const Finish& f) {
  static thread_local Scratch packed_b, packed_a, product;
  const int64_t deep = units_of<A>(K);
  float* a = packed_a.get(MC * LDA);
  float* c = product.get(MC * NC);
  float* b = packed_b.get(up(deep, VL) * NC);
  for (int64_t n = n0; n < n1; n += NC) {
    const int64_t columns = least(NC, n1 - n), panels = (columns + NR - 1) / NR;
    weights.read([&](auto* w) {
      for (int64_t p = 0; p < panels; ++p) {
        float* panel = b + p * NR * deep;
        if (f.gated) {
          const int64_t at = (n + p * NR) / 2;  // values, then their gates
          for (int g = 0; g < 2; ++g) pack_lanes<A>(w + (at + g * f.half) * K, K, f.half - at, K, panel + g * VL);
        } else {
          pack_panel<A>(w + (n + p * NR) * K, K, N - n - p * NR, K, panel);
        }
      }
    });
    for (int64_t m = m0; m < m1; m += MC) {
      const int64_t rows = least(MC, m1 - m);
      for (int64_t k = 0; k < deep; k += KC) {
        const int64_t depth = least(KC, deep - k);
        pack_rows<A>(in, m, rows, k * A::PER, least(KC * A::PER, K - k * A::PER), K, a);
        for (int64_t p = 0; p < panels; ++p)
          for (int64_t i = 0; i < rows; i += MR)
            TILES<A>[least(MR, rows - i)](depth, a + i * LDA, b + p * NR * deep + k * NR, c + i * NC + p * NR, NC, k > 0);
      }
      for (int64_t p = 0; p < panels; ++p)
        finish(f, c + p * NR, NC, m, rows, n + p * NR, least(NR, N - n - p * NR));
    }
  }
}

// out (M, N) = rows (M, K) · w (N, K)ᵀ; N counts values and gates where gated.
template <class A>
static void gemm(const Rows& in, Weights w, int64_t M, int64_t K, int64_t N, const Finish& f) {
  const int64_t T = threads();
  const int64_t width = f.gated ? 2 * up(f.half, VL) : N;  // as packed
  const bool by_rows = M / T >= 384;
  const int64_t rows_each = by_rows ? up((M + T - 1) / T, MR) : M;
  const int64_t panels = (width + NR - 1) / NR, columns_each = by_rows ? width : (panels + T - 1) / T * NR;
#pragma omp parallel for schedule(static, 1)
  for (int64_t t = 0; t < T; ++t) {
    const int64_t m0 = by_rows ? t * rows_each : 0, m1 = least(M, m0 + rows_each);
    const int64_t n0 = by_rows ? 0 : t * columns_each, n1 = least(width, n0 + columns_each);
    if (m0 < m1 && n0 < n1) gemm_share<A>(in, w, K, N, m0, m1, n0, n1, f);
  }
}
