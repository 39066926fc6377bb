// Attention over the tokens in full precision: each warp of a pair takes half of the queries, a pair one token at a time,
// a lane PER_LANE neighbouring dimensions.
__device__ __forceinline__ void attend_extra(const Problem& p, const Place& at, unsigned char* memory) {
    // Tokens whose states are loaded together; more would take registers from the loops over packed tokens.
    constexpr int HALF = QUERIES / 2, AT_ONCE = sizeof(State) == 4 || (PER_LANE > 4 && WARPS <= 8) ? 2 : 4;
    constexpr int SCORES = AT_ONCE * HALF, SAME = 32 / SCORES;              // of a turn; neighbouring lanes that get the same one
    const int pair = threadIdx.x / 32 % PAIRS, first = threadIdx.x / 32 / PAIRS * HALF, lane = threadIdx.x % 32;
    const int own = lane / SAME % HALF, own_token = lane / SAME / HALF;  // what the lane gets the score of
    const int length = p.extra_lengths ? p.extra_lengths[at.batch] : p.extra;
    const State* k = p.extra_k + at.batch * p.k_batch + at.kv_head * p.k_head + lane * PER_LANE;
    const State* v = p.extra_v + at.batch * p.v_batch + at.kv_head * p.v_head + lane * PER_LANE;
    float q[HALF][PER_LANE], sums[HALF][PER_LANE], top = NO_SCORE, weight = 0;
    // Lane i finds query i for all: its divisions are done once.
    const long long place = at.query(p, min(first + lane % HALF, at.n - 1)) - p.q;
    const int seen = first + own < at.n ? length - (p.new_tokens - 1 - at.token(p, first + own)) : 0;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        LaneStates query;
        query.load(p.q + __shfl_sync(~0u, place, i) + lane * PER_LANE);
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            sums[i][e] = 0;
            q[i][e] = first + i < at.n ? query.get(e) * p.scaling : 0.0f;
        }
    }
    LaneStates keys[AT_ONCE], values[AT_ONCE];
    auto load = [&](LaneStates (&states)[AT_ONCE], const State* from, long long stride, int next) {
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int token = next + j * PAIRS;
            if (token < length) states[j].load(from + token * stride);
        }
    };
    auto visible = [&](int token) {
        return token < min(length, seen) && !(p.extra_mask && !p.extra_mask[(long long)at.batch * p.extra + token]);
    };
    load(keys, k, p.k_token, pair);
    load(values, v, p.v_token, pair);
    bool now_visible = visible(pair + own_token * PAIRS);
#pragma unroll 1
    for (int base = pair; base < length; base += AT_ONCE * PAIRS) {
        const int next = base + AT_ONCE * PAIRS;
        float scores[SCORES];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
#pragma unroll
            for (int i = 0; i < HALF; i++) {
                float& score = scores[j * HALF + i];
                score = 0;
#pragma unroll
                for (int e = 0; e < PER_LANE; e++) score += q[i][e] * keys[j].get(e);
            }
        }
        load(keys, k, p.k_token, next);
        const bool next_visible = visible(next + own_token * PAIRS);
        // Lanes give half of their scores away for the sums of the others, until each has one.
#pragma unroll
        for (int half = SCORES / 2, stride = 16; half > 0; half /= 2, stride /= 2) {
            const bool upper = lane & stride;
#pragma unroll
            for (int i = 0; i < half; i++) {
                const float given = upper ? scores[i] : scores[i + half];
                scores[i] = (upper ? scores[i + half] : scores[i]) + __shfl_xor_sync(~0u, given, stride);
            }
        }
#pragma unroll
        for (int stride = SAME / 2; stride > 0; stride /= 2) scores[0] += __shfl_xor_sync(~0u, scores[0], stride);
        const float score = now_visible ? scores[0] : minus_infinity();
        float raised = max_(top, score);
#pragma unroll
        for (int stride = SAME * HALF; stride < 32; stride *= 2) raised = max_(raised, __shfl_xor_sync(~0u, raised, stride));
        const float kept = exp2_(top - raised), own_weight = exp2_(score - raised);
        top = raised;
        weight = weight * kept + own_weight;
        now_visible = next_visible;
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            const float keep = __shfl_sync(~0u, kept, i * SAME);
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) sums[i][e] *= keep;
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                const float now = __shfl_sync(~0u, own_weight, (j * HALF + i) * SAME);
                // What lies behind a masked token may be NaN; a weight that is NaN shows.
                if (now == 0) continue;
#pragma unroll
                for (int e = 0; e < PER_LANE; e++) sums[i][e] += now * values[j].get(e);
            }
        }
        load(values, v, p.v_token, next);
    }
#pragma unroll
    for (int stride = SAME * HALF; stride < 32; stride *= 2) weight += __shfl_xor_sync(~0u, weight, stride);
    float2* of_pairs = (float2*)(memory + OF_PAIRS);
    float* out = (float*)(memory + SUMS) + pair * PAIR_PITCH + first * QUERY_PITCH;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        if (lane == i * SAME) of_pairs[(first + i) * PAIRS + pair] = make_float2(top, weight);
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            int dim = lane * PER_LANE + e;
            out[i * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK] = sums[i][e];
        }
    }
    __syncthreads();
    share_out(memory);
}
