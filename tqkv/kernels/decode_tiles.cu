// The queries as operands of the matrix instruction: the lane's words pair with those that `score` looks up. Of 8 queries a
// column is one, in two operands; of 4 it is the high bytes of one or the low bytes, which have signs then.
struct Fragments {
    u32 high[KEY_GROUPS * KEY_TERMS], low[KEY_GROUPS * KEY_TERMS];

    // From the bytes of rotated queries: the lane's chunk of column g, and what its last nibbles give to the next one.
    __device__ __forceinline__ void load(const u32* rotated, int g, int t) {
        if constexpr (OWN == 2) {
            load(high, rotated + g * QUERY_ROW, t);
            load(low, rotated + g * QUERY_ROW + QUERY_LOW, t);
        } else {
            load(high, rotated + g / 2 * QUERY_ROW + g % 2 * QUERY_LOW, t);
        }
    }

    static __device__ __forceinline__ u32& word(u32 (&words)[KEY_GROUPS * KEY_TERMS], int i) { return words[i / KEY_Q * KEY_TERMS + i % KEY_Q]; }

    static __device__ __forceinline__ void load(u32 (&words)[KEY_GROUPS * KEY_TERMS], const u32* row, int t) {
#pragma unroll
        for (int i = 0; i < QUERY_WORDS; i += 4) {
            const uint4 four = *(const uint4*)(row + t * QUERY_CHUNK + i);
            word(words, i) = four.x, word(words, i + 1) = four.y, word(words, i + 2) = four.z, word(words, i + 3) = four.w;
        }
#pragma unroll
        for (int group = 0; group < KEY_GROUPS; group++) {
#pragma unroll
            for (int i = 0; i < KEY_TERMS - KEY_Q; i++) {
                // The same dimension a period later.
                const bool last = group + 1 == KEY_GROUPS;
                const u32 now = words[group * KEY_TERMS + i], after = last ? row[(t + 1) % 4 * QUERY_CHUNK + i] : words[(group + 1) * KEY_TERMS + i];
                words[group * KEY_TERMS + KEY_Q + i] = permute(now, after, KEY_HALVES ? 0x2241 : 0x4321);
            }
        }
    }
};

// Scores of STEP tiles: tokens 2 g and 2 g + 1 of a tile against the lane's queries, in two sums of which the first counts
// 256 times: of 4 queries the second is the next column of `high`. Codes that are used up are replaced by those of the next tiles, at next(tile).
template <class Next>
__device__ __forceinline__ void score(
    int (&high)[STEP][4], int (&low)[STEP][4], Codes<KEY_BYTES> (&codes)[STEP], const Fragments& queries, const Tables& tables,
    int lane, bool more, Next next
) {
    constexpr int TOKENS = KEY_HALVES ? 1 : 2;
    Picks now[STEP][TOKENS], before[STEP][TOKENS];
    u32 a[STEP][4];
    int term = 0;
    // The next word of every tile: of dimension i, what the nibbles that close it give, those before them, or both.
    auto put = [&](int i, bool closing, bool earlier) {
        const uint4 first = tables.table(i, !closing), second = closing && earlier ? tables.table(i, 1) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int tile = 0; tile < STEP; tile++) {
            u32* words = a[tile] + term % 2 * 2;
#pragma unroll
            for (int token = 0; token < TOKENS; token++) {
                words[token] = pick(first, now[tile][token]);
                if (closing && earlier) words[token] += pick(second, before[tile][token]);
            }
            if (KEY_HALVES) words[1] = words[0] >> 16;
            if (term % 2 == 0) continue;
            multiply_signed(high[tile], a[tile], queries.high[term - 1], queries.high[term], high[tile]);
            if constexpr (OWN == 2) multiply_unsigned(low[tile], a[tile], queries.low[term - 1], queries.low[term], low[tile]);
        }
        term++;
    };
    // Codes are selectors as they are, so they stay until the nibbles after them are done.
    auto replace = [&](int j) {
        if (KEY_HALVES && j % 2 == 0 && j + 1 < KEY_P) return;
#pragma unroll
        for (int tile = 0; tile < STEP; tile++) codes[tile].load(next(tile), lane, KEY_HALVES ? j / 2 : j, more);
    };
#pragma unroll
    for (int j = 0; j < KEY_GROUPS * KEY_P; j++) {
        const int phase = j % KEY_P;
#pragma unroll
        for (int tile = 0; tile < STEP; tile++) {
#pragma unroll
            for (int token = 0; token < TOKENS; token++) {
                now[tile][token].take(codes[tile].words[KEY_HALVES ? j / 2 : j], KEY_HALVES ? j % 2 : token);
            }
        }
#pragma unroll
        for (int i = KeyRate::first(phase); i < KeyRate::first(phase + 1); i++) put(i, true, phase > 0);
        if (phase == KEY_P - 1) {
#pragma unroll
            for (int i = 0; i < KEY_TERMS - KEY_Q; i++) put(i, false, false);
        }
        if (j > 0) replace(j - 1);
#pragma unroll
        for (int tile = 0; tile < STEP; tile++) {
#pragma unroll
            for (int token = 0; token < TOKENS; token++) before[tile][token] = now[tile][token];
        }
    }
    replace(KEY_GROUPS * KEY_P - 1);
}

// Weights of a step as operands of the matrix instruction, those of a column's query for tokens 4 t to 4 t + 3 of each tile. Of
// 8 queries column g is query g; of 4 it is g / 2, and odd columns have high bytes if there are any.
struct Weights {
    u32 high[STEP], low[STEP];
    float factor[OWN];

    __device__ __forceinline__ void load(const Slot& slot, int g, int t, float (&total)[OWN]) {
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            const uint2 four = *(const uint2*)&slot.weights[i][g * OWN / 2][2 * t];
            high[i] = permute(four.x, four.y, 0x7531), low[i] = permute(four.x, four.y, 0x6420);
            if (OWN == 1 && WEIGHT_BITS == 16 && g % 2) low[i] = high[i];
        }
        const u32 ones[4] = {0x01010101, 0x01010101, 0x01010101, 0x01010101};
        float sums[2 * OWN];
        weigh(sums, ones);
#pragma unroll
        for (int k = 0; k < OWN; k++) {
            factor[k] = slot.factor[OWN * t + k];
            total[k] += factor[k] * sums[k];
        }
    }

    // Weighted sums of the words' entries: of the lane's queries for rows g, then for rows g + 8.
    __device__ __forceinline__ void weigh(float (&sums)[2 * OWN], const u32 (&words)[4]) const {
        int x[4];
        if constexpr (WEIGHT_BITS == 8) {
            // At most 255 times 254 times 32, so that the integer is the end of a float32's mantissa.
            const int start[4] = {MAGIC, MAGIC, MAGIC, MAGIC};
            multiply_unsigned(x, words, low[0], low[1], start);
#pragma unroll
            for (int k = 0; k < 2 * OWN; k++) sums[k] = __int_as_float(x[k * 2 / OWN]) - __int_as_float(MAGIC);
        } else {
            int start[4] = {};
            if constexpr (OWN == 2) {
                multiply_unsigned(start, words, high[0], high[1], start);
#pragma unroll
                for (int k = 0; k < 4; k++) start[k] *= 256;
            }
            multiply_unsigned(x, words, low[0], low[1], start);
#pragma unroll
            for (int k = 0; k < 2 * OWN; k++) sums[k] = (float)(OWN == 2 ? x[k] : x[2 * k] + 256 * x[2 * k + 1]);
        }
    }
};

// Adds weighted entries of STEP tiles: sums[r] is dimension r of chunks g and g + 8 for the lane's queries, the last ones what
// the last nibble adds to the chunks that follow.
template <class Next>
__device__ __forceinline__ void accumulate(
    float (&sums)[VALUE_ROWS][2 * OWN], Codes<VALUE_BYTES> (&codes)[STEP], const Weights& weights, const Tables& tables, int lane,
    bool more, Next next
) {
    Picks now[STEP][SIDES], before[STEP][SIDES];
    // To a row of sums: what the nibbles that close dimension i give, those before them, or both.
    auto add = [&](int row, int i, bool closing, bool earlier) {
        const bool both = closing && earlier;
        const uint4 first = tables.table(i, !closing), second = both ? tables.table(i, 1) : make_uint4(0, 0, 0, 0);
        u32 words[4] = {};
#pragma unroll
        for (int tile = 0; tile < STEP; tile++) {
#pragma unroll
            for (int side = 0; side < SIDES; side++) {
                words[2 * tile + side] = pick(first, now[tile][side]);
                if (both) words[2 * tile + side] += pick(second, before[tile][side]);
            }
        }
        float x[2 * OWN];
        weights.weigh(x, words);
#pragma unroll
        for (int k = 0; k < 2 * OWN; k++) sums[row][k] += weights.factor[k % OWN] * x[k];
    };
    auto replace = [&](int j) {
        if (SIDES == 1 && j % 2 == 0 && j + 1 < VALUE_NIBBLES) return;
#pragma unroll
        for (int tile = 0; tile < STEP; tile++) codes[tile].load(next(tile), lane, SIDES == 2 ? j : j / 2, more);
    };
#pragma unroll
    for (int j = 0; j < VALUE_NIBBLES; j++) {
#pragma unroll
        for (int tile = 0; tile < STEP; tile++) {
#pragma unroll
            for (int side = 0; side < SIDES; side++) {
                now[tile][side].take(codes[tile].words[SIDES == 2 ? j : j / 2], SIDES == 2 ? side : j % 2);
            }
        }
#pragma unroll
        for (int row = ValueRate::first(j); row < ValueRate::first(j + 1); row++) add(row, row % VALUE_Q, true, j > 0);
        if (j == VALUE_NIBBLES - 1) {
#pragma unroll
            for (int i = 0; i < CARRIED; i++) add(VALUE_CHUNK + i, i, false, false);
        }
        if (j > 0) replace(j - 1);
#pragma unroll
        for (int tile = 0; tile < STEP; tile++) {
#pragma unroll
            for (int side = 0; side < SIDES; side++) before[tile][side] = now[tile][side];
        }
    }
    replace(VALUE_NIBBLES - 1);
}
