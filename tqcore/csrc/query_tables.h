// The scanning tables of a query.
#pragma once
#include "aligned.h"
#include "code.h"

namespace tq {

class Tables {
public:
    // The exact tables, [8 * words][16], parts in the places of their nibbles.
    void build_exact(const Code& code, const float* q);
    // The exact tables and the bytes that are scanned.
    void build(const Code& code, const float* q, int head_words);
    // From a word on.
    QueryTables view(int word = 0) const { return {bytes_.get() + (ptrdiff_t)word * 128, weights_.get() + word}; }
    // The weight of the first so many words, or 0 if they have several.
    int weight(int words) const;
    const double* exact() const { return exact_.get(); }
    QueryBounds bounds{};

private:
    Aligned<uint8_t> bytes_;
    Aligned<uint32_t> weights_;
    Aligned<double> exact_;
};

}  // namespace tq
