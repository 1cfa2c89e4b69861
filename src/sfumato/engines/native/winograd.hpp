// 3×3 convolutions of stride 1 by Winograd's minimal filtering (Lavin and Gray 2016), NHWC; transforms and
// sums in float32, products in float32 or bfloat16 (numbers.hpp).
//
// Weights are transformed while they are read, panel by panel, into memory the cache holds: the transformed weights of a
// whole model would take four times its size, and reading them from memory would cost more than the arithmetic.
#pragma once
#include "gemm.hpp"

// F(4×4, 3×3): points 0, ±a, ±b, ∞, where P names a and b (Toom and Cook's construction).
template <class P>
struct F4 {
  static constexpr int OUT = 4, IN = 6;
  static constexpr float A = P::A, B = P::B, A2 = A * A, B2 = B * B;
  static inline void input(const vec* d, vec* o, int s) {
    vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], d4 = d[4 * s], d5 = d[5 * s];
    vec a = d4 - B2 * d2, b = A * (d3 - B2 * d1), c = d4 - A2 * d2, e = B * (d3 - A2 * d1);
    o[0] = A2 * B2 * d0 - (A2 + B2) * d2 + d4;
    o[s] = a + b;
    o[2 * s] = a - b;
    o[3 * s] = c + e;
    o[4 * s] = c - e;
    o[5 * s] = A2 * B2 * d1 - (A2 + B2) * d3 + d5;
  }
  static inline void weight(const vec* g, vec* o, int s, int t) {
    constexpr float FA = 1 / (2 * A2 * (A2 - B2)), FB = 1 / (2 * B2 * (B2 - A2));
    vec g0 = g[0], g1 = g[s], g2 = g[2 * s];
    vec a = g0 * FA + g2 * (A2 * FA), b = g1 * (A * FA);
    vec c = g0 * FB + g2 * (B2 * FB), e = g1 * (B * FB);
    o[0] = g0 * (1 / (A2 * B2));
    o[t] = a + b;
    o[2 * t] = a - b;
    o[3 * t] = c + e;
    o[4 * t] = c - e;
    o[5 * t] = g2;
  }
  static inline void output(const vec* m, vec* o, int s, int t) {
    vec m0 = m[0], m5 = m[5 * s];
    vec a = m[s] + m[2 * s], b = m[s] - m[2 * s], c = m[3 * s] + m[4 * s], e = m[3 * s] - m[4 * s];
    o[0] = m0 + a + c;
    o[t] = A * b + B * e;
    o[2 * t] = A2 * a + B2 * c;
    o[3 * t] = A * A2 * b + B * B2 * e + m5;
  }
  static constexpr int ZERO = A == 1 ? 2 : -1;  // the row that is zero on every map enlarged twofold: the point -1
};

// The points of least error in float32, which cost few multiplications, and in bfloat16: there ±1, ±2 double the error.
struct Whole {
  static constexpr float A = 1, B = 2;
};
struct Near {
  static constexpr float A = 0.625f, B = 1.5f;
};

// F(2×2, 3×3): points 0, ±1, ∞. For small maps, where the weights are most of the work.
struct F2 {
  static constexpr int OUT = 2, IN = 4;
  static inline void input(const vec* d, vec* o, int s) {
    vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s];
    o[0] = d0 - d2;
    o[s] = d1 + d2;
    o[2 * s] = d2 - d1;
    o[3 * s] = d1 - d3;
  }
  static inline void weight(const vec* g, vec* o, int s, int t) {
    vec g0 = g[0], g1 = g[s], g2 = g[2 * s];
    vec a = (g0 + g2) * 0.5f, b = g1 * 0.5f;
    o[0] = g0;
    o[t] = a + b;
    o[2 * t] = a - b;
    o[3 * t] = g2;
  }
  static inline void output(const vec* m, vec* o, int s, int t) {
    vec m1 = m[s], m2 = m[2 * s];
    o[0] = m[0] + m1 + m2;
    o[t] = m1 - m2 - m[3 * s];
  }
  static constexpr int ZERO = 2;
};

struct Conv {
  const float* x;         // (B, H, width_in, C)
  Weights w;              // (N, C, 3, 3)
  const float* bias;      // (N,) or null
  const float* scale;     // (B, C) or null: the input is silu(x · scale + shift) …
  const float* shift;     // … where given
  const float* channel;   // (B, N) or null: added to every pixel
  const float* residual;  // as out, or null
  float* out;             // (B, count, width, N)
  int64_t B, H, width_in, C, N;
  bool enlarged;          // the input is enlarged twofold first, to the nearest pixel
  int64_t first, count;   // rows of the result that are wanted

  int64_t height() const { return enlarged ? 2 * H : H; }
  int64_t width() const { return enlarged ? 2 * width_in : width_in; }
};

template <class F, class A>
struct Winograd {
  static constexpr int OUT = F::OUT, IN = F::IN, POINTS = IN * IN, CHUNK = 132;  // tiles at a time
  static constexpr int PER = A::PER, DEEP = KC * PER;                            // channels of a block
  const Conv& c;
  const int64_t down, across, tiles, blocks, panels;

  explicit Winograd(const Conv& conv)
      : c(conv),
        down((conv.count + OUT - 1) / OUT),
        across((conv.width() + OUT - 1) / OUT),
        tiles(conv.B * down * across),
        blocks((conv.C + DEEP - 1) / DEEP),
        panels((conv.N + NR - 1) / NR) {}

  bool needed(int point) const { return !c.enlarged || (point / IN != F::ZERO && point % IN != F::ZERO); }
  int64_t room() const { return blocks * POINTS * CHUNK * LDA; }

  // Input rows of a few tiles that stand side by side, activated once and transformed: channels [k, k + VL).
  static constexpr int RUN = 16;
  void transform(int64_t first, int64_t count, int64_t k, float* v, int64_t offset) const {
    const int64_t b = first / (down * across), ty = first / across % down, tx = first % across;
    const int n = (int)least(VL, c.C - k);
    vec rows[IN][RUN * OUT + 2];
    const int64_t height = c.height(), width = c.width(), shift = c.enlarged ? 1 : 0;
    const vec scale = c.scale ? load_some(c.scale + b * c.C + k, n) : vec{};
    const vec bias = c.scale ? load_some(c.shift + b * c.C + k, n) : vec{};
    for (int i = 0; i < IN; ++i) {
      const int64_t y = c.first + ty * OUT - 1 + i;
      for (int64_t j = 0; j < count * OUT + 2; ++j) {
        const int64_t x = tx * OUT - 1 + j;
        vec value{};
        if (y >= 0 && y < height && x >= 0 && x < width) {
          value = load_some(c.x + ((b * c.H + (y >> shift)) * c.width_in + (x >> shift)) * c.C + k, n);
          if (c.scale) value = silu(value * scale + bias);
        }
        rows[i][j] = value;
      }
    }
    float* out = v + (k / DEEP) * POINTS * CHUNK * LDA + k % DEEP / PER;
    for (int64_t t = 0; t < count; ++t) {
      vec d[POINTS];
      for (int i = 0; i < IN; ++i)
#pragma GCC unroll 6
        for (int j = 0; j < IN; ++j) d[i * IN + j] = rows[i][t * OUT + j];
#pragma GCC unroll 6
      for (int j = 0; j < IN; ++j) F::input(d + j, d + j, IN);
#pragma GCC unroll 6
      for (int i = 0; i < IN; ++i) F::input(d + i * IN, d + i * IN, 1);
#pragma GCC unroll 36
      for (int p = 0; p < POINTS; ++p) A::put(out + (p * CHUNK + offset + t) * LDA, d[p]);
    }
  }

  // Weights of NR outputs and up to DEEP inputs, transformed: POINTS × units × NR.
  void weights(int64_t n, int64_t k, int64_t depth, float* u) const {
    const int64_t units = units_of<A>(depth);
    for (int half = 0; half < 2; ++half) {
      const int64_t at = n + half * VL, count = least(VL, c.N - at);
      float turned[VL * 9][VL];
      for (int64_t j = 0; j < depth; j += VL) {
        const int64_t inputs = least(VL, depth - j);
        c.w.read([&](auto* w) {
          w += (at * c.C + k + j) * 9;
          if (count == VL && inputs == VL) {
            for (int q = 0; q < 9; ++q) transpose<Single>(w + q * VL, c.C * 9, turned[q * VL], VL);
          } else {
            for (int64_t q = 0; q < inputs * 9; ++q)
              for (int i = 0; i < VL; ++i) turned[q][i] = i < count ? widen(w[i * c.C * 9 + q]) : 0.0f;
          }
        });
        for (int64_t q = 0; q < inputs; q += PER) {
          vec o[POINTS][PER];
          for (int r = 0; r < PER; ++r) {
            vec g[9], h[IN * 3], one[POINTS];
#pragma GCC unroll 9
            for (int i = 0; i < 9; ++i) g[i] = q + r < inputs ? load(turned[(q + r) * 9 + i]) : vec{};
#pragma GCC unroll 3
            for (int i = 0; i < 3; ++i) F::weight(g + i, h + i, 3, 3);
#pragma GCC unroll 6
            for (int i = 0; i < IN; ++i) F::weight(h + i * 3, one + i * IN, 1, 1);
#pragma GCC unroll 36
            for (int p = 0; p < POINTS; ++p) o[p][r] = one[p];
          }
#pragma GCC unroll 36
          for (int p = 0; p < POINTS; ++p) store(u + (p * units + (j + q) / PER) * NR + half * VL, A::join(o[p]));
        }
      }
    }
  }

  // NR outputs of `count` tiles from `first` on.
  void panel(int64_t n, int64_t first, int64_t count, const float* v, float* u, float* m) const {
    for (int64_t kb = 0; kb < blocks; ++kb) {
      const int64_t k = kb * DEEP, depth = least(DEEP, c.C - k), units = units_of<A>(depth);
      weights(n, k, depth, u);
      for (int p = 0; p < POINTS; ++p)
        if (needed(p))
          for (int64_t i = 0; i < count; i += MR)
            TILES<A>[least(MR, count - i)](units, v + ((kb * POINTS + p) * CHUNK + i) * LDA, u + p * units * NR,
                                           m + (p * CHUNK + i) * NR, NR, kb > 0);
    }
    for (int half = 0; half < 2; ++half) {
      const int64_t at = n + half * VL;
      const int lanes = (int)least(VL, c.N - at);
      if (lanes <= 0) continue;
      const vec bias = c.bias ? load_some(c.bias + at, lanes) : vec{};
      for (int64_t t = 0; t < count; ++t) {
        const int64_t tile = first + t, b = tile / (down * across);
        const int64_t y = tile / across % down * OUT, x = tile % across * OUT;
        vec s[POINTS], h[OUT * IN], o[OUT * OUT];
#pragma GCC unroll 36
        for (int p = 0; p < POINTS; ++p) s[p] = needed(p) ? load(m + (p * CHUNK + t) * NR + half * VL) : vec{};
#pragma GCC unroll 6
        for (int j = 0; j < IN; ++j) F::output(s + j, h + j, IN, IN);
#pragma GCC unroll 4
        for (int i = 0; i < OUT; ++i) F::output(h + i * IN, o + i * OUT, 1, 1);
        const vec add = bias + (c.channel ? load_some(c.channel + b * c.N + at, lanes) : vec{});
        for (int i = 0; i < OUT && y + i < c.count; ++i)
          for (int j = 0; j < OUT && x + j < c.width(); ++j) {
            const int64_t to = ((b * c.count + y + i) * c.width() + x + j) * c.N + at;
            vec value = o[i * OUT + j] + add;
            if (c.residual) value += load_some(c.residual + to, lanes);
            store_some(c.out + to, value, lanes);
          }
      }
    }
  }

  void transform_range(int64_t first, int64_t from, int64_t to, int64_t k, float* v) const {
    for (int64_t t = from; t < to;) {
      const int64_t count = least(least(RUN, to - t), across - t % across);
      transform(t, count, k, v, t - first);
      t += count;
    }
  }

  void run() const {
    static thread_local Scratch shared;  // the caller's: the input, for all threads of this call
    const int64_t T = threads(), chunks = (tiles + CHUNK - 1) / CHUNK;
    const bool apart = chunks >= 4 * T;  // each thread has chunks of its own
    float* common = apart ? nullptr : shared.get(room());
    const int64_t even = (tiles + chunks - 1) / chunks;
#pragma omp parallel
    {
      static thread_local Scratch transformed, product, own;
      float* u = transformed.get(POINTS * least(KC, up(units_of<A>(c.C), VL)) * NR);
      float* m = product.get(POINTS * CHUNK * NR);
      if (apart) {
        float* v = own.get(room());
#pragma omp for schedule(dynamic, 1)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          const int64_t first = chunk * even, last = least(tiles, first + even);
          for (int64_t k = 0; k < c.C; k += VL) transform_range(first, first, last, k, v);
          for (int64_t p = 0; p < panels; ++p) panel(p * NR, first, last - first, v, u, m);
        }
      } else {
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          const int64_t first = chunk * even, last = least(tiles, first + even);
#pragma omp for schedule(static)
          for (int64_t k = 0; k < c.C; k += VL) transform_range(first, first, last, k, common);
#pragma omp for schedule(dynamic, 1)
          for (int64_t p = 0; p < panels; ++p) panel(p * NR, first, last - first, common, u, m);
        }
      }
    }
  }
};
