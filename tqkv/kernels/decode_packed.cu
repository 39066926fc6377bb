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

// The rotation by matrix instructions. A warp holds a state as a matrix of 16 rows and D / 16 columns, zero up to 16, whose
// entry (a, c) is element 16 c + a. A round is two products, with Hadamard matrices of both sizes on either side; what they
// give lies as the transposed operand of the next round, so nothing is moved between lanes. Lane 4 g + t holds 8 entries
// x[h][k][e]: (2 t + e + 8 k, g + 8 h) before an even number of rounds, (g + 8 h, 2 t + e + 8 k) before an odd one.
struct Turned {
    float x[2][2][2];

    static __device__ __forceinline__ int row(int odd, int lane, int h, int k) { return odd ? lane / 4 + 8 * h : lane % 4 * 2 + 8 * k; }
    static __device__ __forceinline__ int column(int odd, int lane, int h, int k) { return odd ? lane % 4 * 2 + 8 * k : lane / 4 + 8 * h; }

    // Where an element lies if a state is stored lane by lane, 256 entries whatever D.
    static __device__ __forceinline__ int place(int odd, int dim) {
        const int far = odd ? dim % 16 : dim / 16, near = odd ? dim / 16 : dim % 16;
        return (far % 8 * 4 + near % 8 / 2) * 8 + far / 8 * 4 + near / 8 * 2 + near % 2;
    }

    // Calls f(x, element) for all that there are; with an even number of rounds pairs of elements are neighbours.
    template <class F>
    __device__ __forceinline__ void each(int odd, int lane, F f) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int c = column(odd, lane, h, k), first = 16 * c + row(odd, lane, h, k);
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    if (D == 256 || c + (odd ? e : 0) < D / 16) f(x[h][k][e], first + (odd ? 16 * e : e));
                    else x[h][k][e] = 0;
                }
            }
        }
    }

    // Bit 8 round + 4 h + 2 k + e of signs is set where the round flips an entry.
    __device__ __forceinline__ void flip(u32 signs, int round) {
        const u32 bits = signs >> 8 * round;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float& y = x[i / 4][i / 2 % 2][i % 2];
            y = __int_as_float(__float_as_int(y) ^ (int)(bits << (31 - i) & 0x80000000u));
        }
    }

    // One transform of rows and columns, `left` of what is contracted first.
    __device__ __forceinline__ void transform(const float (&left)[2][4], const float (&right)[2][4]) {
        float y[2][4] = {}, z[2][4] = {};
#pragma unroll
        for (int s = 0; s < 2; s++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                // Products of the leading 11 bits and of the next ones.
                const Parts u(x[h][s][0]), v(x[h][s][1]);
                const u32 a0 = __float_as_int(left[s][0]), a1 = __float_as_int(left[s][1]), a2 = __float_as_int(left[s][2]), a3 = __float_as_int(left[s][3]);
                multiply_tf32(y[h], a0, a1, a2, a3, u.high, v.high);
                multiply_tf32(y[h], a0, a1, a2, a3, u.low, v.low);
            }
        }
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const Parts u0(y[s][0]), u1(y[s][2]), u2(y[s][1]), u3(y[s][3]);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 b0 = __float_as_int(right[s][h]), b1 = __float_as_int(right[s][2 + h]);
                multiply_tf32(z[h], u0.high, u1.high, u2.high, u3.high, b0, b1);
                multiply_tf32(z[h], u0.low, u1.low, u2.low, u3.low, b0, b1);
            }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) x[i / 4][i / 2 % 2][i % 2] = z[i / 2 % 2][i / 4 * 2 + i % 2];
    }

    struct Parts {
        u32 high, low;
        __device__ __forceinline__ Parts(float x) {
            high = __float_as_int(x) & 0xffffe000u;
            low = __float_as_int(x - __int_as_float(high)) & 0xffffe000u;
        }
    };

    // All rounds, or those of the inverse, but for what makes a rotation orthogonal.
    __device__ __forceinline__ void turn(u32 signs, int rounds, bool inverse, int lane) {
        const int g = lane / 4, t = lane % 4;
        const float u = __popc(g & 2 * t) % 2 ? -1.0f : 1.0f, w = g % 2 ? -u : u;
        const bool inside = D == 256 || (g < D / 16 && 2 * t < D / 16);
        const float v = inside ? u : 0, y = inside ? w : 0, more = D == 256 ? 1 : 0;
        const float rows[2][4] = {{u, u, w, w}, {u, -u, w, -w}};
        const float columns[2][4] = {{v, v * more, y, y * more}, {v * more, -v * more, y * more, -y * more}};
#pragma unroll 1
        for (int i = 0; i < rounds; i++) {
            const int round = inverse ? rounds - 1 - i : i;
            if (!inverse) flip(signs, round);
            if ((inverse ? round + 1 : round) % 2) transform(columns, rows);
            else transform(rows, columns);
            if (inverse) flip(signs, round);
        }
    }
};

// Two neighbouring elements of a state.
__device__ __forceinline__ void load_pair(State (&x)[2], const State* from) {
    if constexpr (sizeof(State) == 4) {
        const float2 both = *(const float2*)from;
        x[0] = both.x, x[1] = both.y;
    } else {
        const u32 both = *(const u32*)from;
        x[0] = (State)(both & 0xffff), x[1] = (State)(both >> 16);
    }
}
__device__ __forceinline__ void store_pair(State* to, float x, float y) {
    if constexpr (sizeof(State) == 4) *(float2*)to = make_float2(x, y);
    else *(u32*)to = (u32)to_state(x) | (u32)to_state(y) << 16;
}

// The query of a warp and all that turns it, loaded ahead of their use.
struct Query {
    State states[2][2][2];
    float mean[2][2][2];
    u32 signs;

    __device__ __forceinline__ void load(const Problem& p, const Place& at, int i, int lane) {
        const State* from = at.query(p, min(i, at.n - 1));
        const float* means = p.key_mean ? p.key_mean + at.kv_head * D : nullptr;
        signs = p.key_signs[lane];
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int c = Turned::column(0, lane, h, k), first = 16 * c + Turned::row(0, lane, h, k);
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    states[h][k][e] = 0;
                    mean[h][k][e] = 0;
                }
                if (D < 256 && c >= D / 16) continue;
                load_pair(states[h][k], from + first);
                if (means) {
                    const float2 both = *(const float2*)(means + first);
                    mean[h][k][0] = both.x, mean[h][k][1] = both.y;
                }
            }
        }
    }
};

// Rotates the query of a warp into shared memory; its factor turns a product into a base-2 logit.
__device__ __forceinline__ void rotate(
    const Problem& p, const Query& query, unsigned char* memory, float* factors, float* biases, int i, int lane
) {
    Turned turned;
    float top = 0, bias = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float x = to_float(query.states[j / 4][j / 2 % 2][j % 2]);
        turned.x[j / 4][j / 2 % 2][j % 2] = x;
        bias += x * query.mean[j / 4][j / 2 % 2][j % 2];
    }
    turned.turn(query.signs, p.key_rounds, false, lane);
#pragma unroll
    for (int j = 0; j < 8; j++) top = max_(top, fabsf(turned.x[j / 4][j / 2 % 2][j % 2]));
#pragma unroll
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
    unsigned char* row = memory + ROTATED + i * QUERY_ROW;
    turned.each(p.key_rounds % 2, lane, [&](float x, int dim) {
        *(u16*)(row + dim / KEY_CHUNK * QUERY_CHUNK + dim % KEY_CHUNK * 2) = float_half(x * inverse);
    });
}

// The tiles of a pair of warps: STEP from `first` on, then from PAIRS * STEP tiles later, up to `end`. Tiles and tokens of
// all rows are counted through.
struct Share {
    u32 first, end, start, length;

    __device__ __forceinline__ Share(const Problem& p, const Place& at, int split, int pair) {
        const int tokens = p.lengths[at.batch], masked = p.starts ? p.starts[at.batch] : 0;
        const u32 row = (u32)(at.batch * p.kv_heads + at.kv_head) * (u32)(p.capacity / TILE);
        const u32 first_tile = masked / TILE, end_tile = (tokens + TILE - 1) / TILE;
        const u32 units = end_tile > first_tile ? (end_tile - first_tile + STEP - 1) / STEP : 0;
        // 32 bits suffice: a row has fewer than 2^20 units for each of at most 2^11 splits.
        first = row + first_tile + (units * (u32)split / (u32)p.splits + pair) * STEP;
        end = row + min(first_tile + units * (u32)(split + 1) / (u32)p.splits * STEP, end_tile);
        start = row * TILE + masked;
        length = row * TILE + tokens;
    }
    // A step that ends beyond the last tile takes that one again, masked.
    __device__ __forceinline__ u32 tile(u32 step, int i) const { return i == 0 ? step : min(step + i, end - 1); }
    // Scales of a key and its value, of the lane's token of a step.
    __device__ __forceinline__ u32 scales(const Problem& p, u32 step, int lane) const {
        const u32 token = min(step * TILE + lane, end * TILE - 1);
        return (u32)p.key_scales[token] | (u32)p.value_scales[token] << 16;
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

// Scores the keys of a pair's tiles, turns scores into weights and passes them on. Largest scores and sums of weights
// of queries 2 t and 2 t + 1 are left in top and weight, weight of the lane's tokens alone.
__device__ __forceinline__ void score_keys(
    const Problem& p, const Share& share, const Fragments& queries, Codes<KEY_BYTES> (&keys)[STEP], u32 scales,
    Ring ring, u32 table, const float (&factor)[2], float (&top)[2], float (&weight)[2]
) {
    const int lane = threadIdx.x % 32, g = lane / 4;
#pragma unroll 1
    for (u32 step = share.first; step < share.end; step += PAIRS * STEP) {
        const u32 next = step + PAIRS * STEP;
        const bool more = next < share.end;
        float c[STEP][4] = {};
        score(c, keys, queries, table, lane, more, [&](int i) { return p.key_codes + (size_t)share.tile(next, i) * KEY_TILE; });
        const u32 now = scales, token = step * TILE + g;
        if (more) scales = share.scales(p, next, lane);

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
    const Problem& p, const Share& share, Codes<VALUE_BYTES> (&values)[STEP], Ring ring, u32 table,
    float (&sums)[VALUE_ROWS][4]
) {
    const int lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll 1
    for (u32 step = share.first; step < share.end; step += PAIRS * STEP) {
        const u32 next = step + PAIRS * STEP;
        const bool more = next < share.end;
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
            accumulate(sums, values[i], table, weights[i], p.value_codes + (size_t)share.tile(next, i) * VALUE_TILE, lane, more);
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
    float *factors = (float*)(memory + FACTORS), *biases = factors + QUERIES;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bool scores = warp < PAIRS;
    const int pair = warp % PAIRS;
    float *tops = (float*)(memory + SMALL), *weights = tops + PAIRS * QUERIES;
    if (scores) {
        Query query;
        if (pair < QUERIES) query.load(p, at, pair, lane);
        const Share share(p, at, split, pair);
        Codes<KEY_BYTES> keys[STEP];
        u32 scales = 0;
        const bool any = share.first < share.end;
#pragma unroll
        for (int i = 0; i < STEP; i++) keys[i].load(p.key_codes + (size_t)share.tile(share.first, i) * KEY_TILE, lane, any);
        if (any) scales = share.scales(p, share.first, lane);
        if (pair < QUERIES) rotate(p, query, memory, factors, biases, pair, lane);
        __syncthreads();
        Fragments queries;
        queries.load(memory + ROTATED, g, t);
        const u32 table = fixed_from_here(shared_address(memory));
        const float factor[2] = {factors[2 * t], factors[2 * t + 1]}, bias[2] = {biases[2 * t], biases[2 * t + 1]};
        float top[2] = {NO_SCORE, NO_SCORE}, weight[2] = {0, 0};
        score_keys(p, share, queries, keys, scales, Ring(memory, pair), table, factor, top, weight);
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
        const int i = threadIdx.x - PAIRS * 32;
        const uint2* tables = i < 16 * KEY_P ? p.key_tables + i : p.value_tables + i - 16 * KEY_P;
        uint2 entry = make_uint2(0, 0);
        if (i < 16 * (KEY_P + VALUE_P)) entry = *tables;
        const Share share(p, at, split, pair);
        Codes<VALUE_BYTES> values[STEP];
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            values[i].load(p.value_codes + (size_t)share.tile(share.first, i) * VALUE_TILE, lane, share.first < share.end);
        }
        if (i < 16 * (KEY_P + VALUE_P)) ((uint2*)(memory + (i < 16 * KEY_P ? 0 : TABLE_BYTES)))[i < 16 * KEY_P ? i : i - 16 * KEY_P] = entry;
        if (lane == 0) {
#pragma unroll
            for (int i = 0; i < 2 * SLOTS; i++) barrier_set(shared_address(memory + BARRIERS) + (pair * 2 * SLOTS + i) * 8, 1);
        }
        float sums[VALUE_ROWS][4];
#pragma unroll
        for (int r = 0; r < VALUE_ROWS; r++) sums[r][0] = sums[r][1] = sums[r][2] = sums[r][3] = 0;
        __syncthreads();
        const u32 table = fixed_from_here(shared_address(memory + TABLE_BYTES));
        add_values(p, share, values, Ring(memory, pair), table, sums);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 2 * SIDES; k++) {
            float* out = (float*)(memory + SUMS) + pair * PAIR_PITCH + (2 * t + k % 2) * QUERY_PITCH + (g + k / 2 * 8) * CHUNK_PITCH;
#pragma unroll
            for (int r = 0; r < VALUE_CHUNK; r += 4) *(float4*)(out + r) = make_float4(sums[r][k], sums[r + 1][k], sums[r + 2][k], sums[r + 3][k]);
        }
    }
}
