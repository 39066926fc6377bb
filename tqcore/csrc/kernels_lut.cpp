// A query's nibble tables: exact in double, then as weighted bytes with bounds on what the bytes lose.
#include "lanes.h"

namespace tq::TQ_LEVEL {

typedef double vdouble4 __attribute__((vector_size(32)));
typedef double vdouble2 __attribute__((vector_size(16)));
typedef uint8_t vbyte8 __attribute__((vector_size(8)));
typedef int32_t vint8 __attribute__((vector_size(32)));

constexpr int kMaxWeight = 64;      // 255 * 64 * 2 fits a signed 16-bit sum
constexpr int kMeanWeight = 8;      // small weights let many sums fit 16 bits, large ones waste less by being whole
constexpr double kRounding = 1e-6;  // float32 arithmetic of the scan, relative to the largest possible sum

static inline vdouble load8(const double* p) { vdouble v; memcpy(&v, p, 64); return v; }

static inline double smallest(vdouble v) {
    vdouble4 a, b;
    memcpy(&a, &v, 32);
    memcpy(&b, (const char*)&v + 32, 32);
    a = a < b ? a : b;
    vdouble2 c, d;
    memcpy(&c, &a, 16);
    memcpy(&d, (const char*)&a + 16, 16);
    c = c < d ? c : d;
    return c[0] < c[1] ? c[0] : c[1];
}

static inline double largest(vdouble v) { return -smallest(-v); }

void chain_lut(const ChainView* c, const float* q, double* lut) {
    memset(lut, 0, sizeof(double) * 16 * (size_t)c->n_nibbles);
    for (int i = 0; i < c->d; ++i) {
        const float* t = c->tables + (ptrdiff_t)(i % c->period) * c->memory * 16;
        const double x = q[i];
        int j = c->closes_at[i];
        for (int o = 0; o < c->memory; ++o, t += 16) {
            double* row = lut + (ptrdiff_t)j * 16;
            const vfloat values = load(t);
            const vdouble low = load8(row) + x * widen_low(values), high = load8(row + 8) + x * widen_high(values);
            memcpy(row, &low, 64);
            memcpy(row + 8, &high, 64);
            j = j == 0 ? c->n_nibbles - 1 : j - 1;
        }
    }
}

void quantize_lut(const double* lut, int n_slots, int head_slots, double* scratch, uint8_t* bytes, uint32_t* weights,
                  QueryBounds* bounds) {
    double *low = scratch, *range = scratch + n_slots, widest = 0, ranges = 0, magnitude = 0;
    double base = 0, head_base = 0, head_above = 0;
    int used = 0;
    for (int j = 0; j < n_slots; ++j) {
        const vdouble a = load8(lut + (ptrdiff_t)j * 16), b = load8(lut + (ptrdiff_t)j * 16 + 8);
        const double lowest = smallest(a < b ? a : b), highest = largest(a > b ? a : b);
        low[j] = lowest;
        range[j] = highest - lowest;
        widest = range[j] > widest ? range[j] : widest;
        ranges += range[j];
        used += range[j] > 0;
        magnitude += -lowest > highest ? -lowest : highest;
        base += lowest;
        if (j < head_slots) head_base = base;
    }
    const double least = widest / kMaxWeight, mean = used ? ranges / used / kMeanWeight : 0.0;
    const float delta = widest > 0 ? (float)((least > mean ? least : mean) / 255.0) : 1.0f;
    const double unit = 255.0 * (double)delta, nearest_even = 6755399441055744.0;  // 1.5 * 2^52
    double above = 0, below = 0;
    memset(weights, 0, sizeof(uint32_t) * (size_t)n_slots / 4);
    for (int j = 0; j < n_slots; ++j) {
        int weight = unit > 0 ? (int)(range[j] / unit) + 1 : 1;
        if (weight > kMaxWeight) weight = kMaxWeight;
        const double step = weight * (double)delta, inverse = step > 0 ? 1.0 / step : 0.0;
        uint8_t* out = bytes + (ptrdiff_t)(j / 8) * 128 + (j % 2) * 64 + (j % 8 / 2) * 16;
        weights[(j / 8) * 2 + j % 2] |= (uint32_t)weight << (8 * (j % 8 / 2));
        vdouble over = {}, under = {};
        for (int h = 0; h < 2; ++h) {
            const vdouble v = load8(lut + (ptrdiff_t)j * 16 + 8 * h) - low[j];
            vdouble level = (v * inverse + nearest_even) - nearest_even;
            level = level > 255.0 ? vdouble{} + 255.0 : level;
            const vdouble error = v - level * step;
            over = error > over ? error : over;
            under = -error > under ? -error : under;
            const vbyte8 b = __builtin_convertvector(__builtin_convertvector(level, vint8), vbyte8);
            memcpy(out + 8 * h, &b, 8);
        }
        above += largest(over);
        if (j < head_slots) head_above = above;
        below += largest(under);
    }
    const double slack = kRounding * (magnitude + (base < 0 ? -base : base));
    bounds->delta = delta;
    bounds->base = (float)base;
    bounds->above = (float)(above + slack);
    bounds->below = (float)(below + slack);
    bounds->head_base = (float)head_base;
    bounds->head_above = (float)(head_above + slack);
    bounds->threshold = -__builtin_inff();
}

// Nibble j into sum j % 8, then folded in halves.
double lut_score(const double* lut, const uint8_t* row, int n_nibbles) {
    double s[8] = {};
    int j = 0;
    for (; j + 8 <= n_nibbles; j += 8) {
        const double* t = lut + (ptrdiff_t)j * 16;
        for (int b = 0; b < 4; ++b) {
            const int byte = row[j / 2 + b];
            s[2 * b] += t[32 * b + (byte & 15)];
            s[2 * b + 1] += t[32 * b + 16 + (byte >> 4)];
        }
    }
    for (; j < n_nibbles; ++j) s[j % 8] += lut[(ptrdiff_t)j * 16 + (row[j / 2] >> (4 * (j % 2)) & 15)];
    for (int h = 4; h >= 1; h /= 2)
        for (int l = 0; l < h; ++l) s[l] += s[l + h];
    return s[0];
}

}  // namespace tq::TQ_LEVEL
