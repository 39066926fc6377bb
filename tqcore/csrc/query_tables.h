// Eight-bit scanning tables of a query with rigorous bounds on what they lose.
#pragma once
#include <vector>

#include "code.h"

namespace tq {

class Tables {
public:
    void build(const Code& code, const float* q);
    QueryTables view() const { return {lut_.data(), weights_.data()}; }
    QueryBounds bounds{};

private:
    std::vector<uint8_t> lut_;
    std::vector<uint32_t> weights_;
    std::vector<double> exact_;
};

// lut [n_nibbles][16] of one chain part: sum of q_i T over the coordinates that a nibble takes part in.
void chain_lut(const ChainView& chain, const float* q, double* lut);

}  // namespace tq
