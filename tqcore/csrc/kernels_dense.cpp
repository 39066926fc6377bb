// Dense float32 products for calibrated plans. Every output is one chain of fused multiply-adds in the order of the
// inner dimension, so that all levels, shapes and thread counts give the same bits.
#include "lanes.h"

namespace tq::TQ_LEVEL {

static inline vfloat fused(float a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_fmadd_ps(_mm512_set1_ps(a), (__m512)b, (__m512)c);
#else
    for (int l = 0; l < kLanes; ++l) c[l] = __builtin_fmaf(a, b[l], c[l]);
    return c;
#endif
}

// R rows times C * 16 columns of m [d][columns].
template <int R, int C>
static void block(const float* x, ptrdiff_t stride, int d, const float* m, ptrdiff_t columns, float* out) {
    vfloat acc[R * C];
#pragma GCC unroll 24
    for (int i = 0; i < R * C; ++i) acc[i] = vfloat{};
    for (int k = 0; k < d; ++k) {
        const float* row = m + k * columns;
        vfloat b[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) b[c] = load(row + c * kLanes);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const float a = x[r * stride + k];
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) acc[r * C + c] = fused(a, b[c], acc[r * C + c]);
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < R * C; ++i) store(out + (i / C) * columns + i % C * kLanes, acc[i]);
}

template <int C>
static void rows_of(int n, const float* x, ptrdiff_t stride, int d, const float* m, ptrdiff_t columns, float* out) {
    for (; n >= 6; n -= 6, x += 6 * stride, out += 6 * columns) block<6, C>(x, stride, d, m, columns, out);
    for (; n >= 1; --n, x += stride, out += columns) block<1, C>(x, stride, d, m, columns, out);
}

void project(const float* x, ptrdiff_t stride, int n, int d, const float* m, int columns, float* out) {
    int c = 0;
    for (; c + 4 * kLanes <= columns; c += 4 * kLanes) rows_of<4>(n, x, stride, d, m + c, columns, out + c);
    for (; c + kLanes <= columns; c += kLanes) rows_of<1>(n, x, stride, d, m + c, columns, out + c);
    for (; c < columns; ++c)
        for (int i = 0; i < n; ++i) {
            float acc = 0.0f;
            for (int k = 0; k < d; ++k) acc = __builtin_fmaf(x[i * stride + k], m[(ptrdiff_t)k * columns + c], acc);
            out[(ptrdiff_t)i * columns + c] = acc;
        }
}

}  // namespace tq::TQ_LEVEL
