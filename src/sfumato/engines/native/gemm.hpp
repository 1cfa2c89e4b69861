// Matrix products: out = f(in) · weightᵀ, blocked for the caches (Goto and van de Geijn 2008), in float32.
#pragma once
#include "vectors.hpp"

constexpr int KC = 320;       // depth of a block: rows of it stay in the first cache
constexpr int LDA = KC + 16;  // its row stride, a constant so that one register addresses all rows of a tile
constexpr int MC = MR * 12;   // rows of a block: it stays in the second cache
constexpr int NC = NR * 10;   // columns of a block

// MR×NR accumulators: c (+)= a · b. a has rows of LDA floats, b is packed k × NR, c has rows of ldc.
template <int ROWS>
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
        s[i][0] += x * b0;
        s[i][1] += x * b1;
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
static const Tile TILES[MR + 1] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>,  tile<5>,  tile<6>,
                                   tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>};
#else
static const Tile TILES[MR + 1] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
#endif

// VL×VL numbers turned about their diagonal: in (row stride `stride`) → floats, out (row stride `ld`).
template <class W>
static inline void transpose(const W* in, int64_t stride, float* out, int64_t ld) {
  vec r[VL];
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) r[i] = load(in + i * stride);
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

// Rows [n, n + NR) of a weight (N, K), columns [k, k + depth) → packed depth × NR. Rows from `rows` on are zeros.
template <class W>
static void pack_panel(const W* w, int64_t ldw, int64_t rows, int64_t depth, float* out) {
  for (int half = 0; half < 2; ++half) {
    const int64_t base = half * VL;
    int64_t j = 0;
    if (rows - base >= VL)
      for (; j + VL <= depth; j += VL) transpose(w + base * ldw + j, ldw, out + j * NR + base, NR);
    for (; j < depth; ++j)
      for (int i = 0; i < VL; ++i) out[j * NR + base + i] = base + i < rows ? widen(w[(base + i) * ldw + j]) : 0.0f;
  }
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

static void pack_rows(const Rows& in, int64_t m, int64_t rows, int64_t k, int64_t depth, int64_t width, float* out) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* x = in.x + (m + i) * in.ld + k;
    float* o = out + i * LDA;
    if (in.stats) {
      const vec mean = splat(in.stats[2 * (m + i)]), inverse = splat(in.stats[2 * (m + i) + 1]);
      for (int64_t j = 0; j < depth; j += VL) {
        const int n = (int)least(VL, depth - j);
        vec v = (load_some(x + j, n) - mean) * inverse;
        store(o + j, v * load_some(in.layer_weight + k + j, n) + load_some(in.layer_bias + k + j, n));
      }
    } else if (in.scale) {
      const int64_t at = (m + i) / in.pixels * width + k;
      for (int64_t j = 0; j < depth; j += VL) {
        const int n = (int)least(VL, depth - j);
        store(o + j, load_some(x + j, n) * load_some(in.scale + at + j, n) + load_some(in.shift + at + j, n));
      }
    } else {
      std::memcpy(o, x, depth * sizeof(float));
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
template <class W>
static void gemm_share(const Rows& in, const W* w, int64_t K, int64_t N, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                       const Finish& f) {
  static thread_local Scratch packed_b, packed_a, product;
  float* a = packed_a.get(MC * LDA);
  float* c = product.get(MC * NC);
  float* b = packed_b.get(up(K, VL) * NC);
  for (int64_t n = n0; n < n1; n += NC) {
    const int64_t columns = least(NC, n1 - n), panels = (columns + NR - 1) / NR;
    for (int64_t p = 0; p < panels; ++p) {
      float* panel = b + p * NR * K;
      if (f.gated) {
        const int64_t at = (n + p * NR) / 2, count = least(VL, f.half - at);
        // Two packings of half a panel: values, then gates.
        for (int g = 0; g < 2; ++g) {
          const W* from = w + (at + g * f.half) * K;
          int64_t j = 0;
          if (count == VL)
            for (; j + VL <= K; j += VL) transpose(from + j, K, panel + j * NR + g * VL, NR);
          for (; j < K; ++j)
            for (int i = 0; i < VL; ++i) panel[j * NR + g * VL + i] = i < count ? widen(from[i * K + j]) : 0.0f;
        }
      } else {
        pack_panel(w + (n + p * NR) * K, K, least(NR, N - n - p * NR), K, panel);
      }
    }
    for (int64_t m = m0; m < m1; m += MC) {
      const int64_t rows = least(MC, m1 - m);
      for (int64_t k = 0; k < K; k += KC) {
        const int64_t depth = least(KC, K - k);
        pack_rows(in, m, rows, k, depth, K, a);
        for (int64_t p = 0; p < panels; ++p)
          for (int64_t i = 0; i < rows; i += MR)
            TILES[least(MR, rows - i)](depth, a + i * LDA, b + p * NR * K + k * NR, c + i * NC + p * NR, NC, k > 0);
      }
      for (int64_t p = 0; p < panels; ++p)
        finish(f, c + p * NR, NC, m, rows, n + p * NR, least(NR, N - n - p * NR));
    }
  }
}

// out (M, N) = rows (M, K) · w (N, K)ᵀ; N counts values and gates where gated.
template <class W>
static void gemm(const Rows& in, const W* w, int64_t M, int64_t K, int64_t N, const Finish& f) {
  const int64_t T = threads();
  const int64_t width = f.gated ? 2 * up(f.half, VL) : N;  // as packed
  const bool by_rows = M / T >= 384;
  const int64_t rows_each = by_rows ? up((M + T - 1) / T, MR) : M;
  const int64_t panels = (width + NR - 1) / NR, columns_each = by_rows ? width : (panels + T - 1) / T * NR;
#pragma omp parallel for schedule(static, 1)
  for (int64_t t = 0; t < T; ++t) {
    const int64_t m0 = by_rows ? t * rows_each : 0, m1 = least(M, m0 + rows_each);
    const int64_t n0 = by_rows ? 0 : t * columns_each, n1 = least(width, n0 + columns_each);
    if (m0 < m1 && n0 < n1) gemm_share(in, w, K, N, m0, m1, n0, n1, f);
  }
}
