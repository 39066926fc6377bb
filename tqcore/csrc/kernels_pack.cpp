// Rows of codes, or of blocks, into lines of the scanning layout.
#include "lanes.h"

namespace tq::TQ_LEVEL {

#if defined(__AVX2__) && !defined(__AVX512VBMI__)

// Sixteen bytes of every row to the sixteen rows of every byte.
static inline void transpose(const uint8_t* const* rows, ptrdiff_t at, uint8_t* out) {
    __m256i x[8], y[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r)
        x[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(rows[r] + at))),
                                       _mm_loadu_si128((const __m128i*)(rows[r + 8] + at)), 1);
    // Rows r and r + 4 side by side, then r and r + 2, then neighbours: eight rows of a byte in half a lane.
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
        y[2 * r] = _mm256_unpacklo_epi8(x[r], x[r + 4]);
        y[2 * r + 1] = _mm256_unpackhi_epi8(x[r], x[r + 4]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
        x[2 * r] = _mm256_unpacklo_epi8(y[r], y[r + 4]);
        x[2 * r + 1] = _mm256_unpackhi_epi8(y[r], y[r + 4]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
        y[2 * r] = _mm256_unpacklo_epi8(x[r], x[r + 4]);
        y[2 * r + 1] = _mm256_unpackhi_epi8(x[r], x[r + 4]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r)
        _mm256_storeu_si256((__m256i*)out + r, _mm256_permute4x64_epi64(y[r], 0xD8));
}

void pack_block(const uint8_t* const* rows, int size, uint32_t* lines) {
    int at = 0;
    for (; at + 16 <= size; at += 16) transpose(rows, at, (uint8_t*)lines + (ptrdiff_t)at * kLanes);
    if (at == size) return;
    uint8_t last[kLanes][16] = {}, columns[16 * kLanes];
    const uint8_t* copies[kLanes];
    for (int r = 0; r < kLanes; ++r) {
        copies[r] = last[r];
        memcpy(last[r], rows[r] + at, (size_t)(size - at));
    }
    transpose(copies, 0, columns);
    memcpy((uint8_t*)lines + (ptrdiff_t)at * kLanes, columns, (size_t)((size - at + 3) / 4 * 64));
}

// Blocks that are wanted next, asked for in order of address.
struct Wanted {
    const uint32_t* const* blocks;
    int words, word = 0;
    template <int kWords>
    __attribute__((always_inline)) void ask() {
        const char* lines = (const char*)(*blocks + (ptrdiff_t)word * kLanes);
#pragma GCC unroll 4
        for (int w = 0; w < kWords; ++w) _mm_prefetch(lines + 64 * w, _MM_HINT_T1);
        word += kWords;
        if (word < words) return;
        word = 0;
        ++blocks;
    }
};

// kWords lines, each from the same line of every row's block.
template <int kWords>
static inline __attribute__((always_inline)) void gather_lines(const uint32_t* const* from, const __m256i* own, int n,
                                                               ptrdiff_t at, Wanted& wanted, uint32_t* lines) {
    __m256i sum[2 * kWords] = {};
    for (int r = 0; r < n; ++r) {
        const __m256i* half = (const __m256i*)(from[r] + at);
        wanted.ask<kWords>();
#pragma GCC unroll 8
        for (int i = 0; i < 2 * kWords; ++i)
            sum[i] = _mm256_or_si256(sum[i], _mm256_shuffle_epi8(_mm256_loadu_si256(half + i), own[r]));
    }
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kWords; ++i) _mm256_storeu_si256((__m256i*)(lines + at) + i, sum[i]);
}

void gather_block(const uint32_t* blocks, const int64_t* rows, int n, int words, uint32_t* lines) {
    const uint32_t* from[2 * kLanes];
    for (int r = 0; r < 2 * n; ++r) from[r] = blocks + (ptrdiff_t)(rows[r] / kLanes) * words * kLanes;
    // Shuffled by own[r], the row's byte of each place goes to lane r and all others become 0.
    __m256i own[kLanes];
    const __m256i lane = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (int r = 0; r < n; ++r)
        own[r] = _mm256_blendv_epi8(_mm256_set1_epi8(-1), _mm256_set1_epi8((char)(rows[r] % kLanes)),
                                    _mm256_cmpeq_epi8(lane, _mm256_set1_epi8((char)r)));
    Wanted wanted{from + n, words};
    int w = 0;
    for (; w + 4 <= words; w += 4) gather_lines<4>(from, own, n, (ptrdiff_t)w * kLanes, wanted, lines);
    for (; w < words; ++w) gather_lines<1>(from, own, n, (ptrdiff_t)w * kLanes, wanted, lines);
}

#else

void gather_block(const uint32_t* blocks, const int64_t* rows, int n, int words, uint32_t* lines) {
    for (int r = 0; r < n; ++r) {
        const uint32_t* from = blocks + (ptrdiff_t)(rows[r] / kLanes) * words * kLanes + rows[r] % kLanes;
        for (ptrdiff_t w = 0; w < words; ++w) lines[w * kLanes + r] = from[w * kLanes];
    }
}

void pack_block(const uint8_t* const* rows, int size, uint32_t* lines) {
    for (int r = 0; r < kLanes; ++r) {
        for (int w = 0; w < size / 4; ++w) memcpy(lines + w * kLanes + r, rows[r] + 4 * w, 4);
        if (size % 4 == 0) continue;
        uint32_t last = 0;
        memcpy(&last, rows[r] + size / 4 * 4, (size_t)(size % 4));
        lines[size / 4 * kLanes + r] = last;
    }
}

#endif

}  // namespace tq::TQ_LEVEL
