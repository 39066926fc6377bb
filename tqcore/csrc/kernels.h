// The functions that exist once per SIMD level, and the plain data they share with the baseline code.
// Nothing here may pull in inline library code: kernel sources are compiled with wider instruction sets.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace tq {

constexpr int kLanes = 16;        // rows of a tile, and of a block of the scanning layout
constexpr int kMaxMemory = 3;     // nibbles that one reconstructed coordinate depends on
constexpr int kClosing = 8;       // most coordinates that close at one nibble (0.5 bits)
constexpr int kWindow = 56;       // most words whose sums of entries fit 16 bits

// A chain code laid out for d coordinates; memory 1 is a scalar code seen as nibbles.
struct ChainView {
    int d, memory, n_nibbles, code_size, words;
    int period;                    // Q: coordinates with a table of their own
    const float* tables;           // [period][memory][16]
    const float* metric_tables;    // [period][memory][16], -2 * S * tables
    const int32_t* closes_at;      // [d] nibble at which a coordinate closes
    const int32_t* first_closing;  // [n_nibbles + 1] coordinates closing at nibble j: first_closing[j] .. first_closing[j+1]
    const int32_t* pair_metric;    // [n_nibbles] offset of A_j into pair_metrics
    const int32_t* pair_metrics;   // concatenated A, 16^memory each
    const int32_t* transposed_metrics;  // the same with the two nibbles exchanged, for memory 2
};

// A scalar code: nearest centroid, little-endian bit stream.
struct ScalarView {
    int d, bits, code_size;
    const float* boundaries;       // [2^bits - 1]
    const float* centroids;        // [2^bits]
};

struct RotationView {
    int d, rounds;
    const float* signs;            // [rounds][2][d]
};

// Seven-bit tables of one query: per word of four bytes 64 entries for the low and 64 for the high nibbles.
struct QueryTables {
    const uint8_t* lut;            // [words][2][64]
    const uint32_t* weights;       // [words], the word's weight of 1..64 in each of four bytes
};

// Per-query bounds: the true score of a row is a*(acc*delta + base) + b to within a*error, but for one row in 2 * 10^10
// (see quantize_lut).
struct QueryBounds {
    float delta, base, error, threshold;
    float norm_factor;             // b = norm_factor * squared norm, rounded towards a larger bound
    float head_base;               // base of the sum over the first slots alone
    float head_variance;           // of that sum's error, in units of the score
};

struct Kernels {
    const char* name;
    // Whether the bytes of a line of codes go by place, then by row, instead of by row, then by place.
    bool by_place;
    // Sixteen rows of `size` bytes -> ceil(size / 4) lines, zero padded.
    void (*pack_block)(const uint8_t* const* rows, int size, uint32_t* lines);
    // n of at most 16 rows of blocks -> lines of a block of their own, whose other lanes are not set to anything. The n
    // rows after them are wanted next.
    void (*gather_block)(const uint32_t* blocks, const int64_t* rows, int n, int words, uint32_t* lines);
    // x [16][d] row-major at a stride; y [d][16]; norms [16]. Rows past n repeat zeros.
    void (*load_tile)(const float* x, ptrdiff_t stride, int n, int d, float* y, double* norms);
    void (*load_rotated)(const float* x, ptrdiff_t stride, int n, int d, float* y);
    void (*store_tile)(const float* y, int n, int d, float* x, ptrdiff_t stride);
    void (*rotate_tile)(const RotationView*, float* y, int inverse);
    void (*rotate_row)(const RotationView*, float* y, int inverse);   // y [d]
    size_t (*chain_scratch)(const ChainView*);
    // y [d][16] -> nibbles [n_nibbles][16]
    void (*chain_encode)(const ChainView*, const float* y, uint8_t* nibbles, void* scratch);
    // One row: y [d] from x, returning the norm; y within +-6 -> nibbles [n_nibbles] for memory 2, back [16 * max(n_nibbles, 32)].
    double (*normalize_row)(const float* x, int d, float* y);
    void (*chain_encode_row)(const ChainView*, const float* y, uint8_t* nibbles, uint8_t* back);
    // nibbles -> yhat [d][16]
    void (*chain_decode)(const ChainView*, const uint8_t* nibbles, float* yhat);
    void (*scalar_encode)(const ScalarView*, const float* y, uint8_t* index);   // index [d][16]
    void (*dot_tile)(const float* y, const float* yhat, int d, double* dots);
    // lut [n_nibbles][16]: sum of q_i T over the coordinates that a nibble takes part in.
    void (*chain_lut)(const ChainView*, const float* q, double* lut);
    // lut of n_slots (a multiple of 8) nibbles to bytes [n_slots / 8][2][64] and weights [n_slots / 8], equal for
    // many words in a row. scratch [2 * n_slots].
    void (*quantize_lut)(const double* lut, int n_slots, int head_slots, double* scratch, uint8_t* bytes,
                         uint32_t* weights, QueryBounds*);
    // Sums over the nibbles of n of at most 16 rows, in a fixed order. A row's words of four bytes, and the bytes of a
    // word, lie at strides.
    void (*lut_scores)(const double* lut, const uint8_t* const* rows, ptrdiff_t word_stride, ptrdiff_t byte_stride,
                       int n, int n_nibbles, double* scores);
    // One row: sum of q_i * yhat_i in the fixed order of eight partial sums.
    // out [n][columns] = x [n][d] times m [d][columns], row-major.
    void (*project)(const float* x, ptrdiff_t stride, int n, int d, const float* m, int columns, float* out);
    double (*dot)(const float* q, const float* yhat, int d);
    // acc [n_blocks][n_queries][16] = weighted table sums of blocks [n_blocks][words][16].
    void (*scan)(const uint32_t* blocks, int n_blocks, int words, const QueryTables* queries, int n_queries,
                 int32_t* acc);
    // Null, or the same for tables of one weight and at most kWindow words: sums [n_blocks][n_queries][16] without the
    // weight, and masks [n_queries][n_blocks] at a stride, whose bit i says whether row i's sum is at least its query's.
    void (*scan_narrow)(const uint32_t* blocks, int n_blocks, int words, const QueryTables* queries, int n_queries,
                        const uint16_t* least, uint16_t* sums, uint16_t* masks, ptrdiff_t masks_stride);
    // The rows of n_blocks blocks whose bits are set, as 16 * b + i, in order; returns how many. Masks count as far as a
    // multiple of four blocks, and up to two places past the last row are written.
    int (*list_rows)(const uint16_t* masks, int n_blocks, uint32_t* rows);
    // Bit i of masks[b]: row i of block b can still reach the threshold. acc of one query at a stride.
    void (*reachable)(const int32_t* acc, ptrdiff_t stride, int n_blocks, const QueryBounds*, const float* a,
                      const float* squared_norms, uint16_t* masks);
};

const Kernels* kernels();             // the active level
const char* simd_reason();            // why it is the active one
int set_simd(const char* name);       // 0 when the level is not available here

namespace scalar { extern const Kernels table; }
namespace avx2 { extern const Kernels table; }
namespace avx512 { extern const Kernels table; }
namespace neon { extern const Kernels table; }

}  // namespace tq
