// One row at a time, for adds of a few vectors: the states of the dynamic programme lie in the lanes, and every number
// is the one that the tile of sixteen rows gets.
#include "lanes.h"

namespace tq::TQ_LEVEL {

constexpr int kWarm = 16;
constexpr int32_t kForbidden = 1 << 29;

double normalize_row(const float* x, int d, float* y) {
    vdouble sum = {};
    int i = 0;
    for (; i + 8 <= d; i += 8) {
        vfloat8 v;
        memcpy(&v, x + i, 32);
        const vdouble w = __builtin_convertvector(v, vdouble);
        sum += w * w;
    }
    double s[8];
    memcpy(s, &sum, 64);
    for (int l = 0; i + l < d; ++l) s[l] += (double)x[i + l] * (double)x[i + l];
    for (int h = 4; h >= 1; h /= 2)
        for (int l = 0; l < h; ++l) s[l] += s[l + h];
    const double norm = __builtin_sqrt(s[0]), g = norm > 0.0 ? __builtin_sqrt((double)d) / norm : 0.0;
    for (int k = 0; k < d; ++k) y[k] = (float)((double)x[k] * g);
    return norm;
}

constexpr int kRegisters = kLanes / kWide;  // that the sixteen values of a nibble fill

// U_o of nibble j for all sixteen values.
static inline void unary_metric(const ChainView* c, const float* y, int j, int offset, wint* u) {
    wfloat acc[kRegisters] = {};
    const int begin = c->first_closing[j], end = c->first_closing[j + 1];
    int phase = (unsigned)begin % (unsigned)c->period;
    for (int i = begin; i < end; ++i) {
        const float v = y[i] > 6.0f ? 6.0f : y[i] < -6.0f ? -6.0f : y[i];
        const float* t = c->metric_tables + ((ptrdiff_t)phase * c->memory + offset) * 16;
        for (int r = 0; r < kRegisters; ++r) acc[r] += v * load_wide(t + r * kWide);
        if (++phase == c->period) phase = 0;
    }
    for (int r = 0; r < kRegisters; ++r) u[r] = nearest_wide(acc[r]) << 4;
}

static inline void step(const ChainView* c, const float* y, int j, wint* cost, uint8_t* back) {
    alignas(64) static const int32_t state[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    alignas(64) int32_t w[16];
    wint u[kRegisters];
    unary_metric(c, y, j, 1, u);
    for (int r = 0; r < kRegisters; ++r) store_wide(w + r * kWide, (cost[r] + u[r]) | load_wide(state + r * kWide));
    unary_metric(c, y, j, 0, u);
    const int32_t* a = c->transposed_metrics + c->pair_metric[j];
    for (int r = 0; r < kRegisters; ++r) {
        wint best[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) best[k] = load_wide(a + 16 * k + r * kWide) + w[k];
#pragma GCC unroll 3
        for (int n = 4; n < 16; n += 4)
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k)
                best[k] = smaller_wide(best[k], load_wide(a + 16 * (n + k) + r * kWide) + w[n + k]);
        const wint least = smaller_wide(smaller_wide(best[0], best[1]), smaller_wide(best[2], best[3]));
        store_wide(back + r * kWide, low_bytes_wide(least & 15));
        cost[r] = (least & ~15) + u[r];
    }
    const int32_t origin = cost[0][0];
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
    for (int t = len - 1; t >= 0; --t) {
        nibbles[t] = (uint8_t)seam;
        seam = back[t * kLanes + seam];
    }
}

}  // namespace tq::TQ_LEVEL
