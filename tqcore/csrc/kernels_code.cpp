// Codes of sixteen rows at a time: the chain code's dynamic programme, decoding, the scalar code. Rows lie in the lanes;
// functions of one step take as many of them as a register holds, at a stride of sixteen.
#include "lanes.h"

namespace tq::TQ_LEVEL {

constexpr int kWarm = 16;          // nibbles on either side of the seam that choose the tail-biting state
constexpr int32_t kForbidden = 1 << 29;

// U_o[16] of nibble j for offset o: -2 S sum_i y_i T_o.
static inline void unary_metric(const ChainView* c, const float* y, int j, int offset, wint* u) {
    const int begin = c->first_closing[j], end = c->first_closing[j + 1];
    if (begin == end) {
        for (int n = 0; n < 16; ++n) u[n] = wint{};
        return;
    }
    wfloat acc[16] = {};
    int phase = (unsigned)begin % (unsigned)c->period;
    for (int i = begin; i < end; ++i) {
        wfloat v = load_wide(y + (ptrdiff_t)i * kLanes);
        v = v > 6.0f ? wfloat{} + 6.0f : v;
        v = v < -6.0f ? wfloat{} - 6.0f : v;
        const float* t = c->metric_tables + ((ptrdiff_t)phase * c->memory + offset) * 16;
#pragma GCC unroll 16
        for (int n = 0; n < 16; ++n) acc[n] += v * t[n];
        if (++phase == c->period) phase = 0;
    }
#pragma GCC unroll 16
    for (int n = 0; n < 16; ++n) u[n] = nearest_wide(acc[n]) << 4;
}

static inline wint best_of(const wint* w, const int32_t* a) {
    wint m0 = w[0] + a[0], m1 = w[1] + a[1];
#pragma GCC unroll 8
    for (int k = 2; k < 16; k += 2) {
        m0 = smaller_wide(m0, w[k] + a[k]);
        m1 = smaller_wide(m1, w[k + 1] + a[k + 1]);
    }
    return smaller_wide(m0, m1);
}

// One nibble: cost [16^(m-1)][16 lanes] in place, back [16^(m-1)][16 lanes].
static void step2(const ChainView* c, const float* y, int j, int32_t* cost, uint8_t* back) {
    wint u0[16], u1[16], w[16];
    unary_metric(c, y, j, 0, u0);
    unary_metric(c, y, j, 1, u1);
    for (int n = 0; n < 16; ++n) w[n] = (load_wide(cost + n * kLanes) + u1[n]) | n;
    const int32_t* a = c->pair_metrics + c->pair_metric[j];
    wint origin{};
    for (int n = 0; n < 16; ++n) {
        const wint best = best_of(w, a + 16 * n);
        store_wide(back + n * kLanes, low_bytes_wide(best & 15));
        const wint value = (best & ~15) + u0[n];
        if (n == 0) origin = value;
        store_wide(cost + n * kLanes, value - origin);
    }
}

static void step3(const ChainView* c, const float* y, int j, const int32_t* cost, int32_t* next, uint8_t* back) {
    wint u0[16], u1[16], u2[16];
    unary_metric(c, y, j, 0, u0);
    unary_metric(c, y, j, 1, u1);
    unary_metric(c, y, j, 2, u2);
    const int32_t* a = c->pair_metrics + c->pair_metric[j];
    wint origin{};
    for (int n1 = 0; n1 < 16; ++n1) {
        wint w[16];
        for (int n2 = 0; n2 < 16; ++n2) w[n2] = (load_wide(cost + (n1 * 16 + n2) * kLanes) + u2[n2]) | n2;
        for (int n0 = 0; n0 < 16; ++n0) {
            const wint best = best_of(w, a + (n0 * 16 + n1) * 16);
            store_wide(back + (n0 * 16 + n1) * kLanes, low_bytes_wide(best & 15));
            const wint value = (best & ~15) + u0[n0] + u1[n1];
            if (n0 == 0 && n1 == 0) origin = value;
            store_wide(next + (n0 * 16 + n1) * kLanes, value - origin);
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
        for (int l = 0; l < kLanes; l += kWide) {
            if (c->memory == 2)
                step2(c, y + l, j, cost + l, at + l);
            else
                step3(c, y + l, j, cost + l, spare + l, at + l);
        }
        if (c->memory == 3) {
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
        const int last = c->closes_at[i];
        for (int l = 0; l < kLanes; l += kWide) {
            wfloat v = lookup_wide(t, nibbles + (ptrdiff_t)last * kLanes + l);
            for (int o = 1, j = last; o < c->memory; ++o) {
                j = j == 0 ? c->n_nibbles - 1 : j - 1;
                v += lookup_wide(t + 16 * o, nibbles + (ptrdiff_t)j * kLanes + l);
            }
            store_wide(yhat + (ptrdiff_t)i * kLanes + l, v);
        }
    }
}

void scalar_encode(const ScalarView* c, const float* y, uint8_t* index) {
    const int n = (1 << c->bits) - 1;
    for (int i = 0; i < c->d; ++i) {
        const float* v = y + (ptrdiff_t)i * kLanes;
        if (c->bits <= 4) {
            for (int l = 0; l < kLanes; l += kWide) {
                const wfloat x = load_wide(v + l);
                wint count{};
                for (int k = 0; k < n; ++k) count -= (wint)(c->boundaries[k] < x);
                store_wide(index + (ptrdiff_t)i * kLanes + l, low_bytes_wide(count));
            }
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
