// What a block of the cluster has at the place of `p` in its shared memory.
template <class T>
__device__ __forceinline__ T of_block(const void* p, int rank) {
    u32 address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
    if constexpr (sizeof(T) == 8) {
        T x;
        asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(address));
        return x;
    } else {
        T x;
        asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
            : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(address));
        return x;
    }
}
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" : : : "memory");
}

// Sums over tokens in full precision to the basis of the others.
__device__ __forceinline__ void turn_extra(const Problem& p, const Place& at, float* sums) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = lane * PER_LANE;
    __syncthreads();
    if (warp >= at.n) return;
    float* row = sums + warp * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK;
    float x[PER_LANE];
#pragma unroll
    for (int e = 0; e < PER_LANE; e++) x[e] = row[e];
    turn(x, p.value_signs[lane], p.value_rounds, false, lane);
#pragma unroll
    for (int e = 0; e < PER_LANE; e++) row[e] = x[e] * p.value_shrink;
}

// Sums of the pairs of warps to those of the block, then of the cluster's blocks, each a part of the dimensions, to one
// partial result in global memory.
__device__ __forceinline__ void merge(const Problem& p, const Place& at, unsigned char* memory, long long part) {
    float *tops = (float*)(memory + SMALL), *weights = tops + PAIRS * QUERIES, *keep = weights + PAIRS * QUERIES;
    float2* both = (float2*)(keep + PAIRS * QUERIES);  // [QUERIES] of the block
    float* sums = (float*)(memory + SUMS);
    __syncthreads();
    if (threadIdx.x < QUERIES) {
        const int i = threadIdx.x;
        float top = NO_SCORE, weight = 0, x[PAIRS];
#pragma unroll
        for (int w = 0; w < PAIRS; w++) {
            x[w] = weights[w * QUERIES + i] != 0 ? tops[w * QUERIES + i] : NO_SCORE;
            top = max_(top, x[w]);
        }
#pragma unroll
        for (int w = 0; w < PAIRS; w++) {
            // A pair that saw nothing has weight 0 and sums 0.
            const float share = exp2_(x[w] - top);
            keep[w * QUERIES + i] = share;
            weight += share * weights[w * QUERIES + i];
        }
        both[i] = make_float2(top, weight);
    }
    __syncthreads();
#pragma unroll 1
    for (int index = threadIdx.x; index < at.n * (D / 4); index += THREADS) {
        const int i = index / (D / 4), dim = index % (D / 4) * 4;
        float* from = sums + i * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK;
        float4 x = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int w = 0; w < PAIRS; w++) {
            const float share = keep[w * QUERIES + i];
            const float4 y = *(const float4*)(from + w * PAIR_PITCH);
            x.x += share * y.x, x.y += share * y.y, x.z += share * y.z, x.w += share * y.w;
        }
        // Only this thread read the place.
        *(float4*)from = x;
    }
    if (blockIdx.z == p.splits && p.extra > 0) turn_extra(p, at, sums);
    cluster_barrier();
    const int rank = blockIdx.z % CLUSTER;
    if (threadIdx.x < QUERIES) {
        const int i = threadIdx.x;
        float top = NO_SCORE, weight = 0;
        float2 x[CLUSTER];
#pragma unroll
        for (int r = 0; r < CLUSTER; r++) {
            x[r] = of_block<float2>(both + i, r);
            x[r].x = x[r].y != 0 ? x[r].x : NO_SCORE;
            top = max_(top, x[r].x);
        }
#pragma unroll
        for (int r = 0; r < CLUSTER; r++) {
            const float share = exp2_(x[r].x - top);
            keep[r * QUERIES + i] = share;
            weight += share * x[r].y;
        }
        if (rank == 0) *(float2*)(p.part_scalars + (part * QUERIES + i) * 2) = make_float2(top, weight);
    }
    __syncthreads();
#pragma unroll 1
    for (int index = threadIdx.x * CLUSTER + rank; index < at.n * (D / 4); index += CLUSTER * THREADS) {
        const int i = index / (D / 4), dim = index % (D / 4) * 4;
        const float* from = sums + i * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK;
        float4 x = make_float4(0, 0, 0, 0), y[CLUSTER];
#pragma unroll
        for (int r = 0; r < CLUSTER; r++) y[r] = of_block<float4>(from, r);
#pragma unroll
        for (int r = 0; r < CLUSTER; r++) {
            const float share = keep[r * QUERIES + i];
            x.x += share * y[r].x, x.y += share * y[r].y, x.z += share * y[r].z, x.w += share * y[r].w;
        }
        *(float4*)(p.part_sums + (part * QUERIES + i) * D + dim) = x;
    }
    // Until the others have read what this block holds.
    cluster_barrier();
}

// The last block of a query block: partial results to the output, packed ones turned back to the original basis.
__device__ __forceinline__ void finish(const Problem& p, const Place& at, unsigned char* memory) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int parts = gridDim.z / CLUSTER;
    float* sums = (float*)(memory + SMALL);       // [QUERIES][D]
    float* totals = sums + QUERIES * D;           // [QUERIES]
    float* keep = totals + QUERIES;               // [QUERIES][parts]
    const float* scalars = p.part_scalars + (long long)at.pair * parts * QUERIES * 2;
    const float* part_sums = p.part_sums + (long long)at.pair * parts * QUERIES * D;
    u32 signs = 0;
    if (warp < at.n) {
        signs = p.value_signs[lane];
        float top = NO_SCORE, total = 0;
#pragma unroll 1
        for (int s = lane; s < parts; s += 32) {
            const float2 both = __ldcg((const float2*)(scalars + (s * QUERIES + warp) * 2));
            top = max_(top, both.y != 0 ? both.x : NO_SCORE);
        }
#pragma unroll 1
        for (int stride = 16; stride > 0; stride /= 2) top = max_(top, __shfl_xor_sync(~0u, top, stride));
#pragma unroll 1
        for (int s = lane; s < parts; s += 32) {
            const float2 both = __ldcg((const float2*)(scalars + (s * QUERIES + warp) * 2));
            const float x = both.y != 0 ? exp2_(both.x - top) : 0.0f;
            keep[warp * parts + s] = x;
            total += x * both.y;
        }
#pragma unroll 1
        for (int stride = 16; stride > 0; stride /= 2) total += __shfl_xor_sync(~0u, total, stride);
        if (lane == 0) totals[warp] = total;
    }
    __syncthreads();
#pragma unroll 1
    for (int index = threadIdx.x; index < at.n * (D / 4); index += THREADS) {
        const int i = index / (D / 4), dim = index % (D / 4) * 4;
        float4 x = make_float4(0, 0, 0, 0);
#pragma unroll 1
        for (int s = 0; s < parts; s += IN_FLIGHT) {
            float4 y[IN_FLIGHT];
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) {
                y[k] = __ldcg((const float4*)(part_sums + (min(s + k, parts - 1) * QUERIES + i) * D + dim));
            }
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) {
                const float w = s + k < parts ? keep[i * parts + s + k] : 0.0f;
                x.x += w * y[k].x, x.y += w * y[k].y, x.z += w * y[k].z, x.w += w * y[k].w;
            }
        }
        *(float4*)(sums + i * D + dim) = x;
    }
    __syncthreads();
    if (warp >= at.n) return;
    float x[PER_LANE];
#pragma unroll
    for (int e = 0; e < PER_LANE; e++) x[e] = sums[warp * D + lane * PER_LANE + e] * p.value_shrink;
    turn(x, signs, p.value_rounds, true, lane);
    // A query that sees nothing gets zero.
    const float inverse = totals[warp] != 0 ? 1 / totals[warp] : 0.0f;
    LaneStates out;
#pragma unroll
    for (int e = 0; e < PER_LANE; e++) out.set(e, x[e] * inverse);
    out.store(p.out + (((long long)at.batch * p.heads + at.head(p, warp)) * p.new_tokens + at.token(p, warp)) * D + lane * PER_LANE);
}

// Grid: (kv heads times blocks of 8 queries; batch; splits, one more for tokens in full precision, so that those come
// late, and as many that have nothing to do as fill the last cluster).
extern "C" __global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(1, 1, CLUSTER) decode(const __grid_constant__ Problem p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    __shared__ u32 arrived;
    const int queries = p.group * p.new_tokens, blocks = gridDim.x / p.kv_heads;
    Place at;
    at.batch = blockIdx.y;
    at.pair = blockIdx.y * gridDim.x + blockIdx.x;
    at.kv_head = queries <= QUERIES ? blockIdx.x : blockIdx.x / blocks;
    at.first = queries <= QUERIES ? 0 : blockIdx.x % blocks * QUERIES;
    at.n = min(queries - at.first, QUERIES);
    if (blockIdx.z < p.splits) {
        attend_packed(p, at, memory, blockIdx.z);
    } else {
        attend_extra(p, at, memory);
    }
    merge(p, at, memory, (long long)at.pair * (gridDim.z / CLUSTER) + blockIdx.z / CLUSTER);
    __threadfence();
    __syncthreads();
    // Counts up to the last block and back to zero, ready for the next launch.
    if (threadIdx.x == 0) arrived = atomicInc(p.counters + at.pair, gridDim.z - 1);
    __syncthreads();
    if (arrived != gridDim.z - 1) return;
    __threadfence();
    finish(p, at, memory);
}
