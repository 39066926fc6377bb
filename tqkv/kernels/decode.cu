// Decode attention over packed keys and values. tqkv/kernels/README.md says how the threads share the work.
//
// Compiled with HEAD_DIM, KEY_P, KEY_Q, VALUE_P, VALUE_Q (nibbles per dimensions of each side), STATE (dtype of states:
// 0 float32, 1 float16, 2 bfloat16) and WARPS. No header is included: the run-time compiler needs none.

typedef unsigned int u32;
typedef unsigned short u16;

constexpr int D = HEAD_DIM;
constexpr int ROUNDS = 3;             // of a rotation, at most
constexpr int QUERIES = 8;            // the n side of the matrix instruction
constexpr int TILE = 16;              // tokens
// Tiles a warp takes at a time: they share the loads of the queries, but the code grows, and of the widest heads it then
// no longer fits the instruction cache.
constexpr int STEP = HEAD_DIM > 128 ? 1 : 2;
constexpr int THREADS = WARPS * 32;
constexpr int PER_LANE = D / 32;      // dimensions of a lane that holds a whole state with its warp
constexpr int TABLE_BYTES = 1024;     // a side: at most 7 nibbles a period, 16 entries of 8 bytes
constexpr int IN_FLIGHT = 12;          // partial sums that a thread loads at a time
constexpr float NO_SCORE = -1e30f;
constexpr float LARGEST = 32768.0f;   // of a weight before the running maximum is raised, within float16
constexpr float HEADROOM = 7.0f;      // log2 of the largest weight just after that

// Nibble j of a chunk, which starts a period, closes the dimensions first(j) up to first(j + 1).
template <int P, int Q>
struct Rate {
    static constexpr __host__ __device__ int first(int j) { return (j * Q + P - 1) / P; }
    static constexpr __host__ __device__ int closes(int j) { return first(j + 1) - first(j); }
    // With one dimension closed and one continued both table values share a word.
    static constexpr __host__ __device__ bool pair(int j) { return closes(j) != 1 || closes(j + 1) != 1; }
    static constexpr __host__ __device__ int words(int nibbles) {
        int n = 0;
        for (int j = 0; j < nibbles; j++) n += pair(j) ? 2 : 1;
        return n;
    }
};
typedef Rate<KEY_P, KEY_Q> KeyRate;
typedef Rate<VALUE_P, VALUE_Q> ValueRate;

constexpr int KEY_CHUNK = D / 4;                              // dimensions of a lane's part of a key
constexpr int KEY_NIBBLES = KEY_CHUNK * KEY_P / KEY_Q;        // of one token
constexpr int KEY_BYTES = KEY_NIBBLES;                        // of the lane's 2 tokens
constexpr int KEY_STEPS = KeyRate::words(KEY_NIBBLES) / 2;    // matrix instructions of a tile
constexpr int VALUE_CHUNK = D / 8;
constexpr int VALUE_NIBBLES = VALUE_CHUNK * VALUE_P / VALUE_Q;
constexpr int VALUE_BYTES = 2 * VALUE_NIBBLES;                // of the lane's 4 tokens
constexpr int VALUE_STEPS = VALUE_CHUNK / 2;
constexpr int KEY_TILE = 32 * KEY_BYTES, VALUE_TILE = 32 * VALUE_BYTES;

// Sums of the warps in shared memory, padded against bank conflicts.
constexpr int CHUNK_PITCH = VALUE_CHUNK + 2;
constexpr int QUERY_PITCH = 8 * CHUNK_PITCH + 8;
constexpr int WARP_PITCH = QUERIES * QUERY_PITCH;

constexpr int FRAGMENTS = 2 * TABLE_BYTES;                    // byte offsets in shared memory
constexpr int SMALL = FRAGMENTS;                              // after the loop, in place of the fragments
constexpr int ROTATED = FRAGMENTS + KEY_STEPS * 32 * 8;
constexpr int SUMS = SMALL + 4 * WARPS * QUERIES * 4;

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ float exp2_(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ float log2_(float x) { float y; asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ float max_(float x, float y) { float z; asm("max.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y)); return z; }
__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }
__device__ __forceinline__ float half_float(u16 h) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(h)); return y; }
__device__ __forceinline__ u16 float_half(float x) { u16 h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h; }
__device__ __forceinline__ u32 half_pair(float lo, float hi) {
    u32 y; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo)); return y;
}
__device__ __forceinline__ u32 add_pair(u32 a, u32 b) { u32 c; asm("add.rn.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b)); return c; }
// x plus one half of a in the half where `ones` has a 1. Multipliers run beside the byte permutations, which are the
// busier unit.
__device__ __forceinline__ u32 add_half(u32 a, bool high, u32 ones, u32 x) {
    u32 y;
    u16 lo, hi;
    asm("mov.b32 {%0, %1}, %2;" : "=h"(lo), "=h"(hi) : "r"(a));
    asm("{.reg .b32 both; mov.b32 both, {%1, %1}; fma.rn.f16x2 %0, both, %2, %3;}"
        : "=r"(y) : "h"(high ? hi : lo), "r"(ones), "r"(x));
    return y;
}
__device__ __forceinline__ u32 low_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ u32 high_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 transpose(u32 a) {
    u32 y; asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(a)); return y;
}

#if STATE == 0
typedef float State;
__device__ __forceinline__ float to_float(State x) { return x; }
__device__ __forceinline__ State to_state(float x) { return x; }
#elif STATE == 1
typedef u16 State;
__device__ __forceinline__ float to_float(State x) { return half_float(x); }
__device__ __forceinline__ State to_state(float x) { return float_half(x); }
#else
typedef u16 State;
__device__ __forceinline__ float to_float(State x) { return __int_as_float((int)x << 16); }
__device__ __forceinline__ State to_state(float x) { u16 h; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x)); return h; }
#endif

// The lane's bytes of a tile, loaded in pieces of 16, 8, 4 and 2 bytes; each piece is contiguous over the warp.
template <int BYTES>
struct Codes {
    u32 words[(BYTES + 3) / 4];

    __device__ __forceinline__ void load(const unsigned char* tile, int lane) {
        constexpr int n16 = BYTES / 16, rest = BYTES % 16;
#pragma unroll
        for (int i = 0; i < n16; i++) {
            asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0,%1,%2,%3}, [%4];"
                : "=r"(words[4 * i]), "=r"(words[4 * i + 1]), "=r"(words[4 * i + 2]), "=r"(words[4 * i + 3])
                : "l"(tile + i * 512 + lane * 16));
        }
        constexpr int w8 = 4 * n16, o8 = n16 * 512;
        if constexpr (rest & 8) {
            asm volatile("ld.global.nc.L1::no_allocate.v2.b32 {%0,%1}, [%2];"
                : "=r"(words[w8]), "=r"(words[w8 + 1]) : "l"(tile + o8 + lane * 8));
        }
        constexpr int w4 = w8 + (rest & 8) / 4, o4 = o8 + (rest & 8) * 32;
        if constexpr (rest & 4) {
            asm volatile("ld.global.nc.L1::no_allocate.b32 %0, [%1];" : "=r"(words[w4]) : "l"(tile + o4 + lane * 4));
        }
        constexpr int w2 = w4 + (rest & 4) / 4, o2 = o4 + (rest & 4) * 32;
        if constexpr (rest & 2) {
            u16 last;
            asm volatile("ld.global.nc.L1::no_allocate.b16 %0, [%1];" : "=h"(last) : "l"(tile + o2 + lane * 2));
            words[w2] = last;
        }
    }
};

// Address of the table entry of nibble n: eight times the nibble in the lowest byte of `table`.
__device__ __forceinline__ u32 entry(const u32* words, int n, u32 table) {
    const u32 word = words[n / 8];
    const u32 eight = n & 1 ? (word >> 1) & 0x78787878u : (word << 3) & 0x78787878u;
    return __byte_perm(eight, table, 0x7650 | (n % 8) / 2);
}

// Words of phase `phase` at an entry: both, or the first alone.
__device__ __forceinline__ void look_up(u32 address, int phase, bool pair, u32& first, u32& second) {
    if (pair) {
        asm("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(first), "=r"(second) : "r"(address + phase * 128));
    } else {
        asm("ld.shared.b32 %0, [%1];" : "=r"(first) : "r"(address + phase * 128));
    }
}

// Scores of STEP tiles: c[tile] is tokens g and g + 8 against queries 2 t and 2 t + 1.
__device__ __forceinline__ void score(
    float (&c)[STEP][4], const Codes<KEY_BYTES> (&codes)[STEP], u32 table, u32 fragments
) {
    u32 a[STEP][4];
    int filled = 0, step = 0;
#pragma unroll
    for (int j = 0; j < KEY_NIBBLES; j++) {
        u32 words[STEP][2][2];
        const bool pair = KeyRate::pair(j);
#pragma unroll
        for (int tile = 0; tile < STEP; tile++) {
#pragma unroll
            for (int token = 0; token < 2; token++) {
                look_up(entry(codes[tile].words, token * KEY_NIBBLES + j, table), j % KEY_P, pair,
                        words[tile][token][0], words[tile][token][1]);
            }
        }
#pragma unroll
        for (int word = 0; word < 2; word++) {
            if (word > pair) continue;
#pragma unroll
            for (int tile = 0; tile < STEP; tile++) {
                a[tile][2 * filled] = words[tile][0][word];
                a[tile][2 * filled + 1] = words[tile][1][word];
            }
            if (++filled == 2) {
                u32 b0, b1;
                asm("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(b0), "=r"(b1) : "r"(fragments + step * 256));
#pragma unroll
                for (int tile = 0; tile < STEP; tile++) {
                    multiply(c[tile], a[tile][0], a[tile][1], a[tile][2], a[tile][3], b0, b1);
                }
                filled = 0;
                step++;
            }
        }
    }
}

// Adds weighted values of a tile: rows of sums[r] are dimensions 2 r and 2 r + 1 of the lane group's chunk, and the
// last one holds what the last nibble adds to the first dimensions of the next chunk.
__device__ __forceinline__ void accumulate(
    float (&sums)[VALUE_STEPS + 1][4], const Codes<VALUE_BYTES>& codes, u32 table, u32 b0, u32 b1
) {
    u32 before[4] = {0, 0, 0, 0};
    u32 a[4];
#pragma unroll
    for (int j = 0; j < VALUE_NIBBLES; j++) {
        u32 words[4][2];
        const bool pair = ValueRate::pair(j);
#pragma unroll
        for (int token = 0; token < 4; token++) {
            look_up(entry(codes.words, token * VALUE_NIBBLES + j, table), j % VALUE_P, pair, words[token][0], words[token][1]);
        }
        if (ValueRate::closes(j) == 2) {
            u32 x[4];
#pragma unroll
            for (int token = 0; token < 4; token++) x[token] = j ? add_pair(words[token][0], before[token]) : words[token][0];
            // Two dimensions at once: the chunk's even and odd dimension only where they are a row pair.
            const int dim = ValueRate::first(j);
            a[dim & 1] = low_halves(x[0], x[1]);
            a[2 + (dim & 1)] = low_halves(x[2], x[3]);
            if (dim & 1) multiply(sums[dim / 2], a[0], a[1], a[2], a[3], b0, b1);
            a[1 - (dim & 1)] = high_halves(x[0], x[1]);
            a[3 - (dim & 1)] = high_halves(x[2], x[3]);
            if (!(dim & 1)) multiply(sums[dim / 2], a[0], a[1], a[2], a[3], b0, b1);
        } else {
            const int dim = ValueRate::first(j);
            // What the nibble before continues lies low in a word of its own or high in the shared one.
            const bool high = j > 0 && !ValueRate::pair(j - 1);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                u32 x = low_halves(words[2 * half][0], words[2 * half + 1][0]);
                if (j) {
                    x = add_half(before[2 * half], high, 0x00003c00u, x);
                    x = add_half(before[2 * half + 1], high, 0x3c000000u, x);
                }
                a[2 * half + (dim & 1)] = x;
            }
            if (dim & 1) multiply(sums[dim / 2], a[0], a[1], a[2], a[3], b0, b1);
        }
#pragma unroll
        for (int token = 0; token < 4; token++) before[token] = pair ? words[token][1] : words[token][0];
    }
    constexpr bool shared_word = !ValueRate::pair(VALUE_NIBBLES - 1);
    u32 lo[2], hi[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 x = before[2 * half], y = before[2 * half + 1];
        lo[half] = shared_word ? high_halves(x, y) : low_halves(x, y);
        hi[half] = shared_word ? 0 : high_halves(x, y);
    }
    multiply(sums[VALUE_STEPS], lo[0], hi[0], lo[1], hi[1], b0, b1);
}

// Walsh-Hadamard transform over a warp; lane l holds elements 32 e + l. Code that runs once is kept short: fetching it
// costs more than running it.
__device__ __forceinline__ void hadamard(float (&x)[PER_LANE], int lane) {
#pragma unroll 1
    for (int stride = 1; stride < 32; stride *= 2) {
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            float other = __shfl_xor_sync(~0u, x[e], stride);
            x[e] = lane & stride ? other - x[e] : x[e] + other;
        }
    }
#pragma unroll
    for (int stride = 1; stride < PER_LANE; stride *= 2) {
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            if (e & stride) continue;
            float u = x[e], v = x[e + stride];
            x[e] = u + v;
            x[e + stride] = u - v;
        }
    }
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int stride = 16; stride > 0; stride /= 2) x += __shfl_xor_sync(~0u, x, stride);
    return x;
}

// Pointers and sizes; strides count elements.
struct Problem {
    const State* q;
    const unsigned char *key_codes, *value_codes;
    const u16 *key_scales, *value_scales;
    const uint2 *key_tables, *value_tables;
    const float *key_signs, *value_signs, *key_mean;
    const int *lengths, *starts, *extra_lengths;
    const unsigned char* extra_mask;
    const State *extra_k, *extra_v;
    State* out;
    float *part_sums, *part_scalars;
    u32* counters;
    long long q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token;
    int heads, kv_heads, new_tokens, capacity, extra, splits, key_rounds, value_rounds;
    float scaling;                    // of the logits, times log2(e)
    float key_shrink, value_shrink;   // what makes a rotation orthogonal: D^(-rounds / 2)
};

struct Place {
    int batch, kv_head, first, n, pair;  // first query of the block, queries in it, index of the block
    __device__ __forceinline__ int head(const Problem& p, int i) const {
        return kv_head * (p.heads / p.kv_heads) + (first + i) / p.new_tokens;
    }
    __device__ __forceinline__ int token(const Problem& p, int i) const { return (first + i) % p.new_tokens; }
    __device__ __forceinline__ const State* query(const Problem& p, int i) const {
        return p.q + batch * p.q_batch + head(p, i) * p.q_head + token(p, i) * p.q_token;
    }
};

// Dimensions of a chunk, possibly of the next one, that the halves of each word of a key belong to; -1 for none.
struct WordDims {
    short dims[2 * KEY_STEPS][2];
    constexpr __host__ __device__ WordDims() : dims() {
        int word = 0;
        for (int j = 0; j < KEY_NIBBLES; j++) {
            const int now = KeyRate::first(j), next = KeyRate::first(j + 1), after = KeyRate::first(j + 2);
            dims[word][0] = now;
            if (!KeyRate::pair(j)) {
                dims[word++][1] = next;
                continue;
            }
            dims[word++][1] = now + 1 < next ? now + 1 : -1;
            dims[word][0] = next;
            dims[word++][1] = next + 1 < after ? next + 1 : -1;
        }
    }
};
__constant__ const WordDims WORD_DIMS;

// The signs of a lane's elements in all rounds, a bit each: set for -1.
__device__ __forceinline__ u32 sign_bits(const float* signs, int rounds, int lane) {
    u32 bits = 0;
#pragma unroll
    for (int i = 0; i < ROUNDS * PER_LANE; i++) {
        const float sign = i / PER_LANE < rounds ? signs[i / PER_LANE * D + i % PER_LANE * 32 + lane] : 1.0f;
        bits |= (u32)__float_as_int(sign) >> 31 << i;
    }
    return bits;
}

// x with the signs of a round.
__device__ __forceinline__ void flip(float (&x)[PER_LANE], u32 bits, int round) {
#pragma unroll
    for (int e = 0; e < PER_LANE; e++) {
        x[e] = __int_as_float(__float_as_int(x[e]) ^ (int)(bits >> (round * PER_LANE + e) << 31));
    }
}

// The query of a warp and all that turns it, loaded ahead of their use.
struct Query {
    float x[PER_LANE], bias;
    u32 signs;

    __device__ __forceinline__ void load(const Problem& p, const Place& at, int i, int lane) {
        const State* query = at.query(p, min(i, at.n - 1));
        bias = 0;
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            const int dim = 32 * e + lane;
            x[e] = i < at.n ? to_float(query[dim]) : 0.0f;
            if (p.key_mean) bias += x[e] * p.key_mean[at.kv_head * D + dim];
        }
        signs = sign_bits(p.key_signs, p.key_rounds, lane);
    }
};

// Rotated queries as fragments of the matrix instruction; factors[i] turns a product into a base-2 logit.
__device__ __forceinline__ void prepare(
    const Problem& p, Query& query, unsigned char* memory, float* factors, float* biases, int warp, int lane
) {
    float* rotated = (float*)(memory + ROTATED);
    if (warp < QUERIES) {
        float top = 0;
#pragma unroll 1
        for (int round = 0; round < p.key_rounds; round++) {
            flip(query.x, query.signs, round);
            hadamard(query.x, lane);
        }
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) top = max_(top, fabsf(query.x[e]));
#pragma unroll
        for (int stride = 16; stride > 0; stride /= 2) top = max_(top, __shfl_xor_sync(~0u, top, stride));
        const float bias = warp_sum(query.bias);
        // Queries of any size fit float16 once divided by their largest coordinate.
        const float inverse = top > 0 ? 1 / top : 1.0f;
        if (lane == 0) {
            factors[warp] = p.scaling * p.key_shrink / inverse;
            biases[warp] = bias * p.scaling;
        }
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) rotated[warp * D + 32 * e + lane] = query.x[e] * inverse;
    }
    __syncthreads();
    u32* fragments = (u32*)(memory + FRAGMENTS);
#pragma unroll 4
    for (int index = threadIdx.x; index < KEY_STEPS * 64; index += THREADS) {
        const int word = index / 64 * 2 + index % 2, l = index % 64 / 2;
        const int lo = WORD_DIMS.dims[word][0], hi = WORD_DIMS.dims[word][1];
        const float* row = rotated + l / 4 * D;
        const int chunk = l % 4 * KEY_CHUNK;
        fragments[index] = half_pair(row[(chunk + lo) % D], hi < 0 ? 0.0f : row[(chunk + hi) % D]);
    }
}

// Attention of a warp over its tiles of the packed tokens; leaves its sums in shared memory.
__device__ __forceinline__ void attend_packed(const Problem& p, const Place& at, unsigned char* memory, int split) {
    __shared__ float factors[QUERIES], biases[QUERIES];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    Query query;
    if (warp < QUERIES) query.load(p, at, warp, lane);
    const int length = p.lengths[at.batch], start = p.starts ? p.starts[at.batch] : 0;
    const int end_tile = (length + TILE - 1) / TILE, first_tile = start / TILE;
    const int units = end_tile > first_tile ? (end_tile - first_tile + STEP - 1) / STEP : 0;
    const int first = (long long)units * split / p.splits + warp, last = (long long)units * (split + 1) / p.splits;
    const long long row = (long long)at.batch * p.kv_heads + at.kv_head;
    const unsigned char* key_codes = p.key_codes + row * (p.capacity / TILE) * KEY_TILE;
    const unsigned char* value_codes = p.value_codes + row * (p.capacity / TILE) * VALUE_TILE;
    const u16 *key_scales = p.key_scales + row * p.capacity, *value_scales = p.value_scales + row * p.capacity;

    Codes<KEY_BYTES> keys[STEP];
    Codes<VALUE_BYTES> values[STEP];
    u32 scales = 0;
    auto load_keys = [&](int unit) {
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            // A step that ends beyond the last tile reads that one again, masked.
            int tile = min(first_tile + unit * STEP + i, end_tile - 1);
            keys[i].load(key_codes + (long long)tile * KEY_TILE, lane);
        }
        int token = min((first_tile + unit * STEP) * TILE + lane, p.capacity - 1);
        scales = (u32)key_scales[token] | (u32)value_scales[token] << 16;
    };
    auto load_values = [&](int unit) {
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            int tile = min(first_tile + unit * STEP + i, end_tile - 1);
            values[i].load(value_codes + (long long)tile * VALUE_TILE, lane);
        }
    };
    if (first < last) load_keys(first);

    for (int i = threadIdx.x; i < 16 * KEY_P; i += THREADS) ((uint2*)memory)[i] = p.key_tables[i];
    for (int i = threadIdx.x; i < 16 * VALUE_P; i += THREADS) ((uint2*)(memory + TABLE_BYTES))[i] = p.value_tables[i];
    prepare(p, query, memory, factors, biases, warp, lane);
    __syncthreads();
    u32 base = shared_address(memory);
    // Makes every look-up depend on what comes after the barrier.
    asm volatile("" : "+r"(base) : : "memory");
    const u32 fragments = base + FRAGMENTS + lane * 8;

    float sums[VALUE_STEPS + 1][4];
#pragma unroll
    for (int r = 0; r <= VALUE_STEPS; r++) sums[r][0] = sums[r][1] = sums[r][2] = sums[r][3] = 0;
    float top[2] = {NO_SCORE, NO_SCORE}, weight[2] = {0, 0};
    const float factor[2] = {factors[2 * t], factors[2 * t + 1]};

    for (int unit = first; unit < last; unit += WARPS) {
        load_values(unit);
        float c[STEP][4] = {};
        score(c, keys, base, fragments);
        const u32 now = scales;
        if (unit + WARPS < last) load_keys(unit + WARPS);

        const int token = (first_tile + unit * STEP) * TILE + g;
        float value_scale[2 * STEP];
        bool raise = false;
#pragma unroll
        for (int i = 0; i < 2 * STEP; i++) {
            u32 both = __shfl_sync(~0u, now, g + 8 * i);
            float key_scale = half_float(both & 0xffff);
            value_scale[i] = half_float(both >> 16);
            bool seen = token + 8 * i < length && token + 8 * i >= start;
            // What lies behind a masked token may be anything, NaN too.
            if (!seen) value_scale[i] = 0;
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float& x = c[i / 2][i % 2 * 2 + k];
                x = seen ? x * (key_scale * factor[k]) : minus_infinity();
                raise |= exp2_(x - top[k]) * max_(value_scale[i], 6e-8f) > LARGEST;
            }
        }
        if (__any_sync(~0u, raise)) {
            float highest[2] = {minus_infinity(), minus_infinity()};
#pragma unroll
            for (int i = 0; i < 2 * STEP; i++) {
                float scale = log2_(max_(value_scale[i], 6e-8f));
                highest[0] = max_(highest[0], c[i / 2][i % 2 * 2] + scale);
                highest[1] = max_(highest[1], c[i / 2][i % 2 * 2 + 1] + scale);
            }
#pragma unroll
            for (int k = 0; k < 2; k++) {
#pragma unroll
                for (int stride = 4; stride < 32; stride *= 2) {
                    highest[k] = max_(highest[k], __shfl_xor_sync(~0u, highest[k], stride));
                }
                float raised = max_(top[k], highest[k] - HEADROOM);
                float keep = exp2_(top[k] - raised);
                top[k] = raised;
                weight[k] *= keep;
#pragma unroll
                for (int r = 0; r <= VALUE_STEPS; r++) sums[r][k] *= keep, sums[r][2 + k] *= keep;
            }
        }
#pragma unroll
        for (int i = 0; i < STEP; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float e = exp2_(c[i][k] - top[k % 2]);
                weight[k % 2] += e;
                c[i][k] = e * value_scale[2 * i + k / 2];
            }
            u32 b0 = transpose(half_pair(c[i][0], c[i][1])), b1 = transpose(half_pair(c[i][2], c[i][3]));
            accumulate(sums, values[i], base + TABLE_BYTES, b0, b1);
        }
    }

#pragma unroll
    for (int k = 0; k < 4; k++) {
        // The last nibble of the chunk before continues into this one.
        float carried = __shfl_sync(~0u, sums[VALUE_STEPS][k], (lane + 28) % 32);
        sums[0][k] += carried;
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
#pragma unroll
        for (int stride = 4; stride < 32; stride *= 2) weight[k] += __shfl_xor_sync(~0u, weight[k], stride);
    }
    const float bias[2] = {biases[2 * t], biases[2 * t + 1]};
    __syncthreads();
    float *tops = (float*)(memory + SMALL), *weights = tops + WARPS * QUERIES;
    float* out = (float*)(memory + SUMS) + warp * WARP_PITCH + g * CHUNK_PITCH;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        if (g == 0) {
            tops[warp * QUERIES + 2 * t + k] = top[k] + bias[k];
            weights[warp * QUERIES + 2 * t + k] = weight[k];
        }
#pragma unroll
        for (int r = 0; r < VALUE_STEPS; r++) {
            *(float2*)(out + (2 * t + k) * QUERY_PITCH + 2 * r) = make_float2(sums[r][k], sums[r][2 + k]);
        }
    }
}

// A lane's neighbouring dimensions of a state in full precision, loaded in pieces as wide as they are.
struct LaneStates {
    static constexpr int WORDS = PER_LANE * sizeof(State) / 4;
    u32 words[WORDS];

    __device__ __forceinline__ void load(const State* from) {
        if constexpr (WORDS % 4 == 0) {
#pragma unroll
            for (int i = 0; i < WORDS / 4; i++) {
                const uint4 x = ((const uint4*)from)[i];
                words[4 * i] = x.x, words[4 * i + 1] = x.y, words[4 * i + 2] = x.z, words[4 * i + 3] = x.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i++) words[i] = ((const u32*)from)[i];
        }
    }

    __device__ __forceinline__ float get(int e) const {
        if constexpr (sizeof(State) == 4) return __int_as_float(words[e]);
        return to_float((State)(words[e / 2] >> 16 * (e % 2)));
    }
};

// The same over the tokens in full precision: a warp takes one at a time, a lane PER_LANE neighbouring dimensions.
__device__ __forceinline__ void attend_extra(const Problem& p, const Place& at, unsigned char* memory) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int length = p.extra_lengths ? p.extra_lengths[at.batch] : p.extra;
    const State* k = p.extra_k + at.batch * p.k_batch + at.kv_head * p.k_head + lane * PER_LANE;
    const State* v = p.extra_v + at.batch * p.v_batch + at.kv_head * p.v_head + lane * PER_LANE;
    float q[QUERIES][PER_LANE], sums[QUERIES][PER_LANE], top[QUERIES], weight[QUERIES];
    int seen[QUERIES];
    // Lane i finds query i for all: its divisions are done once.
    const int own = min(lane, at.n - 1);
    const long long place = at.query(p, own) - p.q;
    const int own_seen = lane < at.n ? length - (p.new_tokens - 1 - at.token(p, own)) : 0;
#pragma unroll
    for (int i = 0; i < QUERIES; i++) {
        top[i] = NO_SCORE;
        weight[i] = 0;
        seen[i] = __shfl_sync(~0u, own_seen, i);
        const State* query = p.q + __shfl_sync(~0u, place, i) + lane * PER_LANE;
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            sums[i][e] = 0;
            q[i][e] = i < at.n ? to_float(query[e]) * p.scaling : 0.0f;
        }
    }
    LaneStates keys, values;
    if (warp < length) {
        keys.load(k + warp * p.k_token);
        values.load(v + warp * p.v_token);
    }
    for (int token = warp; token < length; token += WARPS) {
        float key[PER_LANE], value[PER_LANE];
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) key[e] = keys.get(e), value[e] = values.get(e);
        if (token + WARPS < length) {
            keys.load(k + (token + WARPS) * p.k_token);
            values.load(v + (token + WARPS) * p.v_token);
        }
        if (p.extra_mask && !p.extra_mask[(long long)at.batch * p.extra + token]) continue;
        // Sums of all queries side by side: their shuffles overlap.
        float scores[QUERIES];
#pragma unroll
        for (int i = 0; i < QUERIES; i++) {
            scores[i] = 0;
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) scores[i] += q[i][e] * key[e];
        }
#pragma unroll 1
        for (int stride = 16; stride > 0; stride /= 2) {
#pragma unroll
            for (int i = 0; i < QUERIES; i++) scores[i] += __shfl_xor_sync(~0u, scores[i], stride);
        }
#pragma unroll
        for (int i = 0; i < QUERIES; i++) {
            const float x = token < seen[i] ? scores[i] : minus_infinity();
            float raised = max_(top[i], x), keep = exp2_(top[i] - raised), now = exp2_(x - raised);
            top[i] = raised;
            weight[i] = weight[i] * keep + now;
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) sums[i][e] = sums[i][e] * keep + (now > 0 ? now * value[e] : now);
        }
    }
    float *tops = (float*)(memory + SMALL), *weights = tops + WARPS * QUERIES;
    float* out = (float*)(memory + SUMS) + warp * WARP_PITCH;
#pragma unroll
    for (int i = 0; i < QUERIES; i++) {
        if (lane == 0) tops[warp * QUERIES + i] = top[i], weights[warp * QUERIES + i] = weight[i];
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            int dim = lane * PER_LANE + e;
            out[i * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK] = sums[i][e];
        }
    }
}

// Sums of the warps to one partial result in global memory.
__device__ __forceinline__ void merge_warps(const Problem& p, const Place& at, unsigned char* memory, long long part) {
    float *tops = (float*)(memory + SMALL), *weights = tops + WARPS * QUERIES, *keep = weights + WARPS * QUERIES;
    const float* sums = (const float*)(memory + SUMS);
    __syncthreads();
    if (threadIdx.x < QUERIES) {
        int i = threadIdx.x;
        float top = NO_SCORE, weight = 0;
        for (int w = 0; w < WARPS; w++) {
            if (weights[w * QUERIES + i] != 0) top = max_(top, tops[w * QUERIES + i]);
        }
        for (int w = 0; w < WARPS; w++) {
            float x = weights[w * QUERIES + i] != 0 ? exp2_(tops[w * QUERIES + i] - top) : 0.0f;
            keep[w * QUERIES + i] = x;
            weight += x * weights[w * QUERIES + i];
        }
        p.part_scalars[(part * QUERIES + i) * 2] = top;
        p.part_scalars[(part * QUERIES + i) * 2 + 1] = weight;
    }
    __syncthreads();
    for (int index = threadIdx.x; index < at.n * D; index += THREADS) {
        int i = index / D, dim = index % D;
        int offset = i * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK;
        float x = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) x += keep[w * QUERIES + i] * sums[w * WARP_PITCH + offset];
        p.part_sums[(part * QUERIES + i) * D + dim] = x;
    }
}

// The last block of a query block: partial results to the output, packed ones turned back to the original basis.
__device__ __forceinline__ void finish(const Problem& p, const Place& at, unsigned char* memory) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int parts = p.splits + (p.extra > 0);
    float* sums = (float*)(memory + SMALL);       // [QUERIES][D]
    float* totals = sums + QUERIES * D;           // [QUERIES]
    float* keep = totals + QUERIES;               // [QUERIES][parts]
    float* weights = keep + QUERIES * parts;      // [QUERIES][parts]
    const float* scalars = p.part_scalars + (long long)at.pair * parts * QUERIES * 2;
    const float* part_sums = p.part_sums + (long long)at.pair * parts * QUERIES * D;
    const u32 signs = sign_bits(p.value_signs, p.value_rounds, lane);
    for (int i = warp; i < at.n; i += WARPS) {
        float top = NO_SCORE, total = 0;
        for (int s = lane; s < parts; s += 32) {
            const float2 both = __ldcg((const float2*)(scalars + (s * QUERIES + i) * 2));
            const float score = both.y != 0 ? both.x : NO_SCORE;
            keep[i * parts + s] = score;
            weights[i * parts + s] = both.y;
            top = max_(top, score);
        }
#pragma unroll
        for (int stride = 16; stride > 0; stride /= 2) top = max_(top, __shfl_xor_sync(~0u, top, stride));
        for (int s = lane; s < parts; s += 32) {
            const float weight = weights[i * parts + s], x = weight != 0 ? exp2_(keep[i * parts + s] - top) : 0.0f;
            keep[i * parts + s] = x;
            total += x * weight;
        }
        total = warp_sum(total);
        if (lane == 0) totals[i] = total;
    }
    __syncthreads();
    for (int index = threadIdx.x; index < at.n * (D / 4); index += THREADS) {
        const int i = index / (D / 4), dim = index % (D / 4) * 4;
        float4 x = make_float4(0, 0, 0, 0);
        for (int s = 0; s < p.splits; s += IN_FLIGHT) {
            float4 y[IN_FLIGHT];
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) {
                y[k] = __ldcg((const float4*)(part_sums + (min(s + k, p.splits - 1) * QUERIES + i) * D + dim));
            }
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) {
                const float w = s + k < p.splits ? keep[i * parts + s + k] : 0.0f;
                x.x += w * y[k].x, x.y += w * y[k].y, x.z += w * y[k].z, x.w += w * y[k].w;
            }
        }
        *(float4*)(sums + i * D + dim) = x;
    }
    __syncthreads();
    for (int i = warp; i < at.n; i += WARPS) {
        float x[PER_LANE];
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) x[e] = sums[i * D + 32 * e + lane] * p.value_shrink;
#pragma unroll 1
        for (int round = p.value_rounds - 1; round >= 0; round--) {
            hadamard(x, lane);
            flip(x, signs, round);
        }
        // A query that sees nothing gets zero.
        const float inverse = totals[i] != 0 ? 1 / totals[i] : 0.0f;
        const long long row = ((long long)at.batch * p.heads + at.head(p, i)) * p.new_tokens + at.token(p, i);
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            const int dim = 32 * e + lane;
            if (p.extra > 0) x[e] += keep[i * parts + p.splits] * __ldcg(part_sums + (p.splits * QUERIES + i) * D + dim);
            p.out[row * D + dim] = to_state(x[e] * inverse);
        }
    }
}

// Grid: (batch times kv heads times blocks of 8 queries; splits, and one more for tokens in full precision, so that
// those come last).
extern "C" __global__ void __launch_bounds__(THREADS, 1) decode(const __grid_constant__ Problem p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    __shared__ u32 arrived;
    const int queries = p.heads / p.kv_heads * p.new_tokens, blocks = (queries + QUERIES - 1) / QUERIES;
    Place at;
    at.pair = blockIdx.x;
    at.batch = at.pair / (blocks * p.kv_heads);
    at.kv_head = at.pair / blocks % p.kv_heads;
    at.first = at.pair % blocks * QUERIES;
    at.n = min(queries - at.first, QUERIES);
    const int parts = gridDim.y;
    if (blockIdx.y < p.splits) {
        attend_packed(p, at, memory, blockIdx.y);
    } else {
        attend_extra(p, at, memory);
    }
    merge_warps(p, at, memory, (long long)at.pair * parts + blockIdx.y);
    __threadfence();
    __syncthreads();
    // Counts up to the last block and back to zero, ready for the next launch.
    if (threadIdx.x == 0) arrived = atomicInc(p.counters + at.pair, parts - 1);
    __syncthreads();
    if (arrived != parts - 1) return;
    __threadfence();
    finish(p, at, memory);
}
