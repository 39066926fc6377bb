// Attention over the tokens in full precision: each warp of a pair takes half of the queries, a pair one token at a time,
// a lane PER_LANE neighbouring dimensions.
__device__ __forceinline__ void attend_extra(const Problem& p, const Place& at, unsigned char* memory) {
    constexpr int HALF = QUERIES / 2, AT_ONCE = sizeof(State) == 4 ? 2 : 4;  // tokens whose states are loaded together
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
    LaneStates keys[AT_ONCE], values[AT_ONCE];
    auto load = [&](LaneStates (&states)[AT_ONCE], const State* from, long long stride, int next) {
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int token = next + j * PAIRS;
            if (token < length) states[j].load(from + token * stride);
        }
    };
    load(keys, k, p.k_token, pair);
    load(values, v, p.v_token, pair);
#pragma unroll 1
    for (int base = pair; base < length; base += AT_ONCE * PAIRS) {
        const int next = base + AT_ONCE * PAIRS;
        // Sums of all queries and tokens side by side: their shuffles overlap.
        float scores[AT_ONCE][HALF];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
#pragma unroll
            for (int i = 0; i < HALF; i++) {
                scores[j][i] = 0;
#pragma unroll
                for (int e = 0; e < PER_LANE; e++) scores[j][i] += q[i][e] * keys[j].get(e);
            }
        }
        load(keys, k, p.k_token, next);
#pragma unroll 1
        for (int stride = 16; stride > 0; stride /= 2) {
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
#pragma unroll
                for (int i = 0; i < HALF; i++) scores[j][i] += __shfl_xor_sync(~0u, scores[j][i], stride);
            }
        }
        float raised[HALF];
#pragma unroll
        for (int i = 0; i < HALF; i++) raised[i] = top[i];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int token = base + j * PAIRS;
            const bool masked = token >= length || (p.extra_mask && !p.extra_mask[(long long)at.batch * p.extra + token]);
#pragma unroll
            for (int i = 0; i < HALF; i++) {
                scores[j][i] = !masked && token < seen[i] ? scores[j][i] : minus_infinity();
                raised[i] = max_(raised[i], scores[j][i]);
            }
        }
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            const float keep = exp2_(top[i] - raised[i]);
            top[i] = raised[i];
            weight[i] *= keep;
#pragma unroll
            for (int e = 0; e < PER_LANE; e++) sums[i][e] *= keep;
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                const float now = exp2_(scores[j][i] - raised[i]);
                weight[i] += now;
                // What lies behind a masked token may be NaN; a weight that is NaN shows.
#pragma unroll
                for (int e = 0; e < PER_LANE; e++) sums[i][e] += now > 0 ? now * values[j].get(e) : now;
            }
        }
        load(values, v, p.v_token, next);
    }
    float2* of_pairs = (float2*)(memory + OF_PAIRS);
    float* out = (float*)(memory + SUMS) + pair * PAIR_PITCH + first * QUERY_PITCH;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        if (lane == 0) of_pairs[(first + i) * PAIRS + pair] = make_float2(top[i], weight[i]);
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            int dim = lane * PER_LANE + e;
            out[i * QUERY_PITCH + dim / VALUE_CHUNK * CHUNK_PITCH + dim % VALUE_CHUNK] = sums[i][e];
        }
    }
    __syncthreads();
    share_out(memory);
}
