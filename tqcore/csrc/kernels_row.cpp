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

// U_o of nibble j for all sixteen values.
static inline vint unary_metric(const ChainView* c, const float* y, int j, int offset) {
    vfloat acc = {};
    const int begin = c->first_closing[j], end = c->first_closing[j + 1];
    for (int i = begin; i < end; ++i) {
        const float v = y[i] > 6.0f ? 6.0f : y[i] < -6.0f ? -6.0f : y[i];
        acc += v * load(c->metric_tables + ((ptrdiff_t)(i % c->period) * c->memory + offset) * 16);
    }
    return nearest(acc) << 4;
}

static inline vint step(const ChainView* c, const float* y, int j, vint cost, uint8_t* back) {
    alignas(64) int32_t w[16];
    vint lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = l;
    store(w, (cost + unary_metric(c, y, j, 1)) | lane);
    const int32_t* a = c->transposed_metrics + c->pair_metric[j];
    vint best[4];
    for (int k = 0; k < 4; ++k) best[k] = load(a + 16 * k) + w[k];
    for (int n = 4; n < 16; n += 4)
        for (int k = 0; k < 4; ++k) best[k] = smaller(best[k], load(a + 16 * (n + k)) + w[n + k]);
    const vint least = smaller(smaller(best[0], best[1]), smaller(best[2], best[3]));
    const vbyte index = low_bytes(least & 15);
    memcpy(back, &index, kLanes);
    const vint value = (least & ~15) + unary_metric(c, y, j, 0);
    return value - value[0];
}

void chain_encode_row(const ChainView* c, const float* y, uint8_t* nibbles, uint8_t* back) {
    const int len = c->n_nibbles;
    vint cost = {};
    int j = ((-kWarm % len) + len) % len;
    for (int t = 0; t < 2 * kWarm; ++t) {
        cost = step(c, y, j, cost, back + t * kLanes);
        if (++j == len) j = 0;
    }
    int seam = 0;
    for (int k = 1; k < kLanes; ++k)
        if (cost[k] < cost[seam]) seam = k;
    for (int t = 2 * kWarm - 1; t >= kWarm; --t) seam = back[t * kLanes + seam];
    for (int k = 0; k < kLanes; ++k) cost[k] = k == seam ? 0 : kForbidden;
    for (int t = 0; t < len; ++t) cost = step(c, y, t, cost, back + t * kLanes);
    for (int t = len - 1; t >= 0; --t) {
        nibbles[t] = (uint8_t)seam;
        seam = back[t * kLanes + seam];
    }
}

}  // namespace tq::TQ_LEVEL
