// One row at a time, for adds of a few vectors: the states of the dynamic programme lie in the lanes, and every number
// is the one that the tile of sixteen rows gets.
#include "lanes.h"

namespace tq::TQ_LEVEL {

double dot(const float*, const float*, int);

constexpr int kWarm = 16;
constexpr int32_t kForbidden = 1 << 29;

double normalize_row(const float* x, int d, float* y) {
    const double norm = __builtin_sqrt(dot(x, x, d)), g = norm > 0.0 ? __builtin_sqrt((double)d) / norm : 0.0;
    for (int k = 0; k < d; ++k) y[k] = (float)((double)x[k] * g);
    return norm;
}

constexpr int kRegisters = kLanes / kWide;  // that the sixteen values of a nibble fill

// U_0 and U_1 of nibble j for all sixteen values.
static inline void unary_metrics(const ChainView* c, const float* y, int j, wint* u0, wint* u1) {
    wfloat acc[2 * kRegisters] = {};
    const int begin = c->first_closing[j], end = c->first_closing[j + 1];
    int phase = c->period == 1 ? 0 : (int)((unsigned)begin % (unsigned)c->period);
    for (int i = begin; i < end; ++i) {
        const float* t = c->metric_tables + (ptrdiff_t)phase * 32;
#pragma GCC unroll 8
        for (int r = 0; r < 2 * kRegisters; ++r) acc[r] += y[i] * load_wide(t + r * kWide);
        if (++phase == c->period) phase = 0;
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRegisters; ++r) {
        u0[r] = nearest_wide(acc[r]) << 4;
        u1[r] = nearest_wide(acc[kRegisters + r]) << 4;
    }
}

// Values n to n + 3 of sixteen, n a multiple of 4, each in all lanes of a register.
static inline void broadcast_four(const wint* values, int n, wint* out) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    // Shuffles inside halves; compilers choose permutations across them, which take several cycles each.
    const __m256i v = (__m256i)values[n / kWide];
    const __m256i four = n % kWide ? _mm256_permute2x128_si256(v, v, 0x11) : _mm256_permute2x128_si256(v, v, 0x00);
    out[0] = (wint)_mm256_shuffle_epi32(four, 0x00);
    out[1] = (wint)_mm256_shuffle_epi32(four, 0x55);
    out[2] = (wint)_mm256_shuffle_epi32(four, 0xAA);
    out[3] = (wint)_mm256_shuffle_epi32(four, 0xFF);
#else
    for (int k = 0; k < 4; ++k) out[k] = wint{} + values[(n + k) / kWide][(n + k) % kWide];
#endif
}

static inline void step(const ChainView* c, const float* y, int j, wint* cost, uint8_t* back) {
    alignas(64) static const int32_t state[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    wint u0[kRegisters], u1[kRegisters], w[kRegisters], best[4 * kRegisters];
    unary_metrics(c, y, j, u0, u1);
    for (int r = 0; r < kRegisters; ++r) w[r] = (cost[r] + u1[r]) | load_wide(state + r * kWide);
    const int32_t* a = c->transposed_metrics + c->pair_metric[j];
#pragma GCC unroll 4
    for (int n = 0; n < 16; n += 4) {
        wint last[4];
        broadcast_four(w, n, last);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k)
#pragma GCC unroll 4
            for (int r = 0; r < kRegisters; ++r) {
                const wint sum = load_wide(a + 16 * (n + k) + r * kWide) + last[k];
                wint& least = best[k * kRegisters + r];
                least = n == 0 ? sum : smaller_wide(least, sum);
            }
    }
    for (int r = 0; r < kRegisters; ++r) {
        const wint* of = best + r;
        const wint least = smaller_wide(smaller_wide(of[0], of[kRegisters]),
                                        smaller_wide(of[2 * kRegisters], of[3 * kRegisters]));
        store_wide(back + r * kWide, low_bytes_wide(least & 15));
        cost[r] = (least & ~15) + u0[r];
    }
    const wint origin = wint{} + cost[0][0];
    for (int r = 0; r < kRegisters; ++r) cost[r] -= origin;
}

void chain_encode_row(const ChainView* c, const float* y, uint8_t* nibbles, uint8_t* back) {
    const int len = c->n_nibbles;
    wint cost[kRegisters] = {};
    int j = ((-kWarm % len) + len) % len;
    for (int t = 0; t < 2 * kWarm; ++t) {
        step(c, y, j, cost, back + t * kLanes);
        if (++j == len) j = 0;
    }
    int32_t last[kLanes];
    memcpy(last, cost, sizeof(last));
    int seam = 0;
    for (int k = 1; k < kLanes; ++k)
        if (last[k] < last[seam]) seam = k;
    for (int t = 2 * kWarm - 1; t >= kWarm; --t) seam = back[t * kLanes + seam];
    for (int k = 0; k < kLanes; ++k) last[k] = k == seam ? 0 : kForbidden;
    memcpy(cost, last, sizeof(last));
    for (int t = 0; t < len; ++t) step(c, y, t, cost, back + t * kLanes);
#if defined(__AVX2__)
    // Each step back is a shuffle of a register, sooner done than a load from an address just loaded.
    __m128i state = _mm_set1_epi8((char)seam);
    for (int t = len - 1; t >= 0; --t) {
        nibbles[t] = (uint8_t)_mm_extract_epi8(state, 0);
        state = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)(back + (ptrdiff_t)t * kLanes)), state);
    }
#else
    size_t state = (size_t)seam;
    for (int t = len - 1; t >= 0; --t) {
        nibbles[t] = (uint8_t)state;
        state = back[(ptrdiff_t)t * kLanes + state];
    }
#endif
}

}  // namespace tq::TQ_LEVEL
