// Pointers and sizes; strides count elements. What is asked for first comes first: a launch finds no argument in the cache.
struct Problem {
    const State* q;
    const int *lengths, *starts;
    const uint4 *key_tables, *value_tables;  // of `Tables`, then the step and the offset of every dimension of a period
    const u32* key_signs;                    // of each lane, as `turn` takes them
    const float* key_mean;
    const float* key_queries;  // queries in the basis of the packed keys, or null: then the rotation gives them
    int q_batch, q_head, q_token, heads, kv_heads, group, new_tokens, capacity, splits;
    u32 share;                        // 2^32 over splits, rounded up
    float scaling;                    // of the logits, times log2(e)
    float key_shrink, value_shrink;   // what makes a rotation orthogonal: D^(-rounds / 2)
    int patience;                     // cycles that a block waits for the others' parts of a query of its own; 0: the last block finishes all
    const unsigned char *key_codes, *value_codes;
    const u16 *key_scales, *value_scales;
    float* part_sums;      // of every block and query
    float* part_scalars;   // largest score and weight
    u32* counters;         // of a block of queries: arrivals, then whether the block that was to finish a query declined
    const u32* value_signs;
    State* out;
    const State *extra_k, *extra_v;
    const int* extra_lengths;
    const unsigned char* extra_mask;
    long long k_batch, k_head, k_token, v_batch, v_head, v_token;
    int extra, windows;  // tokens in full precision, blocks of queries that a block of these serves
};

struct Place {
    int batch, kv_head, first, n, pair;  // first query of the block, queries in it, index of the block
    __device__ __forceinline__ int head(const Problem& p, int i) const {
        return kv_head * p.group + (p.new_tokens == 1 ? first + i : (first + i) / p.new_tokens);
    }
    __device__ __forceinline__ int token(const Problem& p, int i) const {
        return p.new_tokens == 1 ? 0 : (first + i) % p.new_tokens;
    }
    // Where the states of a query start among those of all rows, heads and new tokens in order.
    __device__ __forceinline__ long long packed(const Problem& p, int i) const {
        return (((long long)batch * p.heads + head(p, i)) * p.new_tokens + token(p, i)) * D;
    }
    __device__ __forceinline__ const State* query(const Problem& p, int i) const {
        return p.q + (batch * p.q_batch + head(p, i) * p.q_head + token(p, i) * p.q_token);
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

// A partial result of a query as a lane sees it: pieces of the sums, the largest score and the weight. No number of it is
// ABSENT, which its place holds before and after.
struct Partial {
    // Pieces of all lanes lie side by side: with those of a lane instead, a launch took 1 us more at head_dim 256.
    static constexpr int PIECE = PER_LANE < 4 ? PER_LANE : 4, PIECES = PER_LANE / PIECE;
    u32 row[PIECES][PIECE], about[2];

    __device__ __forceinline__ void load(const float* sums, const float* scalars) {
#pragma unroll
        for (int i = 0; i < PIECES; i++) load_shared(sums + i * 32 * PIECE, row[i]);
        load_shared(scalars, about);
    }
    __device__ __forceinline__ bool there() const {
        bool all = about[0] != ABSENT && about[1] != ABSENT;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) all = all && row[i / PIECE][i % PIECE] != ABSENT;
        return all;
    }
    __device__ __forceinline__ float2 weight() const { return make_float2(__int_as_float(about[0]), __int_as_float(about[1])); }
    __device__ __forceinline__ float sum(int e) const { return __int_as_float(row[e / PIECE][e % PIECE]); }
    // Dimension of sum e, less the lane's first.
    static __device__ __forceinline__ constexpr int dim(int e) { return e / PIECE * 32 * PIECE + e % PIECE; }
    // Leaves the place as it was.
    static __device__ __forceinline__ void clear(float* sums, float* scalars, int lane) {
        u32 nothing[PIECE], none[2] = {ABSENT, ABSENT};
#pragma unroll
        for (int i = 0; i < PIECE; i++) nothing[i] = ABSENT;
#pragma unroll
        for (int i = 0; i < PIECES; i++) store_shared(sums + i * 32 * PIECE, nothing);
        if (lane == 0) store_shared(scalars, none);
    }
};
