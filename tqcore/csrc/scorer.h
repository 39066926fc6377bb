// Exact scores of single rows.
#pragma once
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
        : rows_(rows), code_(*rows.code), packed_((size_t)code_.words() * 4),
          nibbles_(2 * (size_t)code_.code_size + 16), yhat_((size_t)code_.query_size()) {}

    // Scores of later calls are against this query; `exact` are its tables, if it has any.
    void set_query(const float* q, const double* exact) {
        query_ = q;
        exact_ = exact;
    }

    double operator()(int64_t row) {
        // Half a byte may be unused at the end of a part: its table is zero.
        if (code_.scannable())
            return finish(row, kernels()->lut_score(exact_, bytes(row), 2 * code_.code_size), 0.0);
        decode(row);
        return of_decoded(row, query_);
    }

    void decode(int64_t row) { code_.decode_row(bytes(row), yhat_.data(), nibbles_.data()); }

    double of_decoded(int64_t row, const float* q) const {
        const int d = code_.d;
        const double first = kernels()->dot(q, yhat_.data(), d);
        return finish(row, first, code_.signs ? kernels()->dot(q + d, yhat_.data() + d, d) : 0.0);
    }

private:
    const uint8_t* bytes(int64_t row) {
        if (!rows_.blocks) return rows_.packed + row * code_.code_size;
        unpack_whole(rows_, row, packed_.data());
        return packed_.data();
    }

    double finish(int64_t row, double dot, double sign_dot) const {
        double s = (double)rows_.scale[row] * dot;
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
