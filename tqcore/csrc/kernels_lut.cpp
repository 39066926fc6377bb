// A query's nibble tables: exact in double, then in seven bits with bounds on what these lose.
#include "lanes.h"

namespace tq::TQ_LEVEL {

constexpr int kPart = kWide / 2;  // doubles in a register of the level
constexpr int kParts = 16 / kPart;
typedef double vpart __attribute__((vector_size(8 * kPart)));
typedef float vpart_float __attribute__((vector_size(4 * kPart)));
typedef int32_t vpart_int __attribute__((vector_size(4 * kPart)));

constexpr int kMaxEntry = 127;      // two entries fit a byte
constexpr int kMaxWeight = 64;      // a factor of the dot-product instructions, which take it as signed
constexpr double kLikeRange = 1.5;
constexpr double kDeviations = 7;   // of an error that is neglected, with a probability below 5e-11 a row
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

// A fraction in [0, 1) for every nibble, without pattern.
static inline double offset_of(uint32_t slot) {
    uint32_t x = slot * 0x9E3779B9u + 0x7F4A7C15u;
    x = (x ^ x >> 16) * 0x85EBCA6Bu;
    x = (x ^ x >> 13) * 0xC2B2AE35u;
    return (double)(x >> 8) * 0x1p-24;
}

// Entries of one nibble in steps above the lowest, each shifted up by `offset` and rounded down.
static inline void quantize_nibble(const double* lut, double low, double inverse, double offset, uint8_t* out) {
    int32_t levels[16];
#pragma GCC unroll 8
    for (int p = 0; p < kParts; ++p) {
        const vpart level = lesser((load_part(lut + p * kPart) - low) * inverse + offset, vpart{} + (double)kMaxEntry);
        const vpart_int whole = __builtin_convertvector(level, vpart_int);
        memcpy(levels + p * kPart, &whole, sizeof(whole));
    }
    const vbyte bytes = low_bytes(load(levels));
    memcpy(out, &bytes, sizeof(bytes));
}

// Subtractive dither: a number that is shifted by a random offset, rounded down to a multiple of s, shifted back and half
// a step up is wrong by a number between -s/2 and s/2, uniform whatever the number was. Each nibble has an offset of its
// own, so the error of a row's sum is the sum of independent numbers of variance s^2 / 12, whatever its code, and exceeds
// z standard deviations with a probability of at most 2 exp(-z^2 / 2).
void quantize_lut(const double* lut, int n_slots, int head_slots, double* scratch, uint8_t* bytes, uint32_t* weights,
                  QueryBounds* bounds) {
    constexpr int kSlots = 64;
    double *low = scratch, *range = scratch + n_slots, widest = 0, magnitude = 0, base = 0, worst = 0, variance = 0;
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
        magnitude += -lowest > highest ? -lowest : highest;
    }
    const float delta = widest > 0 ? (float)(widest / ((kMaxEntry - 1) * (double)kMaxWeight) * (1 + 1e-6)) : 1.0f;
    bounds->head_base = bounds->head_variance = 0;
    for (int begin = 0, end; begin < n_slots; begin = end) {
        // Words of like range share a weight.
        double most = 0, least = widest;
        for (end = begin; end < n_slots && (end == begin || end != head_slots);) {
            int stop = end + kSlots < n_slots ? end + kSlots : n_slots;
            if (end < head_slots && head_slots < stop) stop = head_slots;
            double largest_range = 0;
            for (int j = end; j < stop; ++j) largest_range = range[j] > largest_range ? range[j] : largest_range;
            const double high = largest_range > most ? largest_range : most;
            const double low_range = largest_range < least ? largest_range : least;
            if (end > begin && (high > kLikeRange * low_range || stop - begin > 8 * kWindow)) break;
            most = high;
            least = low_range;
            end = stop;
        }
        const int weight = (int)(most / ((kMaxEntry - 1) * (double)delta)) + 1;
        const double step = weight * (double)delta, inverse = 1.0 / step;
        for (int j = begin; j < end; ++j) {
            const double offset = range[j] > 0 ? offset_of((uint32_t)j) : 0.0;
            quantize_nibble(lut + (ptrdiff_t)j * 16, low[j], inverse, offset,
                            bytes + (ptrdiff_t)(j / 8) * 128 + (j % 2) * 64 + (j % 8 / 2) * 16);
            base += low[j];
            if (range[j] <= 0) continue;
            base += (0.5 - offset) * step;
            worst += 0.5 * step;
            variance += step * step / 12;
        }
        for (int w = begin / 8; w < end / 8; ++w) weights[w] = (uint32_t)weight * 0x01010101u;
        if (end == head_slots) {
            bounds->head_base = (float)base;
            bounds->head_variance = (float)variance;
        }
    }
    const double slack = kRounding * (magnitude + (base < 0 ? -base : base));
    bounds->delta = delta;
    bounds->base = (float)base;
    const double likely = kDeviations * __builtin_sqrt(variance);
    bounds->above = bounds->below = (float)((likely < worst ? likely : worst) + slack);
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
