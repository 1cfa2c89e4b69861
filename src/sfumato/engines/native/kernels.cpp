// What Python calls (sfumato/engines/native_kernels.py declares the same). Pointers are to contiguous float32, those to
// weights to numbers of the kind that stands beside them.
#include <type_traits>

#include "attention.hpp"
#include "norms.hpp"
#include "winograd.hpp"

// f(weights), by what they are stored as: the order of native_kernels.py's `_KINDS`.
template <class F>
static void as_stored(const void* w, int64_t kind, F f) {
  if (kind == 0) f(static_cast<const float*>(w));
  else if (kind == 1) f(static_cast<const half*>(w));
  else f(static_cast<const brain*>(w));
}

extern "C" {

int sfumato_abi() { return 2; }

// Rows [first, first + count) of the result of the whole input that is given.
void sfumato_conv3x3(const float* x, const void* weights, int64_t kind, const float* bias, const float* scale,
                     const float* shift, const float* channel, const float* residual, float* out, int64_t B, int64_t H,
                     int64_t width, int64_t C, int64_t N, int64_t enlarged, int64_t first, int64_t count, int64_t tile) {
  as_stored(weights, kind, [&](auto* w) {
    using W = std::remove_cv_t<std::remove_pointer_t<decltype(w)>>;
    const Conv<W> conv{x, w, bias, scale, shift, channel, residual, out, B, H, width, C, N, enlarged != 0, first, count};
    if (tile == 4) Winograd<F4, W>(conv).run();
    else Winograd<F2, W>(conv).run();
  });
}

void sfumato_linear(const float* x, const void* weights, int64_t kind, const float* bias, const float* residual,
                    float* out, int64_t M, int64_t K, int64_t N, int64_t gated, const float* layer_weight,
                    const float* layer_bias, const float* stats, const float* scale, const float* shift,
                    int64_t pixels) {
  const Rows rows{x, K, layer_weight, layer_bias, stats, scale, shift, pixels};
  const int64_t half_width = gated ? N / 2 : 0;
  const Finish end{out, gated ? half_width : N, bias, residual, gated != 0, half_width};
  as_stored(weights, kind, [&](auto* w) { gemm(rows, w, M, K, N, end); });
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
                       int64_t m, int64_t width) {
  attention(q, k, v, out, B, heads, n, m, width);
}
}
