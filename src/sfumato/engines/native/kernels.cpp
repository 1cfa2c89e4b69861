// What Python calls (sfumato/engines/native_kernels.py declares the same). Pointers are to contiguous float32, those to
// weights to numbers of the kind that stands beside them.
#include "attention.hpp"
#include "norms.hpp"
#include "winograd.hpp"

// f(numbers): `pairs` asks for products of bfloat16, which nobody may where sfumato_pairs says there are none.
template <class F>
static void as_asked(int64_t pairs, F f) {
#if defined(__AVX512BF16__)
  if (pairs) return f(Pairs{});
#endif
  f(Single{});
}

extern "C" {

int sfumato_abi() { return 3; }

int sfumato_pairs() {
#if defined(__AVX512BF16__)
  return 1;
#else
  return 0;
#endif
}

// Rows [first, first + count) of the result of the whole input that is given.
void sfumato_conv3x3(const float* x, const void* weights, int64_t kind, const float* bias, const float* scale,
                     const float* shift, const float* channel, const float* residual, float* out, int64_t B, int64_t H,
                     int64_t width, int64_t C, int64_t N, int64_t enlarged, int64_t first, int64_t count, int64_t tile,
                     int64_t pairs) {
  const Conv conv{x, {weights, kind}, bias, scale, shift, channel, residual, out, B, H, width, C, N, enlarged != 0, first,
                  count};
  as_asked(pairs, [&](auto numbers) {
    using A = decltype(numbers);
    if (tile == 2) Winograd<F2, A>(conv).run();
    else if constexpr (A::PER == 1) Winograd<F4<Whole>, A>(conv).run();
    else Winograd<F4<Near>, A>(conv).run();
  });
}

void sfumato_linear(const float* x, const void* weights, int64_t kind, const float* bias, const float* residual,
                    float* out, int64_t M, int64_t K, int64_t N, int64_t gated, const float* layer_weight,
                    const float* layer_bias, const float* stats, const float* scale, const float* shift,
                    int64_t pixels, int64_t pairs) {
  const Rows rows{x, K, layer_weight, layer_bias, stats, scale, shift, pixels};
  const int64_t half_width = gated ? N / 2 : 0;
  const Finish end{out, gated ? half_width : N, bias, residual, gated != 0, half_width};
  as_asked(pairs, [&](auto numbers) { gemm<decltype(numbers)>(rows, {weights, kind}, M, K, N, end); });
}

void sfumato_layer_stats(const float* x, float* stats, int64_t rows, int64_t width, float eps) {
  layer_stats(x, stats, rows, width, eps);
}

void sfumato_group_sums(const float* x, const float* base, double* sums, int64_t B, int64_t pixels, int64_t C) {
  group_sums(x, base, sums, B, pixels, C);
}

void sfumato_group_affine(const double* sums, const float* base, const float* weight, const float* bias, float* scale,
                          float* shift, int64_t B, int64_t pixels, int64_t C, int64_t groups, float eps) {
  group_affine(sums, base, weight, bias, scale, shift, B, pixels, C, groups, eps);
}

void sfumato_attention(const float* q, const float* k, const float* v, float* out, int64_t B, int64_t heads, int64_t n,
                       int64_t m, int64_t width, int64_t pairs) {
  as_asked(pairs, [&](auto numbers) { attention<decltype(numbers)>(q, k, v, out, B, heads, n, m, width); });
}
}
