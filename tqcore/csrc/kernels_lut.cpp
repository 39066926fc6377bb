// A query's nibble tables: exact in double, then as weighted bytes with bounds on what the bytes lose.
#include "lanes.h"

namespace tq::TQ_LEVEL {

constexpr int kPart = kWide / 2;  // doubles in a register of the level
constexpr int kParts = 16 / kPart;
typedef double vpart __attribute__((vector_size(8 * kPart)));
typedef float vpart_float __attribute__((vector_size(4 * kPart)));
typedef int32_t vpart_int __attribute__((vector_size(4 * kPart)));

constexpr int kMaxWeight = 64;      // 255 * 64 * 2 fits a signed 16-bit sum
constexpr int kMeanWeight = 8;      // small weights let many sums fit 16 bits, large ones waste less by being whole
constexpr double kRounding = 1e-6;  // float32 arithmetic of the scan, relative to the largest possible sum

static inline vpart load_part(const double* p) { vpart v; memcpy(&v, p, sizeof(v)); return v; }
static inline vpart lesser(vpart a, vpart b) { return a < b ? a : b; }
static inline vpart greater(vpart a, vpart b) { return a > b ? a : b; }

static inline double smallest(vpart v) {
    double s[kPart];
    memcpy(s, &v, sizeof(v));
    for (int h = kPart / 2; h >= 1; h /= 2)
        for (int l = 0; l < h; ++l) s[l] = s[l] < s[l + h] ? s[l] : s[l + h];
    return s[0];
}

static inline double largest(vpart v) { return -smallest(-v); }

void chain_lut(const ChainView* c, const float* q, double* lut) {
    memset(lut, 0, sizeof(double) * 16 * (size_t)c->n_nibbles);
    for (int i = 0; i < c->d; ++i) {
        const float* t = c->tables + (ptrdiff_t)(i % c->period) * c->memory * 16;
        const double x = q[i];
        int j = c->closes_at[i];
        for (int o = 0; o < c->memory; ++o, t += 16) {
            double* row = lut + (ptrdiff_t)j * 16;
#pragma GCC unroll 8
            for (int p = 0; p < 16; p += kPart) {
                vpart_float values;
                memcpy(&values, t + p, sizeof(values));
                const vpart sum = load_part(row + p) + x * __builtin_convertvector(values, vpart);
                memcpy(row + p, &sum, sizeof(sum));
            }
            j = j == 0 ? c->n_nibbles - 1 : j - 1;
        }
    }
}

// Entries of one nibble as steps above the lowest, at most 255, and the largest errors of both signs.
static inline void quantize_nibble(const double* lut, double low, double step, uint8_t* out, double* above,
                                   double* below) {
    const double inverse = step > 0 ? 1.0 / step : 0.0, nearest_even = 6755399441055744.0;  // 1.5 * 2^52
    vpart over = {}, under = {};
    int32_t levels[16];
#pragma GCC unroll 8
    for (int p = 0; p < kParts; ++p) {
        const vpart v = load_part(lut + p * kPart) - low;
        const vpart level = lesser((v * inverse + nearest_even) - nearest_even, vpart{} + 255.0), error = v - level * step;
        over = greater(error, over);
        under = greater(-error, under);
        const vpart_int whole = __builtin_convertvector(level, vpart_int);
        memcpy(levels + p * kPart, &whole, sizeof(whole));
    }
    const vbyte bytes = low_bytes(load(levels));
    memcpy(out, &bytes, sizeof(bytes));
    *above += largest(over);
    *below += largest(under);
}

void quantize_lut(const double* lut, int n_slots, int head_slots, double* scratch, uint8_t* bytes, uint32_t* weights,
                  QueryBounds* bounds) {
    double *low = scratch, *range = scratch + n_slots, widest = 0, ranges = 0, magnitude = 0;
    double base = 0, head_base = 0, head_above = 0;
    int used = 0;
    for (int j = 0; j < n_slots; ++j) {
        const double* row = lut + (ptrdiff_t)j * 16;
        vpart least = load_part(row), most = least;
#pragma GCC unroll 8
        for (int p = 1; p < kParts; ++p) {
            const vpart v = load_part(row + p * kPart);
            least = lesser(v, least);
            most = greater(v, most);
        }
        const double lowest = smallest(least), highest = largest(most);
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
    const double unit = 255.0 * (double)delta;
    double above = 0, below = 0;
    memset(weights, 0, sizeof(uint32_t) * (size_t)n_slots / 4);
    for (int j = 0; j < n_slots; ++j) {
        int weight = unit > 0 ? (int)(range[j] / unit) + 1 : 1;
        if (weight > kMaxWeight) weight = kMaxWeight;
        weights[(j / 8) * 2 + j % 2] |= (uint32_t)weight << (8 * (j % 8 / 2));
        uint8_t* out = bytes + (ptrdiff_t)(j / 8) * 128 + (j % 2) * 64 + (j % 8 / 2) * 16;
        quantize_nibble(lut + (ptrdiff_t)j * 16, low[j], weight * (double)delta, out, &above, &below);
        if (j < head_slots) head_above = above;
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
