// Pointers and sizes; strides count elements.
struct Problem {
    const State* q;
    const unsigned char *key_codes, *value_codes;
    const u16 *key_scales, *value_scales;
    const uint2 *key_tables, *value_tables;
    const float *key_signs, *value_signs, *key_mean;
    const int *lengths, *starts, *extra_lengths;
    const unsigned char* extra_mask;
    const State *extra_k, *extra_v;
    State* out;
    float *part_sums, *part_scalars;
    u32* counters;
    long long q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token;
    int heads, kv_heads, new_tokens, capacity, extra, splits, key_rounds, value_rounds;
    float scaling;                    // of the logits, times log2(e)
    float key_shrink, value_shrink;   // what makes a rotation orthogonal: D^(-rounds / 2)
};

struct Place {
    int batch, kv_head, first, n, pair;  // first query of the block, queries in it, index of the block
    __device__ __forceinline__ int head(const Problem& p, int i) const {
        return kv_head * (p.heads / p.kv_heads) + (first + i) / p.new_tokens;
    }
    __device__ __forceinline__ int token(const Problem& p, int i) const { return (first + i) % p.new_tokens; }
    __device__ __forceinline__ const State* query(const Problem& p, int i) const {
        return p.q + batch * p.q_batch + head(p, i) * p.q_head + token(p, i) * p.q_token;
    }
};

// Dimensions of a chunk, possibly of the next one, that the halves of each word of a key belong to; -1 for none.
struct WordDims {
    short dims[2 * KEY_STEPS][2];
    constexpr __host__ __device__ WordDims() : dims() {
        int word = 0;
        for (int j = 0; j < KEY_NIBBLES; j++) {
            const int now = KeyRate::first(j), next = KeyRate::first(j + 1), after = KeyRate::first(j + 2);
            dims[word][0] = now;
            if (!KeyRate::pair(j)) {
                dims[word++][1] = next;
                continue;
            }
            dims[word++][1] = now + 1 < next ? now + 1 : -1;
            dims[word][0] = next;
            dims[word++][1] = next + 1 < after ? next + 1 : -1;
        }
    }
};
__constant__ const WordDims WORD_DIMS;

// The signs of a lane's elements in all rounds, a bit each: set for -1.
__device__ __forceinline__ u32 sign_bits(const float* signs, int rounds, int lane) {
    u32 bits = 0;
#pragma unroll
    for (int i = 0; i < ROUNDS * PER_LANE; i++) {
        const float sign = i / PER_LANE < rounds ? signs[i / PER_LANE * D + i % PER_LANE * 32 + lane] : 1.0f;
        bits |= (u32)__float_as_int(sign) >> 31 << i;
    }
    return bits;
}

// x with the signs of a round.
__device__ __forceinline__ void flip(float (&x)[PER_LANE], u32 bits, int round) {
#pragma unroll
    for (int e = 0; e < PER_LANE; e++) {
        x[e] = __int_as_float(__float_as_int(x[e]) ^ (int)(bits >> (round * PER_LANE + e) << 31));
    }
}

// The query of a warp and all that turns it, loaded ahead of their use.
struct Query {
    float x[PER_LANE], bias;
    u32 signs;

    __device__ __forceinline__ void load(const Problem& p, const Place& at, int i, int lane) {
        const State* query = at.query(p, min(i, at.n - 1));
        bias = 0;
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) {
            const int dim = 32 * e + lane;
            x[e] = i < at.n ? to_float(query[dim]) : 0.0f;
            if (p.key_mean) bias += x[e] * p.key_mean[at.kv_head * D + dim];
        }
        signs = sign_bits(p.key_signs, p.key_rounds, lane);
    }
};

// Rotated queries as fragments of the matrix instruction; factors[i] turns a product into a base-2 logit.
__device__ __forceinline__ void prepare(
    const Problem& p, Query& query, unsigned char* memory, float* factors, float* biases, int warp, int lane
) {
    float* rotated = (float*)(memory + ROTATED);
    if (warp < QUERIES) {
        float top = 0;
#pragma unroll 1
        for (int round = 0; round < p.key_rounds; round++) {
            flip(query.x, query.signs, round);
            hadamard(query.x, lane);
        }
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) top = max_(top, fabsf(query.x[e]));
#pragma unroll
        for (int stride = 16; stride > 0; stride /= 2) top = max_(top, __shfl_xor_sync(~0u, top, stride));
        const float bias = warp_sum(query.bias);
        // Queries of any size fit float16 once divided by their largest coordinate.
        const float inverse = top > 0 ? 1 / top : 1.0f;
        if (lane == 0) {
            factors[warp] = p.scaling * p.key_shrink / inverse;
            biases[warp] = bias * p.scaling;
        }
#pragma unroll
        for (int e = 0; e < PER_LANE; e++) rotated[warp * D + 32 * e + lane] = query.x[e] * inverse;
    }
    __syncthreads();
    u32* fragments = (u32*)(memory + FRAGMENTS);
#pragma unroll 4
    for (int index = threadIdx.x; index < KEY_STEPS * 64; index += THREADS) {
        const int word = index / 64 * 2 + index % 2, l = index % 64 / 2;
        const int lo = WORD_DIMS.dims[word][0], hi = WORD_DIMS.dims[word][1];
        const float* row = rotated + l / 4 * D;
        const int chunk = l % 4 * KEY_CHUNK;
        fragments[index] = half_pair(row[(chunk + lo) % D], hi < 0 ? 0.0f : row[(chunk + hi) % D]);
    }
}

// Attention of a warp over its tiles of the packed tokens; leaves its sums in shared memory.
__device__ __forceinline__ void attend_packed(const Problem& p, const Place& at, unsigned char* memory, int split) {
    __shared__ float factors[QUERIES], biases[QUERIES];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    Query query;
    if (warp < QUERIES) query.load(p, at, warp, lane);
    const int length = p.lengths[at.batch], start = p.starts ? p.starts[at.batch] : 0;
    const int end_tile = (length + TILE - 1) / TILE, first_tile = start / TILE;
    const int units = end_tile > first_tile ? (end_tile - first_tile + STEP - 1) / STEP : 0;
    const int first = (long long)units * split / p.splits + warp, last = (long long)units * (split + 1) / p.splits;
    const long long row = (long long)at.batch * p.kv_heads + at.kv_head;
    const unsigned char* key_codes = p.key_codes + row * (p.capacity / TILE) * KEY_TILE;
    const unsigned char* value_codes = p.value_codes + row * (p.capacity / TILE) * VALUE_TILE;
    const u16 *key_scales = p.key_scales + row * p.capacity, *value_scales = p.value_scales + row * p.capacity;

    Codes<KEY_BYTES> keys[STEP];
    Codes<VALUE_BYTES> values[STEP];
    u32 scales = 0;
    auto load_keys = [&](int unit) {
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            // A step that ends beyond the last tile reads that one again, masked.
            int tile = min(first_tile + unit * STEP + i, end_tile - 1);
            keys[i].load(key_codes + (long long)tile * KEY_TILE, lane);
        }
        int token = min((first_tile + unit * STEP) * TILE + lane, p.capacity - 1);
        scales = (u32)key_scales[token] | (u32)value_scales[token] << 16;
    };
    auto load_values = [&](int unit) {
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            int tile = min(first_tile + unit * STEP + i, end_tile - 1);
            values[i].load(value_codes + (long long)tile * VALUE_TILE, lane);
        }
    };
    if (first < last) load_keys(first);

    for (int i = threadIdx.x; i < 16 * KEY_P; i += THREADS) ((uint2*)memory)[i] = p.key_tables[i];
    for (int i = threadIdx.x; i < 16 * VALUE_P; i += THREADS) ((uint2*)(memory + TABLE_BYTES))[i] = p.value_tables[i];
    prepare(p, query, memory, factors, biases, warp, lane);
    __syncthreads();
    u32 base = shared_address(memory);
    // Makes every look-up depend on what comes after the barrier.
    asm volatile("" : "+r"(base) : : "memory");
    const u32 fragments = base + FRAGMENTS + lane * 8;

    float sums[VALUE_STEPS + 1][4];
#pragma unroll
    for (int r = 0; r <= VALUE_STEPS; r++) sums[r][0] = sums[r][1] = sums[r][2] = sums[r][3] = 0;
    float top[2] = {NO_SCORE, NO_SCORE}, weight[2] = {0, 0};
    const float factor[2] = {factors[2 * t], factors[2 * t + 1]};

    for (int unit = first; unit < last; unit += WARPS) {
        load_values(unit);
        float c[STEP][4] = {};
        score(c, keys, base, fragments);
        const u32 now = scales;
        if (unit + WARPS < last) load_keys(unit + WARPS);

        const int token = (first_tile + unit * STEP) * TILE + g;
        float value_scale[2 * STEP];
        bool raise = false;
#pragma unroll
        for (int i = 0; i < 2 * STEP; i++) {
            u32 both = __shfl_sync(~0u, now, g + 8 * i);
            float key_scale = half_float(both & 0xffff);
            value_scale[i] = half_float(both >> 16);
            bool seen = token + 8 * i < length && token + 8 * i >= start;
            // What lies behind a masked token may be anything, NaN too.
            if (!seen) value_scale[i] = 0;
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float& x = c[i / 2][i % 2 * 2 + k];
                x = seen ? x * (key_scale * factor[k]) : minus_infinity();
                raise |= exp2_(x - top[k]) * max_(value_scale[i], 6e-8f) > LARGEST;
            }
        }
        if (__any_sync(~0u, raise)) {
            float highest[2] = {minus_infinity(), minus_infinity()};
#pragma unroll
            for (int i = 0; i < 2 * STEP; i++) {
                float scale = log2_(max_(value_scale[i], 6e-8f));
                highest[0] = max_(highest[0], c[i / 2][i % 2 * 2] + scale);
                highest[1] = max_(highest[1], c[i / 2][i % 2 * 2 + 1] + scale);
            }
#pragma unroll
            for (int k = 0; k < 2; k++) {
#pragma unroll
                for (int stride = 4; stride < 32; stride *= 2) {
                    highest[k] = max_(highest[k], __shfl_xor_sync(~0u, highest[k], stride));
                }
                float raised = max_(top[k], highest[k] - HEADROOM);
                float keep = exp2_(top[k] - raised);
                top[k] = raised;
                weight[k] *= keep;
#pragma unroll
                for (int r = 0; r <= VALUE_STEPS; r++) sums[r][k] *= keep, sums[r][2 + k] *= keep;
            }
        }
#pragma unroll
        for (int i = 0; i < STEP; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float e = exp2_(c[i][k] - top[k % 2]);
                weight[k % 2] += e;
                c[i][k] = e * value_scale[2 * i + k / 2];
            }
            u32 b0 = transpose(half_pair(c[i][0], c[i][1])), b1 = transpose(half_pair(c[i][2], c[i][3]));
            accumulate(sums, values[i], base + TABLE_BYTES, b0, b1);
        }
    }

#pragma unroll
    for (int k = 0; k < 4; k++) {
        // The last nibble of the chunk before continues into this one.
        float carried = __shfl_sync(~0u, sums[VALUE_STEPS][k], (lane + 28) % 32);
        sums[0][k] += carried;
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
#pragma unroll
        for (int stride = 4; stride < 32; stride *= 2) weight[k] += __shfl_xor_sync(~0u, weight[k], stride);
    }
    const float bias[2] = {biases[2 * t], biases[2 * t + 1]};
    __syncthreads();
    float *tops = (float*)(memory + SMALL), *weights = tops + WARPS * QUERIES;
    float* out = (float*)(memory + SUMS) + warp * WARP_PITCH + g * CHUNK_PITCH;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        if (g == 0) {
            tops[warp * QUERIES + 2 * t + k] = top[k] + bias[k];
            weights[warp * QUERIES + 2 * t + k] = weight[k];
        }
#pragma unroll
        for (int r = 0; r < VALUE_STEPS; r++) {
            *(float2*)(out + (2 * t + k) * QUERY_PITCH + 2 * r) = make_float2(sums[r][k], sums[r][2 + k]);
        }
    }
}
