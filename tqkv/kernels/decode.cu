// Sums over tokens in full precision to the basis of the others.
__device__ __forceinline__ void turn_extra(const Problem& p, const Place& at, float* sums) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __syncthreads();
    if (warp >= at.n) return;
    float* row = sums + warp * QUERY_PITCH;
    auto place = [&](int dim) { return row + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK; };
    Turned turned;
    turned.each<0>(lane, [&](float& x, int dim, int) { x = *place(dim); });
    turned.turn<VALUE_ROUNDS>(p.value_signs[lane], false, lane);
    __syncwarp();
    turned.each<VALUE_ROUNDS>(lane, [&](float x, int dim, int) { *place(dim) = x * p.value_shrink; });
}

// Sums of the pairs of warps to a partial result of the block in global memory, in the packed basis. A thread takes four
// dimensions at a time, all at once.
template <bool EXTRA>
__device__ __forceinline__ void merge(const Problem& p, const Place& at, unsigned char* memory) {
    constexpr int FOURS = D / 4, AT_ONCE = (QUERIES * FOURS + THREADS - 1) / THREADS;
    const u32 part = at.pair * gridDim.z + blockIdx.z;
    const float* shares = (const float*)(memory + SHARES);
    float* sums = (float*)(memory + SUMS);
    auto place = [&](int i, int dim) { return sums + i * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK; };
    const int items = at.n * FOURS;
    auto item = [&](int j) { return min((int)threadIdx.x + j * THREADS, items - 1); };
    float4 x[AT_ONCE];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
        const int i = item(j) / FOURS, dim = item(j) % FOURS * 4;
        x[j] = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int w = 0; w < PAIRS; w++) {
            const float share = shares[i * PAIRS + w];
            const float4 y = *(const float4*)(place(i, dim) + w * PAIR_PITCH);
            x[j].x += share * y.x, x[j].y += share * y.y, x[j].z += share * y.z, x[j].w += share * y.w;
        }
    }
    if constexpr (EXTRA) {
        // Tokens in full precision are in the basis of the states. Nobody else reads a place.
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            if (threadIdx.x + j * THREADS < items) *(float4*)place(item(j) / FOURS, item(j) % FOURS * 4) = x[j];
        }
        turn_extra(p, at, sums);
        __syncthreads();
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) x[j] = *(const float4*)place(item(j) / FOURS, item(j) % FOURS * 4);
    }
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
        if (threadIdx.x + j * THREADS >= items) continue;
        const u32 row[4] = {(u32)__float_as_int(x[j].x), (u32)__float_as_int(x[j].y), (u32)__float_as_int(x[j].z), (u32)__float_as_int(x[j].w)};
        store_shared(p.part_sums + part * QUERIES * D + 4 * item(j), row);
    }
    if ((int)threadIdx.x < at.n) {
        const float2 all = ((const float2*)(memory + OF_ALL))[threadIdx.x];
        const u32 about[2] = {(u32)__float_as_int(all.x), (u32)__float_as_int(all.y)};
        store_shared(p.part_scalars + 2 * (part * QUERIES + threadIdx.x), about);
    }
}

// Partial results of `count` queries from `first` on to the output, turned back to the original basis. Some warps a query
// share its parts, then one turns. Waits for parts that are not there, and gives up after `patience` cycles, if there are any.
__device__ __forceinline__ bool finish(const Problem& p, const Place& at, unsigned char* memory, int first, int count, int patience) {
    constexpr int HELPERS = WARPS < 8 ? WARPS : 8;  // of a query, at most
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, parts = gridDim.z;
    const int helpers = count == 1 ? HELPERS : WARPS / count, query = count == 1 ? warp / HELPERS : warp / helpers, helper = warp - query * helpers;
    float2* tops = (float2*)(memory + TOPS);           // [WARPS]
    float* merged = (float*)(memory + MERGED);         // [WARPS, Turned::SIZE]
    u32 signs = 0;
    State* out = nullptr;
    if (warp < count) signs = p.value_signs[lane], out = p.out + at.packed(p, first + warp);
    const u32 place = ((at.pair * parts + helper) * QUERIES + first + query) * D + lane * Partial::PIECE, stride = helpers * QUERIES * D;
    bool there = true;
    if (query < count) {
        float2 all = make_float2(NO_SCORE, 0);
        float sums[PER_LANE] = {};
#pragma unroll 1
        for (int part = helper; part < parts && there; part += IN_FLIGHT * helpers) {
            const u32 from = place + (part - helper) / helpers * stride;
            Partial x[IN_FLIGHT] = {};
            const long long start = cycles();
            bool now;
#pragma unroll 1
            do {
                now = true;
#pragma unroll
                for (int k = 0; k < IN_FLIGHT; k++) {
                    if (part + k * helpers >= parts) continue;
                    const u32 own = from + k * stride;
                    x[k].load(p.part_sums + own, p.part_scalars + own / D * 2);
                }
#pragma unroll
                for (int k = 0; k < IN_FLIGHT; k++) now = now && x[k].there();
                now = __all_sync(~0u, now);
            } while (!now && !__any_sync(~0u, patience && cycles() - start >= patience));
            there = now;
            float2 own[IN_FLIGHT + 1];
            float shares[IN_FLIGHT + 1];
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) own[k] = part + k * helpers < parts ? x[k].weight() : make_float2(NO_SCORE, 0);
            own[IN_FLIGHT] = all;
            all = weigh(own, shares);
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) sums[e] *= shares[IN_FLIGHT];
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) {
#pragma unroll
                for (int e = 0; e < PER_LANE; e++) sums[e] += shares[k] * x[k].sum(e);
            }
        }
        if (lane == 0) tops[warp] = all;
        float* to = merged + warp * Turned::SIZE + Turned::place(VALUE_ROUNDS % 2, lane * Partial::PIECE);
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) to[Turned::place(VALUE_ROUNDS % 2, Partial::dim(e))] = sums[e];
    }
    if (!__syncthreads_and(there)) return false;
    if (query < count) {
#pragma unroll 1
        for (int part = helper, own = place; part < parts; part += helpers, own += stride) {
            Partial::clear(p.part_sums + own, p.part_scalars + own / D * 2, lane);
        }
    }
    if (warp >= count) return true;
    float2 parts_of[HELPERS];
    float shares[HELPERS];
#pragma unroll
    for (int h = 0; h < HELPERS; h++) parts_of[h] = h < helpers ? tops[warp * helpers + h] : make_float2(NO_SCORE, 0);
    const float total = weigh(parts_of, shares).y;
    Turned sums = {};
#pragma unroll
    for (int h = 0; h < HELPERS; h++) sums.add(merged + (warp * helpers + min(h, helpers - 1)) * Turned::SIZE, shares[h], lane);
    sums.each<VALUE_ROUNDS>(lane, [](float&, int, int) {});
    sums.turn<VALUE_ROUNDS>(signs, true, lane);
    // A query that sees nothing gets zero.
    const float factor = total != 0 ? p.value_shrink * reciprocal(total) : 0.0f;
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int first = Turned::element(0, lane, h, k, 0);
            if (first < D) store_pair(out + first, sums.x[h][k][0] * factor, sums.x[h][k][1] * factor);
        }
    }
    return true;
}

// Counts a block whose parts of all queries are on their way, and notes if it declined to finish the query of its number. The
// last one gets the queries that are left to it, one a bit, and leaves all counters zero. For one warp.
__device__ __forceinline__ u32 settle(const Problem& p, const Place& at, bool declined, int lane) {
    u32 *counter = p.counters + at.pair * (1 + QUERIES), *turns = counter + 1;
    u32 arrived = 0;
    if (lane == 0) {
        if (declined) turns[blockIdx.z] = 1, fence();
        // Counts up to the last block and back to zero, ready for the next launch.
        arrived = atomicInc(counter, gridDim.z - 1);
    }
    if (__shfl_sync(~0u, arrived, 0) != gridDim.z - 1) return 0;
    fence();
    const bool left = lane < at.n && (!p.patience || __ldcg(turns + lane));
    if (left) turns[lane] = 0;
    return __ballot_sync(~0u, left);
}

__device__ __forceinline__ Place place_of(const Problem& p, int row, int batch) {
    const int queries = p.group * p.new_tokens, blocks = gridDim.x / p.kv_heads;
    Place at;
    at.batch = batch;
    at.pair = batch * gridDim.x + row;
    at.kv_head = queries <= QUERIES ? row : row / blocks;
    at.first = queries <= QUERIES ? 0 : row % blocks * QUERIES;
    at.n = min(queries - at.first, QUERIES);
    return at;
}

// Grid: (kv heads times blocks of QUERIES; batch; splits, and one more for tokens in full precision, which so comes late). Of
// that last one a block serves `windows` blocks of queries one after the other, and the rest have nothing to do.
extern "C" __global__ void __launch_bounds__(THREADS, 1) decode(const __grid_constant__ Problem p) {
    unsigned char* memory = block_memory();
    const bool packed = blockIdx.z < p.splits;
    const int index = blockIdx.y * gridDim.x + blockIdx.x, from = packed ? index : index * p.windows;
    const int to = packed ? index + 1 : min(from + p.windows, (int)(gridDim.x * gridDim.y));
    Place at = place_of(p, blockIdx.x, blockIdx.y);
    if (packed) {
        attend_packed(p, at, memory, blockIdx.z);
        merge<false>(p, at, memory);
    } else {
#pragma unroll 1
        for (int pair = from; pair < to; pair++) {
            at = place_of(p, pair % gridDim.x, pair / gridDim.x);
            attend_extra(p, at, memory);
            merge<true>(p, at, memory);
            __syncthreads();
        }
    }
#pragma unroll 1
    for (int pair = from; pair < to; pair++) {
        if (!packed) at = place_of(p, pair % gridDim.x, pair / gridDim.x);
        // A block finishes the query of its number, so that all are finished side by side. It waits for the others a while only,
        // since they may need its place; what it declines the last block does, or all where they do not run at once.
        u32& left = *(u32*)memory;
        int first = blockIdx.z, count = p.patience && first < at.n, patience = p.patience;
        u32 rest = 0;
        bool settled = false, declined = false;
#pragma unroll 1
        while (true) {
            if (count) declined = !finish(p, at, memory, first, count, patience);
            if (!settled) {
                if (threadIdx.x / 32 == 1) {
                    rest = settle(p, at, declined, threadIdx.x % 32);
                    if (threadIdx.x % 32 == 0) left = rest;
                }
            }
            __syncthreads();
            if (!settled) rest = left;
            settled = true;
            if (!rest) break;
            first = p.patience ? __ffs(rest) - 1 : 0, count = p.patience ? 1 : at.n, patience = 0;
            rest = p.patience ? rest & rest - 1 : 0;
        }
        if (pair + 1 < to) __syncthreads();
    }
}
