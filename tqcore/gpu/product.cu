// Products of 8-bit integers with codes decoded in registers. Compiled with PERIOD (nibbles) and PHASES (dimensions of a
// period), MEMORY, TILES (groups of 8 queries) and BLOCKS (of threads, a multiprocessor). A warp takes 32 rows; lane 4 g + t holds rows
// g, g + 8, g + 16 and g + 24, and of each of them the t-th quarter of the units, so that a register of four decoded
// nibbles is a piece of the matrix operand.
#define WARPS 8
#define QUERIES (8 * TILES)
#define AGES (TILES == 1 ? MEMORY : 1)  // operands of a nibble and a phase, see `accumulate`

// Four bytes of a table of 16, chosen by the low four nibbles. The instruction spreads the sign of an entry chosen with
// the top bit set, and entries are below 128: half a table gives 0 where the nibble lies in the other half.
__device__ __forceinline__ u32 picked(u32 a, u32 b, u32 nibbles) {
    u32 r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(nibbles));
    return r;
}

__device__ __forceinline__ void multiply(int (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, uint2 b) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y));
}

// Operand pieces float32 [padded][d] -> u32 [tiles][slots][TILES][32][2], columns (gain, offset, error, unused),
// thresholds and empty counts; status[0] takes the first query that is not finite, padding takes no part. A block a query.
extern "C" __global__ void prepare(Bytes bytes, const float* q_all, int nq, int d, int nibbles, int steps,
                                   float length, float missed, u32* pieces, float4* columns, float* threshold,
                                   int* counts, u8* overflow, int* claimed, int* status) {
    extern __shared__ float q[];
    __shared__ float part[5][32];
    const int query = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const bool real = query < nq;
    float most = 0, square = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        const float v = real ? q_all[(i64)query * d + i] : 0.0f;
        q[i] = v;
        most = fmaxf(most, fabsf(v * bytes.step[i % PHASES]));
        square += v * v;
    }
    for (int m = 16; m; m >>= 1) {
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, m));
        square += __shfl_xor_sync(0xffffffffu, square, m);
    }
    if (lane == 0) part[0][warp] = most, part[1][warp] = square;
    __syncthreads();
    most = 0, square = 0;
    for (int w = 0; w < warps; ++w) most = fmaxf(most, part[0][w]), square += part[1][w];
    const float gain = most > 0 ? most / 127.0f : 1.0f, inverse = 1.0f / gain;
    float left = 0, offset = 0, used = 0;
    const int count = 32 * steps * PHASES * AGES;  // words of this query
    for (int k = threadIdx.x; k < count; k += blockDim.x) {
        const int slot = k >> 3, t = k >> 1 & 3;
        const int age = slot % AGES, phase = slot / AGES % PHASES, word = slot / (AGES * PHASES);
        const int first = ((t * steps + word / 4) * 4 + word % 4) * 8 + (k & 1) * 4;
        u32 packed = 0;
        for (int i = 0; i < 4; ++i) {
            if (first + i >= nibbles) break;
            const int next = first + i + age, closing = next < nibbles ? next : next - nibbles;
            const int dim = closing / PERIOD * PHASES + phase;
            if (dim >= d || phase * PERIOD / PHASES != closing % PERIOD) continue;
            const float v = q[dim] * bytes.step[phase];
            const int n = max(-127, min(127, __float2int_rn(v * inverse)));
            packed |= (u32)(n & 255) << (8 * i);
            if (age) continue;
            const float r = (v - (float)n * gain) / bytes.step[phase];
            left += r * r;
            offset += (float)n * bytes.zero[phase];
            used += fabsf((float)n);
        }
        const i64 group = (i64)(query / QUERIES) * (4 * steps * PHASES * AGES) + slot;
        pieces[((group * TILES + query / 8 % TILES) * 32 + query % 8 * 4 + t) * 2 + (k & 1)] = packed;
    }
    for (int m = 16; m; m >>= 1) {
        left += __shfl_xor_sync(0xffffffffu, left, m);
        offset += __shfl_xor_sync(0xffffffffu, offset, m);
        used += __shfl_xor_sync(0xffffffffu, used, m);
    }
    if (lane == 0) part[2][warp] = left, part[3][warp] = offset, part[4][warp] = used;
    __syncthreads();
    if (threadIdx.x) return;
    left = offset = used = 0;
    for (int w = 0; w < warps; ++w) left += part[2][w], offset += part[3][w], used += part[4][w];
    // What rounding the query and the rows leaves of <q, yhat>, and sums of integers in float32.
    // Sums of integers are rounded to float32.
    const float sums = gain * used * 256 * 0x1p-21f;
    const float error = 1.01f * (sqrtf(left) * (length + missed) + sqrtf(square) * missed) + sums;
    columns[query] = make_float4(gain, -gain * offset, error, 0.0f);
    threshold[query] = INF;
    if (real) counts[query] = 0, overflow[query] = 0;
    if (query == 0) *claimed = 0;
    if (real && !(square < INF)) atomicMin(status, query);
}

struct Part {
    int period, ratio, count;  // blocks period * m: every m, or with a ratio those that it does not divide

    __device__ __forceinline__ i64 block(int i) const {
        const i64 m = ratio ? i + i / (ratio - 1) + 1 : i;
        return m * period;
    }
};

// Adds the products of one word of each of four rows with its pieces, and moves on to the next.
#if TILES == 1
// Matrix products are to be had here, additions are what is short: every age and half of a table has its own.
__device__ __forceinline__ void accumulate(const Bytes& bytes, const u32 (&words)[4], u32 (&)[4],
                                           int (&sums)[2][TILES][4], const uint2*& piece) {
    u32 nibbles[2][4][2];  // [half of a table][row][half of the word]
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const u32 flipped = words[k] ^ 0x88888888u;
        nibbles[0][k][0] = words[k], nibbles[0][k][1] = words[k] >> 16;
        nibbles[1][k][0] = flipped, nibbles[1][k][1] = flipped >> 16;
    }
#pragma unroll
    for (int p = 0; p < PHASES; ++p)
#pragma unroll
        for (int o = 0; o < MEMORY; ++o) {
            const uint2 b = *piece;
            piece += 32;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                u32 a[4][2];
#pragma unroll
                for (int k = 0; k < 4; ++k)
#pragma unroll
                    for (int half = 0; half < 2; ++half)
                        a[k][half] = picked(bytes.entry[p][o][2 * h], bytes.entry[p][o][2 * h + 1], nibbles[h][k][half]);
                multiply(sums[0][0], a[0][0], a[1][0], a[0][1], a[1][1], b);
                multiply(sums[1][0], a[2][0], a[3][0], a[2][1], a[3][1], b);
            }
        }
}
#else
// Decoded nibbles of a word, four a register: [half][phase].
__device__ __forceinline__ void decode(const Bytes& bytes, u32 word, u32 previous, u32 (&out)[2][PHASES]) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int p = 0; p < PHASES; ++p) out[half][p] = 0;
#pragma unroll
    for (int o = 0; o < MEMORY; ++o) {
        const u32 low = __funnelshift_l(previous, word, 4 * o);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const u32 nibbles = half ? low >> 16 : low, flipped = nibbles ^ 0x8888u;
#pragma unroll
            for (int p = 0; p < PHASES; ++p)
                out[half][p] += picked(bytes.entry[p][o][0], bytes.entry[p][o][1], nibbles) +
                                picked(bytes.entry[p][o][2], bytes.entry[p][o][3], flipped);
        }
    }
}

__device__ __forceinline__ void accumulate(const Bytes& bytes, const u32 (&words)[4], u32 (&previous)[4],
                                           int (&sums)[2][TILES][4], const uint2*& piece) {
    u32 a[4][2][PHASES];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        decode(bytes, words[k], previous[k], a[k]);
        previous[k] = words[k];
    }
#pragma unroll
    for (int p = 0; p < PHASES; ++p) {
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
            const uint2 b = piece[n * 32];
            multiply(sums[0][n], a[0][0][p], a[1][0][p], a[0][1][p], a[1][1][p], b);
            multiply(sums[1][n], a[2][0][p], a[3][0][p], a[2][1][p], a[3][1][p], b);
        }
        piece += TILES * 32;
    }
}
#endif

enum { BEST, HITS, STORE };

// Products of all queries with the blocks of a part. BEST: the largest score of each block, [queries][count], its last
// five bits the row in the block. HITS: rows whose upper bound reaches the threshold are appended to `found`; counts go
// past `room` if there is none. STORE: one tile; upper bounds of all rows [queries][rows of whole blocks], and the largest
// score of each warp, likewise, [queries][warps], with its block; warps claim blocks, as not all run equally fast.
template <int MODE>
__device__ __forceinline__ void product(const Bytes& bytes, const Rows& rows, const Part& part, int units, int nibbles,
                                        int steps, int tiles, int slabs, const uint2* pieces, const float4* columns,
                                        const float* threshold, int nq, int room, int* counts, int* found,
                                        float* upper, float* best, int* places, int* claimed) {
    extern __shared__ __align__(16) uint2 shared[];
    const int slots = 4 * steps * PHASES * AGES, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    float4* column = (float4*)(shared + slots * TILES * 32);
    const int per_slab = (part.count + slabs - 1) / slabs;
    // The nibbles before this lane's first: of the word before, or at the start of a row the last ones.
    const int before1 = t ? t * steps * 32 - 1 : nibbles - 1;
    const int before2 = t ? before1 - 1 : (nibbles + nibbles - 2) % nibbles;
    const int word1 = min(before1 >> 3, units * 4 - 1), word2 = min(before2 >> 3, units * 4 - 1);
    float highest[2] = {-INF, -INF};
    int place[2] = {0, 0};
    int loaded = -1;
    for (int item = blockIdx.x; item < tiles * slabs; item += gridDim.x) {
        const int tile = item % tiles, slab = item / tiles;
        if (tile != loaded) {
            __syncthreads();
            const uint4* from = (const uint4*)(pieces + (i64)tile * slots * TILES * 32);
            for (int k = threadIdx.x; k < slots * TILES * 16; k += 32 * WARPS) ((uint4*)shared)[k] = from[k];
            for (int k = threadIdx.x; k < QUERIES; k += 32 * WARPS) {
                column[k] = columns[tile * QUERIES + k];
                column[k].w = threshold[tile * QUERIES + k];
            }
            __syncthreads();
            loaded = tile;
        }
        const int end = MODE == STORE ? part.count : min(part.count, (slab + 1) * per_slab);
        const int first = MODE == STORE ? blockIdx.x * WARPS + warp : slab * per_slab + warp;
        const int stride = MODE == STORE ? gridDim.x * WARPS : WARPS;
        uint4 now[4];
        u32 previous[4];
        const auto load = [&](uint4(&to)[4], i64 block, int step) {
            const uint4* at = (const uint4*)rows.blocks + (block * units + min(t * steps + step, units - 1)) * 32 + g;
#pragma unroll
            for (int k = 0; k < 4; ++k) to[k] = __ldg(at + 8 * k);
        };
        const auto load_previous = [&](u32(&to)[4], i64 block) {
            if (TILES == 1) return;
            const u32* first = rows.blocks + (block * units + (word1 >> 2)) * 128 + g * 4 + (word1 & 3);
#pragma unroll
            for (int k = 0; k < 4; ++k) to[k] = __ldg(first + 32 * k) << (4 * (7 - (before1 & 7)));
            if (MEMORY == 3) {
                const u32* second = rows.blocks + (block * units + (word2 >> 2)) * 128 + g * 4 + (word2 & 3);
#pragma unroll
                for (int k = 0; k < 4; ++k)
                    to[k] = (to[k] & 0xf0000000u) | (__ldg(second + 32 * k) >> (4 * (before2 & 7)) & 15) << 24;
            }
        };
        if (first < end) load(now, part.block(first), 0), load_previous(previous, part.block(first));
        for (int i = first, after = first + stride, claim = 0; i < end; i = after, after = claim) {
            const i64 block = part.block(i), next_block = part.block(min(after, end - 1));
            // The one after that: asked for now, needed when this one is done.
            if (MODE != STORE)
                claim = after + stride;
            else if (lane == 0)
                claim = 2 * stride + atomicAdd(claimed, 1);
            int sums[2][TILES][4];
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int n = 0; n < TILES; ++n)
#pragma unroll
                    for (int c = 0; c < 4; ++c) sums[m][n][c] = 0;
            u32 next_previous[4];
            const uint2* piece = shared + lane;
            for (int step = 0; step < steps; ++step) {
                uint4 next[4];
                if (step + 1 < steps) {
                    load(next, block, step + 1);
                } else {
                    load(next, next_block, 0);
                    load_previous(next_previous, next_block);
                }
#pragma unroll
                for (int w = 0; w < 4; ++w) {
                    u32 words[4];
#pragma unroll
                    for (int k = 0; k < 4; ++k)
                        words[k] = w == 0 ? now[k].x : w == 1 ? now[k].y : w == 2 ? now[k].z : now[k].w;
                    accumulate(bytes, words, previous, sums, piece);
                }
#pragma unroll
                for (int k = 0; k < 4; ++k) now[k] = next[k];
            }
            if (MODE == STORE) claim = __shfl_sync(0xffffffffu, claim, 0);
            float scale[4], size[4], half[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                previous[k] = next_previous[k];
                const i64 row = block * 32 + g + 8 * k;
                const bool ok = allowed(rows, row);
                scale[k] = ok ? rows.scale[row] : 0.0f;
                size[k] = fabsf(scale[k]);
                // Rows that take no part compare as false.
                half[k] = !ok ? __int_as_float(0x7fffffff) : rows.half_norm ? -rows.half_norm[row] : 0.0f;
            }
            u32 hit[(TILES + 3) / 4];
#pragma unroll
            for (int n = 0; n < (TILES + 3) / 4; ++n) hit[n] = 0;
#pragma unroll
            for (int n = 0; n < TILES; ++n)
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    const int own = n * 8 + t * 2 + c;
                    const float4 v = column[own];
                    float most = -INF;
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        const float dot = fmaf((float)sums[k >> 1][n][(k & 1) * 2 + c], v.x, v.y);
                        const float bound = fmaf(scale[k], dot, fmaf(size[k], v.z, half[k] * 0.999999f));
                        if (MODE == HITS && bound >= v.w) hit[n >> 2] |= 1u << ((n & 3) * 8 + c * 4 + k);
                        if (MODE == STORE) {
                            const i64 row = block * 32 + g + 8 * k;
                            if (own < nq && row < rows.n) upper[own * ((rows.n + 31) / 32 * 32) + row] = bound;
                        }
                        if (MODE != HITS) {
                            const u32 score = __float_as_uint(fmaf(scale[k], dot, half[k]));
                            most = fmaxf(most, __uint_as_float((score & ~31u) | (g + 8 * k)));
                        }
                    }
                    if (MODE == STORE && most > highest[c]) highest[c] = most, place[c] = (int)block;
                    if (MODE == BEST) {
                        for (int m = 4; m < 32; m *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, m));
                        const int query = tile * QUERIES + own;
                        if (g == 0 && query < nq) best[(i64)query * part.count + i] = most;
                    }
                }
            if (MODE == HITS)
#pragma unroll
                for (int n = 0; n < (TILES + 3) / 4; ++n)
                    for (u32 left = hit[n]; left; left &= left - 1) {
                        const int bit = __ffs(left) - 1;
                        const i64 query = tile * QUERIES + n * 32 + (bit >> 3) * 8 + t * 2 + (bit >> 2 & 1);
                        const int at = atomicAdd(counts + query, 1);
                        if (at < room) found[query * room + at] = (int)(block * 32) + g + 8 * (bit & 3);
                    }
        }
    }
    if (MODE == STORE)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            for (int m = 4; m < 32; m *= 2) {
                const float other = __shfl_xor_sync(0xffffffffu, highest[c], m);
                const int at = __shfl_xor_sync(0xffffffffu, place[c], m);
                if (other > highest[c]) highest[c] = other, place[c] = at;
            }
            if (g == 0 && t * 2 + c < nq) {
                const i64 to = (i64)(t * 2 + c) * gridDim.x * WARPS + blockIdx.x * WARPS + warp;
                best[to] = highest[c], places[to] = place[c];
            }
        }
}

#define PRODUCT(name, MODE)                                                                                            \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) name(                                 \
        const __grid_constant__ Bytes bytes, Rows rows, Part part, int units, int nibbles, int steps, int tiles,       \
        int slabs, const uint2* pieces, const float4* columns, const float* threshold, int nq, int room, int* counts,  \
        int* found, float* upper, float* best, int* places, int* claimed) {                                            \
        product<MODE>(bytes, rows, part, units, nibbles, steps, tiles, slabs, pieces, columns, threshold, nq, room,    \
                      counts, found, upper, best, places, claimed);                                                    \
    }

#if TILES == 1
PRODUCT(store, STORE)

// Exact scores of rows whose upper bound [nq][rows of whole blocks] reaches the threshold; grid [blocks][nq].
extern "C" __global__ void collect_scores(Code code, Rows rows, const float* q, const float* upper,
                                          const float* threshold, int room, int* counts, int* found, double* scores) {
    extern __shared__ double own[];
    u32* words = (u32*)(own + Exact::size(code)) + (threadIdx.x >> 5) * code.words;
    const Exact exact(code, q + (i64)blockIdx.y * code.d, own);
    const int lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    const float t = threshold[blockIdx.y];
    const i64 padded = (rows.n + 31) / 32 * 32;
    const float* bounds = upper + blockIdx.y * padded;
    // A warp reads 128 bounds at a time: it waits for memory, not for bytes.
    for (i64 base = ((i64)blockIdx.x * warps + (threadIdx.x >> 5)) * 128; base < padded;
         base += (i64)gridDim.x * warps * 128) {
        const i64 first = base + lane * 4;
        float4 v = make_float4(0, 0, 0, 0);
        if (first < padded) v = *(const float4*)(bounds + first);
#pragma unroll 1
        for (int c = 0; c < 4; ++c) {
            const float bound = c == 0 ? v.x : c == 1 ? v.y : c == 2 ? v.z : v.w;
            u32 hits = __ballot_sync(0xffffffffu, first + c < rows.n && bound >= t);
            for (; hits; hits &= hits - 1) {
                const i64 other = base + (__ffs(hits) - 1) * 4 + c;
                const double score = exact_score(code, rows, exact, other, words, lane);
                if (lane == 0) {
                    const int at = atomicAdd(counts + blockIdx.y, 1);
                    if (at < room) {
                        found[(i64)blockIdx.y * room + at] = (int)other;
                        scores[(i64)blockIdx.y * room + at] = score;
                    }
                }
            }
        }
    }
}
#else
PRODUCT(best_of, BEST)
PRODUCT(hits_of, HITS)
#endif
