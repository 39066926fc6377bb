#include "query_tables.h"

#include <cstring>

namespace tq {

void Tables::build_exact(const Code& code, const float* q) {
    const size_t slots = (size_t)code.words() * 8;
    exact_ = Aligned<double>(slots * 16);
    size_t filled = 0;
    const auto zero_until = [&](size_t slot) {
        std::memset(exact_.get() + filled * 16, 0, (slot - filled) * 16 * sizeof(double));
    };
    for (const Part& p : code.parts) {
        zero_until((size_t)p.byte * 2);
        kernels()->chain_lut(&p.chain->view(), q + p.first, exact_.get() + (size_t)p.byte * 32);
        filled = (size_t)p.byte * 2 + (size_t)p.chain->view().n_nibbles;
    }
    zero_until(slots);
}

void Tables::build(const Code& code, const float* q, int head_words) {
    build_exact(code, q);
    const int slots = code.words() * 8;
    bytes_ = Aligned<uint8_t>((size_t)slots * 16);
    weights_ = Aligned<uint32_t>((size_t)slots / 8);
    const Aligned<double> scratch((size_t)slots * 2);
    kernels()->quantize_lut(exact_.get(), slots, 8 * head_words, scratch.get(), bytes_.get(), weights_.get(), &bounds);
}

int Tables::weight(int words) const {
    for (int w = 1; w < words; ++w)
        if (weights_.get()[w] != weights_.get()[0]) return 0;
    return words > 0 ? (int)(*weights_.get() & 255) : 0;
}

}  // namespace tq
