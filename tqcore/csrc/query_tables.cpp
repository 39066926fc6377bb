#include "query_tables.h"

#include <algorithm>
#include <cmath>

namespace tq {

constexpr int kMaxWeight = 64;     // 255 * 64 * 2 fits a signed 16-bit sum
constexpr double kRounding = 1e-6; // float32 arithmetic of the scan, relative to the largest possible sum

void chain_lut(const ChainView& c, const float* q, double* lut) {
    std::fill(lut, lut + (size_t)c.n_nibbles * 16, 0.0);
    for (int i = 0; i < c.d; ++i) {
        const float* t = c.tables + (size_t)(i % c.period) * c.memory * 16;
        int j = c.closes_at[i];
        for (int o = 0; o < c.memory; ++o) {
            double* row = lut + (size_t)j * 16;
            for (int n = 0; n < 16; ++n) row[n] += (double)q[i] * (double)t[16 * o + n];
            j = j == 0 ? c.n_nibbles - 1 : j - 1;
        }
    }
}

void Tables::build(const Code& code, const float* q) {
    const int words = code.words(), slots = words * 8;
    exact_.assign((size_t)slots * 16, 0.0);
    for (const Part& p : code.parts) chain_lut(p.chain->view(), q + p.first, exact_.data() + (size_t)p.byte * 32);
    std::vector<double> low(slots), range(slots);
    double widest = 0, largest = 0;
    for (int j = 0; j < slots; ++j) {
        const double* t = exact_.data() + (size_t)j * 16;
        const auto [a, b] = std::minmax_element(t, t + 16);
        low[j] = *a;
        range[j] = *b - *a;
        widest = std::max(widest, range[j]);
        largest += std::max(std::fabs(*a), std::fabs(*b));
    }
    const float delta = widest > 0 ? (float)(widest / (255.0 * kMaxWeight)) : 1.0f;
    lut_.assign((size_t)words * 128, 0);
    weights_.assign((size_t)words * 2, 0);
    double base = 0, above = 0, below = 0;
    for (int j = 0; j < slots; ++j) {
        const double unit = 255.0 * (double)delta;
        const int weight = std::clamp(unit > 0 ? (int)std::ceil(range[j] / unit) : 1, 1, kMaxWeight);
        const double step = weight * (double)delta;
        uint8_t* out = lut_.data() + (size_t)(j / 8) * 128 + (j % 2) * 64 + (j % 8 / 2) * 16;
        weights_[(size_t)(j / 8) * 2 + j % 2] |= (uint32_t)weight << (8 * (j % 8 / 2));
        double over = 0, under = 0;
        for (int n = 0; n < 16; ++n) {
            const double v = exact_[(size_t)j * 16 + n] - low[j];
            const double level = step > 0 ? std::clamp(std::nearbyint(v / step), 0.0, 255.0) : 0.0;
            out[n] = (uint8_t)level;
            over = std::max(over, v - level * step);
            under = std::max(under, level * step - v);
        }
        base += low[j];
        above += over;
        below += under;
    }
    const double slack = kRounding * (largest + std::fabs(base));
    bounds = {delta, (float)base, (float)(above + slack), (float)(below + slack), -INFINITY, 0.0f};
}

}  // namespace tq
