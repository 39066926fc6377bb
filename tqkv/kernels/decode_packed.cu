// The tiles of a pair of warps: STEP from `first` on, then from PAIRS * STEP tiles later, up to `end`. Tiles and tokens of
// all rows are counted through.
struct Share {
    u32 first, end, start, length;

    __device__ __forceinline__ Share(const Problem& p, const Place& at, int split, int pair) {
        const int tokens = p.lengths[at.batch], masked = p.starts ? p.starts[at.batch] : 0;
        const u32 row = (u32)(at.batch * p.kv_heads + at.kv_head) * (u32)(p.capacity / TILE);
        const u32 first_tile = masked / TILE, end_tile = (tokens + TILE - 1) / TILE;
        const u32 units = end_tile > first_tile ? (end_tile - first_tile + STEP - 1) / STEP : 0;
        first = row + first_tile + (__umulhi(units, split * p.share) + pair) * STEP;
        const u32 last = split + 1 < p.splits ? __umulhi(units, (split + 1) * p.share) : units;
        end = row + min(first_tile + last * STEP, end_tile);
        start = row * TILE + masked;
        length = row * TILE + tokens;
    }
    // A step that ends beyond the last tile takes that one again, masked.
    __device__ __forceinline__ u32 tile(u32 step, int i) const { return i == 0 ? step : min(step + i, end - 1); }
    // Scales of a key and its value, of the lane's token of a step. Nothing waits for them here.
    __device__ __forceinline__ void scales(const Problem& p, u32 step, int lane, u16 (&both)[2]) const {
        const u32 token = min(step * TILE + lane, end * TILE - 1);
        both[0] = p.key_scales[token], both[1] = p.value_scales[token];
    }
    // The same as a word; a masked token, behind which anything may lie, gets 0 and minus infinity.
    __device__ __forceinline__ u32 seen(u32 step, int lane, const u16 (&both)[2]) const {
        const u32 token = step * TILE + lane;
        return token < length && token >= start ? (u32)both[0] | (u32)both[1] << 16 : 0xfc000000u;
    }
};

// A pair's ring of slots: the scoring warp fills them, the other empties them.
struct Ring {
    Slot* slots;
    u32 barriers;  // of full slots, then of empty ones
    int turn;

    __device__ __forceinline__ Ring(unsigned char* memory, int pair)
        : slots((Slot*)(memory + RING) + pair * SLOTS), barriers(shared_address(memory + BARRIERS) + pair * SLOTS * 16), turn(0) {}
    __device__ __forceinline__ Slot& slot() const { return slots[turn % SLOTS]; }
    __device__ __forceinline__ void wait_empty() const {
        if (turn >= SLOTS) barrier_wait(barriers + SLOTS * 8 + turn % SLOTS * 8, turn / SLOTS % 2 ^ 1);
    }
    __device__ __forceinline__ void wait_full() const { barrier_wait(barriers + turn % SLOTS * 8, turn / SLOTS % 2); }
    __device__ __forceinline__ void pass(bool filled, int lane) {
        __syncwarp();
        if (lane == 0) barrier_arrive(barriers + (filled ? 0 : SLOTS * 8) + turn % SLOTS * 8);
        turn++;
    }
};

// Scores the keys of a pair's tiles, turns scores into weights and passes them on. Weights of a step are integer parts of its
// largest one, whose factor is in the base of the running maximum. Largest scores and sums of weights of the lane's queries are
// left in top and weight, weight of the lane's tokens alone.
__device__ __forceinline__ void score_keys(
    const Problem& p, const Share& share, const Fragments& queries, const Tables& tables, Codes<KEY_BYTES> (&keys)[STEP],
    u16 (&scales)[2], Ring ring, const float2 (&factor)[OWN], float (&top)[OWN], float (&weight)[OWN]
) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll 1
    for (u32 step = share.first; step < share.end; step += PAIRS * STEP) {
        const u32 next = step + PAIRS * STEP;
        const bool more = next < share.end;
        int high[STEP][4] = {}, low[STEP][4] = {};
        score(high, low, keys, queries, tables, lane, more, [&](int i) { return p.key_codes + (size_t)share.tile(next, i) * KEY_TILE; });
        const u32 now = share.seen(step, lane, scales);
        if (more) share.scales(p, next, lane, scales);

        float x[2 * STEP][OWN], value_scale[2 * STEP], highest[OWN];
#pragma unroll
        for (int k = 0; k < OWN; k++) highest[k] = NO_SCORE;
#pragma unroll
        for (int i = 0; i < 2 * STEP; i++) {
            const u32 both = __shfl_sync(~0u, now, i / 2 * TILE + 2 * g + i % 2);
            const float key_scale = half_float(both & 0xffff), either = half_float(both >> 16);
            // Minus infinity for a masked token; NaN for a scale that is NaN, which so shows in the weights.
            const float nothing = min_nan(either, 0.0f);
            value_scale[i] = max_(either, 0.0f);
            const float scale = log2_(max_(either, LEAST_SCALE));
#pragma unroll
            for (int k = 0; k < OWN; k++) {
                // Fits: 256 dimensions times 254 times 32512, and what low bytes add.
                const int second = OWN == 2 ? low[i / 2][i % 2 * 2 + k] : high[i / 2][i % 2 * 2 + 1];
                const float sum = (float)(256 * high[i / 2][i % 2 * 2 + k] + second);
                x[i][k] = key_scale * (factor[k].x * sum + factor[k].y) + nothing;
                highest[k] = max_(highest[k], x[i][k] + scale);
            }
        }
#pragma unroll
        for (int stride = 4; stride < 32; stride *= 2) {
#pragma unroll
            for (int k = 0; k < OWN; k++) highest[k] = max_(highest[k], __shfl_xor_sync(~0u, highest[k], stride));
        }
        bool higher = false;
#pragma unroll
        for (int k = 0; k < OWN; k++) higher |= highest[k] > top[k] + HEADROOM;
        const bool raise = __any_sync(~0u, higher);
        ring.wait_empty();
        Slot& slot = ring.slot();
        if (raise) {
#pragma unroll
            for (int k = 0; k < OWN; k++) {
                const float raised = max_(top[k], highest[k]), keep = exp2_(top[k] - raised);
                top[k] = raised;
                weight[k] *= keep;
                if (g == 0) slot.keep[OWN * t + k] = keep;
            }
        }
        if (lane == 0) slot.raised = raise;
#pragma unroll
        for (int k = 0; k < OWN; k++) {
            u32 weights[2 * STEP];
            float sum = 0;
#pragma unroll
            for (int i = 0; i < 2 * STEP; i++) {
                const float e = exp2_(x[i][k] - highest[k]);
                sum += e;
                weights[i] = round_bits(e * (value_scale[i] * MOST_WEIGHT));
            }
            const float share_of_all = exp2_(highest[k] - top[k]);
            weight[k] += share_of_all * sum;
            if (g == 0) slot.factor[OWN * t + k] = share_of_all * (1 / MOST_WEIGHT);
#pragma unroll
            for (int i = 0; i < STEP; i++) slot.weights[i][OWN * t + k][g] = permute(weights[2 * i], weights[2 * i + 1], 0x5410);
        }
        ring.pass(true, lane);
    }
}

// Adds up the weighted values of a pair's tiles.
__device__ __forceinline__ void add_values(
    const Problem& p, const Share& share, const Tables& tables, const float2* units, Codes<VALUE_BYTES> (&values)[STEP], Ring ring,
    float (&sums)[VALUE_ROWS][2 * OWN]
) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float total[OWN] = {};
#pragma unroll 1
    for (u32 step = share.first; step < share.end; step += PAIRS * STEP) {
        const u32 next = step + PAIRS * STEP;
        const bool more = next < share.end;
        ring.wait_full();
        const Slot& slot = ring.slot();
        if (slot.raised) {
#pragma unroll
            for (int k = 0; k < OWN; k++) {
                const float keep = slot.keep[OWN * t + k];
                total[k] *= keep;
#pragma unroll
                for (int r = 0; r < VALUE_ROWS; r++) sums[r][k] *= keep, sums[r][OWN + k] *= keep;
            }
        }
        Weights weights;
        weights.load(slot, g, t, total);
        ring.pass(false, lane);
        accumulate(sums, values, weights, tables, lane, more, [&](int i) { return p.value_codes + (size_t)share.tile(next, i) * VALUE_TILE; });
    }
#pragma unroll
    for (int r = 0; r < CARRIED; r++) {
#pragma unroll
        for (int k = 0; k < OWN; k++) {
            // What belongs to the first dimensions of the next chunk is in the lanes of the chunk before.
            const float x = __shfl_sync(~0u, sums[VALUE_CHUNK + r][k], (lane + 28) % 32);
            const float y = __shfl_sync(~0u, sums[VALUE_CHUNK + r][OWN + k], (lane + 28) % 32);
            sums[r][k] += SIDES == 2 && lane < 4 ? y : x;
            sums[r][OWN + k] += lane < 4 ? x : y;
        }
    }
    // From entries to what they stand for.
#pragma unroll
    for (int r = 0; r < VALUE_CHUNK; r++) {
        const float2 unit = units[r % VALUE_Q];
#pragma unroll
        for (int k = 0; k < 2 * OWN; k++) sums[r][k] = unit.x * sums[r][k] + unit.y * total[k % OWN];
    }
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

// The pairs' shares of every query, and what all have.
__device__ __forceinline__ void share_out(unsigned char* memory) {
    const float2* of_pairs = (const float2*)(memory + OF_PAIRS);
    const int i = threadIdx.x / PAIRS;
    if (i >= QUERIES) return;
    float2 parts[PAIRS];
    float shares[PAIRS];
#pragma unroll
    for (int w = 0; w < PAIRS; w++) parts[w] = of_pairs[i * PAIRS + w];
    const float2 all = weigh(parts, shares), own = of_pairs[threadIdx.x];
    ((float*)(memory + SHARES))[threadIdx.x] = own.y != 0 ? exp2_(own.x - all.x) : 0.0f;
    if (threadIdx.x % PAIRS == 0) ((float2*)(memory + OF_ALL))[i] = all;
}

// Attention over the packed tokens of a block; leaves the sums of every pair in shared memory. The last warps rotate a query
// each.
__device__ __forceinline__ void attend_packed(const Problem& p, const Place& at, unsigned char* memory, int split) {
    float2* factors = (float2*)(memory + FACTORS);
    float* biases = (float*)(factors + QUERIES);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bool scores = warp < PAIRS;
    const int pair = warp % PAIRS, own_query = warp - (WARPS - at.n);
    float2* of_pairs = (float2*)(memory + OF_PAIRS);
    // All that is needed early is asked for before anything waits.
    constexpr int ENTRIES = 2 * (KEY_Q + VALUE_Q), WORDS = ENTRIES + (VALUE_Q + 1) / 2;
    const int word = threadIdx.x;
    uint4 entry = make_uint4(0, 0, 0, 0);
    if (word < WORDS) entry = word < 2 * KEY_Q ? p.key_tables[word] : p.value_tables[word - 2 * KEY_Q];
    Query query;
    if (own_query >= 0) query.load(p, at, own_query, lane);
    in_this_order();
    const Share share(p, at, split, pair);
    const bool any = share.first < share.end;
    Codes<KEY_BYTES> keys[STEP];
    u16 scales[2] = {0, 0};
    // The rotation takes long and all wait for it, so it is not to wait for codes.
    if (scores) {
        const bool now = own_query < 0 ? any : after(any, query.last_word());
#pragma unroll
        for (int i = 0; i < STEP; i++) keys[i].load(p.key_codes + (size_t)share.tile(share.first, i) * KEY_TILE, lane, now);
        if (any) share.scales(p, share.first, lane, scales);
        // Warps without a query have the time, if there are any.
        const int idle = min(PAIRS, WARPS - at.n), stride = idle > 0 ? idle : PAIRS;
#pragma unroll 1
        for (int i = pair; i < PAIRS && pair < stride; i += stride) {
            if (lane < 2 * SLOTS) barrier_set(shared_address(memory + BARRIERS) + (i * 2 * SLOTS + lane) * 8, 1);
        }
    }
    if (own_query >= 0) rotate(p, query, memory, factors, biases, own_query, lane);
    if (threadIdx.x < QUERIES && (int)threadIdx.x >= at.n) factors[threadIdx.x] = make_float2(0, 0), biases[threadIdx.x] = 0;
    if (word < WORDS) ((uint4*)(memory + KEY_TABLES))[word] = entry;
    __syncthreads();
    if (scores) {
        const Tables tables = {shared_address(memory + KEY_TABLES)};
        Fragments queries;
        queries.load((const u32*)(memory + ROTATED), g, t);
        float2 factor[OWN];
        float bias[OWN], top[OWN], weight[OWN];
#pragma unroll
        for (int k = 0; k < OWN; k++) {
            factor[k] = factors[OWN * t + k], bias[k] = biases[OWN * t + k];
            top[k] = NO_SCORE, weight[k] = 0;
        }
        score_keys(p, share, queries, tables, keys, scales, Ring(memory, pair), factor, top, weight);
#pragma unroll
        for (int k = 0; k < OWN; k++) {
#pragma unroll
            for (int stride = 4; stride < 32; stride *= 2) weight[k] += __shfl_xor_sync(~0u, weight[k], stride);
        }
#pragma unroll
        for (int k = 0; k < OWN; k++) {
            if (g == 0) of_pairs[(OWN * t + k) * PAIRS + pair] = make_float2(top[k] + bias[k], weight[k]);
        }
        meet<PAIRS * 32>();
        share_out(memory);
        __syncthreads();
    } else {
        // Needed late; asked for before, they would hold the rotation up.
        Codes<VALUE_BYTES> values[STEP];
#pragma unroll
        for (int i = 0; i < STEP; i++) values[i].load(p.value_codes + (size_t)share.tile(share.first, i) * VALUE_TILE, lane, any);
        const Tables tables = {shared_address(memory + VALUE_TABLES)};
        float sums[VALUE_ROWS][2 * OWN] = {};
        add_values(p, share, tables, (const float2*)(memory + VALUE_UNITS), values, Ring(memory, pair), sums);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < OWN * SIDES; k++) {
            float* out = (float*)(memory + SUMS) + pair * PAIR_PITCH + (OWN * t + k % OWN) * QUERY_PITCH + (g + k / OWN * 8) * CHUNK_PITCH;
#pragma unroll
            for (int r = 0; r < VALUE_CHUNK; r += 4) *(float4*)(out + r) = make_float4(sums[r][k], sums[r + 1][k], sums[r + 2][k], sums[r + 3][k]);
        }
    }
}
