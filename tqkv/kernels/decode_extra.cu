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

    __device__ __forceinline__ float get(int e) const {
        if constexpr (sizeof(State) == 4) return __int_as_float(words[e]);
        return to_float((State)(words[e / 2] >> 16 * (e % 2)));
    }
};

// The same over the tokens in full precision: a warp takes one at a time, a lane PER_LANE neighbouring dimensions.
__device__ __forceinline__ void attend_extra(const Problem& p, const Place& at, unsigned char* memory) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int length = p.extra_lengths ? p.extra_lengths[at.batch] : p.extra;
    const State* k = p.extra_k + at.batch * p.k_batch + at.kv_head * p.k_head + lane * PER_LANE;
    const State* v = p.extra_v + at.batch * p.v_batch + at.kv_head * p.v_head + lane * PER_LANE;
    float q[QUERIES][PER_LANE], sums[QUERIES][PER_LANE], top[QUERIES], weight[QUERIES];
    int seen[QUERIES];
    // Lane i finds query i for all: its divisions are done once.
    const int own = min(lane, at.n - 1);
    const long long place = at.query(p, own) - p.q;
    const int own_seen = lane < at.n ? length - (p.new_tokens - 1 - at.token(p, own)) : 0;
#pragma unroll
    for (int i = 0; i < QUERIES; i++) {
        top[i] = NO_SCORE;
        weight[i] = 0;
        seen[i] = __shfl_sync(~0u, own_seen, i);
        const State* query = p.q + __shfl_sync(~0u, place, i) + lane * PER_LANE;
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            sums[i][e] = 0;
            q[i][e] = i < at.n ? to_float(query[e]) * p.scaling : 0.0f;
        }
    }
    LaneStates keys, values;
    if (warp < length) {
        keys.load(k + warp * p.k_token);
        values.load(v + warp * p.v_token);
    }
    for (int token = warp; token < length; token += WARPS) {
        float key[PER_LANE], value[PER_LANE];
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) key[e] = keys.get(e), value[e] = values.get(e);
        if (token + WARPS < length) {
            keys.load(k + (token + WARPS) * p.k_token);
            values.load(v + (token + WARPS) * p.v_token);
        }
        if (p.extra_mask && !p.extra_mask[(long long)at.batch * p.extra + token]) continue;
        // Sums of all queries side by side: their shuffles overlap.
        float scores[QUERIES];
#pragma unroll
        for (int i = 0; i < QUERIES; i++) {
            scores[i] = 0;
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) scores[i] += q[i][e] * key[e];
        }
#pragma unroll 1
        for (int stride = 16; stride > 0; stride /= 2) {
#pragma unroll
            for (int i = 0; i < QUERIES; i++) scores[i] += __shfl_xor_sync(~0u, scores[i], stride);
        }
#pragma unroll
        for (int i = 0; i < QUERIES; i++) {
            const float x = token < seen[i] ? scores[i] : minus_infinity();
            float raised = max_(top[i], x), keep = exp2_(top[i] - raised), now = exp2_(x - raised);
            top[i] = raised;
            weight[i] = weight[i] * keep + now;
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) sums[i][e] = sums[i][e] * keep + (now > 0 ? now * value[e] : now);
        }
    }
    float *tops = (float*)(memory + SMALL), *weights = tops + WARPS * QUERIES;
    float* out = (float*)(memory + SUMS) + warp * WARP_PITCH;
#pragma unroll
    for (int i = 0; i < QUERIES; i++) {
        if (lane == 0) tops[warp * QUERIES + i] = top[i], weights[warp * QUERIES + i] = weight[i];
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            int dim = lane * PER_LANE + e;
            out[i * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK] = sums[i][e];
        }
    }
}
