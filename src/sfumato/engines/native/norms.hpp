// Statistics of LayerNorm and GroupNorm; what reads the maps next applies them.
#pragma once
#include "vectors.hpp"

// Mean and 1/σ of each row, in two passes over what the first cache holds.
static void layer_stats(const float* x, float* stats, int64_t rows, int64_t width, float eps) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = x + i * width;
    vec s{};
    for (int64_t j = 0; j < width; j += VL) s += load_some(row + j, (int)least(VL, width - j));
    const float mean = sum(s) / width;
    vec q{};
    int64_t j = 0;
    for (; j + VL <= width; j += VL) {
      const vec d = load(row + j) - mean;
      q += d * d;
    }
    float tail = 0;
    for (; j < width; ++j) tail += (row[j] - mean) * (row[j] - mean);
    stats[2 * i] = mean;
    stats[2 * i + 1] = 1.0f / std::sqrt((sum(q) + tail) / width + eps);
  }
}

// Adds to `sums` (B, C, 2) the sums of x (B, pixels, C) and of its squares, shifted by a pixel of each image, `base`
// (B, C), so that large means cost no digits. They are taken in float over 64 pixels, in double over those.
static void group_sums(const float* x, const float* base_pixels, double* sums, int64_t B, int64_t pixels, int64_t C) {
  static thread_local Scratch room;
  const int64_t T = threads(), run = 64, runs = (pixels + run - 1) / run;
  double* all = reinterpret_cast<double*>(room.get(2 * T * 2 * C * B));
  std::memset(all, 0, sizeof(double) * T * 2 * C * B);
#pragma omp parallel
  {
    double* own = all + thread() * 2 * C * B;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < runs * B; ++r) {
      const int64_t b = r / runs, p0 = r % runs * run, p1 = least(pixels, p0 + run);
      const float* image = x + b * pixels * C;
      for (int64_t c = 0; c < C; c += VL) {
        const int n = (int)least(VL, C - c);
        const vec base = load_some(base_pixels + b * C + c, n);
        vec s{}, q{};
        for (int64_t p = p0; p < p1; ++p) {
          const vec d = load_some(image + p * C + c, n) - base;
          s += d;
          q += d * d;
        }
        for (int i = 0; i < n; ++i) {
          own[(b * C + c + i) * 2] += s[i];
          own[(b * C + c + i) * 2 + 1] += q[i];
        }
      }
    }
  }
  for (int64_t i = 0; i < 2 * C * B; ++i)
    for (int64_t t = 0; t < T; ++t) sums[i] += all[t * 2 * C * B + i];
}

// GroupNorm of maps with these sums, as a scale and a shift a channel, (B, C) each.
static void group_affine(const double* sums, const float* base_pixels, const float* weight, const float* bias,
                         float* scale, float* shift, int64_t B, int64_t pixels, int64_t C, int64_t groups, float eps) {
  const int64_t width = C / groups;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t g = 0; g < groups; ++g) {
      double mean = 0, square = 0;
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        const double s = sums[(b * C + c) * 2], q = sums[(b * C + c) * 2 + 1], base = base_pixels[b * C + c];
        mean += s + base * pixels;
        square += q + 2 * base * s + base * base * pixels;
      }
      mean /= (double)(width * pixels);
      const double variance = square / (double)(width * pixels) - mean * mean;
      const double inverse = 1.0 / std::sqrt((variance > 0 ? variance : 0) + eps);
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        const double a = inverse * weight[c];
        scale[b * C + c] = (float)a;
        shift[b * C + c] = (float)(bias[c] - mean * a);
      }
    }
}
