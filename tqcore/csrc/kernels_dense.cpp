// Dense float32 products for calibrated plans. Every output is one chain of fused multiply-adds in the order of the
// inner dimension, so that all levels, shapes and thread counts give the same bits.
#include "lanes.h"

namespace tq::TQ_LEVEL {

typedef float vwide __attribute__((vector_size(4 * kWide)));

static inline vwide fused(float a, vwide b, vwide c) {
#if defined(__AVX512F__)
    return (vwide)_mm512_fmadd_ps(_mm512_set1_ps(a), (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vwide)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)b, (__m256)c);
#else
    for (int l = 0; l < kWide; ++l) c[l] = __builtin_fmaf(a, b[l], c[l]);
    return c;
#endif
}

// R rows times C registers of columns of m [d][columns].
template <int R, int C>
static void block(const float* x, ptrdiff_t stride, int d, const float* m, ptrdiff_t columns, float* out) {
    vwide acc[R * C];
#pragma GCC unroll 24
    for (int i = 0; i < R * C; ++i) acc[i] = vwide{};
    for (int k = 0; k < d; ++k) {
        const float* row = m + k * columns;
        vwide b[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) memcpy(&b[c], row + c * kWide, sizeof(vwide));
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const float a = x[r * stride + k];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) acc[r * C + c] = fused(a, b[c], acc[r * C + c]);
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < R * C; ++i) memcpy(out + (i / C) * columns + i % C * kWide, &acc[i], sizeof(vwide));
}

// Sums of many rows and few registers of columns, or of one row and more of them, fit the level's registers.
constexpr int kColumns = kWide == 16 ? 4 : 2, kRowColumns = kWide == 16 ? 4 : 8;

template <int R, int C>
static int columns_of(const float* x, ptrdiff_t stride, int d, const float* m, int columns, float* out) {
    int c = 0;
    for (; c + C * kWide <= columns; c += C * kWide) block<R, C>(x, stride, d, m + c, columns, out + c);
    for (; c + kWide <= columns; c += kWide) block<R, 1>(x, stride, d, m + c, columns, out + c);
    return c;
}

void project(const float* x, ptrdiff_t stride, int n, int d, const float* m, int columns, float* out) {
    int i = 0, c = 0;
    for (; i + 6 <= n; i += 6) c = columns_of<6, kColumns>(x + i * stride, stride, d, m, columns, out + (ptrdiff_t)i * columns);
    for (; i < n; ++i) c = columns_of<1, kRowColumns>(x + i * stride, stride, d, m, columns, out + (ptrdiff_t)i * columns);
    for (; c < columns; ++c)
        for (i = 0; i < n; ++i) {
            float acc = 0.0f;
            for (int k = 0; k < d; ++k) acc = __builtin_fmaf(x[i * stride + k], m[(ptrdiff_t)k * columns + c], acc);
            out[(ptrdiff_t)i * columns + c] = acc;
        }
}

}  // namespace tq::TQ_LEVEL
