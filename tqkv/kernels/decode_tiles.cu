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
// replaced by those of the next tiles.
__device__ __forceinline__ void score(
    float (&c)[STEP][4], Codes<KEY_BYTES> (&codes)[STEP], const Fragments& queries, u32 table,
    const unsigned char* const (&next)[STEP], int lane, bool more
) {
    u32 a[STEP][4], eight[STEP][2];
    int filled = 0, step = 0;
#pragma unroll
    for (int j = 0; j < KEY_NIBBLES; j++) {
#pragma unroll
        for (int tile = 0; tile < STEP; tile++) {
            if (j % 4 == 0) {
                eight[tile][0] = spread(codes[tile].words[j / 4], 0);
                eight[tile][1] = spread(codes[tile].words[j / 4], 1);
                codes[tile].load(next[tile], lane, j / 4, more);
            }
        }
        u32 address[STEP][2];
#pragma unroll
        for (int tile = 0; tile < STEP; tile++) {
#pragma unroll
            for (int token = 0; token < 2; token++) address[tile][token] = entry(eight[tile][token], j % 4, table);
        }
#pragma unroll
        for (int word = 0; word < 2; word++) {
            if (word == 1 && !KeyRate::pair(j)) continue;
#pragma unroll
            for (int tile = 0; tile < STEP; tile++) {
                a[tile][2 * filled] = look_up(address[tile][0], j % KEY_P, word);
                a[tile][2 * filled + 1] = look_up(address[tile][1], j % KEY_P, word);
            }
            if (++filled == 2) {
#pragma unroll
                for (int tile = 0; tile < STEP; tile++) {
                    multiply(c[tile], a[tile][0], a[tile][1], a[tile][2], a[tile][3], queries.words[2 * step], queries.words[2 * step + 1]);
                }
                filled = 0;
                step++;
            }
        }
    }
}

// Adds weighted values of a tile: sums[r] is dimension r of chunks g and g + 8 of queries 2 t and 2 t + 1, the last ones
// what the last nibble adds to the chunks that follow. A word's halves belong to different dimensions, so it is
// multiplied once by weights in the low halves and once by weights in the high halves.
__device__ __forceinline__ void accumulate(
    float (&sums)[VALUE_ROWS][4], Codes<VALUE_BYTES>& codes, u32 table, uint2 weights, const unsigned char* next, int lane,
    bool more
) {
    const u32 low[2][2] = {{weights.x & 0xffff, weights.y & 0xffff}, {weights.x >> 16, weights.y >> 16}};
    const u32 high[2][2] = {{weights.x << 16, weights.y << 16}, {weights.x & 0xffff0000u, weights.y & 0xffff0000u}};
#pragma unroll
    for (int j = 0; j < VALUE_NIBBLES; j++) {
        const int word = j * SIDES / 2, now = ValueRate::first(j), next_dim = ValueRate::first(j + 1);
        const bool pair = ValueRate::pair(j);
#pragma unroll
        for (int token = 0; token < 2; token++) {
            const u32 eight = spread(codes.words[word], token);
            u32 a[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (SIDES == 1 && i % 2) {
                    a[0][i] = a[1][i] = 0;
                    continue;
                }
                const u32 address = entry(eight, SIDES == 2 ? i : j % 2 * 2 + i / 2, table);
                a[0][i] = look_up(address, j % VALUE_P, 0);
                if (pair) a[1][i] = look_up(address, j % VALUE_P, 1);
            }
            auto add = [&](int dim, int which, bool upper) {
                const u32 (&b)[2] = upper ? high[token] : low[token];
                multiply(sums[dim], a[which][0], a[which][1], a[which][2], a[which][3], b[0], b[1]);
            };
            add(now, 0, false);
            if (next_dim - now == 2) add(now + 1, 0, true);
            if (!pair) add(next_dim, 0, true);
            if (pair) add(next_dim, 1, false);
            if (pair && ValueRate::closes(j + 1) == 2) add(next_dim + 1, 1, true);
        }
        if (SIDES == 2 || j % 2 || j == VALUE_NIBBLES - 1) codes.load(next, lane, word, more);
    }
}
