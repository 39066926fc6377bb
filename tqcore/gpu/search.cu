// Search over chain codes of any rate, plans included: tables for a few queries, decoded rows for products.
__device__ __forceinline__ u16 half_bits(float v) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}

// Adds q_i T to the tables float32 [nq][nibbles][16], which come in as zeros.
extern "C" __global__ void tables_of(Code code, const float* q, int nibbles, float* lut) {
    const int k = blockIdx.x * blockDim.x + threadIdx.x, i = k >> 4, n = k & 15;
    if (i >= code.d) return;
    const int4 at = code.dims[i];
    const float v = q[(i64)blockIdx.y * code.d + i];
    float* out = lut + (i64)blockIdx.y * nibbles * 16 + n;
    const float* t = code.tables + at.w * 48 + n;
    atomicAdd(out + at.x * 16, v * t[0]);
    if (at.y >= 0) atomicAdd(out + at.y * 16, v * t[16]);
    if (at.z >= 0) atomicAdd(out + at.z * 16, v * t[32]);
}

// The float at a byte address of shared memory plus a constant.
template <int offset>
__device__ __forceinline__ float entry(u32 address) {
    float v;
    asm volatile("ld.shared.f32 %0, [%1 + %2];" : "=f"(v) : "r"(address), "n"(offset));
    return v;
}

// Upper bounds float32 [nq][n] of scores, and the largest lower bound of each group of blocks, [nq][groups].
extern "C" __global__ void __launch_bounds__(256) scan(Rows rows, int words, const float* lut, const float* error,
                                                       int per_group, int groups, float* upper, float* best) {
    extern __shared__ __align__(1024) float table[];
    const u32 base = (u32)__cvta_generic_to_shared(table);
    const float* own = lut + (i64)blockIdx.y * words * 128;
    for (int k = threadIdx.x; k < words * 128; k += blockDim.x) table[k] = own[k];
    __syncthreads();
    const int lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    const float e = error[blockIdx.y];
    const i64 blocks = (rows.n + 31) / 32;
    for (int g = blockIdx.x * warps + (threadIdx.x >> 5); g < groups; g += gridDim.x * warps) {
        float most = -INF;
        for (i64 b = (i64)g * per_group; b < (i64)(g + 1) * per_group && b < blocks; ++b) {
            const uint4* at = (const uint4*)rows.blocks + b * (words / 4) * 32 + lane;
            float sum[4] = {0, 0, 0, 0};
            uint4 unit;
#pragma unroll 8
            for (int w = 0; w < words; ++w) {
                if ((w & 3) == 0) unit = __ldcs(at + w * 8);
                const u32 v = (w & 3) == 0 ? unit.x : (w & 3) == 1 ? unit.y : (w & 3) == 2 ? unit.z : unit.w;
                const u32 t = base + w * 512;
                sum[0] += entry<0>(t | (v << 2 & 60));
                sum[1] += entry<64>(t | (v >> 2 & 60));
                sum[2] += entry<128>(t | (v >> 6 & 60));
                sum[3] += entry<192>(t | (v >> 10 & 60));
                sum[0] += entry<256>(t | (v >> 14 & 60));
                sum[1] += entry<320>(t | (v >> 18 & 60));
                sum[2] += entry<384>(t | (v >> 22 & 60));
                sum[3] += entry<448>(t | (v >> 26 & 60));
            }
            const i64 row = b * 32 + lane;
            const float dot = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            float high = -INF, low = -INF;
            if (allowed(rows, row)) {
                const float s = rows.scale[row], h = rows.half_norm ? rows.half_norm[row] : 0.0f;
                high = s * dot + fabsf(s) * e - h * 0.999999f;
                low = s * dot - fabsf(s) * e - h * 1.000001f;
            }
            if (row < rows.n) upper[(i64)blockIdx.y * rows.n + row] = high;
            most = fmaxf(most, low);
        }
        for (int m = 16; m; m >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, m));
        if (lane == 0) best[(i64)blockIdx.y * groups + g] = most;
    }
}

// Rows whose upper bound reaches the threshold; counts go past `room` where there is none.
extern "C" __global__ void collect(const float* upper, i64 n, const float* threshold, int room, int* counts, int* found) {
    const float t = threshold[blockIdx.y];
    for (i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x; row < n; row += (i64)gridDim.x * blockDim.x) {
        const float u = upper[(i64)blockIdx.y * n + row];
        if (u >= t && u > -INF) {
            const int at = atomicAdd(counts + blockIdx.y, 1);
            if (at < room) found[(i64)blockIdx.y * room + at] = (int)row;
        }
    }
}

// Rows whose bit is set in words of 32 rows, [queries][per_query].
extern "C" __global__ void collect_bits(const u32* bits, int per_query, i64 total, int first_row, int room, int* counts,
                                        int* found) {
    for (i64 k = (i64)blockIdx.x * blockDim.x + threadIdx.x; k < total; k += (i64)gridDim.x * blockDim.x) {
        u32 v = bits[k];
        if (!v) continue;
        const i64 query = k / per_query;
        const int row = first_row + (int)(k - query * per_query) * 32;
        for (; v; v &= v - 1) {
            const int at = atomicAdd(counts + query, 1);
            if (at < room) found[query * room + at] = row + __ffs(v) - 1;
        }
    }
}

// Largest lower bounds [nq][groups] of groups of products [nq][count]; group g holds rows g, g + groups, ...
extern "C" __global__ void group_best(const float* products, int count, int groups, const float* gain,
                                      const float* error, const float* scale, const float* low, float* best) {
    const float* own = products + (i64)blockIdx.x * count;
    const float e = error[blockIdx.x], factor = gain[blockIdx.x];
    for (int g = threadIdx.x; g < groups; g += blockDim.x) {
        float most = -INF;
#pragma unroll 4
        for (int k = g; k < count; k += groups)
            most = fmaxf(most, scale[k] * (own[k] * factor) - fabsf(scale[k]) * e + low[k]);
        best[(i64)blockIdx.x * groups + g] = most;
    }
}

// Where a dimension's nibbles and tables lie, for words in rows of 33.
struct Place {
    __device__ __forceinline__ Place(const Code& code, int4 at) : table(code.tables + at.w * 48) {
        const int j[3] = {at.x, at.y, at.z};
        for (int o = 0; o < 3; ++o) {
            used[o] = j[o] >= 0;
            word[o] = (max(j[o], 0) >> 3) * 33;
            shift[o] = 4 * (max(j[o], 0) & 7);
        }
    }
    __device__ __forceinline__ float decoded(const u32* words) const {
        float v = __ldg(table + (words[word[0]] >> shift[0] & 15));
        if (used[1]) v = __fadd_rn(v, __ldg(table + 16 + (words[word[1]] >> shift[1] & 15)));
        if (used[2]) v = __fadd_rn(v, __ldg(table + 32 + (words[word[2]] >> shift[2] & 15)));
        return v;
    }
    const float* table;
    int word[3], shift[3];
    bool used[3];
};

// Rows first, first + step, ... as float16 [count][stride], zero past D, with their scale and bounds of their bias.
extern "C" __global__ void half_rows(Code code, Rows rows, i64 first, i64 step, int count, int stride, u16* out,
                                     float* scale, float* high, float* low) {
    extern __shared__ u32 words[];  // [words][33], so that neither reading nor writing meets bank conflicts
    const int base = blockIdx.x * 32;
    for (int k = threadIdx.x; k < code.words * 32; k += blockDim.x) {
        const i64 row = first + (i64)(base + (k & 31)) * step;
        words[(k >> 5) * 33 + (k & 31)] =
            base + (k & 31) < count && row < rows.n ? word_at(rows, code.words, row, k >> 5) : 0;
    }
    if (threadIdx.x < 32 && base + threadIdx.x < count) {
        const i64 row = first + (i64)(base + threadIdx.x) * step;
        const bool ok = allowed(rows, row);
        const float h = ok && rows.half_norm ? rows.half_norm[row] : 0.0f;
        scale[base + threadIdx.x] = ok ? rows.scale[row] : 0.0f;
        high[base + threadIdx.x] = ok ? -h * 0.999999f : -INF;
        low[base + threadIdx.x] = ok ? -h * 1.000001f : -INF;
    }
    __syncthreads();
    const int many = min(32, count - base);
    for (int i = 2 * threadIdx.x; i < stride; i += 2 * blockDim.x) {
        const int4 a = code.dims[min(i, code.d - 1)], b = code.dims[min(i + 1, code.d - 1)];
        const Place first_place(code, a), second_place(code, b);
        const u32 keep = (i < code.d ? 0xffffu : 0u) | (i + 1 < code.d ? 0xffff0000u : 0u);
        u16* to = out + (i64)base * stride + i;
#pragma unroll 4
        for (int r = 0; r < many; ++r, to += stride) {
            const u32 x = half_bits(first_place.decoded(words + r)), y = half_bits(second_place.decoded(words + r));
            *(u32*)to = (x | y << 16) & keep;
        }
    }
}

// The largest squared length of decoded rows first to n - 1 and of what `bytes` leaves of them (0 phases: not asked
// for), as the bits of two float32 >= 0.
extern "C" __global__ void longest(Code code, Rows rows, Bytes bytes, int phases, i64 first, int* most) {
    extern __shared__ u32 words[];
    const i64 blocks = (rows.n + 31) / 32;
    __shared__ float part[32][33], rest[32][33];
    for (i64 b = first / 32 + blockIdx.x; b < blocks; b += gridDim.x) {
        for (int k = threadIdx.x; k < code.words * 32; k += blockDim.x)
            words[k] = word_at(rows, code.words, b * 32 + (k & 31), k >> 5);
        __syncthreads();
        const int r = threadIdx.x & 31, w = threadIdx.x >> 5;
        float sum = 0, missed = 0;
        for (int i = w; i < code.d; i += blockDim.x >> 5) {
            const int4 at = code.dims[i];
            const float v = decoded(code, at, words + r, 32);
            sum += v * v;
            if (phases) {
                const int p = i % phases, j[3] = {at.x, at.y, at.z};
                int total = 0;
                for (int o = 0; o < 3; ++o)
                    if (j[o] >= 0) total += ((const u8*)bytes.entry[p][o])[nibble(words + r, 32, j[o])];
                const float left = v - bytes.step[p] * ((float)total - bytes.zero[p]);
                missed += left * left;
            }
        }
        part[w][r] = sum, rest[w][r] = missed;
        __syncthreads();
        if (w == 0) {
            for (int k = 1; k < (int)blockDim.x >> 5; ++k) sum += part[k][r], missed += rest[k][r];
            if (b * 32 + r < rows.n) {
                atomicMax(most, __float_as_int(sum));
                atomicMax(most + 1, __float_as_int(missed));
            }
        }
        __syncthreads();
    }
}

// Exact scores float64 [n] of one query; rows that are not allowed get -inf.
extern "C" __global__ void exact(Code code, Rows rows, const float* q, double* scores) {
    extern __shared__ double own[];
    u32* words = (u32*)(own + Exact::size(code));
    const Exact given(code, q, own);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    for (i64 row = (i64)blockIdx.x * warps + warp; row < rows.n; row += (i64)gridDim.x * warps) {
        const double s = exact_score(code, rows, given, row, words + warp * code.words, lane);
        if (lane == 0) scores[row] = allowed(rows, row) ? s : -(double)INF;
    }
}
