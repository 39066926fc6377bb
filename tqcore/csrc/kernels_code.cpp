// Codes of sixteen rows at a time: the chain code's dynamic programme, decoding, the scalar code.
#include "lanes.h"

namespace tq::TQ_LEVEL {

constexpr int kWarm = 16;          // nibbles on either side of the seam that choose the tail-biting state
constexpr int32_t kForbidden = 1 << 29;

// U_o[16][16 lanes] of nibble j for offset o: -2 S sum_i y_i T_o.
static void unary_metric(const ChainView* c, const float* y, int j, int offset, vint* u) {
    const int begin = c->first_closing[j], end = c->first_closing[j + 1];
    if (begin == end) {
        for (int n = 0; n < 16; ++n) u[n] = vint{};
        return;
    }
    vfloat acc[16] = {};
    for (int i = begin; i < end; ++i) {
        vfloat v = load(y + (ptrdiff_t)i * kLanes);
        v = v > 6.0f ? vfloat{} + 6.0f : v;
        v = v < -6.0f ? vfloat{} - 6.0f : v;
        const float* t = c->metric_tables + ((ptrdiff_t)(i % c->period) * c->memory + offset) * 16;
        for (int n = 0; n < 16; ++n) acc[n] += v * t[n];
    }
    for (int n = 0; n < 16; ++n) u[n] = nearest(acc[n]) << 4;
}

static inline vint best_of(const vint* w, const int32_t* a) {
    vint m0 = w[0] + a[0], m1 = w[1] + a[1];
    for (int k = 2; k < 16; k += 2) {
        m0 = smaller(m0, w[k] + a[k]);
        m1 = smaller(m1, w[k + 1] + a[k + 1]);
    }
    return smaller(m0, m1);
}

// One nibble: cost [16^(m-1)][16 lanes] in place, back [16^(m-1)][16 lanes].
static void step2(const ChainView* c, const float* y, int j, int32_t* cost, uint8_t* back) {
    vint u0[16], u1[16], w[16];
    unary_metric(c, y, j, 0, u0);
    unary_metric(c, y, j, 1, u1);
    for (int n = 0; n < 16; ++n) w[n] = (load(cost + n * kLanes) + u1[n]) | n;
    const int32_t* a = c->pair_metrics + c->pair_metric[j];
    vint origin{};
    for (int n = 0; n < 16; ++n) {
        const vint best = best_of(w, a + 16 * n);
        const vbyte index = low_bytes(best & 15);
        memcpy(back + n * kLanes, &index, kLanes);
        const vint value = (best & ~15) + u0[n];
        if (n == 0) origin = value;
        store(cost + n * kLanes, value - origin);
    }
}

static void step3(const ChainView* c, const float* y, int j, const int32_t* cost, int32_t* next, uint8_t* back) {
    vint u0[16], u1[16], u2[16];
    unary_metric(c, y, j, 0, u0);
    unary_metric(c, y, j, 1, u1);
    unary_metric(c, y, j, 2, u2);
    const int32_t* a = c->pair_metrics + c->pair_metric[j];
    vint origin{};
    for (int n1 = 0; n1 < 16; ++n1) {
        vint w[16];
        for (int n2 = 0; n2 < 16; ++n2) w[n2] = (load(cost + (n1 * 16 + n2) * kLanes) + u2[n2]) | n2;
        for (int n0 = 0; n0 < 16; ++n0) {
            const vint best = best_of(w, a + (n0 * 16 + n1) * 16);
            const vbyte index = low_bytes(best & 15);
            memcpy(back + (n0 * 16 + n1) * kLanes, &index, kLanes);
            const vint value = (best & ~15) + u0[n0] + u1[n1];
            if (n0 == 0 && n1 == 0) origin = value;
            store(next + (n0 * 16 + n1) * kLanes, value - origin);
        }
    }
}

static int n_states(const ChainView* c) { return c->memory == 3 ? 256 : 16; }

size_t chain_scratch(const ChainView* c) {
    const size_t states = n_states(c), steps = c->n_nibbles > 2 * kWarm ? c->n_nibbles : 2 * kWarm;
    return 2 * states * kLanes * sizeof(int32_t) + steps * states * kLanes + 64;
}

// Runs count nibbles from first (taken modulo the length); returns the buffer that holds the final cost.
static int32_t* run(const ChainView* c, const float* y, int first, int count, int32_t* cost, int32_t* spare,
                    uint8_t* back) {
    const int states = n_states(c), len = c->n_nibbles;
    int j = ((first % len) + len) % len;
    for (int t = 0; t < count; ++t) {
        uint8_t* at = back + (size_t)t * states * kLanes;
        if (c->memory == 2) {
            step2(c, y, j, cost, at);
        } else {
            step3(c, y, j, cost, spare, at);
            int32_t* swap = cost; cost = spare; spare = swap;
        }
        if (++j == len) j = 0;
    }
    return cost;
}

// The state before the step that led to `state`: (n0, n1, ...) -> (n1, ..., back).
static inline int previous(const ChainView* c, const uint8_t* back, int state, int lane) {
    const int last = back[state * kLanes + lane];
    return c->memory == 2 ? last : (state % 16) * 16 + last;
}

void chain_encode(const ChainView* c, const float* y, uint8_t* nibbles, void* scratch) {
    const int states = n_states(c), len = c->n_nibbles, top = c->memory == 2 ? 1 : 16;
    int32_t* cost = (int32_t*)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    int32_t* spare = cost + states * kLanes;
    uint8_t* back = (uint8_t*)(spare + states * kLanes);
    memset(cost, 0, (size_t)states * kLanes * sizeof(int32_t));
    const int32_t* last = run(c, y, -kWarm, 2 * kWarm, cost, spare, back);
    int seam[kLanes];
    for (int l = 0; l < kLanes; ++l) {
        int s = 0;
        for (int k = 1; k < states; ++k)
            if (last[k * kLanes + l] < last[s * kLanes + l]) s = k;
        for (int t = 2 * kWarm - 1; t >= kWarm; --t) s = previous(c, back + (size_t)t * states * kLanes, s, l);
        seam[l] = s;
    }
    for (int k = 0; k < states; ++k)
        for (int l = 0; l < kLanes; ++l) cost[k * kLanes + l] = k == seam[l] ? 0 : kForbidden;
    run(c, y, 0, len, cost, spare, back);
    for (int t = len - 1; t >= 0; --t)
        for (int l = 0; l < kLanes; ++l) {
            nibbles[t * kLanes + l] = (uint8_t)(seam[l] / top);
            seam[l] = previous(c, back + (size_t)t * states * kLanes, seam[l], l);
        }
}

void chain_decode(const ChainView* c, const uint8_t* nibbles, float* yhat) {
    for (int i = 0; i < c->d; ++i) {
        const float* t = c->tables + (ptrdiff_t)(i % c->period) * c->memory * 16;
        int j = c->closes_at[i];
        vfloat v = lookup(t, nibbles + (ptrdiff_t)j * kLanes);
        for (int o = 1; o < c->memory; ++o) {
            j = j == 0 ? c->n_nibbles - 1 : j - 1;
            v += lookup(t + 16 * o, nibbles + (ptrdiff_t)j * kLanes);
        }
        store(yhat + (ptrdiff_t)i * kLanes, v);
    }
}

void scalar_encode(const ScalarView* c, const float* y, uint8_t* index) {
    const int n = (1 << c->bits) - 1;
    for (int i = 0; i < c->d; ++i) {
        const float* v = y + (ptrdiff_t)i * kLanes;
        if (c->bits <= 4) {
            const vfloat x = load(v);
            vint count{};
            for (int k = 0; k < n; ++k) count -= (vint)(c->boundaries[k] < x);
            const vbyte b = low_bytes(count);
            memcpy(index + (ptrdiff_t)i * kLanes, &b, kLanes);
            continue;
        }
        for (int l = 0; l < kLanes; ++l) {
            int at = 0;
            for (int step = 1 << (c->bits - 1); step > 0; step /= 2)
                if (c->boundaries[at + step - 1] < v[l]) at += step;
            index[(ptrdiff_t)i * kLanes + l] = (uint8_t)at;
        }
    }
}

}  // namespace tq::TQ_LEVEL
