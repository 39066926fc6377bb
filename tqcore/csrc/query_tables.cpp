#include "query_tables.h"

namespace tq {

void Tables::build_exact(const Code& code, const float* q) {
    exact_.assign((size_t)code.words() * 128, 0.0);
    for (const Part& p : code.parts)
        kernels()->chain_lut(&p.chain->view(), q + p.first, exact_.data() + (size_t)p.byte * 32);
}

void Tables::build(const Code& code, const float* q, int head_words) {
    build_exact(code, q);
    const int slots = code.words() * 8;
    bytes_.resize((size_t)slots * 16);
    weights_.resize((size_t)slots / 8);
    scratch_.resize((size_t)slots * 2);
    kernels()->quantize_lut(exact_.data(), slots, 8 * head_words, scratch_.data(), bytes_.data(), weights_.data(), &bounds);
}

}  // namespace tq
