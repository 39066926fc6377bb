// Row-major codes <-> blocks [ceil(n / 16)][words][16], whose bytes lie as the active level wants them.
#pragma once
#include "code.h"

namespace tq {

// Where a row begins. By place, its byte c lies 16 c behind, otherwise 64 (c / 4) + c % 4.
const uint8_t* first_byte(const uint32_t* blocks, int words, int64_t row);
// Of rows longer than a block's words the first bytes are taken.
void pack_rows(uint32_t* blocks, int words, int64_t start, const uint8_t* codes, int64_t n, int code_size);
void put_row(uint32_t* blocks, int words, int64_t row, const uint8_t* code, int code_size);
// Row `row` of some blocks becomes row `at` of others, or of the same.
void move_row(const uint32_t* from, int64_t row, uint32_t* to, int64_t at, int words);
void unpack_row(const uint32_t* blocks, int words, int64_t row, uint8_t* code, int code_size);

}  // namespace tq
