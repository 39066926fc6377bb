// Attention over the tokens in full precision. Leaves the sums of every pair of warps in shared memory, in the basis of the
// states.
__device__ __forceinline__ int seen_tokens(const Problem& p, const Place& at, int query, int length) {
    return query < at.n ? length - (p.new_tokens - 1 - at.token(p, query)) : 0;
}
__device__ __forceinline__ float* place_of_sum(unsigned char* memory, int pair, int query, int dim) {
    return (float*)(memory + SUMS) + pair * PAIR_PITCH + query * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK;
}

#if STATE == 0
// float32: a pair takes a token at a time, each warp of it half of the queries, a lane PER_LANE neighbouring dimensions.
__device__ __forceinline__ void attend_extra(const Problem& p, const Place& at, unsigned char* memory) {
    constexpr int HALF = QUERIES / 2;
    const int pair = threadIdx.x / 32 % PAIRS, first = threadIdx.x / 32 / PAIRS * HALF, lane = threadIdx.x % 32;
    const int length = p.extra_lengths ? p.extra_lengths[at.batch] : p.extra;
    const State* k = p.extra_k + at.batch * p.k_batch + at.kv_head * p.k_head + lane * PER_LANE;
    const State* v = p.extra_v + at.batch * p.v_batch + at.kv_head * p.v_head + lane * PER_LANE;
    float q[HALF][PER_LANE], sums[HALF][PER_LANE], top[HALF], weight[HALF];
    int seen[HALF];
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        top[i] = NO_SCORE, weight[i] = 0;
        seen[i] = seen_tokens(p, at, first + i, length);
        LaneStates query;
        query.load(at.query(p, min(first + i, at.n - 1)) + lane * PER_LANE);
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) q[i][e] = query.get(e) * p.scaling, sums[i][e] = 0;
    }
#pragma unroll 1
    for (int token = pair; token < length; token += PAIRS) {
        if (p.extra_mask && !p.extra_mask[(long long)at.batch * p.extra + token]) continue;
        LaneStates key, value;
        key.load(k + token * p.k_token);
        value.load(v + token * p.v_token);
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            if (token >= seen[i]) continue;
            float score = 0;
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) score += q[i][e] * key.get(e);
#pragma unroll
            for (int stride = 16; stride > 0; stride /= 2) score += __shfl_xor_sync(~0u, score, stride);
            const float raised = max_(top[i], score), keep = exp2_(top[i] - raised), now = exp2_(score - raised);
            top[i] = raised;
            weight[i] = weight[i] * keep + now;
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) sums[i][e] = sums[i][e] * keep + now * value.get(e);
        }
    }
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        if (lane == 0) ((float2*)(memory + OF_PAIRS))[(first + i) * PAIRS + pair] = make_float2(top[i], weight[i]);
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) *place_of_sum(memory, pair, first + i, lane * PER_LANE + e) = sums[i][e];
    }
    __syncthreads();
    share_out(memory);
}
#else
// 16 bits: a pair takes 16 tokens at a time by matrix instructions. Both of its warps score all keys, each adds up half of the
// dimensions of the values. Lane 4 g + t has the scores of query g with tokens 2t, 2t + 1, 2t + 8 and 2t + 9, which is where
// the second product takes weights from.
__device__ __forceinline__ void attend_extra(const Problem& p, const Place& at, unsigned char* memory) {
    constexpr int CHUNKS = D / 32;                       // of a state, 16 bytes a lane
    constexpr int WORDS = D / 32 < 4 ? 2 : 4;            // of a piece of a value's half
    constexpr int PIECES = D / 32 / WORDS;               // of the lane's part of it
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int pair = warp % PAIRS, half = warp / PAIRS;
    const int length = p.extra_lengths ? p.extra_lengths[at.batch] : p.extra;
    const State* k = p.extra_k + at.batch * p.k_batch + at.kv_head * p.k_head + t * 8;
    const State* v = p.extra_v + at.batch * p.v_batch + at.kv_head * p.v_head + half * (D / 2) + g * 2 * WORDS;
    const int seen = seen_tokens(p, at, g, length);
    const State* query = at.query(p, min(g, at.n - 1)) + t * 8;
    uint4 q[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) q[c] = *(const uint4*)(query + c * 32);
    float sums[PIECES * WORDS][4] = {}, top = NO_SCORE, weight = 0;
#pragma unroll 1
    for (int base = pair * 16; base < length; base += PAIRS * 16) {
        bool valid[4];
        u32 values[4][PIECES * WORDS];
        auto load_values = [&]() {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int token = base + 2 * t + j % 2 + j / 2 * 8;
                valid[j] = token < length && !(p.extra_mask && !p.extra_mask[(long long)at.batch * p.extra + token]);
                const State* from = v + min(token, length - 1) * p.v_token;
#pragma unroll
                for (int i = 0; i < PIECES; i++) {
                    u32* to = values[j] + i * WORDS;
                    if constexpr (WORDS == 4) {
                        const uint4 x = *(const uint4*)(from + i * 64);
                        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
                    } else {
                        const uint2 x = *(const uint2*)(from + i * 32);
                        to[0] = x.x, to[1] = x.y;
                    }
                }
            }
        };
        // Where registers are few, behind the keys.
        if constexpr (WARPS <= 8) load_values();
        float scores[2][4] = {};
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const State* key = k + min(base + 8 * n + g, length - 1) * p.k_token;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                const uint4 x = *(const uint4*)(key + c * 32);
                multiply_states(scores[n], q[c].x, 0, q[c].y, 0, x.x, x.y);
                multiply_states(scores[n], q[c].z, 0, q[c].w, 0, x.z, x.w);
            }
        }
        if constexpr (WARPS > 8) load_values();
        float score[4], raised = top;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int token = base + 2 * t + j % 2 + j / 2 * 8;
            score[j] = valid[j] && token < seen ? scores[j / 2][j % 2] * p.scaling : minus_infinity();
            raised = max_(raised, score[j]);
        }
        raised = max_(raised, __shfl_xor_sync(~0u, raised, 1));
        raised = max_(raised, __shfl_xor_sync(~0u, raised, 2));
        const float kept = exp2_(top - raised), keep[2] = {__shfl_sync(~0u, kept, 8 * t), __shfl_sync(~0u, kept, 8 * t + 4)};
        top = raised;
        weight *= kept;
        // Weights in two parts, as exact as float32.
        u32 high[2], low[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            float now[2];
            State part[2], rest[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                now[i] = exp2_(score[2 * n + i] - raised);
                weight += now[i];
                part[i] = to_state(now[i]);
                rest[i] = to_state(now[i] - to_float(part[i]));
            }
            high[n] = (u32)part[1] << 16 | part[0], low[n] = (u32)rest[1] << 16 | rest[0];
        }
#pragma unroll
        for (int i = 0; i < PIECES * WORDS; i++) {
            // What lies behind a masked token may be NaN.
            const u32 a = valid[0] ? values[0][i] : 0, b = valid[1] ? values[1][i] : 0;
            const u32 c = valid[2] ? values[2][i] : 0, d = valid[3] ? values[3][i] : 0;
            const u32 rows[4] = {permute(a, b, 0x5410), permute(a, b, 0x7632), permute(c, d, 0x5410), permute(c, d, 0x7632)};
#pragma unroll
            for (int e = 0; e < 4; e++) sums[i][e] *= keep[e % 2];
            multiply_states(sums[i], rows[0], rows[1], rows[2], rows[3], high[0], high[1]);
            multiply_states(sums[i], rows[0], rows[1], rows[2], rows[3], low[0], low[1]);
        }
    }
    weight += __shfl_xor_sync(~0u, weight, 1);
    weight += __shfl_xor_sync(~0u, weight, 2);
    if (half == 0 && t == 0 && g < QUERIES) ((float2*)(memory + OF_PAIRS))[g * PAIRS + pair] = make_float2(top, weight);
#pragma unroll
    for (int i = 0; i < PIECES * WORDS; i++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int query = 2 * t + e % 2, dim = half * (D / 2) + i / WORDS * 16 * WORDS + g * 2 * WORDS + i % WORDS * 2 + e / 2;
            if (query < QUERIES) *place_of_sum(memory, pair, query, dim) = sums[i][e];
        }
    }
    __syncthreads();
    share_out(memory);
}
#endif
