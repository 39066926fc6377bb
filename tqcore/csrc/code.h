// Codes as the baseline code owns them: tables, layout and the conversions between rows and coordinates.
#pragma once
#include <memory>
#include <vector>

#include "kernels.h"

namespace tq {

// A chain code for d coordinates (memory 2 or 3), or a scalar code of 1, 2 or 4 bits seen as nibbles (memory 1).
class Chain {
public:
    // tables [q][memory][16]; p nibbles per q coordinates.
    Chain(int d, int p, int q, int memory, const float* tables);
    const ChainView& view() const { return view_; }

private:
    void build_metrics(int p);
    ChainView view_{};
    std::vector<float> tables_, metric_tables_;
    std::vector<int32_t> closes_at_, first_closing_, pair_metric_, pair_metrics_, transposed_;
};

class Scalar {
public:
    Scalar(int d, int bits, const float* centroids);
    const ScalarView& view() const { return view_; }

private:
    ScalarView view_{};
    std::vector<float> centroids_, boundaries_;
};

// One segment of a row: a chain over coordinates [first, first + d) in bytes [byte, byte + code_size).
struct Part {
    std::shared_ptr<const Chain> chain;
    int first = 0, byte = 0;
};

// What a packed row means: chains side by side, or a scalar code, or neither; then optionally d sign bits.
struct Code {
    std::vector<Part> parts;
    std::shared_ptr<const Scalar> scalar;
    bool signs = false;      // the sign bits of `prod` follow, with a scale of their own
    int d = 0, code_size = 0;
    int head_words = 0;      // that rows are first scored by and blocks hold; 0: all

    void add_chain(std::shared_ptr<const Chain> chain);
    void set_scalar(std::shared_ptr<const Scalar> code);
    void add_signs();
    bool scannable() const { return !parts.empty() && !signs; }
    int words() const { return (code_size + 3) / 4; }
    int head_size() const { return head_words ? 4 * head_words : code_size; }
    int tail_size() const { return code_size - head_size(); }
    int query_size() const { return signs ? 2 * d : d; }
    // yhat [query_size()]: coordinates, then +-1 for the sign bits. nibbles: scratch of 2 * code_size + 16 bytes.
    void decode_row(const uint8_t* row, float* yhat, uint8_t* nibbles) const;
};

// Coordinates yhat [d] of one nibble a byte.
void decode_nibbles(const ChainView& chain, const uint8_t* nibbles, float* yhat);
void unpack_nibbles(const uint8_t* row, int n_nibbles, uint8_t* nibbles);

}  // namespace tq
