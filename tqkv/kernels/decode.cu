// Sums over tokens in full precision to the basis of the others.
__device__ __forceinline__ void turn_extra(const Problem& p, const Place& at, float* sums) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __syncthreads();
    if (warp >= at.n) return;
    float* row = sums + warp * QUERY_PITCH;
    auto place = [&](int dim) { return row + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK; };
    Turned turned;
    turned.each(0, lane, [&](float& x, int dim) { x = *place(dim); });
    turned.turn(p.value_signs[lane], p.value_rounds, false, lane);
    __syncwarp();
    turned.each(p.value_rounds % 2, lane, [&](float x, int dim) { *place(dim) = x * p.value_shrink; });
}

// Weighs what COUNT parts have of a query: their largest scores and weights to those of all and the parts' shares.
template <int COUNT>
__device__ __forceinline__ float2 weigh(const float2 (&parts)[COUNT], float (&shares)[COUNT]) {
    float2 all = make_float2(NO_SCORE, 0);
#pragma unroll
    for (int i = 0; i < COUNT; i++) all.x = max_(all.x, parts[i].y != 0 ? parts[i].x : NO_SCORE);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        // A part that saw nothing has weight 0 and sums 0.
        shares[i] = parts[i].y != 0 ? exp2_(parts[i].x - all.x) : 0.0f;
        all.y += shares[i] * parts[i].y;
    }
    return all;
}

// Sums of the pairs of warps to those of the block, then of the cluster's blocks, each a part of the dimensions, to one
// partial result in global memory.
__device__ __forceinline__ void merge(const Problem& p, const Place& at, unsigned char* memory, long long part) {
    const float *tops = (float*)(memory + SMALL), *weights = tops + PAIRS * QUERIES;
    float2* both = (float2*)(weights + PAIRS * QUERIES);  // [QUERIES] of the block
    float* sums = (float*)(memory + SUMS);
    const bool extra = blockIdx.z == p.splits && p.extra > 0;
    auto store = [&](int i, int dim, float4 x, float2 all) {
        float* row = p.part_sums + (part * QUERIES + i) * 256;
        const int odd = p.value_rounds % 2;
        row[Turned::place(odd, dim)] = x.x, row[Turned::place(odd, dim + 1)] = x.y;
        row[Turned::place(odd, dim + 2)] = x.z, row[Turned::place(odd, dim + 3)] = x.w;
        if (dim == 0) *(float2*)(p.part_scalars + (part * QUERIES + i) * 2) = all;
    };
    __syncthreads();
#pragma unroll 1
    for (int index = threadIdx.x; index < at.n * (D / 4); index += THREADS) {
        const int i = index / (D / 4), dim = index % (D / 4) * 4;
        float* from = sums + i * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK;
        float2 parts[PAIRS];
        float shares[PAIRS];
#pragma unroll
        for (int w = 0; w < PAIRS; w++) parts[w] = make_float2(tops[w * QUERIES + i], weights[w * QUERIES + i]);
        const float2 all = weigh(parts, shares);
        float4 x = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int w = 0; w < PAIRS; w++) {
            const float4 y = *(const float4*)(from + w * PAIR_PITCH);
            x.x += shares[w] * y.x, x.y += shares[w] * y.y, x.z += shares[w] * y.z, x.w += shares[w] * y.w;
        }
        if (CLUSTER == 1 && !extra) {
            store(i, dim, x, all);
        } else {
            // Only this thread read the place.
            *(float4*)from = x;
            if (dim == 0) both[i] = all;
        }
    }
    if (CLUSTER == 1 && !extra) return;
    if (extra) turn_extra(p, at, sums);
    cluster_barrier();
    const int rank = blockIdx.z % CLUSTER, mine = at.n * (D / 4) / CLUSTER;
#pragma unroll 1
    for (int index = threadIdx.x; index < mine; index += THREADS) {
        const int i = (rank * mine + index) / (D / 4), dim = (rank * mine + index) % (D / 4) * 4;
        const float* from = sums + i * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK;
        float4 x = make_float4(0, 0, 0, 0), y[CLUSTER];
        float2 parts[CLUSTER];
        float shares[CLUSTER];
#pragma unroll
        for (int r = 0; r < CLUSTER; r++) {
            parts[r] = of_block(both + i, r);
            y[r] = of_block((const float4*)from, r);
        }
        const float2 all = weigh(parts, shares);
#pragma unroll
        for (int r = 0; r < CLUSTER; r++) {
            x.x += shares[r] * y[r].x, x.y += shares[r] * y[r].y, x.z += shares[r] * y[r].z, x.w += shares[r] * y[r].w;
        }
        store(i, dim, x, all);
    }
    // Until the others have read what this block holds.
    cluster_barrier();
}

// The last block of a query block: partial results to the output, turned back to the original basis, a query a warp.
__device__ __forceinline__ void finish(const Problem& p, const Place& at, unsigned char* memory) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, parts = gridDim.z / CLUSTER, odd = p.value_rounds % 2;
    if (warp >= at.n) return;
    const u32 signs = p.value_signs[lane];
    const float* scalars = p.part_scalars + ((long long)at.pair * parts * QUERIES + warp) * 2;
    const float* rows = p.part_sums + ((long long)at.pair * parts * QUERIES + warp) * 256 + lane * 8;
    float* tops = (float*)(memory + SMALL) + warp * parts;  // of a part, NO_SCORE where it saw nothing
    float top = NO_SCORE, total = 0;
#pragma unroll 1
    for (int s = lane; s < parts; s += 32) {
        const float2 both = __ldcg((const float2*)(scalars + s * QUERIES * 2));
        const float x = both.y != 0 ? both.x : NO_SCORE, raised = max_(top, x);
        total = total * exp2_(top - raised) + exp2_(x - raised) * both.y;
        top = raised;
        tops[s] = x;
    }
    const float own = top;
#pragma unroll
    for (int stride = 16; stride > 0; stride /= 2) top = max_(top, __shfl_xor_sync(~0u, top, stride));
    total *= exp2_(own - top);
#pragma unroll
    for (int stride = 16; stride > 0; stride /= 2) total += __shfl_xor_sync(~0u, total, stride);
    __syncwarp();
    Turned sums = {};
#pragma unroll 1
    for (int s = 0; s < parts; s += IN_FLIGHT) {
        float4 x[IN_FLIGHT][2];
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; k++) {
            const float4* row = (const float4*)(rows + (long long)min(s + k, parts - 1) * QUERIES * 256);
            x[k][0] = __ldcg(row), x[k][1] = __ldcg(row + 1);
        }
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; k++) {
            const float from = s + k < parts ? tops[min(s + k, parts - 1)] : NO_SCORE, share = from != NO_SCORE ? exp2_(from - top) : 0.0f;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                sums.x[h][0][0] += share * x[k][h].x, sums.x[h][0][1] += share * x[k][h].y;
                sums.x[h][1][0] += share * x[k][h].z, sums.x[h][1][1] += share * x[k][h].w;
            }
        }
    }
    // What lies behind the last element was never written.
    sums.each(odd, lane, [](float&, int) {});
    sums.turn(signs, p.value_rounds, true, lane);
    // A query that sees nothing gets zero.
    const float factor = total != 0 ? p.value_shrink / total : 0.0f;
    State* out = p.out + (((long long)at.batch * p.heads + at.head(p, warp)) * p.new_tokens + at.token(p, warp)) * D;
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int c = Turned::column(0, lane, h, k);
            if (c < D / 16) store_pair(out + 16 * c + Turned::row(0, lane, h, k), sums.x[h][k][0] * factor, sums.x[h][k][1] * factor);
        }
    }
}

// Grid: (kv heads times blocks of 8 queries; batch; splits, one more for tokens in full precision, so that those come
// late, and as many that have nothing to do as fill the last cluster).
extern "C" __global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(1, 1, CLUSTER) decode(const __grid_constant__ Problem p) {
    unsigned char* memory = block_memory();
    u32& arrived = *(u32*)memory;
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
