// Table scan over the blocked layout: a line of 64 bytes holds four bytes (eight nibbles) of each of sixteen rows.
// Every level computes the same integers: sum over nibbles of the word's weight * table[nibble].
#include "lanes.h"

namespace tq::TQ_LEVEL {

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

// sum += a's bytes (unsigned) times w's (signed), four at a time. Written out because GCC copies the sum around its
// own intrinsic, which costs more than the instruction.
static inline void add_products(__m512i& sum, __m512i a, __m512i w) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w));
}

// The low (half 0) or high (half 1) nibbles of one word of NB blocks for NQ queries. Four tables of 16 entries fill
// one register: (x & nibble) | place is the nibble plus 16 times the byte's place in its word.
template <int NB, int NQ, int kHalf>
static inline __attribute__((always_inline)) void add_half(const uint32_t* word, ptrdiff_t block_stride, int w,
                                                           const QueryTables* queries, __m512i (&sum)[NB * NQ]) {
    const __m512i place = _mm512_set1_epi32(0x30201000), nibble = _mm512_set1_epi8(15);
    __m512i index[NB];
#pragma GCC unroll 8
    for (int b = 0; b < NB; ++b) {
        const __m512i x = _mm512_loadu_si512(word + b * block_stride);
        index[b] = _mm512_ternarylogic_epi32(kHalf ? _mm512_srli_epi16(x, 4) : x, nibble, place, 0xEA);
    }
#pragma GCC unroll 4
    for (int q = 0; q < NQ; ++q) {
        const __m512i table = _mm512_loadu_si512(queries[q].lut + (ptrdiff_t)w * 128 + 64 * kHalf);
        const __m512i weight = _mm512_set1_epi32((int)queries[q].weights[w]);
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b)
            add_products(sum[b * NQ + q], _mm512_permutexvar_epi8(index[b], table), weight);
    }
}

// NB blocks by NQ queries with all sums in registers.
template <int NB, int NQ>
static void scan_part(const uint32_t* blocks, ptrdiff_t block_stride, int words, const QueryTables* queries,
                      int32_t* acc, ptrdiff_t acc_stride) {
    __m512i sum[NB * NQ];
#pragma GCC unroll 16
    for (int i = 0; i < NB * NQ; ++i) sum[i] = _mm512_setzero_si512();
    // The next blocks come into the second-level cache in order of address, which hides the memory's latency.
    const char* next = (const char*)(blocks + NB * block_stride);
    for (int w = 0; w < words; ++w) {
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) _mm_prefetch(next + (ptrdiff_t)(w * NB + b) * 64, _MM_HINT_T1);
        add_half<NB, NQ, 0>(blocks + (ptrdiff_t)w * kLanes, block_stride, w, queries, sum);
        add_half<NB, NQ, 1>(blocks + (ptrdiff_t)w * kLanes, block_stride, w, queries, sum);
    }
#pragma GCC unroll 16
    for (int i = 0; i < NB * NQ; ++i)
        _mm512_storeu_si512(acc + (ptrdiff_t)(i / NQ) * acc_stride + i % NQ * kLanes, sum[i]);
}

// One word of one block for one query; low and high nibbles go into sums of their own.
static inline __attribute__((always_inline)) void add_word(const uint32_t* word, const uint8_t* lut, uint32_t weights,
                                                           __m512i& low, __m512i& high) {
    const __m512i place = _mm512_set1_epi32(0x30201000), nibble = _mm512_set1_epi8(15);
    const __m512i x = _mm512_loadu_si512(word);
    const __m512i l = _mm512_ternarylogic_epi32(x, nibble, place, 0xEA);
    const __m512i h = _mm512_ternarylogic_epi32(_mm512_srli_epi16(x, 4), nibble, place, 0xEA);
    const __m512i weight = _mm512_set1_epi32((int)weights);
    add_products(low, _mm512_permutexvar_epi8(l, _mm512_loadu_si512(lut)), weight);
    add_products(high, _mm512_permutexvar_epi8(h, _mm512_loadu_si512(lut + 64)), weight);
}

// One query is bound by memory: it goes through the codes in order of address, with four sums to hide the latency of
// the dot products.
static void scan_one(const uint32_t* blocks, int n_blocks, ptrdiff_t block_stride, int words, const QueryTables& query,
                     int32_t* acc, ptrdiff_t acc_stride) {
    constexpr ptrdiff_t kAhead = 512;  // entries, 2 KiB
    for (int b = 0; b < n_blocks; ++b) {
        __m512i s[4] = {};
        for (int w = 0; w < words; w += 2) {
            const uint32_t* x = blocks + b * block_stride + (ptrdiff_t)w * kLanes;
            _mm_prefetch((const char*)(x + kAhead), _MM_HINT_T0);
            add_word(x, query.lut + (ptrdiff_t)w * 128, query.weights[w], s[0], s[1]);
            if (w + 1 == words) break;
            _mm_prefetch((const char*)(x + kAhead + kLanes), _MM_HINT_T0);
            add_word(x + kLanes, query.lut + (ptrdiff_t)w * 128 + 128, query.weights[w + 1], s[2], s[3]);
        }
        _mm512_storeu_si512(acc + b * acc_stride,
                            _mm512_add_epi32(_mm512_add_epi32(s[0], s[1]), _mm512_add_epi32(s[2], s[3])));
    }
}

template <int NQ>
static void scan_queries(const uint32_t* blocks, int n_blocks, ptrdiff_t block_stride, int words,
                         const QueryTables* queries, int32_t* acc, ptrdiff_t acc_stride) {
    constexpr int kStep = 4;
    int b = 0;
    for (; b + kStep <= n_blocks; b += kStep)
        scan_part<kStep, NQ>(blocks + b * block_stride, block_stride, words, queries, acc + b * acc_stride, acc_stride);
    for (; b < n_blocks; ++b)
        scan_part<1, NQ>(blocks + b * block_stride, block_stride, words, queries, acc + b * acc_stride, acc_stride);
}

void scan(const uint32_t* blocks, int n_blocks, int words, const QueryTables* queries, int n_queries, int32_t* acc) {
    const ptrdiff_t stride = (ptrdiff_t)n_queries * kLanes, block_stride = (ptrdiff_t)words * kLanes;
    int q = 0;
    for (; q + 4 <= n_queries; q += 4)
        scan_queries<4>(blocks, n_blocks, block_stride, words, queries + q, acc + q * kLanes, stride);
    if (n_queries - q >= 2) {
        scan_queries<2>(blocks, n_blocks, block_stride, words, queries + q, acc + q * kLanes, stride);
        q += 2;
    }
    if (n_queries - q == 1) scan_one(blocks, n_blocks, block_stride, words, queries[q], acc + q * kLanes, stride);
}

#elif defined(__AVX2__)

// Blocks hold the bytes of a line by place: those of all sixteen rows at one place fill half a register, whose table
// VPSHUFB looks up. Two entries of seven bits fit one byte; bytes are added in 16 bits, the odd ones as they are and the
// even ones with 256 times their neighbour, which is taken off again at the end of a window.

// A query alone asks memory for its codes so early at least, in entries (12 KiB): of short blocks in order of address,
// without which lines come at half of the speed, of long ones in the order of use, where each block is a stream.
constexpr ptrdiff_t kAhead = 192 * kLanes, kLongBlock = 64 * kLanes;

// The sums of a window times its weight, from those of even rows and 256 times those of odd ones, and of odd ones.
static inline __attribute__((always_inline)) void close_window(__m256i both, __m256i odd, uint32_t weight, bool first,
                                                               int32_t* acc) {
    const __m256i even = _mm256_sub_epi16(both, _mm256_slli_epi16(odd, 8));
    const __m128i o = _mm_add_epi16(_mm256_castsi256_si128(odd), _mm256_extracti128_si256(odd, 1));
    const __m128i e = _mm_add_epi16(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
    const __m256i w = _mm256_set1_epi32((int)(weight & 255));
    const __m128i rows[2] = {_mm_unpacklo_epi16(e, o), _mm_unpackhi_epi16(e, o)};
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        __m256i* out = (__m256i*)(acc + 8 * half);
        const __m256i sums = _mm256_mullo_epi32(_mm256_cvtepu16_epi32(rows[half]), w);
        _mm256_storeu_si256(out, first ? sums : _mm256_add_epi32(_mm256_loadu_si256(out), sums));
    }
}

// The same of two windows without their weights, in 16 bits: the sums of sixteen rows of each and which of them reach its
// least sum, the second's in the high half.
static inline __attribute__((always_inline)) uint32_t close_pair(const __m256i* one, const __m256i* two, __m256i least,
                                                                 uint16_t* of_one, uint16_t* of_two) {
    const __m256i even_one = _mm256_sub_epi16(one[0], _mm256_slli_epi16(one[1], 8));
    const __m256i even_two = _mm256_sub_epi16(two[0], _mm256_slli_epi16(two[1], 8));
    const __m256i even = _mm256_add_epi16(_mm256_permute2x128_si256(even_one, even_two, 0x20),
                                          _mm256_permute2x128_si256(even_one, even_two, 0x31));
    const __m256i odd = _mm256_add_epi16(_mm256_permute2x128_si256(one[1], two[1], 0x20),
                                         _mm256_permute2x128_si256(one[1], two[1], 0x31));
    const __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
    _mm_storeu_si128((__m128i*)of_one, _mm256_castsi256_si128(low));
    _mm_storeu_si128((__m128i*)(of_one + 8), _mm256_castsi256_si128(high));
    _mm_storeu_si128((__m128i*)of_two, _mm256_extracti128_si256(low, 1));
    _mm_storeu_si128((__m128i*)(of_two + 8), _mm256_extracti128_si256(high, 1));
    const __m256i pass_low = _mm256_cmpeq_epi16(_mm256_max_epu16(low, least), low);
    const __m256i pass_high = _mm256_cmpeq_epi16(_mm256_max_epu16(high, least), high);
    return (uint32_t)_mm256_movemask_epi8(_mm256_packs_epi16(pass_low, pass_high));
}

// Words [begin, end), at most a window, of NB blocks for NQ queries with all sums in registers.
template <int NB, int NQ, class Close>
static inline __attribute__((always_inline)) void scan_window(const uint32_t* blocks, ptrdiff_t block_stride,
                                                              const QueryTables* queries, int begin, int end,
                                                              const Close& close) {
    // Shifts right by 4 and by 8 as products, which do not wait for the two units that shuffle.
    const __m256i nibble = _mm256_set1_epi8(15), by_4 = _mm256_set1_epi16(1 << 12), by_8 = _mm256_set1_epi16(1 << 8);
    const ptrdiff_t ahead = NB * block_stride > kAhead ? NB * block_stride : kAhead;  // past the blocks being read
    const bool in_order = block_stride < kLongBlock;
    const ptrdiff_t word_step = in_order ? NB * kLanes : kLanes, block_step = in_order ? kLanes : block_stride;
    __m256i sum[NB * NQ][2];
#pragma GCC unroll 8
    for (int i = 0; i < NB * NQ; ++i) sum[i][0] = sum[i][1] = _mm256_setzero_si256();
    for (int w = begin; w < end; ++w) {
#pragma GCC unroll 2
        for (int pair = 0; pair < 2; ++pair) {
            // Blocks outside, so that what is shared by the queries, or the query's tables, stays in registers.
            const ptrdiff_t at = (ptrdiff_t)w * 128 + 32 * pair;
#pragma GCC unroll 4
            for (int b = 0; b < NB; ++b) {
                const uint32_t* half_line = blocks + b * block_stride + (ptrdiff_t)w * kLanes + 8 * pair;
                if (NQ == 1 && pair == 0)
                    _mm_prefetch((const char*)(blocks + ahead + w * word_step + b * block_step), _MM_HINT_T0);
                const __m256i x = _mm256_loadu_si256((const __m256i*)half_line);
                const __m256i low = _mm256_and_si256(x, nibble);
                const __m256i high = _mm256_and_si256(_mm256_mulhi_epu16(x, by_4), nibble);
#pragma GCC unroll 4
                for (int q = 0; q < NQ; ++q) {
                    const __m256i of_low = _mm256_loadu_si256((const __m256i*)(queries[q].lut + at));
                    const __m256i of_high = _mm256_loadu_si256((const __m256i*)(queries[q].lut + at + 64));
                    __m256i* s = sum[b * NQ + q];
                    const __m256i both =
                        _mm256_add_epi8(_mm256_shuffle_epi8(of_low, low), _mm256_shuffle_epi8(of_high, high));
                    s[0] = _mm256_add_epi16(s[0], both);
                    s[1] = _mm256_add_epi16(s[1], _mm256_mulhi_epu16(both, by_8));
                    __asm__("" : "+x"(s[0]), "+x"(s[1]));  // GCC would add up both halves first and run out of registers
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < NB * NQ; ++i) close(i, sum[i][0], sum[i][1]);
}

// The end of the window that begins at a word: weights stay the same for all queries, and sums fit 16 bits.
template <int NQ>
static int window_end(const QueryTables* queries, int begin, int words) {
    int end = begin + 1;
    for (; end < words && end - begin < kWindow; ++end)
        for (int q = 0; q < NQ; ++q)
            if (queries[q].weights[end] != queries[q].weights[begin]) return end;
    return end;
}

template <int NB, int NQ>
static void scan_queries(const uint32_t* blocks, int n_blocks, ptrdiff_t block_stride, int words,
                         const QueryTables* queries, int32_t* acc, ptrdiff_t acc_stride) {
    constexpr int kMost = 64;  // windows that are remembered
    int ends[kMost], n_windows = 0;
    for (int w = 0; w < words && n_windows < kMost; w = ends[n_windows++])
        ends[n_windows] = window_end<NQ>(queries, w, words);
    const auto windows = [&]<int kBlocks>(int b) {
        for (int w = 0, i = 0, end; w < words; w = end, ++i) {
            end = i < n_windows ? ends[i] : window_end<NQ>(queries, w, words);
            scan_window<kBlocks, NQ>(blocks + b * block_stride, block_stride, queries, w, end,
                                     [&](int i, __m256i both, __m256i odd) __attribute__((always_inline)) {
                                         close_window(both, odd, queries[i % NQ].weights[w], w == 0,
                                                      acc + (b + i / NQ) * acc_stride + i % NQ * kLanes);
                                     });
        }
    };
    int b = 0;
    for (; b + NB <= n_blocks; b += NB) windows.template operator()<NB>(b);
    for (; NB > 1 && b < n_blocks; ++b) windows.template operator()<1>(b);
}

void scan(const uint32_t* blocks, int n_blocks, int words, const QueryTables* queries, int n_queries, int32_t* acc) {
    const ptrdiff_t stride = (ptrdiff_t)n_queries * kLanes, block_stride = (ptrdiff_t)words * kLanes;
    int q = 0;
    for (; q + 4 <= n_queries; q += 4)
        scan_queries<1, 4>(blocks, n_blocks, block_stride, words, queries + q, acc + q * kLanes, stride);
    const auto rest = n_queries - q == 3   ? scan_queries<1, 3>
                      : n_queries - q == 2 ? scan_queries<2, 2>
                      : n_queries - q == 1 ? scan_queries<4, 1>
                                           : nullptr;
    if (rest) rest(blocks, n_blocks, block_stride, words, queries + q, acc + q * kLanes, stride);
}

// The sums of a window as they are. Not inline: with more around them GCC would keep them in memory all along.
template <int NB, int NQ>
static __attribute__((noinline)) void sum_window(const uint32_t* blocks, int words, const QueryTables* queries,
                                                 __m256i (*sums)[2]) {
    scan_window<NB, NQ>(blocks, (ptrdiff_t)words * kLanes, queries, 0, words,
                        [=](int i, __m256i both, __m256i odd) __attribute__((always_inline)) {
                            sums[i][0] = both;
                            sums[i][1] = odd;
                        });
}

template <int NB, int NQ>
static void scan_narrow_queries(const uint32_t* blocks, int n_blocks, int words, const QueryTables* queries,
                                const uint16_t* least, uint16_t* sums, ptrdiff_t stride, uint16_t* masks,
                                ptrdiff_t masks_stride) {
    // By twos; what is left over goes with itself.
    const auto part = [&]<int kBlocks>(int b) {
        constexpr int n = kBlocks * NQ;
        __m256i window[n][2];
        sum_window<kBlocks, NQ>(blocks + (ptrdiff_t)b * words * kLanes, words, queries, window);
#pragma GCC unroll 4
        for (int i = 0; i < n; i += 2) {
            const int j = i + 1 < n ? i + 1 : i, of_i = i % NQ, of_j = j % NQ, block_i = b + i / NQ, block_j = b + j / NQ;
            const uint32_t pass = close_pair(
                window[i], window[j],
                _mm256_setr_m128i(_mm_set1_epi16((short)least[of_i]), _mm_set1_epi16((short)least[of_j])),
                sums + block_i * stride + of_i * kLanes, sums + block_j * stride + of_j * kLanes);
            masks[of_i * masks_stride + block_i] = (uint16_t)pass;
            masks[of_j * masks_stride + block_j] = (uint16_t)(pass >> 16);
        }
    };
    int b = 0;
    for (; b + NB <= n_blocks; b += NB) part.template operator()<NB>(b);
    for (; NB > 1 && b < n_blocks; ++b) part.template operator()<1>(b);
}

void scan_narrow(const uint32_t* blocks, int n_blocks, int words, const QueryTables* queries, int n_queries,
                 const uint16_t* least, uint16_t* sums, uint16_t* masks, ptrdiff_t masks_stride) {
    const ptrdiff_t stride = (ptrdiff_t)n_queries * kLanes;
    int q = 0;
    const auto part = [&](auto* function) {
        function(blocks, n_blocks, words, queries + q, least + q, sums + q * kLanes, stride, masks + q * masks_stride,
                 masks_stride);
    };
    for (; q + 4 <= n_queries; q += 4) part(scan_narrow_queries<1, 4>);
    if (n_queries - q == 3) part(scan_narrow_queries<1, 3>);
    else if (n_queries - q == 2) part(scan_narrow_queries<2, 2>);
    else if (n_queries - q == 1) part(scan_narrow_queries<4, 1>);
}

#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)

void scan(const uint32_t* blocks, int n_blocks, int words, const QueryTables* queries, int n_queries, int32_t* acc) {
    const uint8x16_t place = vreinterpretq_u8_u32(vdupq_n_u32(0x30201000)), nibble = vdupq_n_u8(15);
    for (int b = 0; b < n_blocks; ++b)
        for (int q = 0; q < n_queries; ++q) {
            uint32x4_t sum[4] = {vdupq_n_u32(0), vdupq_n_u32(0), vdupq_n_u32(0), vdupq_n_u32(0)};
            for (int w = 0; w < words; ++w) {
                const uint8_t* x = (const uint8_t*)(blocks + ((ptrdiff_t)b * words + w) * kLanes);
                const uint8x16x4_t t0 = vld1q_u8_x4(queries[q].lut + (ptrdiff_t)w * 128);
                const uint8x16x4_t t1 = vld1q_u8_x4(queries[q].lut + (ptrdiff_t)w * 128 + 64);
                const uint8x16_t weight = vreinterpretq_u8_u32(vdupq_n_u32(queries[q].weights[w]));
                for (int k = 0; k < 4; ++k) {
                    const uint8x16_t v = vld1q_u8(x + 16 * k);
                    sum[k] = vdotq_u32(sum[k], vqtbl4q_u8(t0, vorrq_u8(vandq_u8(v, nibble), place)), weight);
                    sum[k] = vdotq_u32(sum[k], vqtbl4q_u8(t1, vorrq_u8(vshrq_n_u8(v, 4), place)), weight);
                }
            }
            uint32_t* out = (uint32_t*)acc + ((ptrdiff_t)b * n_queries + q) * kLanes;
            for (int k = 0; k < 4; ++k) vst1q_u32(out + 4 * k, sum[k]);
        }
}

#else

void scan(const uint32_t* blocks, int n_blocks, int words, const QueryTables* queries, int n_queries, int32_t* acc) {
    for (int b = 0; b < n_blocks; ++b)
        for (int q = 0; q < n_queries; ++q) {
            int32_t* out = acc + ((ptrdiff_t)b * n_queries + q) * kLanes;
            for (int l = 0; l < kLanes; ++l) out[l] = 0;
            for (int w = 0; w < words; ++w) {
                const uint32_t* x = blocks + ((ptrdiff_t)b * words + w) * kLanes;
                const uint8_t* lut = queries[q].lut + (ptrdiff_t)w * 128;
                const int weight = (int)(queries[q].weights[w] & 255);
                for (int p = 0; p < 4; ++p)
                    for (int l = 0; l < kLanes; ++l) {
                        const int byte = x[l] >> (8 * p) & 255;
                        out[l] += (lut[16 * p + (byte & 15)] + lut[64 + 16 * p + (byte >> 4)]) * weight;
                    }
            }
        }
}

#endif

// Two rows of four blocks are written whether or not they are there, as each branch on them would be guessed wrong.
int list_rows(const uint16_t* masks, int n_blocks, uint32_t* rows) {
    const auto first = [](uint64_t bits) { return (uint32_t)__builtin_ctzll(bits | 1ull << 63); };
    int n = 0;
    for (int b = 0; b < n_blocks; b += 4) {
        uint64_t bits;
        memcpy(&bits, masks + b, sizeof(bits));
        const uint32_t base = (uint32_t)b * kLanes;
        const int count = __builtin_popcountll(bits);
        rows[n] = base + first(bits);
        bits &= bits - 1;
        rows[n + 1] = base + first(bits);
        if (count > 2)
            for (int i = 2; i < count; ++i) {
                bits &= bits - 1;
                rows[n + i] = base + first(bits);
            }
        n += count;
    }
    return n;
}

void reachable(const int32_t* acc, ptrdiff_t stride, int n_blocks, const QueryBounds* q, const float* a,
               const float* squared_norms, uint16_t* masks) {
    const wfloat delta = wfloat{} + q->delta, offset = wfloat{} + (q->base + q->error);
    const wfloat factor = wfloat{} + q->norm_factor, threshold = wfloat{} + q->threshold;
    for (int b = 0; b < n_blocks; ++b) {
        uint32_t mask = 0;
#pragma GCC unroll 4
        for (int part = 0; part < kLanes; part += kWide) {
            const ptrdiff_t row = (ptrdiff_t)b * kLanes + part;
            const wfloat dot = __builtin_convertvector(load_wide(acc + b * stride + part), wfloat) * delta + offset;
            wfloat upper = dot * load_wide(a + row);
            if (squared_norms) upper += load_wide(squared_norms + row) * factor;
#if defined(__AVX512F__)
            mask |= _mm512_cmp_ps_mask((__m512)upper, (__m512)threshold, _CMP_GE_OQ);
#elif defined(__AVX2__)
            mask |= (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)upper, (__m256)threshold, _CMP_GE_OQ)) << part;
#else
            const wint pass = (wint)(upper >= threshold);
            for (int l = 0; l < kWide; ++l) mask |= (uint32_t)(pass[l] & 1) << (part + l);
#endif
        }
        masks[b] = (uint16_t)mask;
    }
}

}  // namespace tq::TQ_LEVEL
