// Sixteen rows at a time, coordinate by coordinate: norms, the Hadamard rotation, dot products.
#include "lanes.h"

namespace tq::TQ_LEVEL {

static void transpose_in(const float* x, ptrdiff_t stride, int n, int d, float* y) {
    for (int i = 0; i < d; ++i) {
        float* out = y + (ptrdiff_t)i * kLanes;
        for (int l = 0; l < n; ++l) out[l] = x[l * stride + i];
        for (int l = n; l < kLanes; ++l) out[l] = 0.0f;
    }
}

// Eight partial sums per lane, coordinate i into sum i % 8, then folded in halves.
struct Sums {
    vdouble low[8], high[8];
    void fold(double* out) {
        for (int h = 4; h >= 1; h /= 2)
            for (int l = 0; l < h; ++l) { low[l] += low[l + h]; high[l] += high[l + h]; }
        memcpy(out, &low[0], 64);
        memcpy(out + 8, &high[0], 64);
    }
};

void load_tile(const float* x, ptrdiff_t stride, int n, int d, float* y, double* norms) {
    transpose_in(x, stride, n, d, y);
    Sums sums = {};
    for (int i = 0; i < d; ++i) {
        const vfloat v = load(y + (ptrdiff_t)i * kLanes);
        const vdouble a = widen_low(v), b = widen_high(v);
        sums.low[i % 8] += a * a;
        sums.high[i % 8] += b * b;
    }
    sums.fold(norms);
    vdouble g[2];
    for (int l = 0; l < kLanes; ++l) {
        norms[l] = __builtin_sqrt(norms[l]);
        g[l / 8][l % 8] = norms[l] > 0.0 ? __builtin_sqrt((double)d) / norms[l] : 0.0;
    }
    for (int i = 0; i < d; ++i) {
        const vfloat v = load(y + (ptrdiff_t)i * kLanes);
        const vfloat8 a = __builtin_convertvector(widen_low(v) * g[0], vfloat8);
        const vfloat8 b = __builtin_convertvector(widen_high(v) * g[1], vfloat8);
        memcpy(y + (ptrdiff_t)i * kLanes, &a, 32);
        memcpy(y + (ptrdiff_t)i * kLanes + 8, &b, 32);
    }
}

void load_rotated(const float* x, ptrdiff_t stride, int n, int d, float* y) { transpose_in(x, stride, n, d, y); }

void store_tile(const float* y, int n, int d, float* x, ptrdiff_t stride) {
    for (int l = 0; l < n; ++l)
        for (int i = 0; i < d; ++i) x[l * stride + i] = y[(ptrdiff_t)i * kLanes + l];
}

// Two rounds of butterflies, of strides s and 2 s, on four registers; the last ones are scaled.
template <bool kLast>
static inline void two_rounds(float* at, ptrdiff_t s, float c) {
    const auto put = [c](float* to, wfloat v) { store_wide(to, kLast ? v * c : v); };
    const wfloat a = load_wide(at), b = load_wide(at + s);
    const wfloat e = load_wide(at + 2 * s), f = load_wide(at + 3 * s);
    const wfloat a1 = a + b, b1 = a - b, e1 = e + f, f1 = e - f;
    put(at, a1 + e1);
    put(at + s, b1 + f1);
    put(at + 2 * s, a1 - e1);
    put(at + 3 * s, b1 - f1);
}

static void flip(float* y, const float* signs, int d) {
    for (int i = 0; i < d; ++i)
        for (float *at = y + (ptrdiff_t)i * kLanes, *end = at + kLanes; at < end; at += kWide)
            store_wide(at, load_wide(at) * signs[i]);
}

// Walsh-Hadamard transform of p coordinates times c, strides 1, 2, 4 ..., two strides a pass; of the coordinates times
// `signs`, if given.
static void hadamard(float* y, int p, float c, const float* signs) {
    if (signs) flip(y, signs, p);
    int h = 1;
    for (; h * 2 < p; h *= 4) {
        const ptrdiff_t s = (ptrdiff_t)h * kLanes;
        for (int i = 0; i < p; i += 4 * h)
            for (float *at = y + (ptrdiff_t)i * kLanes, *end = at + s; at < end; at += kWide) two_rounds<false>(at, s, c);
    }
    for (; h < p; h *= 2) {
        const ptrdiff_t s = (ptrdiff_t)h * kLanes;
        for (int i = 0; i < p; i += 2 * h)
            for (float *at = y + (ptrdiff_t)i * kLanes, *end = at + s; at < end; at += kWide) {
                const wfloat a = load_wide(at), b = load_wide(at + s);
                store_wide(at, a + b);
                store_wide(at + s, a - b);
            }
    }
    for (float *at = y, *end = y + (ptrdiff_t)p * kLanes; at < end; at += kWide) store_wide(at, load_wide(at) * c);
}

static void fold_halves(float* y, int d) {
    const float c = 0.70710678118654752440f;
    const ptrdiff_t h = (ptrdiff_t)(d / 2) * kLanes;
    for (ptrdiff_t k = 0; k < h; k += kWide) {
        const wfloat a = load_wide(y + k), b = load_wide(y + h + k);
        store_wide(y + k, (a + b) * c);
        store_wide(y + h + k, (a - b) * c);
    }
}

static void flip_row(float* y, const float* signs, int d) {
    for (int i = 0; i < d; ++i) y[i] *= signs[i];
}

// Fewer coordinates than fill a register.
static void hadamard_few(float* y, int p, float c) {
    for (int h = 1; h < p; h *= 2)
        for (int i = 0; i < p; i += 2 * h)
            for (int k = i; k < i + h; ++k) {
                const float a = y[k], b = y[k + h];
                y[k] = a + b;
                y[k + h] = a - b;
            }
    for (int i = 0; i < p; ++i) y[i] *= c;
}

template <bool kLast>
static void two_rounds_row(float* y, int p, int h, float c) {
    for (int i = 0; i < p; i += 4 * h)
        for (float *at = y + i, *end = at + h; at < end; at += kWide) two_rounds<kLast>(at, h, c);
}

// One row, coordinates in the lanes: the same butterflies, so the same bits.
static void hadamard_row(float* y, int p, float c, const float* signs) {
    if (p <= kWide) {
        if (signs) flip_row(y, signs, p);
        return hadamard_few(y, p, c);
    }
    wint lane;
    for (int l = 0; l < kWide; ++l) lane[l] = l;
    for (int i = 0; i < p; i += kWide) {
        wfloat v = load_wide(y + i);
        if (signs) v *= load_wide(signs + i);
#pragma GCC unroll 4
        for (int s = 1; s < kWide; s *= 2) {
            const wfloat sign = __builtin_convertvector(((lane & s) == 0) * -2 - 1, wfloat);
            wfloat other;
#if defined(__clang__)
            for (int l = 0; l < kWide; ++l) other[l] = v[l ^ s];
#else
            other = __builtin_shuffle(v, lane ^ s);
#endif
            v = other + v * sign;
        }
        store_wide(y + i, v);
    }
    int h = kWide;
    for (; 4 * h < p; h *= 4) two_rounds_row<false>(y, p, h, c);
    if (4 * h == p) return two_rounds_row<true>(y, p, h, c);
    for (float *at = y, *end = y + h; at < end; at += kWide) {
        const wfloat a = load_wide(at), b = load_wide(at + h);
        store_wide(at, (a + b) * c);
        store_wide(at + h, (a - b) * c);
    }
}

static void fold_row(float* y, int d) {
    const float c = 0.70710678118654752440f;
    const int h = d / 2;
    for (int i = 0; i < h; ++i) {
        const float a = y[i], b = y[h + i];
        y[i] = (a + b) * c;
        y[h + i] = (a - b) * c;
    }
}

// The steps of the rotation for a tile (kLanes floats a coordinate) or one row (one float a coordinate).
template <int kWidth>
static void rotate(const RotationView* r, float* y, int inverse) {
    const auto hadamard_of = kWidth == 1 ? hadamard_row : hadamard;
    const auto flip_of = kWidth == 1 ? flip_row : flip;
    const auto fold_of = kWidth == 1 ? fold_row : fold_halves;
    const int d = r->d;
    int p = 1;
    while (2 * p <= d) p *= 2;
    const float c = (float)(1.0 / __builtin_sqrt((double)p));
    float* tail = y + (ptrdiff_t)(d - p) * kWidth;
    for (int step = 0; step < r->rounds; ++step) {
        const int round = inverse ? r->rounds - 1 - step : step;
        const float* s0 = r->signs + (ptrdiff_t)round * 2 * d;
        if (!inverse) {
            flip_of(y + (ptrdiff_t)p * kWidth, s0 + p, d - p);
            hadamard_of(y, p, c, s0);
            if (d > p) {
                flip_of(y, s0 + d, d - p);
                hadamard_of(tail, p, c, s0 + d + (d - p));
                if (round < r->rounds - 1) fold_of(y, d);
            }
        } else {
            if (d > p) {
                if (round < r->rounds - 1) fold_of(y, d);
                hadamard_of(tail, p, c, nullptr);
                flip_of(y, s0 + d, d);
            }
            hadamard_of(y, p, c, nullptr);
            flip_of(y, s0, d);
        }
    }
}

void rotate_tile(const RotationView* r, float* y, int inverse) { rotate<kLanes>(r, y, inverse); }
void rotate_row(const RotationView* r, float* y, int inverse) { rotate<1>(r, y, inverse); }

void dot_tile(const float* y, const float* yhat, int d, double* dots) {
    Sums sums = {};
    for (int i = 0; i < d; ++i) {
        const vfloat a = load(y + (ptrdiff_t)i * kLanes), b = load(yhat + (ptrdiff_t)i * kLanes);
        sums.low[i % 8] += widen_low(a) * widen_low(b);
        sums.high[i % 8] += widen_high(a) * widen_high(b);
    }
    sums.fold(dots);
}

double dot(const float* q, const float* yhat, int d) {
    constexpr int kDoubles = kWide / 2;  // of a register
    wdouble sum[8 / kDoubles] = {};
    int i = 0;
    for (; i + 8 <= d; i += 8)
#pragma GCC unroll 4
        for (int r = 0; r < 8 / kDoubles; ++r) sum[r] += widen(q + i + r * kDoubles) * widen(yhat + i + r * kDoubles);
    double s[8];
    memcpy(s, sum, 64);
    for (int l = 0; i + l < d; ++l) s[l] += (double)q[i + l] * (double)yhat[i + l];
    for (int h = 4; h >= 1; h /= 2)
        for (int l = 0; l < h; ++l) s[l] += s[l + h];
    return s[0];
}

}  // namespace tq::TQ_LEVEL
