// What Python calls (sfumato/engines/native_kernels.py declares the same). Pointers are to contiguous float32.
#include "attention.hpp"
#include "norms.hpp"
#include "winograd.hpp"

extern "C" {

int sfumato_abi() { return 1; }

void sfumato_conv3x3(const float* x, const float* w, const float* bias, const float* scale, const float* shift,
                     const float* channel, const float* residual, float* out, int64_t B, int64_t H, int64_t W,
                     int64_t C, int64_t N, int64_t enlarged, int64_t tile) {
  const Conv conv{x, w, bias, scale, shift, channel, residual, out, B, H, W, C, N, enlarged != 0};
  if (tile == 4) Winograd<F4>(conv).run();
  else Winograd<F2>(conv).run();
}

void sfumato_linear(const float* x, const float* w, const float* bias, const float* residual, float* out, int64_t M,
                    int64_t K, int64_t N, int64_t gated, const float* layer_weight, const float* layer_bias,
                    const float* stats, const float* scale, const float* shift, int64_t pixels) {
  const Rows rows{x, K, layer_weight, layer_bias, stats, scale, shift, pixels};
  const int64_t half = gated ? N / 2 : 0;
  gemm(rows, w, M, K, N, Finish{out, gated ? half : N, bias, residual, gated != 0, half});
}

void sfumato_layer_stats(const float* x, float* stats, int64_t rows, int64_t width, float eps) {
  layer_stats(x, stats, rows, width, eps);
}

void sfumato_group_stats(const float* x, const float* weight, const float* bias, float* scale, float* shift, int64_t B,
                         int64_t pixels, int64_t C, int64_t groups, float eps) {
  group_stats(x, weight, bias, scale, shift, B, pixels, C, groups, eps);
}

void sfumato_attention(const float* q, const float* k, const float* v, float* out, int64_t B, int64_t heads, int64_t n,
                       int64_t m, int64_t width) {
  attention(q, k, v, out, B, heads, n, m, width);
}
}
