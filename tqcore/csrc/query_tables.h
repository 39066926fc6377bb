// The scanning tables of a query.
#pragma once
#include <vector>

#include "code.h"

namespace tq {

class Tables {
public:
    // The exact tables, [8 * words][16], parts in the places of their nibbles.
    void build_exact(const Code& code, const float* q);
    // The exact tables and the bytes that are scanned.
    void build(const Code& code, const float* q);
    QueryTables view() const { return {bytes_.data(), weights_.data()}; }
    const double* exact() const { return exact_.data(); }
    QueryBounds bounds{};

private:
    std::vector<uint8_t> bytes_;
    std::vector<uint32_t> weights_;
    std::vector<double> exact_, scratch_;
};

}  // namespace tq
