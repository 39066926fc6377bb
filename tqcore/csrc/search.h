// Exact top k and range search over packed codes.
#pragma once
#include "code.h"

namespace tq {

// A search that scores the first words of every row and goes on with rows that can still enter the top k.
struct Head {
    float share = 0;               // of a vector's energy that the first words hold; 0: every row is scored whole
    float deviations = 0;          // of the error of a score from them alone, granted to every row
};

struct Rows {
    const Code* code;
    const uint32_t* blocks;        // [ceil(n / 16)][ceil(head_size / 4)][16], or null
    const uint8_t* packed;         // [n][code_size], when blocks is null
    const float* scale;            // [n], or null: `same_scale` of all
    const float* sign_scale;       // [n], for sign bits, or null
    const float* squared_norm;     // [n], for l2, or null
    const int64_t* ids;            // [n], or null: the row number
    const uint8_t* mask;           // one bit a row, or null
    int64_t n;
    bool positions = false;        // search returns row numbers; ids only order equal scores
    const uint8_t* tails = nullptr;  // [n][tail_size], what the blocks of a code with head_words do not hold
    Head head{};                   // of `search`
    float same_scale = 0;
};

struct Queries {
    const float* q;                // [n][code.query_size()], rotated
    const double* constant;        // [n] squared norm for l2, otherwise what is added to every score
    int64_t n;
};

// distances, ids [queries.n][k], best first, equal scores by smaller id; -1 where there are fewer than k rows.
void search(const Rows& rows, const Queries& queries, int64_t k, float* distances, int64_t* ids, int threads);

// The same among candidates [queries.n][width], rows or -1 for none, no row twice for one query.
void rescore(const Rows& rows, const Queries& queries, const int64_t* candidates, int64_t width, int64_t k,
             float* distances, int64_t* ids, int threads);

struct Hit { float distance; int64_t id; };
std::vector<std::vector<Hit>> range_search(const Rows& rows, const Queries& queries, float radius, int threads);

}  // namespace tq
