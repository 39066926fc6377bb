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

// The queries and tables of exact scores in shared memory, as doubles: conversions are slow.
struct Exact {
    const double *q, *tables;

    static __device__ __forceinline__ int size(const Code& code) { return code.d + 48 * code.phases; }

    __device__ __forceinline__ Exact(const Code& code, const float* q_in, double* at) : q(at), tables(at + code.d) {
        for (int i = threadIdx.x; i < code.d; i += blockDim.x) at[i] = q_in[i];
        for (int i = threadIdx.x; i < 48 * code.phases; i += blockDim.x) at[code.d + i] = code.tables[i];
        __syncthreads();
    }
};

// <q, yhat> of a row whose words lie at `words`, in double, the same sum for equal codes; all lanes get it.
__device__ __forceinline__ double exact_dot(const Code& code, const Exact& exact, const u32* words, int lane) {
    double sum = 0;
    if (code.phases) {
        const int shift = code.phases >> 1;  // log2 of 1, 2, 4
        const double* t = exact.tables + (lane & (code.phases - 1)) * 48;
#pragma unroll 4
        for (int i = lane; i < code.d; i += 32) {
            const int j = i >> shift, j1 = j ? j - 1 : code.nibbles - 1;
            double v = t[nibble(words, 1, j)] + t[16 + nibble(words, 1, j1)];
            if (code.memory == 3) v += t[32 + nibble(words, 1, j1 ? j1 - 1 : code.nibbles - 1)];
            sum += exact.q[i] * v;
        }
    } else {
#pragma unroll 4
        for (int i = lane; i < code.d; i += 32) {
            const int4 at = code.dims[i];
            const float* t = code.tables + at.w * 48;
            double v = t[nibble(words, 1, at.x)];
            if (at.y >= 0) v += (double)t[16 + nibble(words, 1, at.y)];
            if (at.z >= 0) v += (double)t[32 + nibble(words, 1, at.z)];
            sum += exact.q[i] * v;
        }
    }
    for (int m = 16; m; m >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, m);
    return sum;
}

__device__ __forceinline__ double exact_score(const Code& code, const Rows& rows, const Exact& exact, i64 row,
                                              u32* words, int lane) {
    __syncwarp();
    for (int w = lane; w < code.words; w += 32) words[w] = word_at(rows, code.words, row, w);
    __syncwarp();
    const double s = (double)rows.scale[row] * exact_dot(code, exact, words, lane);
    return rows.half_norm ? s - (double)rows.half_norm[row] : s;
}
