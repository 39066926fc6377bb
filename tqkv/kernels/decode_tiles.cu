// The queries as operands of the matrix instruction: the lane's words pair with those that `score` looks up.
struct Fragments {
    u32 words[2 * KEY_STEPS];

    // From rotated queries in float16: the lane's chunk of query g, and two dimensions of the next one.
    __device__ __forceinline__ void load(const unsigned char* rotated, int g, int t) {
        u32 pairs[KEY_CHUNK / 2 + 1];
        const unsigned char* chunk = rotated + g * QUERY_ROW + t * QUERY_CHUNK;
#pragma unroll
        for (int i = 0; i < KEY_CHUNK / 8; i++) {
            const uint4 x = ((const uint4*)chunk)[i];
            pairs[4 * i] = x.x, pairs[4 * i + 1] = x.y, pairs[4 * i + 2] = x.z, pairs[4 * i + 3] = x.w;
        }
        pairs[KEY_CHUNK / 2] = *(const u32*)(rotated + g * QUERY_ROW + (t + 1) % 4 * QUERY_CHUNK);
        int word = 0;
        auto put = [&](int dim, bool two) {
            const u32 x = dim % 2 ? __byte_perm(pairs[dim / 2], pairs[(dim + 1) / 2], 0x5432) : pairs[dim / 2];
            words[word++] = two ? x : x & 0xffff;
        };
#pragma unroll
        for (int j = 0; j < KEY_NIBBLES; j++) {
            const int now = KeyRate::first(j), next = KeyRate::first(j + 1), after = KeyRate::first(j + 2);
            if (KeyRate::pair(j)) {
                put(now, next - now == 2);
                put(next, after - next == 2);
            } else {
                put(now, true);
            }
        }
    }
};

// Scores of STEP tiles: c[tile] is tokens g and g + 8 against queries 2 t and 2 t + 1. Codes that are used up are
// replaced by those of the next tiles, at next(tile). Look-ups run AHEAD operands before the products, which go to two sums in turn.
template <class Next>
__device__ __forceinline__ void score(
    float (&c)[STEP][4], Codes<KEY_BYTES> (&codes)[STEP], const Fragments& queries, u32 table, int lane, bool more, Next next
) {
    u32 a[KEY_AHEAD][STEP][4], eight[STEP][2];
    float odd[STEP][4] = {};
    int word = 0;
    auto product = [&](int step) {
#pragma unroll
        for (int tile = 0; tile < STEP; tile++) {
            const u32 (&x)[4] = a[step % KEY_AHEAD][tile];
            multiply(step % 2 ? odd[tile] : c[tile], x[0], x[1], x[2], x[3], queries.words[2 * step], queries.words[2 * step + 1]);
        }
    };
#pragma unroll
    for (int j = 0; j < KEY_NIBBLES; j++) {
        if (j % 4 == 0) {
#pragma unroll
            for (int tile = 0; tile < STEP; tile++) {
                eight[tile][0] = spread(codes[tile].words[j / 4], 0);
                eight[tile][1] = spread(codes[tile].words[j / 4], 1);
                codes[tile].load(next(tile), lane, j / 4, more);
            }
        }
#pragma unroll
        for (int part = 0; part < 2; part++) {
            if (part == 1 && !KeyRate::pair(j)) continue;
            const int step = word / 2;
            if (word % 2 == 0 && step >= KEY_AHEAD) product(step - KEY_AHEAD);
#pragma unroll
            for (int tile = 0; tile < STEP; tile++) {
#pragma unroll
                for (int token = 0; token < 2; token++) {
                    a[step % KEY_AHEAD][tile][word % 2 * 2 + token] = look_up(entry(eight[tile][token], j % 4, table), j % KEY_P, part);
                }
            }
            word++;
        }
    }
#pragma unroll
    for (int step = max(0, KEY_STEPS - KEY_AHEAD); step < KEY_STEPS; step++) product(step);
#pragma unroll
    for (int tile = 0; tile < STEP; tile++) {
#pragma unroll
        for (int k = 0; k < 4; k++) c[tile][k] += odd[tile][k];
    }
}

// Step s of `accumulate`: nibbles of the chunk's two halves in turn, each with one pair of tokens in the first
// VALUE_NIBBLES steps and with the other after that, so that products for the same sums lie apart.
constexpr int VALUE_HALF = (VALUE_NIBBLES + 1) / 2;
__device__ __forceinline__ constexpr int value_nibble(int s) {
    const int i = s % VALUE_NIBBLES;
    return i % 2 ? VALUE_HALF + i / 2 : i / 2;
}
__device__ __forceinline__ constexpr int value_token(int s) { return (s % VALUE_NIBBLES + s / VALUE_NIBBLES) % 2; }

// Adds weighted values of a tile: sums[r] is dimension r of chunks g and g + 8 of queries 2 t and 2 t + 1, the last ones
// what the last nibble adds to the chunks that follow. A word's halves belong to different dimensions, so it is
// multiplied once by weights in the low halves and once by weights in the high halves.
__device__ __forceinline__ void accumulate(
    float (&sums)[VALUE_ROWS][4], Codes<VALUE_BYTES>& codes, u32 table, uint2 weights, const unsigned char* next, int lane,
    bool more
) {
    const u32 low[2][2] = {{weights.x & 0xffff, weights.y & 0xffff}, {weights.x >> 16, weights.y >> 16}};
    const u32 high[2][2] = {{weights.x << 16, weights.y << 16}, {weights.x & 0xffff0000u, weights.y & 0xffff0000u}};
    u32 a[VALUE_AHEAD][4];
    int nibbles[VALUE_AHEAD] = {}, tokens[VALUE_AHEAD] = {}, parts[VALUE_AHEAD] = {}, made = 0, used = 0;
    u32 done = 0;
    auto product = [&]() {
        const int at = used++ % VALUE_AHEAD, j = nibbles[at], now = ValueRate::first(j), next_dim = ValueRate::first(j + 1);
        const u32 (&x)[4] = a[at];
        auto add = [&](int dim, bool upper) {
            const u32 (&b)[2] = upper ? high[tokens[at]] : low[tokens[at]];
            multiply(sums[dim], x[0], x[1], x[2], x[3], b[0], b[1]);
        };
        if (parts[at] == 1) {
            if (ValueRate::closes(j + 1) == 2) add(next_dim + 1, true);
            add(next_dim, false);
        } else {
            if (!ValueRate::pair(j)) add(next_dim, true);
            if (next_dim - now == 2) add(now + 1, true);
            add(now, false);
        }
    };
#pragma unroll
    for (int s = 0; s < 2 * VALUE_NIBBLES; s++) {
        const int j = value_nibble(s), token = value_token(s), word = j * SIDES / 2;
        const u32 eight = spread(codes.words[word], token);
        u32 address[4];
#pragma unroll
        for (int i = 0; i < 4; i++) address[i] = entry(eight, SIDES == 2 ? i : j % 2 * 2 + i / 2, table);
#pragma unroll
        for (int part = 0; part < 2; part++) {
            if (part == 1 && !ValueRate::pair(j)) continue;
            if (made >= VALUE_AHEAD) product();
            const int at = made++ % VALUE_AHEAD;
            nibbles[at] = j, tokens[at] = token, parts[at] = part;
#pragma unroll
            for (int i = 0; i < 4; i++) a[at][i] = SIDES == 1 && i % 2 ? 0 : look_up(address[i], j % VALUE_P, part);
        }
        if (s < VALUE_NIBBLES) continue;
        done |= 1u << j;
#pragma unroll
        for (int w = 0; w < Codes<VALUE_BYTES>::WORDS; w++) {
            // A piece is replaced once all its nibbles are used up.
            const u32 nibbles_of = (1u << (w + 1) * 2 / SIDES) - (1u << Codes<VALUE_BYTES>::start(w) * 2 / SIDES) & (1u << VALUE_NIBBLES) - 1;
            if (nibbles_of >> j & 1 && !(nibbles_of & ~done)) codes.load(next, lane, w, more);
        }
    }
#pragma unroll
    for (int i = 0; i < VALUE_AHEAD; i++) {
        if (used < made) product();
    }
}
