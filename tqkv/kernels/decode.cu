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

// Sums of the pairs of warps to a partial result of the block in global memory, in the packed basis. A thread takes four
// dimensions at a time, all at once.
__device__ __forceinline__ void merge(const Problem& p, const Place& at, unsigned char* memory, u32 part) {
    constexpr int FOURS = D / 4, AT_ONCE = (QUERIES * FOURS + THREADS - 1) / THREADS;
    const float2* of_pairs = (const float2*)(memory + SMALL);
    float* sums = (float*)(memory + SUMS);
    auto place = [&](int i, int dim) { return sums + i * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK; };
    const int items = at.n * FOURS;
    auto item = [&](int j) { return min((int)threadIdx.x + j * THREADS, items - 1); };
    float4 x[AT_ONCE];
    float2 all[AT_ONCE];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
        const int i = item(j) / FOURS, dim = item(j) % FOURS * 4;
        float2 parts[PAIRS];
        float shares[PAIRS];
#pragma unroll
        for (int w = 0; w < PAIRS; w += 2) {
            const float4 two = *(const float4*)(of_pairs + i * PAIRS + w);
            parts[w] = make_float2(two.x, two.y), parts[w + 1] = make_float2(two.z, two.w);
        }
        all[j] = weigh(parts, shares);
        x[j] = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int w = 0; w < PAIRS; w++) {
            const float4 y = *(const float4*)(place(i, dim) + w * PAIR_PITCH);
            x[j].x += shares[w] * y.x, x[j].y += shares[w] * y.y, x[j].z += shares[w] * y.z, x[j].w += shares[w] * y.w;
        }
    }
    if (blockIdx.z == p.splits) {
        // Tokens in full precision are in the basis of the states. Nobody else reads a place.
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int i = item(j) / FOURS, dim = item(j) % FOURS * 4;
            if (threadIdx.x + j * THREADS < items) *(float4*)place(i, dim) = x[j];
        }
        turn_extra(p, at, sums);
        __syncthreads();
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) x[j] = *(const float4*)place(item(j) / FOURS, item(j) % FOURS * 4);
    }
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
        // Float16 of a part's size, whatever that is.
        float top = max_(max_(fabsf(x[j].x), fabsf(x[j].y)), max_(fabsf(x[j].z), fabsf(x[j].w)));
#pragma unroll
        for (int stride = SHARING / 8; stride > 0; stride /= 2) top = max_(top, __shfl_xor_sync(~0u, top, stride));
        if (threadIdx.x + j * THREADS >= items) continue;
        top = max_(top, LEAST);
        const float inverse = reciprocal(top);
        const int dim = item(j) % FOURS * 4;
        const u32 to = (part * QUERIES + item(j) / FOURS) * D + dim;
        *(uint2*)(p.part_sums + to) = make_uint2(half_pair(x[j].x * inverse, x[j].y * inverse), half_pair(x[j].z * inverse, x[j].w * inverse));
        if (dim % SHARING == 0) p.part_scalars[to / SHARING] = make_float4(all[j].x, all[j].y, top, 0);
    }
}

// Partial results of `count` queries from `first` on to the output, turned back to the original basis. Some warps a query
// share its parts, then one turns.
__device__ __forceinline__ void finish(const Problem& p, const Place& at, unsigned char* memory, int first, int count) {
    constexpr int HELPERS = WARPS < 8 ? WARPS : 8;  // of a query, at most
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, parts = gridDim.z;
    const int helpers = count == 1 ? HELPERS : WARPS / count, query = count == 1 ? warp / HELPERS : warp / helpers, helper = warp - query * helpers;
    float2* tops = (float2*)(memory + SUMS);           // [WARPS]
    float* merged = (float*)(memory + MERGED);         // [WARPS, Turned::SIZE]
    u32 signs = 0;
    State* out = nullptr;
    if (warp < count) signs = p.value_signs[lane], out = p.out + at.packed(p, first + warp);
    if (query < count) {
        const u32 place = ((at.pair * parts + helper) * QUERIES + first + query) * D + lane * PER_LANE, stride = helpers * QUERIES * D;
        const u16* rows = p.part_sums + place;
        const float4* scalars = p.part_scalars + place / SHARING;
        float2 all = make_float2(NO_SCORE, 0);
        float sums[PER_LANE] = {};
#pragma unroll 1
        for (int part = helper; part < parts;) {
            u32 x[IN_FLIGHT][PER_LANE / 2];
            float4 about[IN_FLIGHT];
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) {
                const bool there = part < parts;
                load_row(x[k], rows);
                about[k] = __ldcg(scalars);
                if (!there) about[k].y = 0;
                part += helpers;
                if (part < parts) rows += stride, scalars += stride / SHARING;
            }
            float2 own[IN_FLIGHT + 1];
            float shares[IN_FLIGHT + 1];
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) own[k] = make_float2(about[k].x, about[k].y);
            own[IN_FLIGHT] = all;
            all = weigh(own, shares);
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) sums[e] *= shares[IN_FLIGHT];
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) {
                const float share = shares[k] * about[k].z;
#pragma unroll
                for (int e = 0; e < PER_LANE; e++) sums[e] += share * half_float((u16)(x[k][e / 2] >> 16 * (e % 2)));
            }
        }
        if (lane == 0) tops[warp] = all;
        float* to = merged + warp * Turned::SIZE + Turned::place(VALUE_ROUNDS % 2, lane * PER_LANE);
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) to[Turned::place(VALUE_ROUNDS % 2, e)] = sums[e];
    }
    __syncthreads();
    if (warp >= count) return;
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
}

// Of a query: open, granted to the block of its number by the last one to arrive, or declined by it.
enum Turn : u32 { OPEN, GRANTED, DECLINED };

// What a block does once its partial results are in global memory.
struct Turns {
    u32 *counter, *turns;
    bool last, own;  // whether all others have arrived before, and whether the query of the block's number is its own

    // Counts the block. Block i finishes query i once all have arrived, so that all are finished side by side: the counter is
    // zero again then. A block that waits in vain for a while declines, since those that it waits for may need its place.
    __device__ __forceinline__ Turns(const Problem& p, const Place& at, u32& shared) {
        counter = p.counters + at.pair * (1 + QUERIES), turns = counter + 1;
        const u32 number = blockIdx.z;
        __syncthreads();
        if (threadIdx.x == 0) {
            fence();
            // Counts up to the last block and back to zero, ready for the next launch.
            const bool is_last = atomicInc(counter, gridDim.z - 1) == gridDim.z - 1;
            bool mine = is_last;
            if (!is_last && p.patience && number < at.n) {
                const long long start = cycles();
                do mine = look(counter) == 0;
                while (!mine && cycles() - start < p.patience);
                // Granted meanwhile?
                if (!mine) mine = atomicCAS(turns + number, OPEN, DECLINED) != OPEN, fence();
            }
            if (is_last) fence();
            shared = is_last | mine << 1;
        }
        __syncthreads();
        last = shared & 1, own = shared & 2 && number < at.n;
    }

    // Settles the turns for the next launch, by one warp. The last block gets the queries that others declined, one a bit.
    __device__ __forceinline__ u32 settle(const Place& at, int lane) const {
        const u32 number = blockIdx.z;
        if (last) {
            const bool declined = lane < at.n && lane != number && atomicCAS(turns + lane, OPEN, GRANTED) == DECLINED;
            if (declined) turns[lane] = OPEN;
            return __ballot_sync(~0u, declined);
        }
        if (own && lane == 0) {
            // The last block is about to.
            while (look(turns + number) != GRANTED);
            turns[number] = OPEN;
        }
        return 0;
    }
};

// Grid: (kv heads times blocks of 8 queries; batch; splits, and one more for tokens in full precision, which so comes late).
extern "C" __global__ void __launch_bounds__(THREADS, 1) decode(const __grid_constant__ Problem p) {
    unsigned char* memory = block_memory();
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
    merge(p, at, memory, at.pair * gridDim.z + blockIdx.z);
    u32* shared = (u32*)memory;
    const Turns turns(p, at, shared[0]);
    // The query of the block's number, or all; then those that others declined.
    int first = p.patience ? blockIdx.z : 0, count = p.patience ? turns.own : turns.last ? at.n : 0;
    u32 declined = 0;
    bool settled = false;
#pragma unroll 1
    while (true) {
        if (count) finish(p, at, memory, first, count);
        if (!settled) {
            // All warps but the first are done early with a query.
            if (p.patience && threadIdx.x / 32 == 1) {
                const u32 rest = turns.settle(at, threadIdx.x % 32);
                if (threadIdx.x % 32 == 0) shared[1] = rest;
            }
            if (!p.patience || !turns.last) return;
        }
        __syncthreads();
        if (!settled) declined = shared[1];
        settled = true;
        if (!declined) return;
        first = __ffs(declined) - 1, count = 1;
        declined &= declined - 1;
    }
}
