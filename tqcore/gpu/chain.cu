// Chain codes: 16 lanes a row. Compiled with P, Q, MEMORY and CLOSING (most dimensions that close at a nibble).
// Costs are integers and the linear terms are rounded as on the CPU, so the codes are the same bits.
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define LANES 16
#define WARM 16
#define FORBIDDEN (1 << 29)
#define STEP_BYTES (MEMORY == 3 ? 128 : 8)  // back pointers of a nibble

__device__ __forceinline__ int first_dim(int j) { return (int)(((i64)j * Q + P - 1) / P); }

// Linear term of nibble j for this lane's value.
__device__ __forceinline__ int linear_term(const float* linear, const float* y, int d, int j, int offset, int lane) {
    const int begin = first_dim(j), end = min(first_dim(j + 1), d);
    float total = 0.0f;
#pragma unroll
    for (int k = 0; k < CLOSING; ++k) {
        const int i = begin + k;
        if (i < end) {
            const float v = fminf(fmaxf(y[i], -6.0f), 6.0f);
            total = __fadd_rn(total, __fmul_rn(v, linear[((i % Q) * MEMORY + offset) * 16 + lane]));
        }
    }
    return __float2int_rn(total) << 4;
}

__device__ __forceinline__ int kind_of(const int* kinds, int d, int j) {
    const int begin = first_dim(j), count = min(first_dim(j + 1), d) - begin;
    return kinds[(count > 0 ? begin % Q : 0) * (CLOSING + 1) + max(count, 0)];
}

__device__ __forceinline__ int wrapped(int j, int count) { return ((j % count) + count) % count; }

#if MEMORY == 2
// One pass of `count` nibbles from `first`; a lane holds the cost of one state and returns the last one.
__device__ int run(const int* squares, const float* linear, const int* kinds, const float* y, int d, int nibbles,
                   int first, int count, int cost, int* shared, u8* back, int lane) {
    int a[16], kind = -1, pair = 0, j = wrapped(first, nibbles);
    for (int t = 0; t < count; ++t) {
        const int now = kind_of(kinds, d, j);
        if (now != kind) {
            kind = now;
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int4 v = *(const int4*)(squares + (kind * 16 + lane) * 20 + 4 * k);
                a[4 * k] = v.x, a[4 * k + 1] = v.y, a[4 * k + 2] = v.z, a[4 * k + 3] = v.w;
            }
        }
        const int own = linear_term(linear, y, d, j, 0, lane);
        shared[lane] = (cost + linear_term(linear, y, d, j, 1, lane)) | lane;
        __syncwarp();
        int best = 0x7fffffff, base = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int4 w = *(const int4*)(shared + 4 * k);
            if (k == 0) base = w.x;
            best = min(min(min(best, w.x + a[4 * k]), min(w.y + a[4 * k + 1], w.z + a[4 * k + 2])), w.w + a[4 * k + 3]);
        }
        __syncwarp();
        // Costs matter up to a constant: taking off a state's own keeps them small.
        cost = (best & ~15) + own - base;
        pair = t & 1 ? pair | (best & 15) << 4 : best & 15;
        if (t & 1 || t + 1 == count) back[(t >> 1) * 16 + lane] = (u8)pair;
        if (++j == nibbles) j = 0;
    }
    __syncwarp();
    return cost;
}

__device__ __forceinline__ int dropped(const u8* back, int t, int state) {
    return back[(t >> 1) * 16 + state] >> (4 * (t & 1)) & 15;
}
__device__ __forceinline__ int before(const u8* back, int t, int state) { return dropped(back, t, state); }
__device__ __forceinline__ int newest(int state) { return state; }
#else
// shared: costs [16][17] of states (newest, older), then 16 terms of age 2 and 16 of age 0.
__device__ void run(const int* squares, const float* linear, const int* kinds, const float* y, int d, int nibbles,
                    int first, int count, int* shared, u8* back, int lane) {
    int* terms = shared + 16 * 17;
    int j = wrapped(first, nibbles);
    for (int t = 0; t < count; ++t) {
        const int* a = squares + kind_of(kinds, d, j) * 4096 + lane * 4;
        terms[lane] = linear_term(linear, y, d, j, 2, lane);
        terms[16 + lane] = linear_term(linear, y, d, j, 0, lane);
        const int own = linear_term(linear, y, d, j, 1, lane), base = shared[0];
        __syncwarp();
        int w[16];
#pragma unroll
        for (int k = 0; k < 16; ++k) w[k] = (shared[lane * 17 + k] - base + terms[k]) | k;
        __syncwarp();
        u64 chosen = 0;
#pragma unroll
        for (int n0 = 0; n0 < 16; ++n0) {
            int best = 0x7fffffff;
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int4 v = *(const int4*)(a + (n0 * 4 + k) * 64);
                best = min(min(min(best, w[4 * k] + v.x), min(w[4 * k + 1] + v.y, w[4 * k + 2] + v.z)),
                           w[4 * k + 3] + v.w);
            }
            shared[n0 * 17 + lane] = (best & ~15) + terms[16 + n0] + own;
            chosen |= (u64)(best & 15) << (4 * n0);
        }
        ((u64*)back)[t * 16 + lane] = chosen;
        __syncwarp();
        if (++j == nibbles) j = 0;
    }
    __syncwarp();
}

__device__ __forceinline__ int before(const u8* back, int t, int state) {
    const int older = state & 15;
    return older * 16 + (int)(((const u64*)back)[t * 16 + older] >> (4 * (state >> 4)) & 15);
}
__device__ __forceinline__ int newest(int state) { return state >> 4; }
#endif

__device__ __forceinline__ int nibble_at(const u32* words, int j) { return words[j >> 3] >> (4 * (j & 7)) & 15; }

// Reconstruction of dimension i from words of eight nibbles.
template <class Words>
__device__ __forceinline__ float decoded(const float* values, Words nibble, int i, int nibbles) {
    int j = (int)((i64)i * P / Q);
    const float* t = values + (i % Q) * MEMORY * 16;
    float v = t[nibble(j)];
#pragma unroll
    for (int o = 1; o < MEMORY; ++o) {
        j = j == 0 ? nibbles - 1 : j - 1;
        v = __fadd_rn(v, t[16 * o + nibble(j)]);
    }
    return v;
}

// squares: per kind of nibble, m = 2 [n0][20], m = 3 [n0][n2 / 4][n1][4]; kinds: [Q][CLOSING + 1] by phase and count.
// y float32 [n, stride] -> codes uint8 [n, code_stride], dots float64 [n]. Groups of 16 lanes take rows in turn.
extern "C" __global__ void encode(const float* y_all, i64 n, int d, int stride, int nibbles, const float* values_in,
                                  const float* linear_in, const int* squares_in, const int* kinds_in, int n_kinds,
                                  u8* codes, int code_size, int code_stride, double* dots, u8* scratch) {
    extern __shared__ int4 memory4[];
    int* memory = (int*)memory4;
    const int lane = threadIdx.x & 15, group = threadIdx.x >> 4, groups = blockDim.x >> 4;
    const int padded = (max(nibbles, 2 * WARM) + 7) & ~7;
    const i64 back_bytes = (i64)padded * STEP_BYTES;
    int* at = memory;
#if MEMORY == 2
    int* squares = at;
    at += n_kinds * 320;
    for (int k = threadIdx.x; k < n_kinds * 320; k += blockDim.x) squares[k] = squares_in[k];
    int* shared = at + group * 16;
    at += groups * 16;
#else
    const int* squares = squares_in;
    int* shared = at + group * 304;
    at += groups * 304;
#endif
    float* linear = (float*)at;
    float* values = linear + Q * MEMORY * 16;
    int* kinds = (int*)(values + Q * MEMORY * 16);
    u8* backs = (u8*)(kinds + ((Q * (CLOSING + 1) + 3) & ~3));
    for (int k = threadIdx.x; k < Q * MEMORY * 16; k += blockDim.x) linear[k] = linear_in[k], values[k] = values_in[k];
    for (int k = threadIdx.x; k < Q * (CLOSING + 1); k += blockDim.x) kinds[k] = kinds_in[k];
    __syncthreads();
    u8* back = scratch ? scratch + ((i64)blockIdx.x * groups + group) * back_bytes : backs + group * back_bytes;
    for (i64 start = (i64)blockIdx.x * groups + (group & ~1); start < n; start += (i64)gridDim.x * groups) {
        const i64 wanted = start + (group & 1), row = min(wanted, n - 1);
        const float* y = y_all + row * stride;
        // The seam: from zero costs over 32 nibbles around it, the best string's state there.
        u64 key;
#if MEMORY == 2
        int cost = run(squares, linear, kinds, y, d, nibbles, -WARM, 2 * WARM, 0, shared, back, lane);
        key = ((u64)(u32)(cost ^ 0x80000000) << 8) | lane;
#else
        for (int k = 0; k < 16; ++k) shared[lane * 17 + k] = 0;
        __syncwarp();
        run(squares, linear, kinds, y, d, nibbles, -WARM, 2 * WARM, shared, back, lane);
        key = ~0ull;
        for (int k = 0; k < 16; ++k) {
            const u64 other = ((u64)(u32)(shared[lane * 17 + k] ^ 0x80000000) << 8) | (lane * 16 + k);
            key = other < key ? other : key;
        }
#endif
        for (int mask = 8; mask; mask >>= 1) {
            const u64 other = __shfl_xor_sync(0xffffffffu, key, mask);
            key = other < key ? other : key;
        }
        int seam = (int)(key & 255);
        for (int t = 2 * WARM - 1; t >= WARM; --t) seam = before(back, t, seam);
        __syncwarp();
#if MEMORY == 2
        run(squares, linear, kinds, y, d, nibbles, 0, nibbles, lane == seam ? 0 : FORBIDDEN, shared, back, lane);
#else
        for (int k = 0; k < 16; ++k) shared[lane * 17 + k] = lane * 16 + k == seam ? 0 : FORBIDDEN;
        __syncwarp();
        run(squares, linear, kinds, y, d, nibbles, 0, nibbles, shared, back, lane);
#endif
        // Words of nibbles take the place of back pointers already followed, from the end.
        u32* words = (u32*)(back + back_bytes) - padded / 8;
        if (lane == 0) {
            u32 word = 0;
            for (int t = nibbles - 1; t >= 0; --t) {
                word |= (u32)newest(seam) << (4 * (t & 7));
                seam = before(back, t, seam);
                if ((t & 7) == 0) words[t >> 3] = word, word = 0;
            }
        }
        __syncwarp();
        if (wanted < n)
            for (int b = lane; b < code_size; b += LANES) codes[row * code_stride + b] = ((const u8*)words)[b];
        // <y, yhat> in eight partial sums, as on the CPU.
        double sum = 0.0;
        if (lane < 8)
            for (int i = lane; i < d; i += 8) {
                const float v = decoded(values, [&](int j) { return nibble_at(words, j); }, i, nibbles);
                sum = __dadd_rn(sum, __dmul_rn((double)y[i], (double)v));
            }
        for (int step = 4; step; step >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, step);
        if (wanted < n && lane == 0) dots[row] = sum;
        __syncwarp();
    }
}

// codes uint8 [n, code_stride] -> float32 [n, stride], a thread a coordinate.
extern "C" __global__ void decode(const u8* codes, i64 n, int code_stride, int d, int stride, int nibbles,
                                  const float* values, float* out) {
    for (i64 k = (i64)blockIdx.x * blockDim.x + threadIdx.x; k < n * d; k += (i64)gridDim.x * blockDim.x) {
        const i64 row = k / d;
        const int i = (int)(k - row * d);
        const u8* code = codes + row * code_stride;
        out[row * stride + i] = decoded(values, [&](int j) { return code[j >> 1] >> (4 * (j & 1)) & 15; }, i, nibbles);
    }
}
