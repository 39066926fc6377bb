#include "code.h"

#include <cmath>

namespace tq {

Chain::Chain(int d, int p, int q, int memory, const float* tables)
    : tables_(tables, tables + (size_t)q * memory * 16), closes_at_(d) {
    view_.d = d;
    view_.memory = memory;
    view_.period = q;
    for (int i = 0; i < d; ++i) closes_at_[i] = (int32_t)((int64_t)i * p / q);
    view_.n_nibbles = p <= q ? closes_at_[d - 1] + 1 : (int)(((int64_t)d * p + q - 1) / q);
    view_.code_size = (view_.n_nibbles + 1) / 2;
    view_.words = (view_.code_size + 3) / 4;
    first_closing_.assign(view_.n_nibbles + 1, 0);
    for (int i = 0; i < d; ++i) ++first_closing_[closes_at_[i] + 1];
    for (int j = 0; j < view_.n_nibbles; ++j) first_closing_[j + 1] += first_closing_[j];
    if (memory > 1) build_metrics(p);
    view_.tables = tables_.data();
    view_.metric_tables = metric_tables_.data();
    view_.closes_at = closes_at_.data();
    view_.first_closing = first_closing_.data();
    view_.pair_metric = pair_metric_.data();
    view_.pair_metrics = pair_metrics_.data();
    view_.transposed_metrics = transposed_.data();
}

// A depends on which coordinates close at the nibble: their phase and their number.
void Chain::build_metrics(int p) {
    const int m = view_.memory, q = view_.period, size = m == 2 ? 256 : 4096;
    const double unit = p < q ? 65536.0 : 262144.0;
    metric_tables_.resize(tables_.size());
    for (size_t i = 0; i < tables_.size(); ++i) metric_tables_[i] = (float)(-2.0 * unit * (double)tables_[i]);
    pair_metric_.resize(view_.n_nibbles);
    std::vector<int32_t> seen((size_t)q * (kClosing + 1), -1);
    for (int j = 0; j < view_.n_nibbles; ++j) {
        const int begin = first_closing_[j], count = first_closing_[j + 1] - begin;
        int32_t& at = seen[(size_t)(count ? begin % q : 0) * (kClosing + 1) + count];
        if (at < 0) {
            at = (int32_t)pair_metrics_.size();
            for (int k = 0; k < size; ++k) {
                const int n[3] = {m == 2 ? k / 16 : k / 256, m == 2 ? k % 16 : k / 16 % 16, k % 16};
                double sum = 0;
                for (int i = begin; i < begin + count; ++i) {
                    double v = 0;
                    for (int o = 0; o < m; ++o) v += (double)tables_[((size_t)(i % q) * m + o) * 16 + n[o]];
                    sum += v * v;
                }
                pair_metrics_.push_back(16 * (int32_t)std::nearbyint(unit * sum));
            }
        }
        pair_metric_[j] = at;
    }
    if (m != 2) return;
    transposed_.resize(pair_metrics_.size());
    for (size_t i = 0; i < transposed_.size(); ++i)
        transposed_[i] = pair_metrics_[i / 256 * 256 + i % 16 * 16 + i / 16 % 16];
}

Scalar::Scalar(int d, int bits, const float* centroids) : centroids_(centroids, centroids + (size_t(1) << bits)) {
    for (size_t i = 0; i + 1 < centroids_.size(); ++i) boundaries_.push_back((centroids_[i] + centroids_[i + 1]) * 0.5f);
    view_.d = d;
    view_.bits = bits;
    view_.code_size = (int)(((int64_t)d * bits + 7) / 8);
    view_.centroids = centroids_.data();
    view_.boundaries = boundaries_.data();
}

void unpack_nibbles(const uint8_t* row, int n_nibbles, uint8_t* nibbles) {
    for (int b = 0; 2 * b < n_nibbles; ++b) {
        nibbles[2 * b] = row[b] & 15;
        nibbles[2 * b + 1] = row[b] >> 4;
    }
}

void Code::add_chain(std::shared_ptr<const Chain> chain) {
    const ChainView& c = chain->view();
    parts.push_back({chain, d, code_size});
    d += c.d;
    code_size += c.code_size;
}

void Code::set_scalar(std::shared_ptr<const Scalar> code) {
    scalar = code;
    d = code->view().d;
    code_size += code->view().code_size;
}

void Code::add_signs() {
    signs = true;
    code_size += (d + 7) / 8;
}

template <int kMemory>
static void decode_of(const ChainView& c, const uint8_t* nibbles, float* yhat) {
    for (int i = 0, phase = 0; i < c.d; ++i) {
        const float* t = c.tables + (size_t)phase * kMemory * 16;
        if (++phase == c.period) phase = 0;
        const int last = c.closes_at[i];
        float v = t[nibbles[last]];
        if (last >= kMemory - 1) {
            for (int o = 1; o < kMemory; ++o) v += t[16 * o + nibbles[last - o]];
        } else {
            for (int o = 1, j = last; o < kMemory; ++o) {
                j = j == 0 ? c.n_nibbles - 1 : j - 1;
                v += t[16 * o + nibbles[j]];
            }
        }
        yhat[i] = v;
    }
}

void decode_nibbles(const ChainView& c, const uint8_t* nibbles, float* yhat) {
    (c.memory == 1 ? decode_of<1> : c.memory == 2 ? decode_of<2> : decode_of<3>)(c, nibbles, yhat);
}

static void decode_scalar(const ScalarView& c, const uint8_t* row, float* yhat) {
    const int mask = (1 << c.bits) - 1;
    for (int i = 0; i < c.d; ++i) {
        const int64_t bit = (int64_t)i * c.bits;
        int v = row[bit / 8] >> (bit % 8);
        if (bit % 8 + c.bits > 8) v |= row[bit / 8 + 1] << (8 - bit % 8);
        yhat[i] = c.centroids[v & mask];
    }
}

void Code::decode_row(const uint8_t* row, float* yhat, uint8_t* nibbles) const {
    for (const Part& p : parts) {
        unpack_nibbles(row + p.byte, p.chain->view().n_nibbles, nibbles);
        decode_nibbles(p.chain->view(), nibbles, yhat + p.first);
    }
    if (scalar) decode_scalar(scalar->view(), row, yhat);
    if (parts.empty() && !scalar)
        for (int i = 0; i < d; ++i) yhat[i] = 0.0f;
    if (signs) {
        const uint8_t* bits = row + (scalar ? scalar->view().code_size : 0);
        for (int i = 0; i < d; ++i) yhat[d + i] = bits[i / 8] >> (i % 8) & 1 ? 1.0f : -1.0f;
    }
}

}  // namespace tq
