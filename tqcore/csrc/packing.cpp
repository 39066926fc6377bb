#include "packing.h"

#include <algorithm>
#include <cstring>

namespace tq {
const uint8_t* first_byte(const uint32_t* blocks, int words, int64_t row) {
    return (const uint8_t*)blocks + (row / kLanes) * words * 64 + row % kLanes * (kernels()->by_place ? 1 : 4);
}

void put_row(uint32_t* blocks, int words, int64_t row, const uint8_t* code, int code_size) {
    uint8_t* to = (uint8_t*)first_byte(blocks, words, row);
    if (kernels()->by_place) {
        for (ptrdiff_t c = 0; c < 4 * words; ++c) to[c * kLanes] = c < code_size ? code[c] : 0;
        return;
    }
    for (ptrdiff_t w = 0; w < words; ++w) {
        uint32_t v = 0;
        std::memcpy(&v, code + 4 * w, 4 * w + 4 <= code_size ? 4 : code_size - 4 * w);
        std::memcpy(to + 64 * w, &v, 4);
    }
}

void pack_rows(uint32_t* blocks, int words, int64_t start, const uint8_t* codes, int64_t n, int code_size) {
    for (int64_t i = 0; i < n;) {
        const int64_t row = start + i;
        if (row % kLanes || n - i < kLanes) {
            put_row(blocks, words, row, codes + i++ * code_size, code_size);
            continue;
        }
        const uint8_t* rows[kLanes];
        for (const uint8_t*& r : rows) r = codes + i++ * code_size;
        kernels()->pack_block(rows, std::min(code_size, 4 * words), blocks + row * words);
    }
}

void unpack_row(const uint32_t* blocks, int words, int64_t row, uint8_t* code, int code_size) {
    const uint8_t* from = first_byte(blocks, words, row);
    if (kernels()->by_place) {
        for (ptrdiff_t c = 0; c < code_size; ++c) code[c] = from[c * kLanes];
        return;
    }
    for (ptrdiff_t w = 0; w < words; ++w)
        std::memcpy(code + 4 * w, from + 64 * w, 4 * w + 4 <= code_size ? 4 : code_size - 4 * w);
}

void move_row(const uint32_t* from, int64_t row, uint32_t* to, int64_t at, int words) {
    const uint8_t* source = first_byte(from, words, row);
    uint8_t* target = (uint8_t*)first_byte(to, words, at);
    if (kernels()->by_place) {
        for (ptrdiff_t c = 0; c < 4 * words; ++c) target[c * kLanes] = source[c * kLanes];
        return;
    }
    for (ptrdiff_t w = 0; w < words; ++w) std::memcpy(target + 64 * w, source + 64 * w, 4);
}

}  // namespace tq
