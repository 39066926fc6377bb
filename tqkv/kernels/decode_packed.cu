// Pointers and sizes; strides count elements.
struct Problem {
    const State* q;
    const unsigned char *key_codes, *value_codes;
    const u16 *key_scales, *value_scales;
    const uint2 *key_tables, *value_tables;
    const u32 *key_signs, *value_signs;  // of each lane, as `turn` takes them
    const float* key_mean;
    const int *lengths, *starts, *extra_lengths;
    const unsigned char* extra_mask;
    const State *extra_k, *extra_v;
    State* out;
    float *part_sums, *part_scalars;
    u32* counters;
    long long q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token;
    int heads, kv_heads, group, new_tokens, capacity, extra, splits, key_rounds, value_rounds;
    float scaling;                    // of the logits, times log2(e)
    float key_shrink, value_shrink;   // what makes a rotation orthogonal: D^(-rounds / 2)
};

struct Place {
    int batch, kv_head, first, n, pair;  // first query of the block, queries in it, index of the block
    __device__ __forceinline__ int head(const Problem& p, int i) const {
        return kv_head * p.group + (p.new_tokens == 1 ? first + i : (first + i) / p.new_tokens);
    }
    __device__ __forceinline__ int token(const Problem& p, int i) const {
        return p.new_tokens == 1 ? 0 : (first + i) % p.new_tokens;
    }
    __device__ __forceinline__ const State* query(const Problem& p, int i) const {
        return p.q + batch * p.q_batch + head(p, i) * p.q_head + token(p, i) * p.q_token;
    }
};

// A lane's neighbouring dimensions of a state in full precision, loaded in pieces as wide as they are.
struct LaneStates {
    static constexpr int WORDS = PER_LANE * sizeof(State) / 4;
    u32 words[WORDS];

    __device__ __forceinline__ void load(const State* from) {
        if constexpr (WORDS % 4 == 0) {
#pragma unroll
            for (int i = 0; i < WORDS / 4; i++) {
                const uint4 x = ((const uint4*)from)[i];
                words[4 * i] = x.x, words[4 * i + 1] = x.y, words[4 * i + 2] = x.z, words[4 * i + 3] = x.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i++) words[i] = ((const u32*)from)[i];
        }
    }

    __device__ __forceinline__ void store(State* to) const {
        if constexpr (WORDS % 4 == 0) {
#pragma unroll
            for (int i = 0; i < WORDS; i += 4) ((uint4*)to)[i / 4] = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i++) ((u32*)to)[i] = words[i];
        }
    }

    __device__ __forceinline__ void set(int e, float x) {
        if constexpr (sizeof(State) == 4) words[e] = __float_as_int(x);
        else if (e % 2) words[e / 2] |= (u32)to_state(x) << 16;
        else words[e / 2] = to_state(x);
    }

    __device__ __forceinline__ float get(int e) const {
        if constexpr (sizeof(State) == 4) return __int_as_float(words[e]);
        return to_float((State)(words[e / 2] >> 16 * (e % 2)));
    }
};

// The rounds of a rotation, or of its inverse, but for what makes it orthogonal; lane l holds elements PER_LANE l and on.
// Bit `round * PER_LANE + e` of signs is set where the round flips element e. Code that runs once is kept short: fetching
// it costs more than running it.
__device__ __forceinline__ void turn(float (&x)[PER_LANE], u32 signs, int rounds, bool inverse, int lane) {
    auto flip = [&](int round) {
        const u32 bits = signs >> round * PER_LANE;
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) x[e] = __int_as_float(__float_as_int(x[e]) ^ (int)(bits << (31 - e) & 0x80000000u));
    };
#pragma unroll 1
    for (int i = 0; i < rounds; i++) {
        if (!inverse) flip(i);
#pragma unroll
        for (int stride = 1; stride < PER_LANE; stride *= 2) {
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) {
                if (e & stride) continue;
                const float u = x[e], v = x[e + stride];
                x[e] = u + v;
                x[e + stride] = u - v;
            }
        }
#pragma unroll 1
        for (int stride = 1; stride < 32; stride *= 2) {
            const float sign = lane & stride ? -1.0f : 1.0f;
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) x[e] = x[e] * sign + __shfl_xor_sync(~0u, x[e], stride);
        }
        if (inverse) flip(rounds - 1 - i);
    }
}

// The query of a warp and all that turns it, loaded ahead of their use.
struct Query {
    LaneStates states;
    float bias;
    u32 signs;

    __device__ __forceinline__ void load(const Problem& p, const Place& at, int i, int lane) {
        states.load(at.query(p, min(i, at.n - 1)) + lane * PER_LANE);
        signs = p.key_signs[lane];
        bias = 0;
        if (p.key_mean) {
            const float* mean = p.key_mean + at.kv_head * D + lane * PER_LANE;
#pragma unroll
            for (int e = 0; e < PER_LANE; e += 2) {
                const float2 x = *(const float2*)(mean + e);
                bias += states.get(e) * x.x + states.get(e + 1) * x.y;
            }
        }
    }
};

// Rotates the query of a warp into shared memory; its factor turns a product into a base-2 logit.
__device__ __forceinline__ void rotate(
    const Problem& p, const Query& query, unsigned char* memory, float* factors, float* biases, int i, int lane
) {
    float x[PER_LANE], top = 0, bias = query.bias;
#pragma unroll
    for (int e = 0; e < PER_LANE; e++) x[e] = query.states.get(e);
    turn(x, query.signs, p.key_rounds, false, lane);
#pragma unroll
    for (int e = 0; e < PER_LANE; e++) top = max_(top, fabsf(x[e]));
#pragma unroll 1
    for (int stride = 16; stride > 0; stride /= 2) {
        top = max_(top, __shfl_xor_sync(~0u, top, stride));
        bias += __shfl_xor_sync(~0u, bias, stride);
    }
    top = top > 0 ? top : 1.0f;
    if (lane == 0) {
        factors[i] = p.scaling * p.key_shrink * top;
        biases[i] = bias * p.scaling;
    }
    // Queries of any size fit float16 once divided by their largest coordinate.
    const float inverse = 1 / top;
    const int dim = lane * PER_LANE;
    u32* out = (u32*)(memory + ROTATED + i * QUERY_ROW + dim / KEY_CHUNK * QUERY_CHUNK + dim % KEY_CHUNK * 2);
#pragma unroll
    for (int e = 0; e < PER_LANE; e += 2) out[e / 2] = half_pair(x[e] * inverse, x[e + 1] * inverse);
}

// The tiles of a block, dealt to pairs of warps STEP at a time.
struct Share {
    int length, start, first_tile, end_tile, first, last;

    __device__ __forceinline__ Share(const Problem& p, const Place& at, int split, int pair) {
        length = p.lengths[at.batch];
        start = p.starts ? p.starts[at.batch] : 0;
        first_tile = start / TILE;
        end_tile = (length + TILE - 1) / TILE;
        const int units = end_tile > first_tile ? (end_tile - first_tile + STEP - 1) / STEP : 0;
        // 32 bits suffice: a row has fewer than 2^20 units for each of at most 2^11 splits.
        first = (int)((u32)units * (u32)split / (u32)p.splits) + pair;
        last = (int)((u32)units * (u32)(split + 1) / (u32)p.splits);
    }
    // A step that ends beyond the last tile takes that one again, masked.
    __device__ __forceinline__ int tile(int unit, int i) const { return min(first_tile + unit * STEP + i, end_tile - 1); }
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

// Scores the keys of a pair's tiles, turns scores into weights and passes them on. Largest scores and sums of weights
// of queries 2 t and 2 t + 1 are left in top and weight, weight of the lane's tokens alone.
__device__ __forceinline__ void score_keys(
    const Problem& p, const Place& at, const Share& share, const Fragments& queries, Codes<KEY_BYTES> (&keys)[STEP], u32 scales,
    Ring ring, u32 table, const float (&factor)[2], float (&top)[2], float (&weight)[2]
) {
    const int lane = threadIdx.x % 32, g = lane / 4;
    const long long row = (long long)at.batch * p.kv_heads + at.kv_head;
    const unsigned char* codes = p.key_codes + row * (p.capacity / TILE) * KEY_TILE;
    const u16 *key_scales = p.key_scales + row * p.capacity, *value_scales = p.value_scales + row * p.capacity;
#pragma unroll 1
    for (int unit = share.first; unit < share.last; unit += PAIRS) {
        const bool more = unit + PAIRS < share.last;
        const unsigned char* next[STEP];
#pragma unroll
        for (int i = 0; i < STEP; i++) next[i] = codes + (long long)share.tile(unit + PAIRS, i) * KEY_TILE;
        float c[STEP][4] = {};
        score(c, keys, queries, table, next, lane, more);
        const u32 now = scales;
        if (more) {
            const int token = min((share.first_tile + (unit + PAIRS) * STEP) * TILE + lane, p.capacity - 1);
            scales = (u32)key_scales[token] | (u32)value_scales[token] << 16;
        }

        const int token = (share.first_tile + unit * STEP) * TILE + g;
        float value_scale[2 * STEP], e[STEP][4];
        bool raise = false;
#pragma unroll
        for (int i = 0; i < 2 * STEP; i++) {
            const u32 both = __shfl_sync(~0u, now, g + 8 * i);
            const float key_scale = half_float(both & 0xffff);
            const bool seen = token + 8 * i < share.length && token + 8 * i >= share.start;
            // What lies behind a masked token may be anything, NaN too.
            value_scale[i] = seen ? half_float(both >> 16) : 0.0f;
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float& x = c[i / 2][i % 2 * 2 + k];
                x = seen ? x * (key_scale * factor[k]) : minus_infinity();
                e[i / 2][i % 2 * 2 + k] = exp2_(x - top[k]);
                raise |= e[i / 2][i % 2 * 2 + k] * max_(value_scale[i], LEAST_SCALE) > LARGEST;
            }
        }
        ring.wait_empty();
        Slot& slot = ring.slot();
        raise = __any_sync(~0u, raise);
        if (raise) {
            float highest[2] = {minus_infinity(), minus_infinity()};
#pragma unroll
            for (int i = 0; i < 2 * STEP; i++) {
                const float scale = log2_(max_(value_scale[i], LEAST_SCALE));
                highest[0] = max_(highest[0], c[i / 2][i % 2 * 2] + scale);
                highest[1] = max_(highest[1], c[i / 2][i % 2 * 2 + 1] + scale);
            }
#pragma unroll
            for (int k = 0; k < 2; k++) {
#pragma unroll
                for (int stride = 4; stride < 32; stride *= 2) {
                    highest[k] = max_(highest[k], __shfl_xor_sync(~0u, highest[k], stride));
                }
                const float raised = max_(top[k], highest[k] - HEADROOM), keep = exp2_(top[k] - raised);
                top[k] = raised;
                weight[k] *= keep;
                if (g == 0) slot.keep[2 * lane + k] = keep;
            }
#pragma unroll
            for (int i = 0; i < 4 * STEP; i++) e[i / 4][i % 4] = exp2_(c[i / 4][i % 4] - top[i % 2]);
        }
        if (lane == 0) slot.raised = raise;
#pragma unroll
        for (int i = 0; i < STEP; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                weight[k % 2] += e[i][k];
                e[i][k] *= value_scale[2 * i + k / 2];
            }
            slot.weights[i][lane] = make_uint2(transpose(half_pair(e[i][0], e[i][1])), transpose(half_pair(e[i][2], e[i][3])));
        }
        ring.pass(true, lane);
    }
}

// Adds up the weighted values of a pair's tiles.
__device__ __forceinline__ void add_values(
    const Problem& p, const Place& at, const Share& share, Codes<VALUE_BYTES> (&values)[STEP], Ring ring, u32 table,
    float (&sums)[VALUE_ROWS][4]
) {
    const int lane = threadIdx.x % 32, t = lane % 4;
    const unsigned char* codes = p.value_codes + ((long long)at.batch * p.kv_heads + at.kv_head) * (p.capacity / TILE) * VALUE_TILE;
#pragma unroll 1
    for (int unit = share.first; unit < share.last; unit += PAIRS) {
        const bool more = unit + PAIRS < share.last;
        ring.wait_full();
        const Slot& slot = ring.slot();
        if (slot.raised) {
            const float keep[2] = {slot.keep[2 * t], slot.keep[2 * t + 1]};
#pragma unroll
            for (int r = 0; r < VALUE_ROWS; r++) {
#pragma unroll
                for (int k = 0; k < 4; k++) sums[r][k] *= keep[k % 2];
            }
        }
        uint2 weights[STEP];
#pragma unroll
        for (int i = 0; i < STEP; i++) weights[i] = slot.weights[i][lane];
        ring.pass(false, lane);
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            accumulate(sums, values[i], table, weights[i], codes + (long long)share.tile(unit + PAIRS, i) * VALUE_TILE, lane, more);
        }
    }
#pragma unroll
    for (int r = 0; r < CARRIED; r++) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            // What belongs to the first dimensions of the next chunk is in the lanes of the chunk before.
            const float x = __shfl_sync(~0u, sums[VALUE_CHUNK + r][k], (lane + 28) % 32);
            const float y = __shfl_sync(~0u, sums[VALUE_CHUNK + r][2 + k], (lane + 28) % 32);
            sums[r][k] += SIDES == 2 && lane < 4 ? y : x;
            sums[r][2 + k] += lane < 4 ? x : y;
        }
    }
}

// Attention over the packed tokens of a block; leaves the sums of every pair in shared memory.
__device__ __forceinline__ void attend_packed(const Problem& p, const Place& at, unsigned char* memory, int split) {
    __shared__ float factors[QUERIES], biases[QUERIES];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bool scores = warp < PAIRS;
    const int pair = warp % PAIRS;
    const Share share(p, at, split, pair);
    const long long first_tile = ((long long)at.batch * p.kv_heads + at.kv_head) * (p.capacity / TILE);
    for (int i = threadIdx.x; i < 16 * (KEY_P + VALUE_P); i += THREADS) {
        const bool key = i < 16 * KEY_P;
        ((uint2*)(memory + (key ? 0 : TABLE_BYTES)))[key ? i : i - 16 * KEY_P] = key ? p.key_tables[i] : p.value_tables[i - 16 * KEY_P];
    }
    float *tops = (float*)(memory + SMALL), *weights = tops + PAIRS * QUERIES;
    if (scores) {
        Query query;
        if (pair < QUERIES) query.load(p, at, pair, lane);
        Codes<KEY_BYTES> keys[STEP];
        u32 scales = 0;
        const bool any = share.first < share.last;
#pragma unroll
        for (int i = 0; i < STEP; i++) keys[i].load(p.key_codes + (first_tile + share.tile(share.first, i)) * KEY_TILE, lane, any);
        if (any) {
            const long long token = first_tile * TILE + min((share.first_tile + share.first * STEP) * TILE + lane, p.capacity - 1);
            scales = (u32)p.key_scales[token] | (u32)p.value_scales[token] << 16;
        }
        if (pair < QUERIES) rotate(p, query, memory, factors, biases, pair, lane);
        __syncthreads();
        Fragments queries;
        queries.load(memory + ROTATED, g, t);
        u32 table = shared_address(memory);
        // Makes every look-up depend on what comes after the barrier.
        asm volatile("" : "+r"(table) : : "memory");
        const float factor[2] = {factors[2 * t], factors[2 * t + 1]}, bias[2] = {biases[2 * t], biases[2 * t + 1]};
        float top[2] = {NO_SCORE, NO_SCORE}, weight[2] = {0, 0};
        score_keys(p, at, share, queries, keys, scales, Ring(memory, pair), table, factor, top, weight);
#pragma unroll
        for (int k = 0; k < 2; k++) {
#pragma unroll
            for (int stride = 4; stride < 32; stride *= 2) weight[k] += __shfl_xor_sync(~0u, weight[k], stride);
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 2; k++) {
            if (g == 0) {
                tops[pair * QUERIES + 2 * t + k] = top[k] + bias[k];
                weights[pair * QUERIES + 2 * t + k] = weight[k];
            }
        }
    } else {
        Codes<VALUE_BYTES> values[STEP];
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            values[i].load(p.value_codes + (first_tile + share.tile(share.first, i)) * VALUE_TILE, lane, share.first < share.last);
        }
        if (lane == 0) {
#pragma unroll
            for (int i = 0; i < 2 * SLOTS; i++) barrier_set(shared_address(memory + BARRIERS) + (pair * 2 * SLOTS + i) * 8, 1);
        }
        float sums[VALUE_ROWS][4];
#pragma unroll
        for (int r = 0; r < VALUE_ROWS; r++) sums[r][0] = sums[r][1] = sums[r][2] = sums[r][3] = 0;
        __syncthreads();
        u32 table = shared_address(memory + TABLE_BYTES);
        asm volatile("" : "+r"(table) : : "memory");
        add_values(p, at, share, values, Ring(memory, pair), table, sums);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 2 * SIDES; k++) {
            float* out = (float*)(memory + SUMS) + pair * PAIR_PITCH + (2 * t + k % 2) * QUERY_PITCH + (g + k / 2 * 8) * CHUNK_PITCH;
#pragma unroll
            for (int r = 0; r < VALUE_CHUNK; r += 4) *(float4*)(out + r) = make_float4(sums[r][k], sums[r + 1][k], sums[r + 2][k], sums[r + 3][k]);
        }
    }
}
