// A query's nibble tables: exact in double, then in seven bits with bounds on what these lose.
#include "lanes.h"

namespace tq::TQ_LEVEL {

constexpr int kPart = kWide / 2;  // doubles in a register of the level
constexpr int kParts = 16 / kPart;
typedef int32_t wint_half __attribute__((vector_size(4 * kPart)));

constexpr int kMaxEntry = 127;      // two entries fit a byte
constexpr int kMaxWeight = 64;      // a factor of the dot-product instructions, which take it as signed
constexpr double kLikeRange = 1.5;
constexpr double kDeviations = 7;   // of an error that is neglected, with a probability below 5e-11 a row
constexpr double kRounding = 1e-6;  // float32 arithmetic of the scan, relative to the largest possible sum

static inline wdouble lesser(wdouble a, wdouble b) {
#if defined(__AVX512F__)
    return (wdouble)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
    return (wdouble)_mm256_min_pd((__m256d)a, (__m256d)b);
#else
    return a < b ? a : b;
#endif
}
static inline wdouble greater(wdouble a, wdouble b) {
#if defined(__AVX512F__)
    return (wdouble)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
    return (wdouble)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
    return a > b ? a : b;
#endif
}

// Lane s of the result: the least (or greatest) lane of v[s].
template <bool kLeast>
static inline wdouble extremes(const wdouble* v) {
    const auto pick = [](wdouble a, wdouble b) { return kLeast ? lesser(a, b) : greater(a, b); };
#if defined(__AVX512F__)
    wdouble four[4], two[2];
    for (int i = 0; i < 4; ++i)
        four[i] = pick(__builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14),
                       __builtin_shufflevector(v[2 * i], v[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15));
    for (int i = 0; i < 2; ++i)
        two[i] = pick(__builtin_shufflevector(four[2 * i], four[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13),
                      __builtin_shufflevector(four[2 * i], four[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15));
    return pick(__builtin_shufflevector(two[0], two[1], 0, 1, 2, 3, 8, 9, 10, 11),
                __builtin_shufflevector(two[0], two[1], 4, 5, 6, 7, 12, 13, 14, 15));
#elif defined(__AVX2__)
    wdouble two[2];
    for (int i = 0; i < 2; ++i)
        two[i] = pick(__builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 4, 2, 6),
                      __builtin_shufflevector(v[2 * i], v[2 * i + 1], 1, 5, 3, 7));
    return pick(__builtin_shufflevector(two[0], two[1], 0, 1, 4, 5), __builtin_shufflevector(two[0], two[1], 2, 3, 6, 7));
#else
    return pick(__builtin_shufflevector(v[0], v[1], 0, 2), __builtin_shufflevector(v[0], v[1], 1, 3));
#endif
}

// Of fewer nibbles than a coordinate depends on: some of them take part several times.
static void chain_lut_short(const ChainView* c, const float* q, double* lut) {
    memset(lut, 0, sizeof(double) * 16 * (size_t)c->n_nibbles);
    for (int i = 0; i < c->d; ++i) {
        const float* t = c->tables + (ptrdiff_t)(i % c->period) * c->memory * 16;
        int j = c->closes_at[i];
        for (int o = 0; o < c->memory; ++o, t += 16) {
            for (int v = 0; v < 16; ++v) lut[(ptrdiff_t)j * 16 + v] += (double)q[i] * (double)t[v];
            j = j == 0 ? c->n_nibbles - 1 : j - 1;
        }
    }
}

// Every entry is a sum in order of the coordinates. Nibbles lie in registers while coordinates still reach them.
template <int kMemory>
static void chain_lut_of(const ChainView* c, const float* q, double* lut) {
    const int n = c->n_nibbles;
    wdouble rows[kMemory][kParts] = {};  // of nibbles j, j - 1, ...
    int i = 0, phase = 0;
    for (int j = 0; j < n; ++j) {
        // The last nibbles begin with what the first coordinates have left there.
        if (kMemory > 1 && j > n - kMemory)
#pragma GCC unroll 8
            for (int p = 0; p < kParts; ++p) rows[0][p] = load_wide(lut + (ptrdiff_t)j * 16 + p * kPart);
        for (const int end = c->first_closing[j + 1]; i < end; ++i) {
            const float* t = c->tables + (ptrdiff_t)phase * kMemory * 16;
            const wdouble x = wdouble{} + (double)q[i];
#pragma GCC unroll 4
            for (int o = 0; o < kMemory; ++o)
#pragma GCC unroll 8
                for (int p = 0; p < kParts; ++p) rows[o][p] += x * widen(t + o * 16 + p * kPart);
            if (++phase == c->period) phase = 0;
        }
        double* done = lut + (ptrdiff_t)(j < kMemory - 1 ? n + j - (kMemory - 1) : j - (kMemory - 1)) * 16;
#pragma GCC unroll 8
        for (int p = 0; p < kParts; ++p) {
            store_wide(done + p * kPart, rows[kMemory - 1][p]);
#pragma GCC unroll 4
            for (int o = kMemory - 1; o > 0; --o) rows[o][p] = rows[o - 1][p];
            rows[0][p] = wdouble{};
        }
    }
#pragma GCC unroll 4
    for (int o = 1; o < kMemory; ++o)
#pragma GCC unroll 8
        for (int p = 0; p < kParts; ++p) store_wide(lut + (ptrdiff_t)(n - o) * 16 + p * kPart, rows[o][p]);
}

void chain_lut(const ChainView* c, const float* q, double* lut) {
    if (c->n_nibbles < c->memory) return chain_lut_short(c, q, lut);
    (c->memory == 1 ? chain_lut_of<1> : c->memory == 2 ? chain_lut_of<2> : chain_lut_of<3>)(c, q, lut);
}

constexpr double kNearestEven = 6755399441055744.0;  // 1.5 * 2^52: a small number added to it is rounded to an integer

// Bytes of integers from 0 to 255 that kNearestEven was added to.
static inline vbyte bytes_of(const wdouble* v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i low = (__m256i)_mm256_shuffle_ps((__m256)v[0], (__m256)v[1], 0x88);
    const __m256i high = (__m256i)_mm256_shuffle_ps((__m256)v[2], (__m256)v[3], 0x88);
    const __m256i words = _mm256_packus_epi32(low, high), bytes = _mm256_packus_epi16(words, words);
    return (vbyte)_mm_unpacklo_epi16(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
#else
    int32_t levels[16];
    for (int p = 0; p < kParts; ++p) {
        const wint_half whole = __builtin_convertvector(v[p] - kNearestEven, wint_half);
        store_wide(levels + p * kPart, whole);
    }
    return low_bytes(load(levels));
#endif
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
    wdouble levels[kParts];
#pragma GCC unroll 8
    for (int p = 0; p < kParts; ++p)
        levels[p] = lesser(((load_wide(lut + p * kPart) - low) * inverse + (offset - 0.5)) + kNearestEven,
                           wdouble{} + (kNearestEven + kMaxEntry));
    const vbyte bytes = bytes_of(levels);
    store_wide(out, bytes);
}

// Subtractive dither: a number that is shifted by a random offset, rounded down to a multiple of s, shifted back and half
// a step up is wrong by a number between -s/2 and s/2, uniform whatever the number was. Each nibble has an offset of its
// own, so the error of a row's sum is the sum of independent numbers of variance s^2 / 12, whatever its code, and exceeds
// z standard deviations with a probability of at most 2 exp(-z^2 / 2).
void quantize_lut(const double* lut, int n_slots, int head_slots, double* scratch, uint8_t* bytes, uint32_t* weights,
                  QueryBounds* bounds) {
    constexpr int kSlots = 64;
    double *low = scratch, *range = scratch + n_slots, base = 0, worst = 0, variance = 0;
    wdouble widths[8 / kPart] = {}, magnitudes[8 / kPart] = {};  // by j % 8, whatever the level
    for (int j = 0; j < n_slots; j += kPart) {
        wdouble least[kPart], most[kPart];
        for (int s = 0; s < kPart; ++s) {
            const double* row = lut + (ptrdiff_t)(j + s) * 16;
            least[s] = most[s] = load_wide(row);
#pragma GCC unroll 8
            for (int p = 1; p < kParts; ++p) {
                const wdouble v = load_wide(row + p * kPart);
                least[s] = lesser(v, least[s]);
                most[s] = greater(v, most[s]);
            }
        }
        const wdouble lowest = extremes<true>(least), highest = extremes<false>(most), width = highest - lowest;
        store_wide(low + j, lowest);
        store_wide(range + j, width);
        const int part = j % 8 / kPart;
        widths[part] = greater(width, widths[part]);
        magnitudes[part] += greater(-lowest, highest);
    }
    double widest = 0, magnitude = 0;
    for (int i = 0; i < 8; ++i) {
        const double width = widths[i / kPart][i % kPart];
        widest = width > widest ? width : widest;
        magnitude += magnitudes[i / kPart][i % kPart];
    }
    const float delta = widest > 0 ? (float)(widest / ((kMaxEntry - 1) * (double)kMaxWeight) * (1 + 1e-6)) : 1.0f;
    bounds->head_base = bounds->head_variance = 0;
    for (int begin = 0, end; begin < n_slots; begin = end) {
        // Words of like range share a weight.
        double most = 0, least = widest;
        for (end = begin; end < n_slots && (end == begin || end != head_slots);) {
            int stop = end + kSlots < n_slots ? end + kSlots : n_slots;
            if (end < head_slots && head_slots < stop) stop = head_slots;
            wdouble ranges = {};
            for (int j = end; j < stop; j += kPart) ranges = greater(load_wide(range + j), ranges);
            double largest_range = 0;
            for (int i = 0; i < kPart; ++i) largest_range = ranges[i] > largest_range ? ranges[i] : largest_range;
            const double high = largest_range > most ? largest_range : most;
            const double low_range = largest_range < least ? largest_range : least;
            if (end > begin && (high > kLikeRange * low_range || stop - begin > 8 * kWindow)) break;
            most = high;
            least = low_range;
            end = stop;
        }
        const int weight = (int)(most / ((kMaxEntry - 1) * (double)delta)) + 1;
        const double step = weight * (double)delta, inverse = 1.0 / step;
        double lows[8] = {}, shifts[8] = {};
        int uncertain = 0;  // nibbles whose entries differ
        for (int word = begin / 8; word < end / 8; ++word)
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                const int j = word * 8 + i;
                const bool differ = range[j] > 0;
                const double offset = differ ? offset_of((uint32_t)j) : 0.0;
                quantize_nibble(lut + (ptrdiff_t)j * 16, low[j], inverse, offset,
                                bytes + (ptrdiff_t)word * 128 + (i % 2) * 64 + (i / 2) * 16);
                lows[i] += low[j];
                shifts[i] += differ ? 0.5 - offset : 0.0;
                uncertain += differ;
            }
        for (int i = 0; i < 8; ++i) base += lows[i] + shifts[i] * step;
        worst += uncertain * 0.5 * step;
        variance += uncertain * (step * step / 12);
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
    bounds->error = (float)((likely < worst ? likely : worst) + slack);
    bounds->threshold = -__builtin_inff();
}

// A sum of single entries. Compilers would bring plain ones together for vector additions, at twice the instructions.
struct Sum {
#if defined(__SSE2__)
    __m128d value;
    void set(double x) { value = _mm_set_sd(x); }
    void add(const double* x) { value = _mm_add_sd(value, _mm_load_sd(x)); }
    double get() const { return _mm_cvtsd_f64(value); }
#else
    double value;
    void set(double x) { value = x; }
    void add(const double* x) { value += *x; }
    double get() const { return value; }
#endif
};

// Nibble j into sum j % 8, then folded in halves. All rows go through a stretch of the tables while the nearest cache
// holds it.
void lut_scores(const double* lut, const uint8_t* const* rows, ptrdiff_t word_stride, ptrdiff_t byte_stride, int n,
                int n_nibbles, double* scores) {
    constexpr int kStretch = 128;
    double sums[kLanes][8] = {};
    for (int begin = 0; begin < n_nibbles; begin += kStretch) {
        const int end = begin + kStretch < n_nibbles ? begin + kStretch : n_nibbles;
        for (int r = 0; r < n; ++r) {
            Sum s[8];
            for (int i = 0; i < 8; ++i) s[i].set(sums[r][i]);
            int j = begin;
            const uint8_t* word = rows[r] + j / 8 * word_stride;
            for (; j + 8 <= end; j += 8, word += word_stride) {
                const double* t = lut + (ptrdiff_t)j * 16;
                const size_t bytes[4] = {word[0], word[byte_stride], word[2 * byte_stride], word[3 * byte_stride]};
#pragma GCC unroll 4
                for (int b = 0; b < 4; ++b) {
                    s[2 * b].add(t + 32 * b + (bytes[b] & 15));
                    s[2 * b + 1].add(t + 32 * b + 16 + (bytes[b] >> 4));
                }
            }
            double rest[8] = {};  // of fewer than eight nibbles
            for (; j < end; ++j) {
                const int byte = rows[r][j / 8 * word_stride + j % 8 / 2 * byte_stride];
                rest[j % 8] = lut[(ptrdiff_t)j * 16 + (byte >> (4 * (j % 2)) & 15)];
            }
            for (int i = 0; i < 8; ++i) sums[r][i] = s[i].get() + rest[i];
        }
    }
    for (int r = 0; r < n; ++r) {
        double* s = sums[r];
        for (int h = 4; h >= 1; h /= 2)
            for (int l = 0; l < h; ++l) s[l] += s[l + h];
        scores[r] = s[0];
    }
}

}  // namespace tq::TQ_LEVEL
