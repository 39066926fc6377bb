// What all search kernels share: the code, the rows, and exact scores. A code is described at run time: for every
// dimension its nibbles by age and the row of its table. Blocks hold 32 rows in units of four 32-bit words.
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;
typedef long long i64;

#define INF __int_as_float(0x7f800000)

struct Code {
    const int4* dims;     // [D]: nibbles of age 0, 1, 2 (-1: none), row of the tables
    const float* tables;  // [rows][3][16]
    int d, words;         // words of a row, a multiple of 4
    // Of one chain with a nibble for 1, 2 or 4 dimensions; otherwise phases is 0.
    int nibbles, phases, memory;
};

struct Rows {
    const u32* blocks;       // [blocks][words / 4][32][4]
    const float* scale;      // [n]
    const float* half_norm;  // [n], or null: half the squared norm, for l2
    const u32* mask;         // [ceil(n / 32)], or null
    i64 n;
};

// The code of a byte product: dimension i of phase p = i mod phases, which closes at nibble j, is about
// step[p] * (sum over ages o of entry[p][o][nibble j - o] - zero[p]), entries of 7 bits.
struct Bytes {
    u32 entry[4][3][4];  // 16 bytes each
    float step[4], zero[4];
};

__device__ __forceinline__ const u32& word_at(const Rows& rows, int words, i64 row, int w) {
    return rows.blocks[(((row >> 5) * (words >> 2) + (w >> 2)) * 32 + (row & 31)) * 4 + (w & 3)];
}

__device__ __forceinline__ int nibble(const u32* words, int stride, int j) {
    return words[(j >> 3) * stride] >> (4 * (j & 7)) & 15;
}

__device__ __forceinline__ bool allowed(const Rows& rows, i64 row) {
    return row < rows.n && (!rows.mask || rows.mask[row >> 5] >> (row & 31) & 1);
}

__device__ __forceinline__ float decoded(const Code& code, int4 at, const u32* words, int stride) {
    const float* t = code.tables + at.w * 48;
    float v = t[nibble(words, stride, at.x)];
    if (at.y >= 0) v = __fadd_rn(v, t[16 + nibble(words, stride, at.y)]);
    if (at.z >= 0) v = __fadd_rn(v, t[32 + nibble(words, stride, at.z)]);
    return v;
}

// The query and the tables of exact scores in shared memory, as doubles: conversions are slow. Of one chain the query
// lies as [phase][nibble of a word][word], so that lanes that take a word each meet no bank conflicts.
struct Exact {
    const double *q, *tables;

    static __device__ __forceinline__ int coordinates(const Code& code) {
        return code.phases ? 8 * code.phases * code.words : code.d;
    }
    static __device__ __forceinline__ int size(const Code& code) { return coordinates(code) + 48 * code.phases; }

    __device__ __forceinline__ Exact(const Code& code, const float* q_in, double* at)
        : q(at), tables(at + coordinates(code)) {
        for (int i = threadIdx.x; i < coordinates(code); i += blockDim.x) {
            const int j = i >> (code.phases >> 1), phase = i & (code.phases - 1);
            const int to = code.phases ? (phase * 8 + (j & 7)) * code.words + (j >> 3) : i;
            at[to] = i < code.d ? q_in[i] : 0.0f;
        }
        for (int i = threadIdx.x; i < 48 * code.phases; i += blockDim.x) at[coordinates(code) + i] = code.tables[i];
        __syncthreads();
    }
};

// The word before word w of a row, or at its start what ends with the row's last nibble: nibbles form a ring.
__device__ __forceinline__ u32 word_before(const Code& code, const Rows& rows, i64 row, int w) {
    if (w) return word_at(rows, code.words, row, w - 1);
    const int last = code.nibbles - 1, at = last >> 3;
    const u32 low = word_at(rows, code.words, row, max(at - 1, 0)), high = word_at(rows, code.words, row, at);
    return __funnelshift_l(low, high, 4 * (7 - (last & 7)));
}

// This lane's share of <q, yhat> for a row of one chain, a word at a time.
__device__ __forceinline__ double chain_dot(const Code& code, const Rows& rows, const Exact& exact, i64 row, int lane) {
    double sum = 0;
    for (int w = lane; w < code.words; w += 32) {
        const u32 word = word_at(rows, code.words, row, w), before = word_before(code, rows, row, w);
        const u32 first = __funnelshift_l(before, word, 4), second = __funnelshift_l(before, word, 8);
        for (int phase = 0; phase < code.phases; ++phase) {
            const double *t = exact.tables + phase * 48, *q = exact.q + phase * 8 * code.words + w;
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                double v = t[word >> (4 * n) & 15] + t[16 + (first >> (4 * n) & 15)];
                if (code.memory == 3) v += t[32 + (second >> (4 * n) & 15)];
                sum += q[n * code.words] * v;
            }
        }
    }
    return sum;
}

// The same for any code, from the row's words.
__device__ __forceinline__ double code_dot(const Code& code, const Exact& exact, const u32* words, int lane) {
    double sum = 0;
    for (int i = lane; i < code.d; i += 32) {
        const int4 at = code.dims[i];
        const float* t = code.tables + at.w * 48;
        double v = t[nibble(words, 1, at.x)];
        if (at.y >= 0) v += (double)t[16 + nibble(words, 1, at.y)];
        if (at.z >= 0) v += (double)t[32 + nibble(words, 1, at.z)];
        sum += exact.q[i] * v;
    }
    return sum;
}

// The exact score of a row in double, the same for equal codes; all lanes of a warp get it. `words`: room for a row.
__device__ __forceinline__ double exact_score(const Code& code, const Rows& rows, const Exact& exact, i64 row,
                                              u32* words, int lane) {
    double sum;
    if (code.phases) {
        sum = chain_dot(code, rows, exact, row, lane);
    } else {
        __syncwarp();
        for (int w = lane; w < code.words; w += 32) words[w] = word_at(rows, code.words, row, w);
        __syncwarp();
        sum = code_dot(code, exact, words, lane);
    }
    for (int m = 16; m; m >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, m);
    const double s = (double)rows.scale[row] * sum;
    return rows.half_norm ? s - (double)rows.half_norm[row] : s;
}
