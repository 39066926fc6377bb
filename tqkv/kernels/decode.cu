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
