// Attention over the tokens in full precision: each warp of a pair takes half of the queries, a pair one token at a time,
// a lane PER_LANE neighbouring dimensions.
__device__ __forceinline__ void attend_extra(const Problem& p, const Place& at, unsigned char* memory) {
    constexpr int HALF = QUERIES / 2;
    const int pair = threadIdx.x / 32 % PAIRS, first = threadIdx.x / 32 / PAIRS * HALF, lane = threadIdx.x % 32;
    const int length = p.extra_lengths ? p.extra_lengths[at.batch] : p.extra;
    const State* k = p.extra_k + at.batch * p.k_batch + at.kv_head * p.k_head + lane * PER_LANE;
    const State* v = p.extra_v + at.batch * p.v_batch + at.kv_head * p.v_head + lane * PER_LANE;
    float q[HALF][PER_LANE], sums[HALF][PER_LANE], top[HALF], weight[HALF];
    int seen[HALF];
    // Lane i finds query i for all: its divisions are done once.
    const int own = min(first + lane % HALF, at.n - 1);
    const long long place = at.query(p, own) - p.q;
    const int own_seen = first + lane < at.n ? length - (p.new_tokens - 1 - at.token(p, own)) : 0;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        top[i] = NO_SCORE;
        weight[i] = 0;
        seen[i] = __shfl_sync(~0u, own_seen, i);
        LaneStates query;
        query.load(p.q + __shfl_sync(~0u, place, i) + lane * PER_LANE);
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            sums[i][e] = 0;
            q[i][e] = first + i < at.n ? query.get(e) * p.scaling : 0.0f;
        }
    }
    LaneStates keys, values;
    if (pair < length) {
        keys.load(k + pair * p.k_token);
        values.load(v + pair * p.v_token);
    }
    for (int token = pair; token < length; token += PAIRS) {
        float key[PER_LANE], value[PER_LANE];
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) key[e] = keys.get(e), value[e] = values.get(e);
        if (token + PAIRS < length) {
            keys.load(k + (token + PAIRS) * p.k_token);
            values.load(v + (token + PAIRS) * p.v_token);
        }
        if (p.extra_mask && !p.extra_mask[(long long)at.batch * p.extra + token]) continue;
        // Sums of all queries side by side: their shuffles overlap.
        float scores[HALF];
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            scores[i] = 0;
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) scores[i] += q[i][e] * key[e];
        }
#pragma unroll 1
        for (int stride = 16; stride > 0; stride /= 2) {
#pragma unroll
            for (int i = 0; i < HALF; i++) scores[i] += __shfl_xor_sync(~0u, scores[i], stride);
        }
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            const float x = token < seen[i] ? scores[i] : minus_infinity();
            float raised = max_(top[i], x), keep = exp2_(top[i] - raised), now = exp2_(x - raised);
            top[i] = raised;
            weight[i] = weight[i] * keep + now;
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) sums[i][e] = sums[i][e] * keep + (now > 0 ? now * value[e] : now);
        }
    }
    float *tops = (float*)(memory + SMALL), *weights = tops + PAIRS * QUERIES;
    float* out = (float*)(memory + SUMS) + pair * PAIR_PITCH + first * QUERY_PITCH;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        if (lane == 0) tops[pair * QUERIES + first + i] = top[i], weights[pair * QUERIES + first + i] = weight[i];
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            int dim = lane * PER_LANE + e;
            out[i * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK] = sums[i][e];
        }
    }
}
