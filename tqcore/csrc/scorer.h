// Exact scores of single rows.
#pragma once
#include <algorithm>
#include <cstring>

#include "packing.h"
#include "search.h"

namespace tq {

inline void unpack_whole(const Rows& rows, int64_t row, uint8_t* code) {
    const int size = rows.code->head_size(), left = rows.code->tail_size();
    unpack_row(rows.blocks, (size + 3) / 4, row, code, size);
    if (left) std::memcpy(code + size, rows.tails + row * left, (size_t)left);
}

// The exact score that orders results: <q, x_hat>, minus half the squared norm for l2.
class Scorer {
public:
    explicit Scorer(const Rows& rows)
        : rows_(rows), code_(*rows.code), packed_(kLanes * (size_t)code_.code_size),
          nibbles_(2 * (size_t)code_.code_size + 16), yhat_((size_t)code_.query_size()) {}

    // Scores of later calls are against this query; `exact` are its tables, if it has any.
    void set_query(const float* q, const double* exact) {
        query_ = q;
        exact_ = exact;
    }

    void operator()(const int64_t* rows, size_t n, double* scores) {
        if (!code_.scannable()) {
            for (size_t i = 0; i < n; ++i) {
                decode(rows[i]);
                scores[i] = of_decoded(rows[i], query_);
            }
            return;
        }
        // Rows that lie whole in blocks are read there.
        const bool there = rows_.blocks && !code_.tail_size();
        const ptrdiff_t word = there ? 64 : 4, byte = there && kernels()->by_place ? kLanes : 1;
        const int size = code_.code_size, words = code_.words();
        const size_t ahead = 1 + kLinesAhead / (size_t)words;
        for (size_t at = 0; at < n; at += kLanes) {
            const int count = (int)std::min<size_t>(kLanes, n - at);
            const uint8_t* from[kLanes];
            for (int i = 0; i < count; ++i) {
                const size_t r = at + (size_t)i;
                if (r + ahead < n) fetch(rows[r + ahead]);
                from[i] = there ? first_byte(rows_.blocks, words, rows[r]) : packed_.data() + i * size;
                if (!there) unpack(rows[r], packed_.data() + i * size);
            }
            // Half a byte may be unused at the end of a part: its table is zero.
            kernels()->lut_scores(exact_, from, word, byte, count, 2 * size, scores + at);
            for (size_t i = at; i < at + (size_t)count; ++i) scores[i] = finish(rows[i], scores[i], 0.0);
        }
    }

    void decode(int64_t row) {
        unpack(row, packed_.data());
        code_.decode_row(packed_.data(), yhat_.data(), nibbles_.data());
    }

    double of_decoded(int64_t row, const float* q) const {
        const int d = code_.d;
        const double first = kernels()->dot(q, yhat_.data(), d);
        return finish(row, first, code_.signs ? kernels()->dot(q + d, yhat_.data() + d, d) : 0.0);
    }

private:
    static constexpr size_t kLinesAhead = 96;  // that memory is asked for

    // Inline by force: GCC takes a function that only prefetches for one without effect and drops its calls.
    __attribute__((always_inline)) void fetch(int64_t row) const {
        if (!rows_.blocks) return;
        const int words = (code_.head_size() + 3) / 4;
        const uint32_t* block = rows_.blocks + row / kLanes * words * kLanes;
        for (int w = 0; w < words; ++w) __builtin_prefetch(block + (ptrdiff_t)w * kLanes);
    }

    void unpack(int64_t row, uint8_t* code) const {
        if (rows_.blocks) unpack_whole(rows_, row, code);
        else std::memcpy(code, rows_.packed + row * code_.code_size, (size_t)code_.code_size);
    }

    double finish(int64_t row, double dot, double sign_dot) const {
        double s = (double)(rows_.scale ? rows_.scale[row] : rows_.same_scale) * dot;
        if (rows_.sign_scale) s += (double)rows_.sign_scale[row] * sign_dot;
        if (rows_.squared_norm) s -= 0.5 * (double)rows_.squared_norm[row];
        return s;
    }

    const Rows& rows_;
    const Code& code_;
    const float* query_ = nullptr;
    const double* exact_ = nullptr;
    std::vector<uint8_t> packed_, nibbles_;
    std::vector<float> yhat_;
};

}  // namespace tq
