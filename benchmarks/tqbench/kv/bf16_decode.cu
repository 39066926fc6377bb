// Decode attention over bfloat16 keys and values with the work shared as in tqkv/kernels: the baseline that
// differs from the packed kernel in what it reads alone. One query a head, groups of up to 8, tokens a multiple of 16.
// Compiled with HEAD_DIM and WARPS.

typedef unsigned int u32;
typedef unsigned short u16;

constexpr int D = HEAD_DIM, QUERIES = 8, TILE = 16, THREADS = WARPS * 32;
constexpr int KEY_PIECES = D / 32, VALUE_PIECES = D / 64;  // 16-byte loads of a lane, of one token
constexpr int PITCH = D + 24, WARP_PITCH = QUERIES * PITCH;
constexpr int IN_FLIGHT = 12;  // partial sums that a thread loads at a time
constexpr float NO_SCORE = -1e30f;

__device__ __forceinline__ float exp2_(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ u32 pair(float lo, float hi) { u32 y; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo)); return y; }
__device__ __forceinline__ float to_float(u16 x) { return __int_as_float((int)x << 16); }

__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 transpose(u32 a) {
    u32 y; asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(a)); return y;
}

__device__ __forceinline__ uint4 load(const u16* p) {
    uint4 x;
    asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p));
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) decode(
    const u16* q, const u16* k, const u16* v, u16* out, float* part_sums, float* part_scalars, u32* counters, int group,
    int tokens, float scaling
) {
    extern __shared__ __align__(16) unsigned char memory[];
    __shared__ u32 arrived;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int row = blockIdx.x, parts = gridDim.y, tiles = tokens / TILE;
    const int first = (long long)tiles * blockIdx.y / parts + warp, last = (long long)tiles * (blockIdx.y + 1) / parts;
    k += (long long)row * tokens * D;
    v += (long long)row * tokens * D;
    q += (long long)row * group * D;
    uint4 keys[KEY_PIECES][2], values[VALUE_PIECES][4];
    auto load_keys = [&](int tile) {
#pragma unroll
        for (int c = 0; c < KEY_PIECES; c++) {
            keys[c][0] = load(k + (long long)(tile * TILE + g) * D + c * 32 + t * 8);
            keys[c][1] = load(k + (long long)(tile * TILE + g + 8) * D + c * 32 + t * 8);
        }
    };
    if (first < last) load_keys(first);
    u32* fragments = (u32*)memory;
    for (int index = threadIdx.x; index < D * 4; index += THREADS) {
        int piece = index / 128, half = index / 64 % 2, l = index / 2 % 32, dim = piece * 32 + l % 4 * 8 + half * 4 + index % 2 * 2;
        fragments[index] = l / 4 < group ? pair(to_float(q[l / 4 * D + dim]), to_float(q[l / 4 * D + dim + 1])) : 0;
    }
    __syncthreads();
    float sums[D / 16][4], top[2] = {NO_SCORE, NO_SCORE}, weight[2] = {0, 0};
#pragma unroll
    for (int r = 0; r < D / 16; r++) sums[r][0] = sums[r][1] = sums[r][2] = sums[r][3] = 0;
    for (int tile = first; tile < last; tile += WARPS) {
#pragma unroll
        for (int c = 0; c < VALUE_PIECES; c++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                values[c][i] = load(v + (long long)(tile * TILE + 2 * t + i % 2 + i / 2 * 8) * D + c * 64 + g * 8);
            }
        }
        float s[4] = {0, 0, 0, 0};
#pragma unroll
        for (int c = 0; c < KEY_PIECES; c++) {
            uint2 b = *(uint2*)(fragments + c * 128 + lane * 2), b2 = *(uint2*)(fragments + c * 128 + 64 + lane * 2);
            multiply(s, keys[c][0].x, keys[c][1].x, keys[c][0].y, keys[c][1].y, b.x, b.y);
            multiply(s, keys[c][0].z, keys[c][1].z, keys[c][0].w, keys[c][1].w, b2.x, b2.y);
        }
        if (tile + WARPS < last) load_keys(tile + WARPS);
        bool raise = false;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[i] *= scaling;
            raise |= s[i] > top[i % 2] + 8;
        }
        if (__any_sync(~0u, raise)) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float highest = fmaxf(s[i], s[i + 2]);
#pragma unroll
                for (int stride = 4; stride < 32; stride *= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, stride));
                float raised = fmaxf(top[i], highest), keep = exp2_(top[i] - raised);
                top[i] = raised;
                weight[i] *= keep;
#pragma unroll
                for (int r = 0; r < D / 16; r++) sums[r][i] *= keep, sums[r][2 + i] *= keep;
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[i] = exp2_(s[i] - top[i % 2]);
            weight[i % 2] += s[i];
        }
        u32 b0 = transpose(pair(s[0], s[1])), b1 = transpose(pair(s[2], s[3]));
#pragma unroll
        for (int c = 0; c < VALUE_PIECES; c++) {
#pragma unroll
            for (int r = 0; r < 4; r++) {
                u32 x[4];
#pragma unroll
                for (int i = 0; i < 4; i++) x[i] = r == 0 ? values[c][i].x : r == 1 ? values[c][i].y : r == 2 ? values[c][i].z : values[c][i].w;
                multiply(sums[c * 4 + r], __byte_perm(x[0], x[1], 0x5410), __byte_perm(x[0], x[1], 0x7632),
                         __byte_perm(x[2], x[3], 0x5410), __byte_perm(x[2], x[3], 0x7632), b0, b1);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int stride = 4; stride < 32; stride *= 2) weight[i] += __shfl_xor_sync(~0u, weight[i], stride);
    }
    __syncthreads();
    float *tops = (float*)memory, *weights = tops + WARPS * QUERIES, *keep = weights + WARPS * QUERIES;
    float* all = (float*)(memory + 4096);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (g == 0) tops[warp * QUERIES + 2 * t + i] = top[i], weights[warp * QUERIES + 2 * t + i] = weight[i];
#pragma unroll
        for (int r = 0; r < D / 16; r++) {
            *(float2*)(all + warp * WARP_PITCH + (2 * t + i) * PITCH + r / 4 * 64 + g * 8 + r % 4 * 2) = make_float2(sums[r][i], sums[r][2 + i]);
        }
    }
    __syncthreads();
    const long long part = (long long)row * parts + blockIdx.y;
    if (threadIdx.x < QUERIES) {
        float highest = NO_SCORE, total = 0;
        for (int w = 0; w < WARPS; w++) highest = fmaxf(highest, tops[w * QUERIES + threadIdx.x]);
        for (int w = 0; w < WARPS; w++) {
            float x = exp2_(tops[w * QUERIES + threadIdx.x] - highest);
            keep[w * QUERIES + threadIdx.x] = x;
            total += x * weights[w * QUERIES + threadIdx.x];
        }
        part_scalars[(part * QUERIES + threadIdx.x) * 2] = highest;
        part_scalars[(part * QUERIES + threadIdx.x) * 2 + 1] = total;
    }
    __syncthreads();
    for (int index = threadIdx.x; index < group * D; index += THREADS) {
        float x = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) x += keep[w * QUERIES + index / D] * all[w * WARP_PITCH + index / D * PITCH + index % D];
        part_sums[part * QUERIES * D + index] = x;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicInc(counters + row, parts - 1);
    __syncthreads();
    if (arrived != parts - 1) return;
    __threadfence();
    const float* scalars = part_scalars + (long long)row * parts * QUERIES * 2;
    for (int i = warp; i < group; i += WARPS) {
        float highest = NO_SCORE, total = 0;
        for (int s = lane; s < parts; s += 32) highest = fmaxf(highest, __ldcg(scalars + (s * QUERIES + i) * 2));
        for (int stride = 16; stride > 0; stride /= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, stride));
        for (int s = lane; s < parts; s += 32) {
            float x = exp2_(__ldcg(scalars + (s * QUERIES + i) * 2) - highest);
            all[i * parts + s] = x;
            total += x * __ldcg(scalars + (s * QUERIES + i) * 2 + 1);
        }
        for (int stride = 16; stride > 0; stride /= 2) total += __shfl_xor_sync(~0u, total, stride);
        if (lane == 0) tops[i] = total;
    }
    __syncthreads();
    const float* rows = part_sums + (long long)row * parts * QUERIES * D;
    for (int index = threadIdx.x; index < group * D / 4; index += THREADS) {
        const int i = index / (D / 4), dim = index % (D / 4) * 4;
        float4 x = make_float4(0, 0, 0, 0);
        for (int s = 0; s < parts; s += IN_FLIGHT) {
            float4 y[IN_FLIGHT];
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) {
                y[k] = __ldcg((const float4*)(rows + ((long long)min(s + k, parts - 1) * QUERIES + i) * D + dim));
            }
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) {
                const float w = s + k < parts ? all[i * parts + s + k] : 0.0f;
                x.x += w * y[k].x, x.y += w * y[k].y, x.z += w * y[k].z, x.w += w * y[k].w;
            }
        }
        const float inverse = 1 / tops[i];
        *(uint2*)(out + ((long long)row * group + i) * D + dim) = make_uint2(pair(x.x * inverse, x.y * inverse), pair(x.z * inverse, x.w * inverse));
    }
}
